"""The mask codec: COCO compressed run-length encoding, column-major, as pycocotools writes it."""

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from schemas.record import BoxXyxyPx

Mask = npt.NDArray[np.bool_]
"""(height, width), True on the object."""


def encode(mask: Mask) -> str:
    """COCO counts of a (height, width) mask, any dtype, non-zero on the object."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has 2 dimensions (height, width), got shape {mask.shape}")
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return str(rle["counts"].decode("ascii"))


def decode(counts: str, height_px: int, width_px: int) -> Mask:
    """The (height, width) mask of COCO counts; counts of another size are refused."""
    # pycocotools writes past or short of the buffer where the runs do not add up, so they are added up first
    if (total := sum(run_lengths(counts))) != height_px * width_px:
        raise ValueError(f"RLE covers {total} pixels, expected {height_px} x {width_px} = {height_px * width_px}")
    return np.asarray(coco.decode(_rle(counts, height_px, width_px)), dtype=np.bool_)


def area_px(counts: str) -> int:
    """Pixels on the object."""
    return sum(run_lengths(counts)[1::2])


def box_xyxy_px(counts: str, height_px: int, width_px: int) -> BoxXyxyPx:
    """The tight box around the object, half-open; zeros for an empty mask."""
    x, y, w, h = (float(v) for v in coco.toBbox(_rle(counts, height_px, width_px)))
    return (x, y, x + w, y + h)


def run_lengths(counts: str) -> list[int]:
    """The run lengths behind a COCO counts string, background first.

    Each run is written in groups of five bits, low first, as characters from code 48; bit 32 of a character says that
    more follow, and from the third run on the difference to the run before last is written (pycocotools'
    `rleFrString`).
    """
    runs: list[int] = []
    value = shift = 0
    for char in counts:
        code = ord(char) - 48
        if not 0 <= code < 64:
            raise ValueError(f"not a COCO counts string: got character {char!r}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("a COCO counts string ends in the middle of a run")
    if any(run < 0 for run in runs):
        raise ValueError("a COCO counts string holds a negative run")
    return runs


def _rle(counts: str, height_px: int, width_px: int) -> dict[str, object]:
    return {"size": [height_px, width_px], "counts": counts.encode("ascii")}
