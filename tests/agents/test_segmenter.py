import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from agents.segmenter import Segmenter, SegmenterConfig
from infra.video import Frames
from schemas.clip import Clip
from schemas.given import GivenMasks, GivenObject
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
        self.asked: list[list[tuple[str, list[str]]]] = []

    def weights(self) -> tuple[str, ...]:
        return ("scripted@0",)

    def setup(self) -> None:
        pass

    def settings(self) -> dict[str, Any]:
        return {"speed": 3}

    def track_many(self, asked: Sequence[tuple[Clip, Sequence[str]]]) -> list[list[ObjectMasks]]:
        self.asked.append([(clip.clip_id, list(classes)) for clip, classes in asked])
        return [[item for item in self.found if item.detector_class in classes] for _, classes in asked]


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


def job(clip_id: str, *mentions: Mention, given: GivenMasks | None = None) -> SegmenterJob:
    clip = CLIP.model_copy(update={"clip_id": clip_id, "given_sha256": "a" * 64 if given else ""})
    own = tuple(item.model_copy(update={"clip_id": clip_id}) for item in mentions)
    return SegmenterJob(clip=clip, mentions=MentionSet(clip_id=clip_id, mentions=own, rejected=()), given=given)


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


def test_the_frames_of_all_objects_are_read_at_once() -> None:
    """As each read decodes from a key frame on. Cars and colours change sides half-way, so that no other frame of a
    clip would do.
    """
    asked: list[list[int]] = []

    class TurningFrames(PaintedFrames):
        def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
            asked.append(list(frame_idx))
            frames = super().read(clip, frame_idx, long_side_px)
            late = np.array(frame_idx) >= NUM_FRAMES // 2
            frames[late] = frames[late, :, ::-1]
            return frames

    def car(first_x: int, then_x: int) -> ObjectMasks:
        half = NUM_FRAMES // 2
        return masks_at(first_x).model_copy(update={"rle": masks_at(first_x).rle[:half] + masks_at(then_x).rle[half:]})

    red, blue = car(10, 70), car(70, 10)
    mentions = (mention("b", "a blue car", colours=("blue",)), mention("r", "a red car", colours=("red",)))
    segmenter = Segmenter(SegmenterConfig(), ScriptedTracker([red, blue]), TurningFrames())
    (result,) = segmenter.process([job("c", *mentions)])
    assert [(track.mention_id, track.masks) for track in result.tracks] == [("b", blue), ("r", red)]
    assert len(asked) == 1


def test_masks_of_another_size_than_the_clips_are_refused() -> None:
    """pycocotools would compare them for ever."""
    large = encode(np.ones((HEIGHT_PX, 2 * WIDTH_PX), dtype=bool))
    odd = masks_at(70).model_copy(update={"rle": (large,) * NUM_FRAMES})
    with pytest.raises(ValueError, match="RLE covers"):
        run([masks_at(10), odd], mention("b", "two cars", number="plural", count=2))


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


def test_two_picks_on_the_same_pixels_are_one_thing() -> None:
    # a truck and a car found at one place: 16 of 24 columns are common to both
    result = run(
        [masks_at(10), masks_at(14, name="truck").model_copy(update={"score": 0.8})],
        mention("t", "a truck", name="truck"),
        mention("c", "a car"),
    )
    assert [track.mention_id for track in result.tracks] == ["c"]
    (entry,) = result.rejected
    assert (entry.subject_id, entry.reason) == ("t", "same_object")
    assert "0.67" in entry.evidence


def test_picks_that_only_touch_are_two_things() -> None:
    found = [masks_at(10), masks_at(20, name="truck")]
    result = run(found, mention("t", "a truck", name="truck"), mention("c", "a car"))
    assert len(result.tracks) == 2


@pytest.mark.parametrize(("x", "taken"), [(40, False), (80, True)])
def test_among_others_a_track_that_breaks_off_in_open_view_is_not_taken(x: int, taken: bool) -> None:
    found = [masks_at(10), masks_at(x, visible=6)]
    said = (mention("r", "a red car", places=("left",)), mention("b", "a car on the right side", places=("right",)))
    result = run(found, *said)
    assert {track.mention_id for track in result.tracks} == ({"r", "b"} if taken else {"r"})
    alone = run(found[1:], mention("b", "a car"))
    assert len(alone.tracks) == 1


def test_a_gap_in_open_view_breaks_a_track_off_too() -> None:
    gone = masks_at(40)
    gone = gone.model_copy(update={"rle": (*gone.rle[:4], None, None, *gone.rle[6:])})
    said = (mention("r", "a car", places=("left",)), mention("b", "another car", places=("right",)))
    result = run([masks_at(10), gone], *said)
    assert [track.mention_id for track in result.tracks] == ["r"]
    assert result.rejected[0].reason == "ambiguous"


def test_the_tracker_is_asked_once_for_all_clips_and_classes_and_not_without_any() -> None:
    tracker = ScriptedTracker([])
    segmenter = Segmenter(SegmenterConfig(), tracker, PaintedFrames())
    said = (mention("a", "a car"), mention("b", "a dog", name="dog"), mention("c", "another car"))
    full, empty, other = segmenter.process([job("1", *said), job("2"), job("3", *said[1:2])])
    assert tracker.asked == [[("1", ["car", "dog"]), ("3", ["dog"])]]
    assert [len(item.rejected) for item in (full, empty, other)] == [3, 0, 1]
    assert empty == TrackSet(clip_id="2", tracks=(), rejected=())
    assert segmenter.process([job("2")]) == [empty]
    assert len(tracker.asked) == 1


def test_in_a_batch_each_clip_gets_its_own_tracks() -> None:
    """Clips with tracks, without mentions and with masks of their own in between: an answer one place off is seen."""
    car, dog = mention("a", "a car"), mention("b", "a dog", name="dog")
    seen = masks_at(50).rle[0]
    given = GivenMasks(objects=(GivenObject(object_id="7", frame_idx=(2,), rle=(seen,)),))
    jobs = [job("1", car), job("2"), job("3", dog, given=given), job("4", dog), job("5", car, dog), job("6", car)]
    found = [masks_at(10), masks_at(70, name="dog")]
    results = Segmenter(SegmenterConfig(), ScriptedTracker(found), PaintedFrames()).process(jobs)
    assert [item.clip_id for item in results] == list("123456")
    assert [[(track.clip_id, track.mention_id) for track in item.tracks] for item in results] == [
        [("1", "a")],
        [],
        [("3", "b")],
        [("4", "b")],
        [("5", "a"), ("5", "b")],
        [("6", "a")],
    ]
    masks = [[track.masks for track in item.tracks] for item in results]
    assert masks[0] == masks[5] == found[:1]
    assert masks[3] == found[1:]
    assert masks[4] == found
    assert masks[2][0].rle == (seen,)


def test_a_tracker_that_answers_for_fewer_clips_is_an_error() -> None:
    class Forgetful(ScriptedTracker):
        def track_many(self, asked: Sequence[tuple[Clip, Sequence[str]]]) -> list[list[ObjectMasks]]:
            return super().track_many(asked)[1:]

    segmenter = Segmenter(SegmenterConfig(), Forgetful([masks_at(10)]), PaintedFrames())
    with pytest.raises(ValueError, match="scripted gave 1 answers for 2 clips"):
        segmenter.process([job("1", mention("a", "a car")), job("2", mention("a", "a car"))])


@pytest.mark.parametrize("config", [SegmenterConfig(), SegmenterConfig(min_visible_frames=9)])
def test_the_label_holds_both_configurations(config: SegmenterConfig) -> None:
    label = Segmenter(config, ScriptedTracker([]), PaintedFrames()).label()
    told = json.loads(label.config_json)
    assert told == {"segmenter": config.model_dump(mode="json"), "tracker": {"speed": 3}}
    assert (label.agent, label.engine, label.weights) == ("segmenter", "scripted", ("scripted@0",))


def test_given_masks_are_the_tracks_as_they_are_and_no_tracker_runs() -> None:
    seen = masks_at(10).rle[0]
    given = GivenMasks(
        objects=(
            GivenObject(object_id="7", frame_idx=(2, 5), rle=(None, seen)),
            GivenObject(object_id="9", frame_idx=(2, 5), rle=(seen, seen)),
        )
    )
    tracker = ScriptedTracker([masks_at(70)])
    clip = CLIP.model_copy(update={"given_sha256": "a" * 64})
    mentions = MentionSet(clip_id="c", mentions=(mention("m", "two leashes", name="leash"),), rejected=())
    job = SegmenterJob(clip=clip, mentions=mentions, given=given)
    (result,) = Segmenter(SegmenterConfig(), tracker, PaintedFrames()).process([job])
    assert tracker.asked == []
    assert result.rejected == ()
    assert [(track.masks.frame_idx, track.masks.rle) for track in result.tracks] == [
        ((2, 5), (None, seen)),
        ((2, 5), (seen, seen)),
    ]
    assert {track.mention_id for track in result.tracks} == {"m"}
    assert len({track.track_id for track in result.tracks}) == 2
    masks = result.tracks[0].masks
    assert (masks.detector_class, masks.frame_time_s, masks.score) == ("leash", (0.2, 0.5), 1.0)
    assert (masks.height_px, masks.width_px) == (HEIGHT_PX, WIDTH_PX)
