"""Samples that could not be trained on are refused on construction."""

import pytest

from schemas.sample import MAX_MASKED_FRAMES, Kind, Provenance, Sample, SampleObject, Turn

PROVENANCE = Provenance(engines=(), weights=(), prompt_hashes=(), revisions=(), verdict="kept", wording="template")


def an_object(frames: int = 1) -> SampleObject:
    return SampleObject(
        object_id="t1",
        noun="dog",
        frame_idx=tuple(range(frames)),
        frame_time_s=tuple(i / 25 for i in range(frames)),
        rle=(None,) * frames,
    )


def a_sample(question: str = "What is <region>?", objects: int = 1, frames: int = 1, **changes: object) -> Sample:
    wanted: dict[str, object] = {
        "sample_id": "s1",
        "kind": "qa",
        "qa_type": "basic",
        "split": "train",
        "clip_id": "c1",
        "source_id": "v1",
        "video": "a.mp4",
        "video_sha256": "0" * 64,
        "license": "CC0-1.0",
        "start_s": 1.0,
        "end_s": 3.0,
        "visible_until_s": 3.0,
        "fps": 25.0,
        "height": 4,
        "width": 4,
        "conversations": (Turn(speaker="human", value=question), Turn(speaker="gpt", value="A <region> word.")),
        "objects": tuple(an_object(frames) for _ in range(objects)),
        "provenance": PROVENANCE,
    }
    return Sample.model_validate(wanted | changes)


@pytest.mark.parametrize(("regions", "objects"), [(0, 1), (1, 2), (3, 2)])
def test_questions_hold_one_region_per_object(regions: int, objects: int) -> None:
    with pytest.raises(ValueError, match=f"got {regions} <region> in questions, {objects} objects"):
        a_sample("What? " + "<region>" * regions, objects)


def test_regions_are_counted_over_all_questions_and_not_in_answers() -> None:
    turns = [("human", "Is <region> red?"), ("gpt", "Yes, <region> is."), ("human", "And <region>?"), ("gpt", "No.")]
    sample = a_sample(objects=2, conversations=tuple({"from": speaker, "value": text} for speaker, text in turns))
    assert len(sample.objects) == 2


@pytest.mark.parametrize("kind", MAX_MASKED_FRAMES)
def test_a_kind_limits_its_masked_frames(kind: Kind) -> None:
    limit = MAX_MASKED_FRAMES[kind]
    assert a_sample(kind=kind, frames=limit).kind == kind
    with pytest.raises(ValueError, match=f"at most {limit} masked frames"):
        a_sample(kind=kind, frames=limit + 1)


@pytest.mark.parametrize("visible_until_s", [0.5, 1.0, 3.001])
def test_what_is_visible_ends_inside_the_span(visible_until_s: float) -> None:
    with pytest.raises(ValueError, match="visible_until_s must lie in"):
        a_sample(visible_until_s=visible_until_s)


def test_turns_carry_the_official_field_names() -> None:
    dumped = a_sample().model_dump()["conversations"]
    assert [sorted(turn) for turn in dumped] == [["from", "value"], ["from", "value"]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_times_are_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        a_sample(fps=bad)


def test_a_record_is_frozen_and_knows_its_fields() -> None:
    with pytest.raises(ValueError, match="frozen"):
        a_sample().kind = "qa"  # type: ignore[misc]
    with pytest.raises(ValueError, match="Extra inputs"):
        a_sample(surprise=1)
