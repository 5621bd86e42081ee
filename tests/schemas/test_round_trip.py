"""Every record that crosses an edge survives Arrow and Parquet unchanged."""

import io
import types
import typing
from operator import attrgetter
from typing import Annotated, Literal, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from schemas.arrow import arrow_schema, from_table, to_table
from schemas.caption import CaptionSet, MentionTextSet
from schemas.clip import Clip
from schemas.given import GivenMasks, GivenObject
from schemas.label import AgentLabel
from schemas.mention import Mention, MentionSet
from schemas.quarantine import QuarantineEntry
from schemas.record import Record
from schemas.sample import MAX_MASKED_FRAMES, Sample, SampleObject, SampleSet, Turn
from schemas.track import ObjectMasks, Track, TrackSet
from schemas.verdict import VerdictSet

EDGE_RECORDS = [
    Clip,
    MentionSet,
    TrackSet,
    CaptionSet,
    MentionTextSet,
    VerdictSet,
    SampleSet,
    Sample,
    Track,
    QuarantineEntry,
    AgentLabel,
    GivenMasks,
]


def values(annotation: object, bounds: tuple[object, ...] = ()) -> st.SearchStrategy:
    """Values of one annotation within its declared bounds."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        extras = [item for extra in args[1:] for item in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return values(args[0], (*bounds, *extras))
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values(arg, bounds) for arg in args))
    if annotation is type(None):
        return st.none()
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return tuples(args, bounds)
    if annotation is str:
        if any(getattr(bound, "pattern", None) for bound in bounds):
            return st.text("0123456789abcdef", min_size=64, max_size=64)
        return st.text(min_size=min_length(bounds), max_size=12)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        low = max(
            [b.ge for b in bounds if isinstance(b, Ge)] + [b.gt + 1 for b in bounds if isinstance(b, Gt)] + [-(2**63)]
        )
        return st.integers(low, min([b.lt - 1 for b in bounds if isinstance(b, Lt)] + [2**63 - 1]))
    if annotation is float:
        return floats(bounds)
    assert isinstance(annotation, type), annotation
    assert issubclass(annotation, Record), annotation
    return records(annotation)


def tuples(args: tuple[object, ...], bounds: tuple[object, ...]) -> st.SearchStrategy:
    if args[-1] is not Ellipsis:
        return st.tuples(*(values(arg) for arg in args))
    alike = {Mention: attrgetter("mention_id"), Track: attrgetter("track_id")}.get(args[0])
    return st.lists(values(args[0]), min_size=min_length(bounds), max_size=3, unique_by=alike).map(tuple)


def floats(bounds: tuple[object, ...]) -> st.SearchStrategy[float]:
    low = next((b.ge for b in bounds if isinstance(b, Ge)), None)
    above = next((b.gt for b in bounds if isinstance(b, Gt)), None)
    high = next((b.le for b in bounds if isinstance(b, Le)), None)
    return st.floats(
        above if low is None else low, high, exclude_min=above is not None, allow_nan=False, allow_infinity=False
    )


def min_length(bounds: tuple[object, ...]) -> int:
    return max([bound.min_length for bound in bounds if isinstance(bound, MinLen)], default=0)


def records(record_type: type[Record]) -> st.SearchStrategy:
    """Records of a type; those whose fields hang together have a strategy of their own."""
    own = {Clip: clips, ObjectMasks: object_masks, GivenObject: given_objects, Sample: samples}
    if record_type in own:
        return own[record_type]()
    return st.fixed_dictionaries(fields(record_type)).map(lambda drawn: record_type(**drawn))


def fields(record_type: type[Record]) -> dict[str, st.SearchStrategy]:
    return {
        info.alias or name: values(info.annotation, tuple(info.metadata))
        for name, info in record_type.model_fields.items()
    }


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    drawn = {name: draw(strategy) for name, strategy in fields(Clip).items()}
    start_s, start_frame = draw(st.floats(0, 1e6)), draw(st.integers(0, 2**30))
    span_s, num_frames = draw(st.floats(0.01, 1e3)), draw(st.integers(1, 2**30))
    spans = {"start_s": start_s, "end_s": start_s + span_s}
    return Clip(**(drawn | spans | {"start_frame": start_frame, "end_frame": start_frame + num_frames}))


@st.composite
def object_masks(draw: st.DrawFn) -> ObjectMasks:
    drawn = {name: draw(strategy) for name, strategy in fields(ObjectMasks).items()}
    frames = sorted(draw(st.sets(st.integers(0, 2**31 - 1), min_size=1, max_size=4)))
    rle = [draw(st.none() | st.text("0123PQab", max_size=8)) for _ in frames]
    seen = draw(st.integers(0, len(frames) - 1))
    rle[seen] = rle[seen] or "04"
    times = draw(st.tuples(*(st.floats(0, 1e6) for _ in frames)))
    return ObjectMasks(**(drawn | {"frame_idx": tuple(frames), "frame_time_s": times, "rle": tuple(rle)}))


def given_objects() -> st.SearchStrategy[GivenObject]:
    return object_masks().map(
        lambda masks: GivenObject(object_id=masks.detector_class, frame_idx=masks.frame_idx, rle=masks.rle)
    )


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    drawn = {name: draw(strategy) for name, strategy in fields(Sample).items()}
    limit = MAX_MASKED_FRAMES[drawn["kind"]]
    objects = tuple(
        SampleObject(
            object_id=item.object_id,
            noun=item.noun,
            frame_idx=item.frame_idx[:limit],
            frame_time_s=item.frame_time_s[:limit],
            rle=item.rle[:limit],
        )
        for item in drawn["objects"]
    )
    question = Turn(speaker="human", value="What of " + "<region>" * len(objects) + "?")
    answer = Turn(speaker="gpt", value=draw(st.text(min_size=1, max_size=20)))
    start_s, span_s = draw(st.floats(0, 1e6)), draw(st.floats(0.01, 1e3))
    spans = {"start_s": start_s, "end_s": start_s + span_s, "visible_until_s": start_s + span_s}
    return Sample(**(drawn | spans | {"objects": objects, "conversations": (question, answer)}))


def through_parquet(table: pa.Table) -> pa.Table:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    buffer.seek(0)
    return pq.read_table(buffer)


@pytest.mark.parametrize("record_type", EDGE_RECORDS, ids=lambda record_type: record_type.__name__)
def test_records_come_back_equal_from_parquet(record_type: type[Record]) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(st.lists(records(record_type), max_size=3))
    def round_trip(given_records: list[Record]) -> None:
        table = to_table(given_records, record_type)
        stored = through_parquet(table)
        assert stored.schema.equals(table.schema)
        assert from_table(stored, record_type) == given_records

    round_trip()


@pytest.mark.parametrize("record_type", EDGE_RECORDS, ids=lambda record_type: record_type.__name__)
def test_an_empty_table_keeps_its_schema(record_type: type[Record]) -> None:
    table = to_table([], record_type)
    assert table.num_rows == 0
    assert through_parquet(table).schema.equals(arrow_schema(record_type))


def test_a_shard_row_has_the_promised_columns_and_types() -> None:
    schema = arrow_schema(Sample)
    assert schema.names == [
        *("sample_id", "kind", "qa_type", "split", "clip_id", "source_id", "video", "video_sha256", "license"),
        *("start_s", "end_s", "visible_until_s", "fps", "height", "width", "conversations", "objects", "provenance"),
    ]
    assert [field.name for field in schema.field("conversations").type.value_type] == ["from", "value"]
    row_object = schema.field("objects").type.value_type
    assert row_object.field("frame_idx").type.value_type == pa.int32()
    assert row_object.field("rle").type.value_field.nullable
    assert not schema.field("sample_id").nullable


def test_a_column_that_the_record_does_not_know_is_refused() -> None:
    entry = QuarantineEntry(
        subject_id="s", source_id="s", clip_id="", stage="source", reason="missing_file", evidence="none there"
    )
    table = to_table([entry], QuarantineEntry).append_column("surprise", pa.array(["x"]))
    with pytest.raises(ValueError, match="surprise"):
        from_table(table, QuarantineEntry)


def test_an_annotation_without_an_arrow_type_is_refused() -> None:
    class Odd(Record):
        mixed: tuple[str, int]

    with pytest.raises(TypeError, match="one type"):
        arrow_schema(Odd)


def test_integers_beyond_32_bits_are_refused_on_construction() -> None:
    with pytest.raises(ValueError, match="less than"):
        SampleObject(object_id="o", noun="dog", frame_idx=(2**31,), frame_time_s=(0.0,), rle=(None,))
