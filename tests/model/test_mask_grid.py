import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.mask_grid import box_xyxy, coverage_weights, official_weights

HEIGHT_PX, WIDTH_PX = 360, 640
GRID = (27, 27)
"""SigLIP so400m: 384 px in patches of 14."""

OFFICIAL_LOSS = {8: 0.738, 12: 0.455, 16: 0.278, 20: 0.113, 24: 0.0}
"""Side of a square in pixels to the share of all its positions at which the official weights are all zero."""

sizes = st.integers(1, 40)


Weigh = Callable[[Tensor, tuple[int, int]], Tensor]


def squares(side_px: int, step_yx_px: tuple[int, int]) -> Tensor:
    """Squares on every `step`-th position of a frame, the last one of each axis included."""
    rooms = (HEIGHT_PX - side_px, WIDTH_PX - side_px)
    tops, lefts = ([*range(0, room, step), room] for room, step in zip(rooms, step_yx_px, strict=True))
    masks = torch.zeros(len(tops) * len(lefts), HEIGHT_PX, WIDTH_PX, dtype=torch.bool)
    for mask, (top, left) in zip(masks, itertools.product(tops, lefts), strict=True):
        mask[top : top + side_px, left : left + side_px] = True
    return masks


def share_seen(weigh: Weigh, masks: Tensor, grid: tuple[int, int]) -> float:
    return float(weigh(masks, grid).flatten(1).any(1).float().mean())


def share_seen_anywhere(weigh: Weigh, side_px: int) -> float:
    """Share of all positions of a square at which it has weight: weights of a box are products along both axes."""
    bars = [
        torch.ones(length_px, length_px, dtype=torch.bool).triu().tril(side_px - 1)[: length_px - side_px + 1]
        for length_px in (HEIGHT_PX, WIDTH_PX)
    ]
    return share_seen(weigh, bars[0][:, :, None], (GRID[0], 1)) * share_seen(weigh, bars[1][:, None], (1, GRID[1]))


def slow_coverage(mask: Tensor, grid: tuple[int, int]) -> list[list[Fraction]]:
    """Cell by cell and pixel by pixel: area of each set pixel inside the cell over the cell's area."""
    height, width = mask.shape
    rows, columns = grid
    cell_height, cell_width = Fraction(height, rows), Fraction(width, columns)
    shares = [[Fraction(0)] * columns for _ in range(rows)]
    for (i, j), (y, x) in itertools.product(
        itertools.product(range(rows), range(columns)), [tuple(place) for place in mask.nonzero().tolist()]
    ):
        down = min((i + 1) * cell_height, Fraction(y + 1)) - max(i * cell_height, Fraction(y))
        across = min((j + 1) * cell_width, Fraction(x + 1)) - max(j * cell_width, Fraction(x))
        shares[i][j] += max(down, Fraction(0)) * max(across, Fraction(0)) / (cell_height * cell_width)
    return shares


def slow_official(mask: Tensor, grid: tuple[int, int]) -> list[list[float]]:
    """1 where any of the at most four pixels between which the cell's centre is interpolated is set, and weighs."""
    height, width = mask.shape
    rows, columns = grid

    def neighbours(cell: int, cells: int, length: int) -> list[int]:
        place = max((Fraction(2 * cell + 1, 2)) * length / cells - Fraction(1, 2), Fraction(0))
        low = math.floor(place)
        return [low] if place == low else [low, min(low + 1, length - 1)]

    return [
        [
            float(any(mask[y, x] for y in neighbours(i, rows, height) for x in neighbours(j, columns, width)))
            for j in range(columns)
        ]
        for i in range(rows)
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.sampled_from([0.02, 0.5, 1.0]),
)
def test_coverage_is_the_exact_share_of_each_cell(
    height: int, width: int, rows: int, columns: int, seed: int, density: float
) -> None:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < density
    expected = torch.tensor([[float(s) for s in row] for row in slow_coverage(mask, (rows, columns))])
    assert torch.equal(coverage_weights(mask[None], (rows, columns))[0], expected)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.data())
def test_one_pixel_anywhere_in_a_frame_of_any_size_has_weight(height: int, width: int, data: st.DataObject) -> None:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    weights = coverage_weights(mask, GRID)
    assert math.isclose(float(weights.sum()), 27 * 27 / (height * width), rel_tol=1e-5)


def test_a_full_mask_covers_each_cell_wholly_and_an_empty_one_none() -> None:
    masks = torch.stack([torch.ones(HEIGHT_PX, WIDTH_PX), torch.zeros(HEIGHT_PX, WIDTH_PX)]).bool()
    weights = coverage_weights(masks, GRID)
    assert weights.dtype == torch.float32
    assert torch.equal(weights[0], torch.ones(GRID))
    assert torch.equal(weights[1], torch.zeros(GRID))


def test_many_masks_are_weighed_as_each_alone() -> None:
    masks = torch.rand(21, 13, 17, generator=torch.Generator().manual_seed(0)) < 0.3
    for weigh in (coverage_weights, official_weights):
        together = weigh(masks, (5, 4))
        assert together.shape == (21, 5, 4)
        assert torch.equal(together, torch.cat([weigh(mask[None], (5, 4)) for mask in masks]))


@pytest.mark.parametrize("weigh", [coverage_weights, official_weights])
def test_no_masks_give_no_weights(weigh: Weigh) -> None:
    assert weigh(torch.zeros(0, 9, 9, dtype=torch.bool), (3, 4)).shape == (0, 3, 4)


@pytest.mark.parametrize("weigh", [coverage_weights, official_weights, lambda masks, _: box_xyxy(masks)])
@pytest.mark.parametrize("masks", [torch.ones(1, 4, 4), torch.ones(4, 4).bool(), torch.ones(1, 0, 4).bool()])
def test_what_is_no_stack_of_masks_is_refused(weigh: Weigh, masks: Tensor) -> None:
    with pytest.raises(ValueError, match="allowed are bool masks"):
        weigh(masks, (2, 2))


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(0, 2**32))
def test_official_weights_sample_the_cells_centres(height: int, width: int, seed: int) -> None:
    # grids of 2^n cells: the sampled places are then exact in binary
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.1
    assert torch.equal(official_weights(mask[None], (8, 4))[0], torch.tensor(slow_official(mask, (8, 4))))


@pytest.mark.parametrize("side_px", range(1, 25))
def test_no_square_vanishes_by_coverage(side_px: int) -> None:
    assert share_seen(coverage_weights, squares(side_px, (31, 43)), GRID) == 1
    assert share_seen_anywhere(coverage_weights, side_px) == 1


@pytest.mark.parametrize(("side_px", "lost"), OFFICIAL_LOSS.items())
def test_squares_vanish_by_the_official_weights(side_px: int, lost: float) -> None:
    assert 1 - share_seen(official_weights, squares(side_px, (13, 17)), GRID) == pytest.approx(lost, abs=0.06)
    assert 1 - share_seen_anywhere(official_weights, side_px) == pytest.approx(lost, abs=0.001)


@pytest.mark.parametrize("weigh", [coverage_weights, official_weights])
@given(st.integers(0, 359), st.integers(0, 639), st.integers(1, 360), st.integers(1, 640))
@settings(max_examples=20, deadline=None)
def test_weights_of_a_box_are_products_along_both_axes(
    weigh: Weigh, top: int, left: int, height: int, width: int
) -> None:
    down, across = torch.zeros(1, HEIGHT_PX, 1, dtype=torch.bool), torch.zeros(1, 1, WIDTH_PX, dtype=torch.bool)
    down[:, top : top + height] = True
    across[..., left : left + width] = True
    product = weigh(down, (GRID[0], 1)) * weigh(across, (1, GRID[1]))
    assert torch.allclose(weigh(down & across, GRID), product, rtol=1e-5, atol=0)


def test_a_box_is_tight_and_half_open() -> None:
    masks = torch.zeros(3, 10, 20, dtype=torch.bool)
    masks[0, 2:5, 4:14] = True
    masks[1, 9, 19] = True
    boxes = box_xyxy(masks)
    assert torch.equal(boxes, torch.tensor([[0.2, 0.2, 0.7, 0.5], [0.95, 0.9, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    assert box_xyxy(masks[:0]).shape == (0, 4)
