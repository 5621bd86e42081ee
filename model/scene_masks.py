"""The masks of a request's objects as weights on the tower's grid, with the frame, box and time of each.

Objects keep the frames they are seen on, in time order. The official loader keeps frames without the object too, whose
zero features dilute the merged tokens, and the frames' order follows the keys of a JSON object; `paper_exact` does so.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.mask_grid import box_xyxy, coverage_weights, official_weights
from model.request import ObjectRegion, Request, RequestError, Scene

NO_FRAME = -1
"""Stands for the frame of a mask that is kept though its object is absent: no pixel of the frame is needed."""


class SceneMasks(NamedTuple):
    """The masks of all objects of one request, object after object, M in all.

    `weights` (M, h, w), `boxes` (M, 4) and `times` (M,) float32 as in `model.inputs.MaskBatch`; `frames` (M,) long,
    places in `Scene.frames` or `NO_FRAME`; `per_object` (objects,) long, how many masks each object has.
    """

    weights: Tensor
    frames: Tensor
    boxes: Tensor
    times: Tensor
    per_object: Tensor


def scene_masks(request: Request, grid_size: tuple[int, int], paper_exact: bool) -> SceneMasks:
    """Masks on a grid of `grid_size` (rows, columns) cells.

    By default only masks that show something, in time order, as covered shares; with `paper_exact` all of them in the
    order given, as zeros and ones. Raises `RequestError` for arrays that do not fit the scene and, but for
    `paper_exact`, for an object that no frame shows.
    """
    scene = request.scene
    if scene is None:
        if request.objects:
            raise RequestError("scene", f"{len(request.objects)} objects without a scene; give the frames they are on")
    else:
        _check_scene(scene)
    parts = [_none(grid_size)]
    for number, region in enumerate(request.objects):
        assert scene is not None
        _check_region(number, region, len(scene.frames))
        parts.append(_of_object(number, region, scene, grid_size, paper_exact))
    return SceneMasks(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _none(grid_size: tuple[int, int]) -> SceneMasks:
    nothing = torch.empty(0, dtype=torch.long)
    rows, boxes, times = (torch.empty(0, *size, dtype=torch.float32) for size in (grid_size, (4,), ()))
    return SceneMasks(rows, nothing, boxes, times, nothing)


def _of_object(
    number: int, region: ObjectRegion, scene: Scene, grid_size: tuple[int, int], paper_exact: bool
) -> SceneMasks:
    shown = {place: mask for place, mask in enumerate(region.masks) if mask is not None and mask.any()}
    if not shown and not paper_exact:
        raise RequestError(
            "invisible", f"object {number} is seen on none of its {len(region.frames)} frames; at least one is needed"
        )
    kept = list(range(len(region.masks))) if paper_exact else sorted(shown, key=lambda place: region.frames[place])
    weights, boxes = (torch.zeros(len(kept), *size, dtype=torch.float32) for size in (grid_size, (4,)))
    to_grid = official_weights if paper_exact else coverage_weights
    for size_px in {mask.shape for mask in shown.values()}:
        rows = [row for row, place in enumerate(kept) if place in shown and shown[place].shape == size_px]
        masks = torch.from_numpy(np.stack([shown[kept[row]] for row in rows]))
        weights[rows], boxes[rows] = to_grid(masks, grid_size), box_xyxy(masks)
    return SceneMasks(
        weights,
        torch.tensor([region.frames[place] if place in shown else NO_FRAME for place in kept]),
        boxes,
        torch.tensor([_time_share(scene, region.frames[place]) for place in kept]),
        torch.tensor([len(kept)]),
    )


def _time_share(scene: Scene, frame: int) -> float:
    """Share of the span that has passed when the frame is shown; 0 in an image, which has no span."""
    span_s = scene.end_s - scene.start_s
    if scene.is_image or span_s <= 0:
        return 0.0
    return min(max((scene.times_s[frame] - scene.start_s) / span_s, 0.0), 1.0)


def _check_scene(scene: Scene) -> None:
    frames, shown = scene.frames, scene.shown
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise RequestError(
            "scene", f"frames are {frames.shape} of {frames.dtype}; allowed is (frames, height, width, 3) of uint8"
        )
    if len(scene.times_s) != len(frames):
        raise RequestError("scene", f"{len(scene.times_s)} times for {len(frames)} frames; each frame needs one")
    if not shown or list(shown) != sorted(set(shown)) or shown[0] < 0 or shown[-1] >= len(frames):
        raise RequestError(
            "scene", f"the shown frames are {shown}; allowed are one or more rising places from 0 to {len(frames) - 1}"
        )
    if scene.is_image and len(frames) > 1:
        raise RequestError("scene", f"an image of {len(frames)} frames; an image has one")


def _check_region(number: int, region: ObjectRegion, num_frames: int) -> None:
    if not region.frames or len(region.frames) != len(region.masks):
        raise RequestError(
            "masks", f"object {number} has {len(region.masks)} masks on {len(region.frames)} frames; each frame needs "
            "one mask or None, and an object at least one frame"
        )  # fmt: skip
    if not all(0 <= frame < num_frames for frame in region.frames):
        raise RequestError(
            "masks", f"object {number} has masks on frames {region.frames}; allowed are 0 to {num_frames - 1}"
        )
    for mask in region.masks:
        if mask is not None and (mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0):
            raise RequestError(
                "masks", f"object {number} has a mask {mask.shape} of {mask.dtype}; allowed is (height, width) of bool"
            )
