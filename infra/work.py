"""What agents did in a build, and what it took: the figures behind progress, estimates and forecasts."""

import math
from dataclasses import dataclass
from typing import Self

from infra.token_count import TokenCount
from schemas.record import Record

CUTTING = "cutting"
"""Stands where agents are named, for the cutting of rows into clips, which comes before all of them."""


@dataclass(frozen=True)
class BatchSums:
    """Sums over an agent's micro-batches, of clips and of workers' seconds: all that is kept of them."""

    num: int = 0
    clips: int = 0
    busy_s: float = 0.0
    clips_squared: float = 0.0
    busy_squared: float = 0.0
    clips_by_busy: float = 0.0

    def plus(self, clips: int, busy_s: float) -> Self:
        """With one more micro-batch."""
        return type(self)(
            num=self.num + 1,
            clips=self.clips + clips,
            busy_s=self.busy_s + busy_s,
            clips_squared=self.clips_squared + clips**2,
            busy_squared=self.busy_squared + busy_s**2,
            clips_by_busy=self.clips_by_busy + clips * busy_s,
        )

    @property
    def error_s_per_clip(self) -> float | None:
        """Standard error of the seconds a clip takes, None with fewer than two micro-batches.

        It is that of a ratio estimate (Cochran, Sampling Techniques, chapter 6): from what each micro-batch took
        beyond its clips at the mean rate.
        """
        if self.num < 2 or not self.clips:
            return None
        rate = self.busy_s / self.clips
        residuals = self.busy_squared - 2 * rate * self.clips_by_busy + rate**2 * self.clips_squared
        return math.sqrt(self.num / (self.num - 1) * max(residuals, 0.0)) / self.clips


class WorkCost(Record):
    """What an agent's work took besides its workers' time.

    `elapsed_s` is from when it takes up its first clip, loading included, to its last; it takes that up `begin_s` after
    the first agent of the run does, and `load_s` go by until it works on it. `error_s_per_clip` is the standard error
    of the busy seconds a clip, None where one micro-batch was all. `stored_bytes` went to the lake. `tokens` is what it
    asked chat servers, None for an agent that asks none. `begin_s` and `load_s` are None in manifests of programs that
    did not keep them.
    """

    elapsed_s: float
    begin_s: float | None = None
    load_s: float | None = None
    error_s_per_clip: float | None
    stored_bytes: int
    tokens: TokenCount | None


class AgentWork(Record):
    """How long an agent with some engine was busy with how many clips: seconds in which a worker of it worked, all
    workers added up, without loading. `cost` is None in manifests of programs that did not keep it, and for the
    cutting of rows (`CUTTING`), of which `busy_s` is by the clock.
    """

    agent: str
    engine: str
    clips: int
    busy_s: float
    cost: WorkCost | None = None

    @property
    def s_per_clip(self) -> float:
        """Busy seconds a clip."""
        return self.busy_s / self.clips
