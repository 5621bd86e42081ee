"""From features of frames and masks of objects to the tokens that stand for each in the text (paper section 3.2).

Spatial Token Extractor (mean of the features under the mask), Temporal Token Merge, then an MLP into the language
model's width. Every object of a batch goes through together, whatever frames it is on and however many objects share
a frame.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from model.inputs import MaskBatch, ObjectTokens, offsets
from model.object_position import ObjectPosition
from model.token_merge import merge

SMALLEST_SUM = 1e-8
"""What weights are divided by at least; one pixel's share of a cell is more, up to 10^8 pixels."""


class ObjectEncoder(Protocol):
    """Anything that turns frames and masks into object tokens."""

    def __call__(self, features: Tensor, masks: MaskBatch) -> ObjectTokens:
        """Tokens of all objects of `masks` from `features` (F, h, w, D) of the batch's frames."""
        ...


class SpatialTemporalObjectEncoder(nn.Module):
    """The paper's object encoder, Linear-GELU-Linear as its MLP.

    By default masks weigh cells by covered share (see `model.mask_grid`), masks without any weight are left out, an
    object's masks are taken in time order, and exactly `num_object_tokens` (u) tokens are left of an object seen on
    more frames. `paper_exact` is the official arithmetic: masks in the order given, one without weight counts as a row
    of zeros, equal similarities are all merged. `object_position` adds box and time, see `model.object_position`.
    """

    def __init__(
        self, in_channels: int, hidden_size: int, num_object_tokens: int, object_position: bool, paper_exact: bool
    ) -> None:
        super().__init__()
        if paper_exact and object_position:
            raise ValueError("got paper_exact with object_position, which the official encoder lacks: switch off one")
        if num_object_tokens < 1:
            raise ValueError(f"got num_object_tokens {num_object_tokens}; an object is allowed 1 token or more")
        self.num_object_tokens = num_object_tokens
        self.paper_exact = paper_exact
        self.mlp = nn.Sequential(nn.Linear(in_channels, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.position = ObjectPosition(hidden_size) if object_position else None

    def forward(self, features: Tensor, masks: MaskBatch) -> ObjectTokens:
        """Tokens in the dtype of the MLP; `features` (F, h, w, D), the cells of the masks' weights being its (h, w).

        An object none of whose masks has weight gets no token, or with `paper_exact` one made of zero features. No
        objects give (0, hidden) tokens, through all parameters all the same.
        """
        num_objects = masks.num_objects
        if not self.paper_exact:
            masks = in_time_order(masks)
        rows = pool(features, masks.weights, masks.frame_index)
        lengths = torch.bincount(masks.object_index, minlength=num_objects)
        merged = merge(rows, lengths, self.num_object_tokens, ties_join=self.paper_exact)
        tokens: Tensor = self.mlp(merged.tokens.to(next(self.parameters()).dtype))
        if self.position is not None:
            tokens = tokens + self.position(masks.boxes, masks.times, merged)
        return ObjectTokens(tokens, merged.num_tokens)


def in_time_order(masks: MaskBatch) -> MaskBatch:
    """The masks that have any weight, each object's in time order; those at one time stay in the order given."""
    kept = masks.weights.flatten(1).any(1).nonzero()[:, 0]
    kept = kept[masks.times[kept].argsort(stable=True)]
    kept = kept[masks.object_index[kept].argsort(stable=True)]
    return MaskBatch(*(field[kept] for field in masks))


def pool(features: Tensor, weights: Tensor, frame_index: Tensor) -> Tensor:
    """Mean of the features (F, h, w, D) under each mask, weighted: (M, D) in float32.

    `weights` (M, h, w), not negative, `frame_index` (M,) long. Weights of zero give a row of zeros. For weights of 0
    and 1 this is the official mean, whose denominator, sum + 1e-8, is in float32 the sum itself or 1e-8. The work is
    one batched product over the frames that hold masks, each with its masks side by side; no feature is copied for a
    mask. Raises ValueError where grid or frames are not those of the features.
    """
    if weights.shape[1:] != features.shape[1:3]:
        raise ValueError(
            f"got weights on a grid of {tuple(weights.shape[1:])} cells for features on {tuple(features.shape[1:3])}: "
            "make the masks with the grid of the vision tower"
        )
    shares = weights.flatten(1).float()
    shares = shares / shares.sum(1, keepdim=True).clamp(min=SMALLEST_SUM)
    used, place, counts = frame_index.unique(return_inverse=True, return_counts=True)
    if len(used) and (used[0] < 0 or used[-1] >= len(features)):
        raise ValueError(
            f"got masks on frames {int(used[0])} to {int(used[-1])} for features of {len(features)} frames: count the "
            "places of frames from the batch's first"
        )
    order = place.argsort(stable=True)
    slot = torch.empty_like(order)
    slot[order] = torch.arange(len(order), device=order.device) - offsets(counts)[place[order]]
    most = int(counts.max()) if len(counts) else 0
    by_frame = shares.new_zeros(len(used), most, shares.shape[1])
    by_frame[place, slot] = shares
    cells = (features if len(used) == len(features) else features[used]).flatten(1, 2)
    # as the official code: rounded means would compare otherwise, and other frames would merge
    with torch.autocast(features.device.type, enabled=False):
        return torch.bmm(by_frame, cells.float())[place, slot]
