"""Whole on tiny random checkpoints, whose masks mean nothing; what is found where and kept, on parts of a few lines."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from agents.base import Detection
from agents.engines.frame_windows import ReadFrames
from agents.engines.grounded_tracker import GroundedTracker, GroundedTrackerConfig, rle_iou
from agents.engines.grounding_dino import GroundingDino, GroundingDinoConfig
from agents.engines.hq_sam import HqSam, HqSamConfig
from agents.engines.sam2_video import FramePrompt, Masklet, Sam2Video, Sam2VideoConfig
from agents.engines.torch_run import CheckpointConfig
from infra.video import Frames, Image
from schemas.clip import Clip
from schemas.mask import box_xyxy_px, decode, encode
from schemas.record import BoxXyxyPx
from schemas.track import ObjectMasks

HEIGHT_PX, WIDTH_PX = 60, 100
NOUNS = ("dog", "red car", "umbrellas")


def clip_of(num_frames: int, start: int = 0) -> Clip:
    return Clip(
        clip_id="c",
        source_id="s",
        video="v.mp4",
        video_sha256="0" * 64,
        license="",
        start_s=start / 8,
        end_s=(start + num_frames) / 8,
        start_frame=start,
        end_frame=start + num_frames,
        fps=8,
        height_px=HEIGHT_PX,
        width_px=WIDTH_PX,
        caption="a dog",
    )


class NoisyFrames:
    """Each frame's pixels follow from its index, which stands in its first pixel too."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        self.asked += frame_idx
        frames = np.stack(
            [np.random.default_rng(i).integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8) for i in frame_idx]
        )
        frames[:, 0, 0, 0] = frame_idx
        return frames

    def times_s(self, clip: Clip, frame_idx: Sequence[int]) -> tuple[float, ...]:
        return tuple(index / clip.fps for index in frame_idx)


@pytest.fixture(scope="module")
def tracker(tiny_checkpoints: Any) -> GroundedTracker:
    """The three real engines; thresholds are such that what random weights say is kept."""
    tracker = GroundedTracker(
        GroundingDino(GroundingDinoConfig(model=str(tiny_checkpoints.grounding_dino), min_score=0.3, max_boxes=2)),
        HqSam(HqSamConfig(model=str(tiny_checkpoints.hq_sam))),
        Sam2Video(Sam2VideoConfig(model=str(tiny_checkpoints.sam2), min_stability=0.0, min_area_px=1)),
        NoisyFrames(),
        GroundedTrackerConfig(min_mask_iou=0.0, merge_iou=0.95, max_objects=5),
    )
    tracker.setup()
    return tracker


def test_the_three_models_together_give_tracks_of_the_clips_size(tracker: GroundedTracker) -> None:
    clip = clip_of(40, start=100)
    found = tracker.track(clip, NOUNS)
    assert 2 <= len(found) <= 5
    assert {item.detector_class for item in found} <= set(NOUNS)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    for item in found:
        assert item.frame_idx == tuple(range(100, 140))
        assert item.frame_time_s == tuple(index / 8 for index in range(100, 140))
        assert (item.height_px, item.width_px) == (HEIGHT_PX, WIDTH_PX)
        assert all(decode(counts, HEIGHT_PX, WIDTH_PX).any() for counts in item.rle if counts)


def test_the_order_of_nouns_changes_nothing_and_no_noun_means_no_work(tracker: GroundedTracker) -> None:
    assert tracker.track(clip_of(12), NOUNS) == tracker.track(clip_of(12), (*NOUNS[::-1], "dog"))
    frames = tracker._frames
    assert isinstance(frames, NoisyFrames)
    frames.asked.clear()
    assert tracker.track(clip_of(12), []) == []
    assert frames.asked == []


def test_its_label_names_three_folders_and_what_shapes_its_output(
    tracker: GroundedTracker, tiny_checkpoints: Any
) -> None:
    names = [weight.split("@")[0] for weight in tracker.weights()]
    assert names == ["tiny-grounding-dino", "tiny-hq-sam", "tiny-sam2"]
    assert tracker.settings().keys() == {"tracker", "detector", "mask_model", "video_model"}
    assert str(tiny_checkpoints.sam2.parent) not in str(tracker.settings())


class Part:
    name = "part"
    config = CheckpointConfig(model="none")

    def weights(self) -> tuple[str, ...]:
        return ("part@0",)

    def setup(self) -> None:
        pass


class BoxesByFrame(Part):
    """Detections by frame index."""

    def __init__(self, shown: dict[int, list[tuple[str, float, BoxXyxyPx]]]) -> None:
        self.shown = shown

    def detect_nouns(self, images: Frames, nouns: Sequence[str]) -> list[list[Detection]]:
        return [
            [
                Detection(detector_class=noun, score=score, box_xyxy_px=box)
                for noun, score, box in self.shown.get(int(image[0, 0, 0]), [])
                if noun in nouns
            ]
            for image in images
        ]


class FilledBoxes(Part):
    """A mask is its box; its IoU estimate is `iou` of the box's left edge."""

    def __init__(self, ious: dict[float, float] | None = None) -> None:
        self.ious = ious or {}

    def masks(self, image: Image, boxes_xyxy_px: Sequence[BoxXyxyPx]) -> tuple[npt.NDArray[np.bool_], list[float]]:
        result = np.zeros((len(boxes_xyxy_px), *image.shape[:2]), dtype=bool)
        for mask, (x1, y1, x2, y2) in zip(result, boxes_xyxy_px, strict=True):
            mask[int(y1) : int(y2), int(x1) : int(x2)] = True
        return result, [self.ious.get(box[0], 1.0) for box in boxes_xyxy_px]


class StandingStill(Part):
    """Objects stay where they were prompted; those wider than 40 px are never seen again. Notes the prompts."""

    def __init__(self) -> None:
        self.prompts: list[tuple[int, int]] = []

    def masklets(
        self, read: ReadFrames, num_frames: int, size_px: tuple[int, int], prompts: Sequence[FramePrompt]
    ) -> list[Masklet]:
        self.prompts += [(prompt.place, len(prompt.masks)) for prompt in prompts]
        masks = [mask for prompt in prompts for mask in prompt.masks]
        return [Masklet((encode(mask) if mask.any(axis=0).sum() <= 40 else None,) * num_frames, 0.5) for mask in masks]


def box(left: float, width: float = 20) -> BoxXyxyPx:
    return (left, 10, left + width, 30)


def lefts(found: Sequence[ObjectMasks]) -> list[tuple[str, float]]:
    """Noun and left edge, in the order given."""
    first = [next(counts for counts in item.rle if counts) for item in found]
    return [
        (item.detector_class, box_xyxy_px(counts, HEIGHT_PX, WIDTH_PX)[0])
        for item, counts in zip(found, first, strict=True)
    ]


def tracked(
    shown: dict[int, list[tuple[str, float, BoxXyxyPx]]], ious: dict[float, float] | None = None, **config: Any
) -> tuple[list[tuple[str, float]], list[tuple[int, int]], list[float]]:
    """Nouns with their left edges, prompts as (place, objects), and scores, of a clip of 41 frames."""
    video_model = StandingStill()
    tracker = GroundedTracker(
        BoxesByFrame(shown), FilledBoxes(ious), video_model, NoisyFrames(), GroundedTrackerConfig(**config)
    )
    found = tracker.track(clip_of(41), ["dog", "car", "man"])
    return lefts(found), video_model.prompts, [item.score for item in found]


def test_every_objects_masks_go_under_its_own_noun_whatever_frame_it_was_found_on() -> None:
    shown = {
        20: [("man", 0.5, box(0)), ("dog", 0.9, box(30)), ("man", 0.7, box(60))],
        10: [("car", 0.8, box(75))],
    }
    found, prompts, _ = tracked(shown)
    assert found == [("dog", 30), ("car", 75), ("man", 60), ("man", 0)]
    assert prompts == [(20, 3), (10, 1)]


def test_one_object_found_twice_on_a_frame_is_carried_once_under_the_surer_noun() -> None:
    shown = {20: [("man", 0.6, box(30)), ("dog", 0.9, box(31)), ("dog", 0.5, box(33)), ("car", 0.4, box(45))]}
    found, prompts, _ = tracked(shown)
    assert found == [("dog", 31), ("car", 45)]
    assert prompts == [(20, 2)]
    # with a stricter idea of what is the same, the copies stay
    assert len(tracked(shown, merge_iou=0.95)[0]) == 4


def test_one_object_found_on_two_frames_stays_once_and_neighbours_on_one_frame_stay() -> None:
    shown = {20: [("dog", 0.5, box(30))], 10: [("car", 0.8, box(31)), ("car", 0.6, box(70))]}
    found, prompts, _ = tracked(shown)
    assert found == [("car", 31), ("car", 70)]
    assert sorted(prompts) == [(10, 2), (20, 1)]


def test_doubtful_masks_are_not_carried_and_the_surest_objects_come_first() -> None:
    shown = {20: [("dog", 0.9, box(0)), ("car", 0.8, box(30)), ("man", 0.7, box(60))]}
    found, prompts, scores = tracked(shown, ious={0: 0.3, 60: 0.95})
    assert found == [("car", 30), ("man", 60)]
    assert scores == pytest.approx([(0.8 * 1.0 * 0.5) ** (1 / 3), (0.7 * 0.95 * 0.5) ** (1 / 3)])
    found, prompts, _ = tracked(shown, max_objects=1)
    assert found == [("dog", 0)]
    assert prompts == [(20, 1)]


def test_an_object_without_any_mask_left_is_no_track() -> None:
    assert tracked({20: [("dog", 0.9, box(0, width=60)), ("car", 0.5, box(70))]})[0] == [("car", 70)]
    assert tracked({})[0] == []
    assert tracked({20: [("dog", 0.9, box(50.2, width=0.1))]})[0] == []  # a mask without a pixel prompts nothing


def test_overlap_in_time_is_the_mean_over_the_frames_of_both() -> None:
    def counts(left: int) -> str:
        mask = np.zeros((10, 20), dtype=bool)
        mask[2:6, left : left + 8] = True
        return encode(mask)

    assert rle_iou([counts(0), None, counts(0)], [counts(4), counts(0), counts(0)], (10, 20)) == pytest.approx(
        (4 / 12 + 1) / 2
    )
    assert rle_iou([counts(0), None], [None, counts(0)], (10, 20)) == 0
