"""The tensors between processor and model; objects and scenes of a batch lie one after another, not padded.

Every distinct frame of the batch passes the vision tower once, and scenes and masks point at it by its place.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class SceneIndex(NamedTuple):
    """Which frames show each scene.

    `frame_index` (sum of `num_frames`,) long, places in the batch's frames, scene after scene, each in time order;
    `num_frames` (scenes,) long. Scenes are in the order of their placeholders in the batch.
    """

    frame_index: Tensor
    num_frames: Tensor


class MaskBatch(NamedTuple):
    """Masks of all objects of a batch, M in all, object after object.

    `weights` (M, h, w) float, how far each cell of the tower's grid belongs to the object: covered share, or 0 and 1
    with `paper_exact`. `frame_index` (M,) long, its place in the batch's frames. `object_index` (M,) long, rising from
    0, the objects in the order of their `<region>` in the batch. `boxes` (M, 4) float, xyxy as shares of width and
    height. `times` (M,) float, share of the scene's span that has passed.
    """

    weights: Tensor
    frame_index: Tensor
    object_index: Tensor
    boxes: Tensor
    times: Tensor

    @property
    def num_objects(self) -> int:
        """How many objects the masks are of."""
        return int(self.object_index[-1]) + 1 if len(self.object_index) else 0


class ObjectTokens(NamedTuple):
    """What an object encoder gives: `tokens` (sum of `num_tokens`, hidden), object after object, each in time order;
    `num_tokens` (objects,) long.
    """

    tokens: Tensor
    num_tokens: Tensor


def offsets(lengths: Tensor) -> Tensor:
    """Where each of consecutive runs of `lengths` (N,) begins, (N,) long."""
    return torch.cumsum(lengths, 0) - lengths
