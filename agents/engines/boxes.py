"""Geometry of boxes: left, top, right, bottom in pixels, half-open."""

import numpy as np

from schemas.record import BoxXyxyPx


def box_iou(a: BoxXyxyPx, b: BoxXyxyPx) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def mixed_box(a: BoxXyxyPx, b: BoxXyxyPx, share_of_b: float) -> BoxXyxyPx:
    """The weighted mean of two boxes: `a` at share 0, `b` at 1."""
    x1, y1, x2, y2 = ((1 - share_of_b) * one + share_of_b * other for one, other in zip(a, b, strict=True))
    return (x1, y1, x2, y2)


def box_distance(a: BoxXyxyPx, b: BoxXyxyPx) -> float:
    """Distance of the centres in mean diagonals; 9 where the sizes differ by more than 2.5 times, which is too far."""
    diagonal_a, diagonal_b = np.hypot(a[2] - a[0], a[3] - a[1]), np.hypot(b[2] - b[0], b[3] - b[1])
    if not 0.4 <= diagonal_a / diagonal_b <= 2.5:
        return 9.0
    apart = np.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2
    return float(apart / ((diagonal_a + diagonal_b) / 2))


def inner_share(box_xyxy_px: BoxXyxyPx, height_px: int, width_px: int) -> float:
    """The share of the box that lies in the image."""
    x1, y1, x2, y2 = box_xyxy_px
    seen = max(0.0, min(x2, width_px) - max(x1, 0.0)) * max(0.0, min(y2, height_px) - max(y1, 0.0))
    return seen / ((x2 - x1) * (y2 - y1))


def is_in_sight(box_xyxy_px: BoxXyxyPx, height_px: int, width_px: int) -> bool:
    """Whether at least a third of the box lies in the image."""
    return inner_share(box_xyxy_px, height_px, width_px) >= 1 / 3
