"""The mask codec: COCO compressed run-length encoding, column-major, as pycocotools writes it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from schemas.record import BoxXyxyPx

Mask = npt.NDArray[np.bool_]
"""(height, width), True on the object."""

_MAX_GROUPS = 7
"""Of five bits, which hold what pycocotools' runs of 32 bits can differ by."""


def encode(mask: Mask) -> str:
    """COCO counts of a (height, width) mask, any dtype, non-zero on the object."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has 2 dimensions (height, width), got shape {mask.shape}")
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return str(rle["counts"].decode("ascii"))


def decode(counts: str, height_px: int, width_px: int) -> Mask:
    """The (height, width) mask of COCO counts; counts of another size are refused."""
    check_size(counts, height_px, width_px)
    return np.asarray(coco.decode(_rle(counts, height_px, width_px)), dtype=np.bool_)


def check_size(counts: str, height_px: int, width_px: int) -> None:
    """Raises ValueError where counts are not those of a mask of this size.

    Given runs that do not add up, pycocotools writes past or short of its buffer, and its IoU never returns.
    """
    if (total := int(_runs(counts).sum())) != height_px * width_px:
        raise ValueError(f"RLE covers {total} pixels, expected {height_px} x {width_px} = {height_px * width_px}")


def area_px(counts: str) -> int:
    """Pixels on the object."""
    return int(_runs(counts)[1::2].sum())


def box_xyxy_px(counts: str, height_px: int, width_px: int) -> BoxXyxyPx:
    """The tight box around the object, half-open; zeros for an empty mask."""
    x, y, w, h = (float(v) for v in coco.toBbox(_rle(counts, height_px, width_px)))
    return (x, y, x + w, y + h)


def centroid_xy_px(counts: str, height_px: int, width_px: int) -> tuple[float, float]:
    """Mean x and y of the object's pixels; counts of another size and empty masks are refused."""
    check_size(counts, height_px, width_px)
    runs = _runs(counts)
    if not (area := int(runs[1::2].sum())):
        raise ValueError("an empty mask has no centroid")
    whole, rest = np.divmod(runs.cumsum(), height_px)  # columns before each run's end
    sum_x = whole * (whole - 1) // 2 * height_px + whole * rest  # of all pixels before it
    sum_y = height_px * (height_px - 1) // 2 * whole + rest * (rest - 1) // 2
    x, y = (int(np.diff(sums)[::2].sum()) / area for sums in (sum_x, sum_y))
    return (x, y)


def rle_iou(one: Sequence[str | None], other: Sequence[str | None], size_px: tuple[int, int]) -> float:
    """Mean IoU of two objects over the frames that show both, 0 without one.

    Both have counts for the same frames, of masks of this (height, width), which `check_size` makes sure of.
    """
    both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    rles = [[_rle(counts, *size_px) for counts in pair] for pair in both]
    return float(np.mean([coco.iou([a], [b], [False])[0, 0] for a, b in rles])) if both else 0.0


def run_lengths(counts: str) -> list[int]:
    """The run lengths behind a COCO counts string, background first. Raises ValueError for a malformed string."""
    return [int(run) for run in _runs(counts)]


def _runs(counts: str) -> npt.NDArray[np.int64]:
    """Each run is written in groups of five bits, low first, as characters from code 48: bit 32 of a character says
    that more follow, bit 16 of the last one is the sign, and from the fourth run on the difference to the run before
    last is written (pycocotools' `rleFrString`).
    """
    groups = np.frombuffer(str.encode(counts), np.uint8).astype(np.int64) - 48
    if not len(groups):
        return groups
    if groups.min() < 0 or groups.max() >= 64:
        odd = next(char for char in counts if not 48 <= ord(char) < 112)
        raise ValueError(f"not a COCO counts string: got character {odd!r}")
    if groups[-1] >= 32:
        raise ValueError("a COCO counts string ends in the middle of a run")
    last = np.flatnonzero(groups < 32)
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > _MAX_GROUPS:
        raise ValueError("a COCO counts string holds a run longer than any frame")
    place = np.arange(len(groups)) - np.repeat(first, length)
    runs = np.add.reduceat((groups & 31) << 5 * place, first)
    runs[groups[last] >= 16] -= 1 << 5 * length[groups[last] >= 16]
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    if runs.min() < 0 or runs.max() >= 1 << 32:  # sums of others hold in 64 bits
        raise ValueError(f"a COCO counts string holds runs of {runs.min()} to {runs.max()} pixels")
    return runs


def _rle(counts: str, height_px: int, width_px: int) -> dict[str, object]:
    return {"size": [height_px, width_px], "counts": counts.encode("ascii")}
