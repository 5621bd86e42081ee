"""Masks in pixels to weights on the vision tower's grid of cells.

The paper pools features over the mask and does not say how the mask comes to the grid. The official code samples it at
one point per cell, so that objects between the points vanish: 74 % of all 8 px squares at 640 x 360 on 27 x 27 cells.
`coverage_weights` measures instead how much of each cell the mask covers; `official_weights` keeps their rule.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor

MASKS_AT_ONCE = 8
"""Masks turned to float together: few enough to stay in the processor's cache."""


def coverage_weights(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share of each cell's area that a mask covers; some share is above 0 wherever a single pixel is set.

    `masks` (N, H, W) bool of any height and width, also fewer pixels than cells; `grid` the cells' (rows, columns).
    Returns (N, rows, columns) float32 in 0..1 on the device of the masks. Sums are of whole numbers, hence exact up to
    2^24 pixels.
    """
    height_px, width_px = _size_px(masks)
    rows, columns = _overlaps(height_px, grid[0], masks.device), _overlaps(width_px, grid[1], masks.device)
    covered = rows.new_zeros(len(masks), *grid)
    for start in range(0, len(masks), MASKS_AT_ONCE):
        some = masks[start : start + MASKS_AT_ONCE]
        touched = some.view(torch.uint8).amax(0)  # many times faster than any(), here and below
        y, x = _span(touched.amax(1)), _span(touched.amax(0))
        covered[start : start + MASKS_AT_ONCE] = rows[:, y] @ some[:, y, x].to(torch.float32) @ columns[:, x].T
    return covered / (height_px * width_px)


def official_weights(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """1 where the mask, interpolated bilinearly at the cell's centre, is above 0 (official `MaskPooling`), else 0.

    Takes and returns what `coverage_weights` does. An object that lies between the centres' neighbours gets zeros only.
    """
    _size_px(masks)
    sampled = [
        F.interpolate(some[:, None].to(torch.float32), grid, mode="bilinear", align_corners=False)[:, 0] > 0
        for some in masks.split(MASKS_AT_ONCE)
    ]
    return torch.cat(sampled).to(torch.float32)


def box_xyxy(masks: Tensor) -> Tensor:
    """Smallest box around each mask as shares of width and height: left, top, right, bottom, half-open.

    `masks` (N, H, W) bool; returns (N, 4) float32, zeros where nothing is set.
    """
    _size_px(masks)
    top, bottom = _extent(masks.view(torch.uint8).amax(-1))
    left, right = _extent(masks.view(torch.uint8).amax(-2))
    return torch.stack([left, top, right, bottom], -1)


def _size_px(masks: Tensor) -> tuple[int, int]:
    """Height and width of the masks; ValueError unless they are (N, H, W) bool with pixels."""
    if masks.dtype != torch.bool or masks.ndim != 3 or 0 in masks.shape[1:]:
        raise ValueError(
            f"got masks {tuple(masks.shape)} of {masks.dtype}; allowed are bool masks (N, H, W) with pixels: stack one "
            "object's masks of one size"
        )
    return masks.shape[1], masks.shape[2]


def _overlaps(length_px: int, cells: int, device: torch.device) -> Tensor:
    """How much of each pixel (columns) lies in each cell (rows) along one axis, (cells, length_px) float32.

    The unit is 1 / cells of a pixel, in which cells and pixels begin and end at whole numbers and a cell is
    `length_px` long.
    """
    pixels = torch.arange(length_px, device=device) * cells
    starts = torch.arange(cells, device=device)[:, None] * length_px
    shared = torch.minimum(starts + length_px, pixels + cells) - torch.maximum(starts, pixels)
    return shared.clamp(min=0).to(torch.float32)


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First place above 0 and the one after the last as shares of the length: `occupied` (N, length) to (N,)."""
    length = occupied.shape[-1]
    start, end = occupied.argmax(-1), length - occupied.flip(-1).argmax(-1)
    return start / length, torch.where(occupied.amax(-1) > 0, end, 0) / length


def _span(occupied: Tensor) -> slice:
    """From the first place above 0 through the last; nothing where there is none."""
    places = occupied.nonzero()[:, 0].tolist()
    return slice(places[0], places[-1] + 1) if places else slice(0, 0)
