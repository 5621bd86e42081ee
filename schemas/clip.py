"""Clip: a span of one video with the caption that its source gave."""

import hashlib
from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.record import FrameIndex, Record

Split = Literal["train", "held_out"]

HELD_OUT_PERCENT = 10


def split_of(video_sha256: str) -> Split:
    """The split of every clip of one video: `held_out` for about one video in ten, the same in every build.

    The video's content decides, not its name, so a copy under another name or caption never leaks into `train`.
    """
    bucket = int(hashlib.sha256(f"split:{video_sha256}".encode()).hexdigest()[:8], 16) % 100
    return "held_out" if bucket < HELD_OUT_PERCENT else "train"


class Clip(Record):
    """One shot of one video, `[start_s, end_s)` and `[start_frame, end_frame)`, with a caption.

    `video` is relative to the source root; frames are displayed frames of the file counted from 0; `height_px` and
    `width_px` are those after rotation. `source_id` is the row of the source it came from: a row that spans several
    shots gives several clips. `given_sha256` names the content of the masks that came with the source (the id of their
    `schemas.given.GivenMasks`), empty where there are none.
    """

    clip_id: str = Field(min_length=1)
    source_id: str = Field(min_length=1)
    video: str = Field(min_length=1)
    video_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    license: str
    start_s: float = Field(ge=0)
    end_s: float = Field(gt=0)
    start_frame: FrameIndex
    end_frame: FrameIndex
    fps: float = Field(gt=0)
    height_px: int = Field(gt=0)
    width_px: int = Field(gt=0)
    caption: str = Field(min_length=1)
    given_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _spans_are_not_empty(self) -> Self:
        if self.end_s <= self.start_s or self.end_frame <= self.start_frame:
            raise ValueError(
                f"clip {self.clip_id}: got [{self.start_s}, {self.end_s}) s and frames [{self.start_frame}, "
                f"{self.end_frame}); the end must come after the start"
            )
        return self

    @property
    def split(self) -> Split:
        """The split that the clip's video belongs to."""
        return split_of(self.video_sha256)

    @property
    def num_frames(self) -> int:
        """Displayed frames in the span."""
        return self.end_frame - self.start_frame
