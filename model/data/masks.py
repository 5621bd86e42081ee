"""Stored masks to arrays: COCO compressed runs, uncompressed runs and polygons, each held against its frame.

What files hold is not trusted: sizes and coordinates are checked before pycocotools sees them.
"""

import math

import numpy as np
from pycocotools import mask as coco

from infra.video import MAX_FRAME_PX
from model.data.item import BadItemError, Polygons, RunLengths, StoredMask
from schemas.mask import Mask, decode

_MAX_STRETCH = 1.05
"""A mask's aspect ratio may differ this much from its frame's: encoders pad frames to whole blocks (360 to 368)."""


def mask_of(stored: StoredMask, frame_size_px: tuple[int, int]) -> Mask | None:
    """The (height, width) mask, at its own size; None where it is null or has no pixel.

    `frame_size_px` is (height, width) of the frame as displayed, before any shrinking. Raises BadItemError (bad_mask).
    """
    if stored is None:
        return None
    try:
        mask = _runs(stored) if isinstance(stored, RunLengths) else _filled(stored, frame_size_px)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadItemError("bad_mask", f"{type(stored).__name__}: {error}") from error
    (height_px, width_px), (frame_height_px, frame_width_px) = mask.shape, frame_size_px
    stretch = height_px * frame_width_px / (width_px * frame_height_px)
    if not 1 / _MAX_STRETCH <= stretch <= _MAX_STRETCH:
        frame = f"{frame_width_px} x {frame_height_px}"
        raise BadItemError("bad_mask", f"a mask of {width_px} x {height_px} pixels does not fit frames of {frame}")
    return mask if mask.any() else None


def _runs(stored: RunLengths) -> Mask:
    height_px, width_px = _checked_size((stored.height_px, stored.width_px))
    if isinstance(stored.counts, str):
        return decode(stored.counts, height_px, width_px)
    runs = np.asarray(stored.counts, np.int64)
    if (runs < 0).any() or runs.sum() != height_px * width_px:
        raise ValueError(f"runs must add up to {height_px} x {width_px} pixels, got {int(runs.sum())}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width_px, height_px).T


def _filled(stored: Polygons, frame_size_px: tuple[int, int]) -> Mask:
    height_px, width_px = _checked_size(stored.size_px or frame_size_px)
    limit_px = 2 * max(height_px, width_px)  # pycocotools walks every edge pixel by pixel
    for points in stored.points:
        if len(points) < 6 or len(points) % 2:
            raise ValueError(f"a polygon has x, y of at least 3 points, got {len(points)} numbers")
        if not all(math.isfinite(value) and abs(value) <= limit_px for value in points):
            raise ValueError(f"a polygon lies outside its frame of {width_px} x {height_px} pixels")
    parts = coco.frPyObjects([list(points) for points in stored.points], height_px, width_px)
    return np.asarray(coco.decode(coco.merge(parts)), np.bool_)


def _checked_size(size_px: tuple[int, int]) -> tuple[int, int]:
    height_px, width_px = size_px
    if height_px < 1 or width_px < 1 or height_px * width_px > MAX_FRAME_PX:
        raise ValueError(f"a mask of {width_px} x {height_px} pixels; 1 to {MAX_FRAME_PX} are allowed")
    return height_px, width_px
