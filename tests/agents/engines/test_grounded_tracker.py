"""Whole on tiny random checkpoints, whose masks mean nothing; what is found where and kept, on parts of a few lines."""

from collections.abc import Iterator, Sequence
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from agents.base import Detection
from agents.engines.frame_windows import ReadFrames
from agents.engines.grounded_tracker import GroundedTracker, GroundedTrackerConfig
from agents.engines.grounding_dino import GroundingDino, GroundingDinoConfig
from agents.engines.hq_sam import Boxed, HqSam, HqSamConfig, Masks
from agents.engines.sam2_video import FramePrompt, Masklet, Sam2Video, Sam2VideoConfig
from agents.engines.torch_run import CheckpointConfig
from agents.segmenter import Segmenter, SegmenterConfig
from infra.pool import JobFailure, LocalPool
from infra.video import Frames, Image, VideoError
from schemas.clip import Clip
from schemas.jobs import SegmenterJob
from schemas.mask import box_xyxy_px, decode, encode, rle_iou
from schemas.mention import Mention, MentionSet, SaidAttributes
from schemas.record import BoxXyxyPx
from schemas.track import ObjectMasks, TrackSet

HEIGHT_PX, WIDTH_PX = 60, 100
NOUNS = ("dog", "red car", "umbrellas")


def clip_of(
    num_frames: int, start: int = 0, size_px: tuple[int, int] = (HEIGHT_PX, WIDTH_PX), clip_id: str = "c"
) -> Clip:
    return Clip(
        clip_id=clip_id,
        source_id="s",
        video="v.mp4",
        video_sha256="0" * 64,
        license="",
        start_s=start / 8,
        end_s=(start + num_frames) / 8,
        start_frame=start,
        end_frame=start + num_frames,
        fps=8,
        height_px=size_px[0],
        width_px=size_px[1],
        caption="a dog",
    )


class NoisyFrames:
    """Each frame's pixels follow from its index, which stands in its first pixel too. A clip named bad has none."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        if clip.clip_id == "bad":
            raise VideoError("unreadable_video", "v.mp4: no frames")
        self.asked += frame_idx
        size = (clip.height_px, clip.width_px, 3)
        frames = np.stack([np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8) for i in frame_idx])
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


def track(tracker: GroundedTracker, clip: Clip, nouns: Sequence[str]) -> list[ObjectMasks]:
    """A clip alone."""
    (found,) = tracker.track_many([(clip, nouns)])
    return found


def test_the_three_models_together_give_tracks_of_the_clips_size(tracker: GroundedTracker) -> None:
    clip = clip_of(40, start=100)
    found = track(tracker, clip, NOUNS)
    assert 2 <= len(found) <= 5
    assert {item.detector_class for item in found} <= set(NOUNS)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    for item in found:
        assert item.frame_idx == tuple(range(100, 140))
        assert item.frame_time_s == tuple(index / 8 for index in range(100, 140))
        assert (item.height_px, item.width_px) == (HEIGHT_PX, WIDTH_PX)
        assert all(decode(counts, HEIGHT_PX, WIDTH_PX).any() for counts in item.rle if counts)


def test_the_order_of_nouns_changes_nothing_and_no_noun_means_no_work(tracker: GroundedTracker) -> None:
    assert track(tracker, clip_of(12), NOUNS) == track(tracker, clip_of(12), (*NOUNS[::-1], "dog"))
    frames = tracker._frames
    assert isinstance(frames, NoisyFrames)
    frames.asked.clear()
    assert track(tracker, clip_of(12), []) == []
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
        self.calls: list[int] = []

    def detect_nouns(self, asked: Sequence[tuple[Image, Sequence[str]]]) -> list[list[Detection]]:
        self.calls.append(len(asked))
        return [
            [
                Detection(detector_class=noun, score=score, box_xyxy_px=box)
                for noun, score, box in self.shown.get(int(image[0, 0, 0]), [])
                if noun in nouns
            ]
            for image, nouns in asked
        ]


class FilledBoxes(Part):
    """A mask is its box; its IoU estimate is `iou` of the box's left edge."""

    def __init__(self, ious: dict[float, float] | None = None) -> None:
        self.ious = ious or {}

    def masks_many(self, asked: Sequence[Boxed]) -> Iterator[Masks]:
        for image, boxes in asked:
            result = np.zeros((len(boxes), *image.shape[:2]), dtype=bool)
            for mask, (x1, y1, x2, y2) in zip(result, boxes, strict=True):
                mask[int(y1) : int(y2), int(x1) : int(x2)] = True
            yield result, [self.ious.get(box[0], 1.0) for box in boxes]


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
    found = track(tracker, clip_of(41), ["dog", "car", "man"])
    return lefts(found), video_model.prompts, [item.score for item in found]


def with_detector(tiny_checkpoints: Any, frames_per_batch: int, min_score: float, video_model: Any) -> GroundedTracker:
    """The real detector and mask model."""
    folders = tiny_checkpoints
    tracker = GroundedTracker(
        GroundingDino(
            GroundingDinoConfig(
                model=str(folders.grounding_dino), min_score=min_score, max_boxes=2, frames_per_batch=frames_per_batch
            )
        ),
        HqSam(HqSamConfig(model=str(folders.hq_sam), frames_per_batch=frames_per_batch)),
        video_model,
        NoisyFrames(),
        GroundedTrackerConfig(min_mask_iou=0.0, merge_iou=0.95, max_objects=3),
    )
    tracker.setup()
    return tracker


def rows_of_each_pass(tracker: GroundedTracker) -> tuple[list[int], list[int]]:
    """How many images go through the detector and through the encoder of the mask model, noted pass by pass."""
    detected: list[int] = []
    embedded: list[int] = []
    for module, rows in (
        (tracker._detector._model, detected),  # type: ignore[attr-defined]
        (tracker._mask_model._model.vision_encoder, embedded),  # type: ignore[attr-defined]
    ):
        module.register_forward_pre_hook(
            lambda _, args, kwargs, rows=rows: rows.append(len(kwargs["pixel_values"])), with_kwargs=True
        )
    return detected, embedded


def test_prompt_frames_of_many_clips_share_passes(tiny_checkpoints: Any) -> None:
    tracker = with_detector(tiny_checkpoints, 4, 0.0, StandingStill())
    detected, embedded = rows_of_each_pass(tracker)
    found = tracker.track_many([(clip_of(8, start=8 * number), NOUNS[: 1 + number % 3]) for number in range(8)])
    assert len(found) == 8
    assert (detected, embedded) == ([4, 4], [4, 4])


def test_a_clip_in_company_has_the_tracks_that_it_has_alone(tiny_checkpoints: Any) -> None:
    """Up to rounding, which turns pixels whose logit is next to 0; so no bits are compared.

    The score that a box must reach is such that some nouns are found at once, some on a later frame and some never.
    """
    sizes = [(60, 100), (90, 40), (60, 100), (60, 100), (60, 100)]
    nouns = [NOUNS, ("cat", "dog"), ("bird",), (), ("man", "tree", "red car")]
    asked = [
        (clip_of(5, start=20 * start, size_px=size), own)
        for start, size, own in zip((0, 1, 2, 3, 5), sizes, nouns, strict=True)
    ]
    video_model = Sam2Video(Sam2VideoConfig(model=str(tiny_checkpoints.sam2), min_stability=0.0, min_area_px=1))
    video_model.setup()
    tracker = with_detector(tiny_checkpoints, 4, 0.999, video_model)
    detected, _ = rows_of_each_pass(tracker)
    together = tracker.track_many(asked)
    passes_together = detected.copy()
    detected.clear()
    frames: list[int] = []
    for (clip, own), found in zip(asked, together, strict=True):
        before = len(detected)
        assert_alike(found, track(tracker, clip, own))
        frames.append(len(detected) - before)
    assert sum(passes_together) == len(detected) > len(passes_together)
    assert frames == [1, 5, 3, 0, 2]  # looked at: until all nouns were found, or five in vain


def assert_alike(found: Sequence[ObjectMasks], expected: Sequence[ObjectMasks]) -> None:
    assert [item.detector_class for item in found] == [item.detector_class for item in expected]
    assert [item.score for item in found] == pytest.approx([item.score for item in expected], abs=1e-3)
    for one, other in zip(found, expected, strict=True):
        assert one.frame_idx == other.frame_idx
        size_px = one.height_px, one.width_px
        assert size_px == (other.height_px, other.width_px)
        assert [counts is None for counts in one.rle] == [counts is None for counts in other.rle]
        assert rle_iou(one.rle, other.rle, size_px) > 0.98


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


def test_clips_asked_together_get_their_own_objects_in_the_order_asked() -> None:
    """By left edges, which tell clips and nouns apart; places differ too: the last clip's car is on a later frame."""
    shown = {
        20: [("dog", 0.9, box(0)), ("car", 0.8, box(30))],
        70: [("dog", 0.7, box(10))],
        120: [("dog", 0.9, box(20))],
        170: [("dog", 0.6, box(40))],
        160: [("car", 0.5, box(70))],
    }
    detector, video_model = BoxesByFrame(shown), StandingStill()
    tracker = GroundedTracker(detector, FilledBoxes(), video_model, NoisyFrames(), GroundedTrackerConfig())
    asked = [(clip_of(41, start=50 * number), ["dog", "car"] if number % 3 == 0 else ["dog"]) for number in range(4)]
    assert [lefts(found) for found in tracker.track_many(asked)] == [
        [("dog", 0), ("car", 30)],
        [("dog", 10)],
        [("dog", 20)],
        [("dog", 40), ("car", 70)],
    ]
    assert detector.calls == [4, 1]
    assert video_model.prompts == [(20, 2), (20, 1), (20, 1), (20, 1), (10, 1)]


def test_prompt_frames_of_several_clips_are_read_side_by_side() -> None:
    class InPairs(NoisyFrames):
        """Gives no frame before a second one is asked for."""

        def __init__(self) -> None:
            super().__init__()
            self.both = Barrier(2)

        def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
            self.both.wait(timeout=10)
            return super().read(clip, frame_idx, long_side_px)

    detector = BoxesByFrame({20: [("dog", 0.9, box(0))], 70: [("dog", 0.7, box(10))]})
    tracker = GroundedTracker(detector, FilledBoxes(), StandingStill(), InPairs(), GroundedTrackerConfig())
    found = tracker.track_many([(clip_of(41), ["dog"]), (clip_of(41, start=50), ["dog"])])
    assert [lefts(own) for own in found] == [[("dog", 0)], [("dog", 10)]]


def job_of(clip: Clip) -> SegmenterJob:
    mention = Mention(
        mention_id="m",
        clip_id=clip.clip_id,
        noun="dog",
        phrase="a dog",
        start_char=0,
        end_char=5,
        role="subject",
        number="singular",
        detector_class="dog",
        class_similarity=1.0,
        said=SaidAttributes(count=1),
    )
    return SegmenterJob(clip=clip, mentions=MentionSet(clip_id=clip.clip_id, mentions=(mention,), rejected=()))


def test_a_clip_that_cannot_be_read_costs_itself_only_and_no_pass_of_a_model() -> None:
    detector = BoxesByFrame({20: [("dog", 0.9, box(0))], 120: [("dog", 0.9, box(20))]})
    frames = NoisyFrames()
    tracker = GroundedTracker(detector, FilledBoxes(), StandingStill(), frames, GroundedTrackerConfig())
    clips = [clip_of(41, clip_id="one"), clip_of(41, 50, clip_id="bad"), clip_of(41, 100, clip_id="two")]
    with LocalPool(lambda: Segmenter(SegmenterConfig(), tracker, frames), batch_size=3) as pool:
        (batch,) = pool.run(0, [job_of(clip) for clip in clips])
    one, bad, two = (outcome.result for outcome in batch.outcomes)
    assert isinstance(bad, JobFailure)
    assert "no frames" in bad.evidence
    assert isinstance(one, TrackSet)
    assert isinstance(two, TrackSet)
    assert [lefts([track.masks for track in item.tracks]) for item in (one, two)] == [[("dog", 0)], [("dog", 20)]]
    assert detector.calls == [1, 1]  # the clips tried again, each alone
