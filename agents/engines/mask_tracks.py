"""Masks of key frames carried to every frame of a box track by optical flow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from agents.engines.box_tracks import BoxTrack
from agents.engines.boxes import box_iou
from agents.engines.flow_field import FlowField, SoftMask
from schemas.record import BoxXyxyPx

_DRIFT_IOU = 0.5
_BOX_MARGIN = 0.15
_FAR_FRAMES = 40
_DOUBT_PER_FRAME = 0.02


@dataclass(frozen=True)
class MaskTrack:
    """A box track with a soft mask for each frame that has a box, and how doubtful each one is (0 sure to 1)."""

    masks: dict[int, SoftMask]
    doubt: dict[int, float]


def choose_key_frames(tracks: Sequence[BoxTrack], count: int) -> list[int]:
    """Up to `count` frames to segment, such that all boxes of all tracks are few frames from a segmented one.

    The k-medians problem, solved by adding the best frame until there are `count` and then swapping frames while that
    helps. A frame serves a track only where a detection supports it, and only within the run of frames in which the
    track stays in sight.
    """
    candidates = sorted({frame for track in tracks for frame in track.support})
    if not candidates:
        return []
    away = np.array([_ways(key, tracks) for key in candidates])
    chosen: list[int] = []
    for _ in range(min(count, len(candidates))):
        best = int(np.argmin([away[[*chosen, other]].min(axis=0).sum() for other in range(len(candidates))]))
        if best in chosen:
            break
        chosen.append(best)
    while (swap := _better_swap(away, chosen)) is not None:
        chosen = swap
    return sorted(candidates[index] for index in chosen)


def carry_masks(track: BoxTrack, key_masks: Mapping[int, SoftMask], flow: FlowField) -> MaskTrack:
    """Masks for every frame of a track from those of its key frames (at least one).

    Between two key frames the masks carried from both sides are blended by nearness, and doubt is how little they
    overlap; outside, one side is carried and doubt grows with the way. Where a carried mask has left the
    track's box, it is put back there. A run of frames without a key frame takes the nearest key frame's mask
    into its boxes.
    """
    masks: dict[int, SoftMask] = {}
    doubt: dict[int, float] = {}
    for run in _runs(track.boxes):
        keys = [frame for frame in run if frame in key_masks]
        if not keys:
            nearest = min(key_masks, key=lambda key: abs(key - run[0]))
            seed = min((frame for frame in run if frame in track.support), default=run[0])
            anchors = {seed: place(key_masks[nearest], track.boxes[nearest], track.boxes[seed])}
        else:
            anchors = {key: key_masks[key] for key in keys}
        carried = _carry_run(track, run, anchors, flow)
        for frame in run:
            masks[frame], doubt[frame] = _blend(frame, anchors, carried)
    return MaskTrack(masks, doubt)


def place(mask: SoftMask, source_xyxy_px: BoxXyxyPx, target_xyxy_px: BoxXyxyPx) -> SoftMask:
    """The mask moved and scaled as the source box must be to become the target box."""
    sx = (target_xyxy_px[2] - target_xyxy_px[0]) / (source_xyxy_px[2] - source_xyxy_px[0])
    sy = (target_xyxy_px[3] - target_xyxy_px[1]) / (source_xyxy_px[3] - source_xyxy_px[1])
    matrix = np.array(
        [
            [sx, 0, target_xyxy_px[0] - sx * source_xyxy_px[0]],
            [0, sy, target_xyxy_px[1] - sy * source_xyxy_px[1]],
        ]
    )
    return np.asarray(cv2.warpAffine(mask, matrix, mask.shape[::-1], flags=cv2.INTER_LINEAR), dtype=np.float32)


def soft_box(mask: SoftMask) -> BoxXyxyPx | None:
    """The tight box of a soft mask, None where it is empty."""
    solid = mask > 0.5
    columns, rows = np.flatnonzero(solid.any(axis=0)), np.flatnonzero(solid.any(axis=1))
    if not len(columns):
        return None
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def mask_iou(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Intersection over union; 1 for two empty masks."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def _carry_run(
    track: BoxTrack, run: Sequence[int], anchors: Mapping[int, SoftMask], flow: FlowField
) -> dict[tuple[int, int], tuple[SoftMask, float]]:
    """(anchor, frame) -> mask carried there and its doubt, from each anchor up to its neighbours or the run's ends."""
    ordered = sorted(anchors)
    carried: dict[tuple[int, int], tuple[SoftMask, float]] = {}
    for place_in_order, anchor in enumerate(ordered):
        last = ordered[place_in_order + 1] if place_in_order + 1 < len(ordered) else run[-1] + 1
        first = ordered[place_in_order - 1] if place_in_order else run[0] - 1
        for step, stop in ((1, last), (-1, first)):
            mask, strayed = anchors[anchor], 0.0
            for frame in range(anchor + step, stop, step):
                mask, off = _held(flow.warp(mask, frame - step, frame), mask, track, frame)
                strayed = max(off, strayed * 0.9)
                carried[anchor, frame] = (mask, strayed)
    return carried


def _held(mask: SoftMask, before: SoftMask, track: BoxTrack, frame: int) -> tuple[SoftMask, float]:
    """The carried mask, or the one before it put into the track's box where it has left that; and how far it had.

    The second value is 0 where the boxes overlap as they should, 1 where they do not touch.
    """
    box = _clipped(track.boxes[frame], mask.shape[0], mask.shape[1])
    own, old = soft_box(mask), soft_box(before)
    overlap = box_iou(own, box) if own else 0.0
    if overlap < _DRIFT_IOU and old:
        mask = place(before, old, box)
    return within(mask, box), max(0.0, 1.0 - overlap / _DRIFT_IOU)


def within(mask: SoftMask, box_xyxy_px: BoxXyxyPx) -> SoftMask:
    """The mask without what lies outside the box by more than a margin."""
    x1, y1, x2, y2 = box_xyxy_px
    dx, dy = (x2 - x1) * _BOX_MARGIN, (y2 - y1) * _BOX_MARGIN
    top, bottom = max(0, int(y1 - dy)), max(0, int(np.ceil(y2 + dy)))
    left, right = max(0, int(x1 - dx)), max(0, int(np.ceil(x2 + dx)))
    kept = np.zeros_like(mask)
    kept[top:bottom, left:right] = mask[top:bottom, left:right]
    return kept


def _blend(
    frame: int, anchors: Mapping[int, SoftMask], carried: Mapping[tuple[int, int], tuple[SoftMask, float]]
) -> tuple[SoftMask, float]:
    if frame in anchors:
        return anchors[frame], 0.0
    sides = [(anchor, *carried[anchor, frame]) for anchor in sorted(anchors) if (anchor, frame) in carried]
    if len(sides) == 1:
        anchor, mask, strayed = sides[0]
        return mask, min(1.0, strayed + _DOUBT_PER_FRAME * abs(frame - anchor))
    (before, old, strayed_old), (after, new, strayed_new) = sides
    nearness = (frame - before) / (after - before)
    differs = 1.0 - mask_iou(old > 0.5, new > 0.5)
    return old * (1 - nearness) + new * nearness, min(1.0, max(differs, strayed_old, strayed_new))


def _ways(key: int, tracks: Sequence[BoxTrack]) -> list[int]:
    """For every box of every track how many frames it is from `key`, `_FAR_FRAMES` where that does not serve it."""
    ways = []
    for track in tracks:
        for run in _runs(track.boxes):
            serves = key in track.support and run[0] <= key <= run[-1]
            ways += [min(abs(frame - key), _FAR_FRAMES) if serves else _FAR_FRAMES for frame in run]
    return ways


def _better_swap(away: npt.NDArray[np.int64], chosen: Sequence[int]) -> list[int] | None:
    """The chosen rows with the one replaced that shortens all ways most; None where no swap does."""
    now = away[list(chosen)].min(axis=0).sum()
    swaps = [[*chosen[:i], other, *chosen[i + 1 :]] for i in range(len(chosen)) for other in range(len(away))]
    best = min(swaps, key=lambda rows: int(away[rows].min(axis=0).sum()))
    return best if away[best].min(axis=0).sum() < now else None


def _runs(boxes: Mapping[int, BoxXyxyPx]) -> list[list[int]]:
    """The frames with a box, in unbroken runs."""
    runs: list[list[int]] = []
    for frame in sorted(boxes):
        if runs and frame == runs[-1][-1] + 1:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return runs


def _clipped(box: BoxXyxyPx, height_px: int, width_px: int) -> BoxXyxyPx:
    return (max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width_px)), min(box[3], float(height_px)))
