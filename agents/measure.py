"""Facts measured from masks and pixels: colour names, places, sizes, motion, contact.

Everything is in the image plane; lengths are shares of the frame's diagonal, so that they hold for any frame size.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from schemas.caption import ColourShare, MotionFacts
from schemas.mask import area_px, box_xyxy_px, centroid_xy_px, decode
from schemas.record import BoxXyxyPx
from schemas.track import ObjectMasks
from schemas.words import COLOURS, Colour, Direction, Place, Size, Speed

MIN_COLOUR_SHARE = 0.15

MIN_MOVE_DIAG = 0.05
"""Shorter displacements may be jitter: masks of a standing bicycle in a hand-held clip were seen to drift by 0.033."""
MIN_GROWTH = 1.4
"""Ratio of mask areas from which (or under its inverse) a growing object comes toward or goes away."""
SLOW_BELOW_DIAG_PER_S = 0.08
FAST_FROM_DIAG_PER_S = 0.25
"""About eleven and three and a half seconds to cross a 16:9 frame."""

SMALL_BELOW = 0.03
LARGE_FROM = 0.15

CONTACT_GAP_DIAG = 0.005
"""Masks this near touch: their borders are no better known (4 px of a 640 x 480 frame)."""
CONTACT_BRIDGE_S = 0.25
"""Shorter breaks do not end a contact."""

# Upper hue bounds in degrees of CIELAB for chromatic pixels; a hue beyond the last bound is red or pink again.
_HUES: tuple[tuple[float, Colour], ...] = (
    (12.0, "pink"),
    (50.0, "red"),
    (82.0, "orange"),
    (112.0, "yellow"),
    (195.0, "green"),
    (308.0, "blue"),
    (330.0, "purple"),
    (360.0, "pink"),
)


def colour_names(pixels_rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Indices into `COLOURS`, shape (N,), one for each pixel of an (N, 3) sRGB array.

    Rules in CIELAB lightness L, chroma C and hue: without much chroma a pixel is black, gray or white, split at the
    lightnesses that people's answers gave Benavente et al. (JOSA A 25(10), 2008: 28.3 and 79.7); otherwise its hue
    names it, and dark or dull orange is brown, light red pink, dark pink purple. The hue bounds are ours, set between
    the hues of the sRGB colours that bear the names.
    """
    lab = cv2.cvtColor(pixels_rgb.reshape(1, -1, 3).astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)[0]
    light, a, b = lab[:, 0], lab[:, 1], lab[:, 2]
    chroma = np.hypot(a, b)
    hue = np.degrees(np.arctan2(b, a)) % 360.0

    bounds = np.array([bound for bound, _ in _HUES])
    by_hue = np.array([COLOURS.index(name) for _, name in _HUES])
    names = by_hue[np.minimum(np.searchsorted(bounds, hue, side="right"), len(_HUES) - 1)]

    def rename(where: npt.NDArray[np.bool_], name: Colour) -> None:
        names[where] = COLOURS.index(name)

    hue_name = names.copy()
    is_orange, is_yellow, is_red, is_pink = (
        hue_name == COLOURS.index(name) for name in ("orange", "yellow", "red", "pink")
    )
    rename(is_orange & ((light < 58) | (chroma < 45)), "brown")
    rename(is_yellow & (light < 58) & (hue < 98), "brown")
    rename(is_yellow & (light < 58) & (hue >= 98), "green")
    rename(is_red & (light >= 62), "pink")
    rename(is_red & (light < 62) & (chroma < 28), "brown")
    rename(is_pink & (light < 45) & (hue >= 330), "purple")
    rename(is_pink & (light < 45) & (hue < 330), "red")

    # the darker a pixel, the less its hue is seen
    achromatic = (chroma < 10) | (light < 8) | ((light < 22) & (chroma < 14))
    rename(achromatic, "gray")
    rename(achromatic & (light < 28.3), "black")
    rename(achromatic & (light >= 79.7), "white")
    return np.asarray(names, dtype=np.int64)


def colour_shares(pixels_rgb: npt.NDArray[np.uint8]) -> tuple[ColourShare, ...]:
    """The colours of at least 15 % of (N, 3) sRGB pixels, largest share first; empty without pixels."""
    if len(pixels_rgb) == 0:
        return ()
    shares = np.bincount(colour_names(pixels_rgb), minlength=len(COLOURS)) / len(pixels_rgb)
    order = np.argsort(-shares, kind="stable")
    return tuple(
        ColourShare(colour=COLOURS[i], share=round(float(shares[i]), 4)) for i in order if shares[i] >= MIN_COLOUR_SHARE
    )


def places_of(box_xyxy_px: BoxXyxyPx, height_px: int, width_px: int) -> tuple[Place, ...]:
    """The words of the outer thirds that hold the box's centre, horizontal first; `middle` for the centre cell."""
    left, top, right, bottom = box_xyxy_px
    return _places_at((left + right) / 2 / width_px, (top + bottom) / 2 / height_px)


def size_of(area_share: float) -> Size:
    """The size word of a mask that covers this share of the frame."""
    if area_share < SMALL_BELOW:
        return "small"
    return "medium" if area_share < LARGE_FROM else "large"


def motion_facts(masks: ObjectMasks, start_s: float, end_s: float) -> MotionFacts | None:
    """How an object moves in [start_s, end_s); None with fewer than two visible frames there.

    Positions are medians over the first and the last few visible frames (an eighth of them, 1 to 5 an end), so that one
    bad mask does no harm; the speed is per second between the median times of these frames. Where the frame's border
    cuts the object at an end, its centroid is biased toward the border, and the edge that stays free is followed
    instead. `toward` and `away` need masks that grow or shrink by more than they travel; sizes are compared along an
    axis that no border cuts.
    """
    seen = _visible(masks, start_s, end_s)
    if len(seen) < 2:
        return None
    diagonal_px = float(np.hypot(masks.height_px, masks.width_px))
    boxes = np.array([box_xyxy_px(item.counts, masks.height_px, masks.width_px) for item in seen])
    times_s = np.array([item.time_s for item in seen])
    num_end = min(5, max(1, len(seen) // 8))
    first, last = slice(0, num_end), slice(len(seen) - num_end, None)

    centroids = [_centroid(masks, [item.counts for item in seen[part]]) for part in (first, last)]
    moved_px = _displacement_px(boxes[first], boxes[last], centroids[1] - centroids[0], masks)
    elapsed_s = float(np.median(times_s[last]) - np.median(times_s[first]))
    dx, dy = (float(value) for value in moved_px / diagonal_px)
    travelled = float(np.hypot(dx, dy))

    areas_px = np.array([item.area_px for item in seen], dtype=np.float64)
    third = max(1, len(seen) // 3)
    growth = float(np.median(areas_px[-third:]) / np.median(areas_px[:third]))
    scale = _scale(boxes[:third], boxes[-third:], areas_px[:third], areas_px[-third:], masks)
    swelled = abs(scale.end_px - scale.start_px) / diagonal_px if scale else 0.0

    direction = _direction(dx, dy, (scale.end_px / scale.start_px) ** 2 if scale else 1.0, swelled)
    pace = max(travelled, swelled) if direction in ("toward", "away") else travelled
    start_box, end_box = (np.median(boxes[part], axis=0) for part in (first, last))
    return MotionFacts(
        start_s=start_s,
        end_s=end_s,
        start_places=places_of(_box(start_box), masks.height_px, masks.width_px),
        end_places=places_of(_box(end_box), masks.height_px, masks.width_px),
        direction=direction,
        speed="still" if direction == "none" else _speed(pace / elapsed_s),
        displacement_x_diag=round(dx, 4),
        displacement_y_diag=round(dy, 4),
        speed_diag_per_s=round(travelled / elapsed_s, 4),
        growth=max(round(growth, 4), 1e-4),
    )


def contacts(a: ObjectMasks, b: ObjectMasks) -> list[tuple[float, float]]:
    """When two objects' masks touch, as (start_s, end_s) of the first and the last touching frame.

    Compared on frames that both have and show; contacts of a single frame are dropped, breaks under
    `CONTACT_BRIDGE_S` bridged. Raises ValueError for masks of different frame sizes.
    """
    return _spans(list(_touching_s(a, b)), max(CONTACT_BRIDGE_S, 1.5 * _frame_step_s(a)))


def apart(a: ObjectMasks, b: ObjectMasks) -> bool:
    """Whether two objects' masks touch in no frame that both have and show, not even in a single one."""
    return next(_touching_s(a, b), None) is None


class _Scale(NamedTuple):
    """A length that stands for an object's size, in pixels, at the start and at the end."""

    start_px: float
    end_px: float


class _Seen(NamedTuple):
    """A frame that shows an object: when, with which mask, and how many pixels that has."""

    time_s: float
    counts: str
    area_px: int


def _visible(masks: ObjectMasks, start_s: float, end_s: float) -> list[_Seen]:
    return [
        _Seen(time_s, counts, area)
        for time_s, counts in zip(masks.frame_time_s, masks.rle, strict=True)
        if counts is not None and start_s <= time_s < end_s and (area := area_px(counts))
    ]


def _centroid(masks: ObjectMasks, rles: Sequence[str]) -> npt.NDArray[np.float64]:
    """Median (x, y) of the masks' centroids, in pixels."""
    points = [centroid_xy_px(counts, masks.height_px, masks.width_px) for counts in rles]
    return np.asarray(np.median(points, axis=0), dtype=np.float64)


def _displacement_px(
    first: npt.NDArray[np.float64],
    last: npt.NDArray[np.float64],
    of_centroid: npt.NDArray[np.float64],
    masks: ObjectMasks,
) -> npt.NDArray[np.float64]:
    """(dx, dy) of the centroid, or along an axis that the border cuts on one side, of the other side's edge."""
    start, end = np.median(first, axis=0), np.median(last, axis=0)
    cut = _cut(start, masks) | _cut(end, masks)
    moved = of_centroid.copy()
    for axis in (0, 1):
        low, high = axis, axis + 2
        if cut[low] != cut[high]:
            free = high if cut[low] else low
            moved[axis] = end[free] - start[free]
    return moved


def _scale(
    first: npt.NDArray[np.float64],
    last: npt.NDArray[np.float64],
    first_areas_px: npt.NDArray[np.float64],
    last_areas_px: npt.NDArray[np.float64],
    masks: ObjectMasks,
) -> _Scale | None:
    """The root of the mask's area, or its extent along the axis that no border cuts; None with both axes cut."""
    start, end = np.median(first, axis=0), np.median(last, axis=0)
    cut = _cut(start, masks) | _cut(end, masks)
    if not cut.any():
        return _Scale(float(np.sqrt(np.median(first_areas_px))), float(np.sqrt(np.median(last_areas_px))))
    for axis in (0, 1):
        if not cut[axis] and not cut[axis + 2]:
            return _Scale(float(start[axis + 2] - start[axis]), float(end[axis + 2] - end[axis]))
    return None


def _cut(box: npt.NDArray[np.float64], masks: ObjectMasks) -> npt.NDArray[np.bool_]:
    """Which of left, top, right, bottom lie at the border, within 0.5 % of the side."""
    slack_x, slack_y = max(1.0, 0.005 * masks.width_px), max(1.0, 0.005 * masks.height_px)
    return np.array(
        [
            box[0] <= slack_x,
            box[1] <= slack_y,
            box[2] >= masks.width_px - slack_x,
            box[3] >= masks.height_px - slack_y,
        ]
    )


def _direction(dx: float, dy: float, growth: float, swelled: float) -> Direction:
    travelled = float(np.hypot(dx, dy))
    if not 1 / MIN_GROWTH < growth < MIN_GROWTH and swelled >= max(travelled, MIN_MOVE_DIAG):
        return "toward" if growth > 1 else "away"
    if travelled < MIN_MOVE_DIAG:
        return "none"
    if abs(dx) >= abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def _speed(diag_per_s: float) -> Speed:
    if diag_per_s < SLOW_BELOW_DIAG_PER_S:
        return "slow"
    return "moderate" if diag_per_s < FAST_FROM_DIAG_PER_S else "fast"


def _places_at(x: float, y: float) -> tuple[Place, ...]:
    words: list[Place] = []
    if not 1 / 3 <= x < 2 / 3:
        words.append("left" if x < 1 / 3 else "right")
    if not 1 / 3 <= y < 2 / 3:
        words.append("top" if y < 1 / 3 else "bottom")
    return tuple(words) or ("middle",)


def _box(values: npt.NDArray[np.float64]) -> BoxXyxyPx:
    left, top, right, bottom = (float(value) for value in values)
    return (left, top, right, bottom)


def _touching_s(a: ObjectMasks, b: ObjectMasks) -> Iterator[float]:
    """Times of the frames in which both are seen and touch; ValueError for masks of different frame sizes."""
    if (a.height_px, a.width_px) != (b.height_px, b.width_px):
        raise ValueError(
            f"contacts compares masks of one video; got {a.height_px} x {a.width_px} and {b.height_px} x {b.width_px}"
        )
    counts_b = dict(zip(b.frame_idx, b.rle, strict=True))
    for index, time_s, counts in zip(a.frame_idx, a.frame_time_s, a.rle, strict=True):
        if counts is not None and (other := counts_b.get(index)) is not None and _touch(counts, other, a):
            yield time_s


def _touch(counts_a: str, counts_b: str, frame: ObjectMasks) -> bool:
    """Whether two masks come within `CONTACT_GAP_DIAG` of one another; only where their boxes meet is looked at."""
    height, width = frame.height_px, frame.width_px
    gap_px = max(1, round(CONTACT_GAP_DIAG * float(np.hypot(height, width))))
    box_a, box_b = (np.array(box_xyxy_px(counts, height, width)) for counts in (counts_a, counts_b))
    if not box_a[2:].all() or not box_b[2:].all():
        return False
    low = np.maximum(np.maximum(box_a[:2], box_b[:2]) - gap_px, 0).astype(int)
    high = np.ceil(np.minimum(box_a[2:], box_b[2:]) + gap_px).astype(int)
    if (low >= high).any():
        return False
    window = np.s_[low[1] : high[1], low[0] : high[0]]
    near_a = decode(counts_a, height, width)[window].astype(np.uint8)
    near_b = decode(counts_b, height, width)[window]
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * gap_px + 1, 2 * gap_px + 1))
    return bool((cv2.dilate(near_a, disc) & near_b.astype(np.uint8)).any())


def _frame_step_s(masks: ObjectMasks) -> float:
    return float(np.median(np.diff(masks.frame_time_s))) if len(masks.frame_time_s) > 1 else 0.0


def _spans(times_s: Sequence[float], bridge_s: float) -> list[tuple[float, float]]:
    spans: list[list[float]] = []
    for time_s in times_s:
        if spans and time_s - spans[-1][1] <= bridge_s:
            spans[-1][1] = time_s
        else:
            spans.append([time_s, time_s])
    return [(start, end) for start, end in spans if end > start]
