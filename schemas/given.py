"""Given masks: what a source says of its objects' places itself, and where it says it."""

from typing import Self

from pydantic import Field, model_validator

from schemas.record import FrameIndex, Record

GIVEN_BY_SOURCE = "given-by-source"
"""Stands in a sample's provenance where a tracker's name would: its masks came with the source."""


class MaskRef(Record):
    """Where the masks of a row's objects are, so that rows need not hold them.

    `path`, relative to the videos' root, is a JSON file of COCO run lengths by object, or a folder of PNG images whose
    pixel values are object ids. `objects` are those that the row's text means, by the names they have there. `frames`
    are the stems of the image files that masks are given for, in order; empty for all of the video's.
    """

    path: str = Field(min_length=1)
    objects: tuple[str, ...]
    frames: tuple[str, ...]


class GivenObject(Record):
    """One object's masks in one clip: COCO counts at displayed frames of the file, None out of sight."""

    object_id: str
    frame_idx: tuple[FrameIndex, ...] = Field(min_length=1)
    rle: tuple[str | None, ...]

    @model_validator(mode="after")
    def _columns_agree(self) -> Self:
        if len(self.frame_idx) != len(self.rle):
            raise ValueError(f"got {len(self.frame_idx)} frames and {len(self.rle)} masks of object {self.object_id}")
        return self


class GivenMasks(Record):
    """The objects that the caption of one clip means, as its source gives them."""

    objects: tuple[GivenObject, ...] = Field(min_length=1)
