"""The base of every record: frozen, validated, with an identity derived from its content."""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31), pa.int32()]
"""A whole number stored in 32 bits; the Arrow type rides along for `schemas.arrow`."""

FrameIndex = Annotated[int, Field(ge=0, lt=2**31), pa.int32()]
"""Displayed frames of the file counted from 0 (not of the clip)."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""A part of a whole, 0 to 1."""

BoxXyxyPx = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels, half-open, of the displayed (rotated) frame."""


class Record(BaseModel):
    """A frozen value: unknown fields, NaN and infinities are refused on construction."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def content_id(*parts: Record | str | int | float | None) -> str:
    """Identity of the given values: 64 hex digits of SHA-256 over their canonical JSON.

    The same values give the same id in every process and on every machine.
    """
    canonical = [part.model_dump(mode="json") if isinstance(part, Record) else part for part in parts]
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def short_id(*parts: Record | str | int | float | None) -> str:
    """The first 16 hex digits of `content_id`, for ids that people read."""
    return content_id(*parts)[:16]


def check_unique(ids: Sequence[str]) -> None:
    """Raises ValueError where two things of one clip bear one id: the texts of one would pass for the other's."""
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise ValueError(f"ids must differ within a clip, got more than once: {', '.join(twice)}")
