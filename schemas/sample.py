"""Sample: one row of a shard, enough to train on by itself."""

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.clip import Split
from schemas.quarantine import QuarantineEntry
from schemas.record import FrameIndex, Int32, Record

Kind = Literal["short_caption", "detailed_caption", "qa"]
QaType = Literal["none", "basic", "reasoning", "future"]

SCHEMA_VERSION = "1.0"
"""Stands in every shard's Parquet metadata; a minor step adds columns, a major one changes them."""

MAX_MASKED_FRAMES: dict[Kind, int] = {"short_caption": 1, "detailed_caption": 32, "qa": 16}
REGION = "<region>"
VIDEO = "<video>"


class Turn(Record):
    """One conversation entry, in the field names of the official format (schema A)."""

    model_config = Record.model_config | {"populate_by_name": True, "serialize_by_alias": True}

    speaker: Literal["human", "gpt"] = Field(alias="from")
    value: str = Field(min_length=1)


class SampleObject(Record):
    """One object of a sample; `rle` are COCO counts at the row's height and width, None out of sight."""

    object_id: str
    noun: str
    frame_idx: tuple[FrameIndex, ...] = Field(min_length=1)
    frame_time_s: tuple[float, ...]
    rle: tuple[str | None, ...]


class Provenance(Record):
    """What made the row: one entry per agent, `agent=value`; `wording` is the writer of the answer's text."""

    engines: tuple[str, ...]
    weights: tuple[str, ...]
    prompt_hashes: tuple[str, ...]
    revisions: tuple[str, ...]
    verdict: str
    wording: str


class Sample(Record):
    """One instruction sample.

    Questions hold as many `<region>` as there are objects, in order. `visible_until_s` is the end of what a model may
    see: `end_s`, or earlier for future questions. `qa_type` is `none` for captions.
    """

    sample_id: str = Field(min_length=1)
    kind: Kind
    qa_type: QaType
    split: Split
    clip_id: str
    source_id: str
    video: str
    video_sha256: str
    license: str
    start_s: float
    end_s: float
    visible_until_s: float
    fps: float
    height: Int32
    width: Int32
    conversations: tuple[Turn, ...] = Field(min_length=2)
    objects: tuple[SampleObject, ...] = Field(min_length=1)
    provenance: Provenance

    @model_validator(mode="after")
    def _regions_and_frames_fit(self) -> Self:
        regions = sum(turn.value.count(REGION) for turn in self.conversations if turn.speaker == "human")
        if regions != len(self.objects):
            raise ValueError(
                f"sample {self.sample_id}: got {regions} {REGION} in questions, {len(self.objects)} objects"
            )
        limit = MAX_MASKED_FRAMES[self.kind]
        if any(len(item.frame_idx) > limit for item in self.objects):
            raise ValueError(f"sample {self.sample_id}: a {self.kind} takes at most {limit} masked frames an object")
        if not self.start_s < self.visible_until_s <= self.end_s:
            raise ValueError(f"sample {self.sample_id}: visible_until_s must lie in ({self.start_s}, {self.end_s}]")
        return self


class SampleSet(Record):
    """The refiner's output for one clip."""

    clip_id: str
    samples: tuple[Sample, ...]
    rejected: tuple[QuarantineEntry, ...]
