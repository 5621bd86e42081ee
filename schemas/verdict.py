"""Verdict: the reviewer's independent look at one track and its captions."""

from typing import Literal

from pydantic import Field

from schemas.quarantine import QuarantineEntry, Reason
from schemas.record import Record, Share

Outcome = Literal["agrees", "disagrees", "cannot_tell"]


class Check(Record):
    """One question the reviewer asked, what it found, and the figures behind it."""

    name: str
    outcome: Outcome
    score: Share
    detail: str


class Verdict(Record):
    """Keep or drop, with the score that decided and every check behind it; `reason` is None when kept."""

    track_id: str
    keep: bool
    score: Share
    reason: Reason | None
    checks: tuple[Check, ...] = Field(min_length=1)


class VerdictSet(Record):
    """The reviewer's output for one clip: one verdict per track, dropped ones in `rejected` too."""

    clip_id: str
    verdicts: tuple[Verdict, ...]
    rejected: tuple[QuarantineEntry, ...]
