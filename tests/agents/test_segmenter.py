import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from agents.segmenter import Segmenter, SegmenterConfig
from infra.video import Frames
from schemas.clip import Clip
from schemas.jobs import SegmenterJob
from schemas.mask import encode
from schemas.mention import Mention, MentionSet, SaidAttributes
from schemas.track import ObjectMasks, TrackSet

HEIGHT_PX, WIDTH_PX, NUM_FRAMES = 60, 100, 10
CLIP = Clip(
    clip_id="c",
    source_id="row 7",
    video="v.mp4",
    video_sha256="0" * 64,
    license="",
    start_s=0.0,
    end_s=1.0,
    start_frame=0,
    end_frame=NUM_FRAMES,
    fps=10.0,
    height_px=HEIGHT_PX,
    width_px=WIDTH_PX,
    caption="a red car passes a blue car",
)


class ScriptedTracker:
    name = "scripted"

    def __init__(self, found: Sequence[ObjectMasks]) -> None:
        self.found = list(found)
        self.asked: list[list[str]] = []

    def weights(self) -> tuple[str, ...]:
        return ("scripted@0",)

    def setup(self) -> None:
        pass

    def settings(self) -> dict[str, Any]:
        return {"speed": 3}

    def track(self, clip: Clip, classes: Sequence[str]) -> list[ObjectMasks]:
        self.asked.append(list(classes))
        return [item for item in self.found if item.detector_class in classes]


class PaintedFrames:
    """Red on the left half, blue on the right; shrunk as asked."""

    def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        scale = min(1.0, long_side_px / WIDTH_PX)
        height_px, width_px = round(HEIGHT_PX * scale), round(WIDTH_PX * scale)
        frames = np.zeros((len(frame_idx), height_px, width_px, 3), np.uint8)
        frames[:, :, : width_px // 2] = (210, 20, 20)
        frames[:, :, width_px // 2 :] = (20, 40, 210)
        return frames

    def times_s(self, clip: Clip, frame_idx: Sequence[int]) -> tuple[float, ...]:
        return tuple(index / clip.fps for index in frame_idx)


def masks_at(x: int, *, name: str = "car", visible: int = NUM_FRAMES) -> ObjectMasks:
    mask = np.zeros((HEIGHT_PX, WIDTH_PX), dtype=bool)
    mask[20:40, x : x + 20] = True
    counts = encode(mask)
    return ObjectMasks(
        detector_class=name,
        frame_idx=tuple(range(NUM_FRAMES)),
        frame_time_s=tuple(i / 10 for i in range(NUM_FRAMES)),
        rle=tuple(counts if i < visible else None for i in range(NUM_FRAMES)),
        height_px=HEIGHT_PX,
        width_px=WIDTH_PX,
        score=0.9,
    )


def mention(mention_id: str, phrase: str, *, name: str = "car", **said: Any) -> Mention:
    return Mention(
        mention_id=mention_id,
        clip_id="c",
        noun=phrase.split()[-1],
        phrase=phrase,
        start_char=0,
        end_char=len(phrase),
        role="subject",
        number=said.pop("number", "singular"),
        detector_class=name,
        class_similarity=1.0,
        said=SaidAttributes(**({"count": 1} | said)),
    )


def run(found: Sequence[ObjectMasks], *mentions: Mention) -> TrackSet:
    segmenter = Segmenter(SegmenterConfig(), ScriptedTracker(found), PaintedFrames())
    job = SegmenterJob(clip=CLIP, mentions=MentionSet(clip_id="c", mentions=mentions, rejected=()))
    (result,) = segmenter.process([job])
    ends = [track.mention_id for track in result.tracks] + [entry.subject_id for entry in result.rejected]
    assert set(ends) == {item.mention_id for item in mentions}
    refused = [entry.subject_id for entry in result.rejected]
    assert len(set(refused)) == len(refused)
    assert not set(refused) & {track.mention_id for track in result.tracks}
    return result


def test_the_pixels_under_the_masks_decide_between_colours() -> None:
    result = run(
        [masks_at(10), masks_at(70)],
        mention("b", "a blue car", colours=("blue",)),
        mention("r", "a red car", colours=("red",)),
    )
    assert [(track.mention_id, track.masks) for track in result.tracks] == [("b", masks_at(70)), ("r", masks_at(10))]
    assert result.rejected == ()


def test_every_mention_ends_once_and_a_refusal_says_why() -> None:
    result = run(
        [masks_at(10), masks_at(70), masks_at(40, name="dog", visible=2)],
        mention("a", "a car"),
        mention("d", "a dog", name="dog"),
        mention("p", "two cars", number="plural", count=2),
        mention("q", "people", name="person", number="plural", count=None),
    )
    assert {entry.subject_id: entry.reason for entry in result.rejected} == {
        "a": "ambiguous",
        "d": "track_too_short",
        "q": "not_found",
    }
    assert [track.mention_id for track in result.tracks] == ["p", "p"]
    assert len({track.track_id for track in result.tracks}) == 2
    entry = result.rejected[0]
    assert (entry.source_id, entry.clip_id, entry.stage, entry.noun) == ("row 7", "c", "segmenter", "car")
    assert "2 car found" in entry.evidence


def test_a_stray_short_track_is_no_candidate() -> None:
    result = run([masks_at(10), masks_at(70, visible=2)], mention("a", "a car"))
    assert [track.masks for track in result.tracks] == [masks_at(10)]


def test_the_tracker_is_asked_once_for_all_classes_and_not_without_any() -> None:
    tracker = ScriptedTracker([])
    segmenter = Segmenter(SegmenterConfig(), tracker, PaintedFrames())
    said = (mention("a", "a car"), mention("b", "a dog", name="dog"), mention("c", "another car"))
    jobs = [
        SegmenterJob(clip=CLIP, mentions=MentionSet(clip_id="c", mentions=mentions, rejected=()))
        for mentions in (said, ())
    ]
    full, empty = segmenter.process(jobs)
    assert tracker.asked == [["car", "dog"]]
    assert len(full.rejected) == 3
    assert empty == TrackSet(clip_id="c", tracks=(), rejected=())


@pytest.mark.parametrize("config", [SegmenterConfig(), SegmenterConfig(min_visible_frames=9)])
def test_the_label_holds_both_configurations(config: SegmenterConfig) -> None:
    label = Segmenter(config, ScriptedTracker([]), PaintedFrames()).label()
    told = json.loads(label.config_json)
    assert told == {"segmenter": config.model_dump(mode="json"), "tracker": {"speed": 3}}
    assert (label.agent, label.engine, label.weights) == ("segmenter", "scripted", ("scripted@0",))
