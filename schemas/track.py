"""Track: one object through time, as run-length encoded masks at displayed frames."""

from typing import Self

from pydantic import Field, model_validator

from schemas.quarantine import QuarantineEntry
from schemas.record import FrameIndex, Record, Share, check_unique


class ObjectMasks(Record):
    """Masks of one object, ordered by frame.

    `rle[i]` is the COCO compressed counts string of frame `frame_idx[i]` at (`height_px`, `width_px`), None where the
    object is out of sight. `score` is the engine's confidence in the whole track.
    """

    detector_class: str = Field(min_length=1)
    frame_idx: tuple[FrameIndex, ...] = Field(min_length=1)
    frame_time_s: tuple[float, ...]
    rle: tuple[str | None, ...]
    height_px: int = Field(gt=0)
    width_px: int = Field(gt=0)
    score: Share

    @model_validator(mode="after")
    def _columns_agree(self) -> Self:
        lengths = {len(self.frame_idx), len(self.frame_time_s), len(self.rle)}
        if len(lengths) != 1:
            raise ValueError(f"frame_idx, frame_time_s and rle must be of one length, got {sorted(lengths)}")
        if any(b <= a for a, b in zip(self.frame_idx, self.frame_idx[1:], strict=False)):
            raise ValueError("frame_idx must rise strictly")
        if all(counts is None for counts in self.rle):
            raise ValueError("a track needs at least one frame in which its object is seen")
        return self


class Track(Record):
    """Masks of one object that stands for one mention of one clip.

    A mention with a stated count ("two dogs") has that many tracks.
    """

    track_id: str = Field(min_length=1)
    clip_id: str = Field(min_length=1)
    mention_id: str = Field(min_length=1)
    noun: str = Field(min_length=1)
    masks: ObjectMasks


class TrackSet(Record):
    """The segmenter's output for one clip."""

    clip_id: str
    tracks: tuple[Track, ...]
    rejected: tuple[QuarantineEntry, ...]

    @model_validator(mode="after")
    def _differ(self) -> Self:
        check_unique([track.track_id for track in self.tracks])
        return self
