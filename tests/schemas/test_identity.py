"""Identities and splits depend on content alone."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.clip import Clip, split_of
from schemas.label import AgentLabel
from schemas.mention import Mention, MentionSet, SaidAttributes
from schemas.record import Record, content_id, short_id
from schemas.track import ObjectMasks, Track, TrackSet

GOLDEN = "c7d10e63287c00e3088d45eaec1987058f78cccc2dae18ede606318f015b9c3d"


class Pair(Record):
    left: str
    right: int


def test_content_id_is_the_same_in_every_build() -> None:
    assert content_id("dog", 3, 0.5, None, Pair(left="é", right=1)) == GOLDEN


def test_content_id_is_the_hash_of_canonical_json() -> None:
    text = '["dog",3,0.5,null,{"left":"é","right":1}]'
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN


def test_content_id_does_not_depend_on_the_order_of_fields() -> None:
    assert content_id(Pair(right=1, left="a")) == content_id(Pair.model_validate({"left": "a", "right": 1}))


@given(st.lists(st.text() | st.integers() | st.none(), max_size=4), st.lists(st.text() | st.integers(), max_size=4))
def test_different_values_have_different_ids(a: list[str | int | None], b: list[str | int]) -> None:
    assert (content_id(*a) == content_id(*b)) == (a == b)


def test_short_id_begins_content_id() -> None:
    assert short_id("dog") == content_id("dog")[:16]


def test_any_change_of_a_label_changes_its_folder() -> None:
    label = AgentLabel(agent="a", engine="e", weights=("w@1",), config_json="{}", prompt_hash="", revision=1)
    changes = [{"engine": "f"}, {"weights": ("w@2",)}, {"config_json": "[]"}, {"prompt_hash": "p"}, {"revision": 2}]
    hashes = {label.model_copy(update=change).config_hash for change in [{}, *changes]}
    assert len(hashes) == len(changes) + 1
    assert all(len(name) == 16 for name in hashes)


def test_about_one_video_in_ten_is_held_out() -> None:
    videos = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(10_000)]
    held_out = sum(split_of(video) == "held_out" for video in videos)
    assert 900 <= held_out <= 1100


def test_clips_of_one_video_share_a_split() -> None:
    def clip(clip_id: str, video: str, start_s: float, sha256: str) -> Clip:
        return Clip(
            clip_id=clip_id, source_id=clip_id, video=video, video_sha256=sha256, license="", start_s=start_s,
            end_s=start_s + 1, start_frame=0, end_frame=25, fps=25, height_px=4, width_px=4, caption="A dog.",
        )  # fmt: skip

    for i in range(50):
        sha256 = hashlib.sha256(str(i).encode()).hexdigest()
        assert clip("a", "one.mp4", 0, sha256).split == clip("b", "copy.mp4", 5, sha256).split == split_of(sha256)


@pytest.mark.parametrize("spans", [{"end_s": 1.0}, {"end_frame": 5}])
def test_a_clip_spans_something(spans: dict[str, float]) -> None:
    given_spans = {"start_s": 1.0, "end_s": 2.0, "start_frame": 5, "end_frame": 9} | spans
    rest = {"clip_id": "c", "source_id": "s", "video": "v.mp4", "video_sha256": "0" * 64, "license": "", "fps": 25}
    with pytest.raises(ValueError, match="end must come after the start"):
        Clip.model_validate(rest | given_spans | {"height_px": 4, "width_px": 4, "caption": "A dog."})


def test_two_mentions_of_one_id_are_refused() -> None:
    dog = Mention(
        mention_id="m1",
        clip_id="c",
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
    other = dog.model_copy(update={"mention_id": "m2"})
    assert MentionSet(clip_id="c", mentions=(dog, other), rejected=()).mentions == (dog, other)
    with pytest.raises(ValidationError, match="ids must differ within a clip, got more than once: m1"):
        MentionSet(clip_id="c", mentions=(dog, other, dog), rejected=())


def test_two_tracks_of_one_id_are_refused() -> None:
    masks = ObjectMasks(
        detector_class="dog", frame_idx=(0,), frame_time_s=(0.0,), rle=("04",), height_px=2, width_px=2, score=1.0
    )
    tracks = tuple(Track(track_id=one, clip_id="c", mention_id="m", noun="dog", masks=masks) for one in "ab")
    assert TrackSet(clip_id="c", tracks=tracks, rejected=()).tracks == tracks
    with pytest.raises(ValidationError, match="got more than once: b"):
        TrackSet(clip_id="c", tracks=(*tracks, tracks[1]), rejected=())
