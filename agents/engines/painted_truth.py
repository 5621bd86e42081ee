"""Painted truth: the exact masks that a synthetic clip was composited with, through the same protocol as a tracker."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.truth import ObjectTruth, read_truth
from schemas.clip import Clip
from schemas.mask import area_px
from schemas.track import ObjectMasks


class PaintedTruth:
    """MaskTracker that reads the truth beside each video under `videos_root`; it cannot be used on other videos."""

    name = "painted-truth"

    def __init__(self, videos_root: Path) -> None:
        self._videos_root = videos_root

    def weights(self) -> tuple[str, ...]:
        """None."""
        return ()

    def settings(self) -> dict[str, Any]:
        """None."""
        return {}

    def setup(self) -> None:
        """Nothing to load."""

    def track_many(self, asked: Sequence[tuple[Clip, Sequence[str]]]) -> list[list[ObjectMasks]]:
        """For each clip the wanted classes' objects that are seen in its span, largest first.

        Raises ValueError where a video has no truth of its own.
        """
        return [self._seen(clip, classes) for clip, classes in asked]

    def _seen(self, clip: Clip, classes: Sequence[str]) -> list[ObjectMasks]:
        truth = read_truth(self._videos_root / clip.video)
        wanted = [_within(item, clip) for item in truth.objects if item.masks.detector_class in classes]
        return sorted((masks for masks in wanted if masks), key=_total_area_px, reverse=True)


def _within(item: ObjectTruth, clip: Clip) -> ObjectMasks | None:
    masks = item.masks
    places = [i for i, frame in enumerate(masks.frame_idx) if clip.start_frame <= frame < clip.end_frame]
    if all(masks.rle[i] is None for i in places):
        return None
    return masks.model_copy(
        update={
            "frame_idx": tuple(masks.frame_idx[i] for i in places),
            "frame_time_s": tuple(masks.frame_time_s[i] for i in places),
            "rle": tuple(masks.rle[i] for i in places),
        }
    )


def _total_area_px(masks: ObjectMasks) -> int:
    return sum(area_px(counts) for counts in masks.rle if counts is not None)
