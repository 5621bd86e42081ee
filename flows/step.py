"""One (unit, agent): what is not in the lake goes through the agent's pool and is committed batch by batch."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.chain import Chain
from flows.pools import Pools
from flows.profile_config import Role
from flows.progress import BuildProgress
from infra.pool import BatchDone, JobFailure
from infra.workbench import clip_id_of
from schemas.caption import CaptionSet
from schemas.clip import Clip
from schemas.mention import MentionSet
from schemas.quarantine import QuarantineEntry
from schemas.record import Record
from schemas.sample import SampleSet
from schemas.track import TrackSet
from schemas.verdict import VerdictSet

Log = Callable[[int, str], None]
"""Takes a logging level and a line."""


@dataclass(frozen=True)
class BuildRun:
    """What the steps of one build share. `failed` fills up: clips that an agent could not finish, by clip id."""

    chain: Chain
    pools: Pools
    progress: BuildProgress
    failed: dict[str, QuarantineEntry] = field(default_factory=dict)


@dataclass(frozen=True)
class StepResult:
    """What one step did: `cached` clips were in the lake, `done` ones were worked on, `skipped` ones failed before."""

    cached: int
    done: int
    failed: int
    skipped: int
    busy_s: float

    def describe(self) -> str:
        """One line for the log and the state."""
        return (
            f"{self.cached} clips in the lake, {self.done} done, {self.failed} failed, {self.skipped} skipped, "
            f"{self.busy_s:.1f} s of work"
        )


def run_step(role: Role, unit: int, clips: Sequence[Clip], run: BuildRun, log: Log) -> StepResult:
    """Bring one unit through one agent.

    Outputs are committed as their micro-batch ends, so whatever stops this step leaves only uncommitted clips to do.
    A clip that fails is left out of what follows; the others go on.
    """
    alive = [clip for clip in clips if clip.clip_id not in run.failed]
    stale = run.chain.stale(role, alive)
    cached, skipped = len(alive) - len(stale), len(clips) - len(alive)
    if skipped:
        run.progress.add(role, done=skipped, skipped=skipped)
    if cached:
        run.progress.add(role, done=cached, cached=cached)
    done = failed = 0
    busy_s = 0.0
    if stale:
        run.progress.begin(role)
        by_id = {clip.clip_id: clip for clip in stale}
        pool = run.pools.get(role)
        for batch in pool.run(unit, run.chain.jobs(role, stale)):
            failures = _commit(role, batch, by_id, run, log)
            done += len(batch.outcomes) - failures
            failed += failures
            busy_s += batch.busy_s
    return StepResult(cached=cached, done=done, failed=failed, skipped=skipped, busy_s=busy_s)


def _commit(role: Role, batch: BatchDone[Any, Any], by_id: dict[str, Clip], run: BuildRun, log: Log) -> int:
    results = [(by_id[clip_id_of(outcome.job)], outcome.result) for outcome in batch.outcomes]
    outputs = [(clip, result) for clip, result in results if not isinstance(result, JobFailure)]
    failures = [(clip, result) for clip, result in results if isinstance(result, JobFailure)]
    run.chain.store(role).append([(run.chain.keys(clip)[role], output) for clip, output in outputs])
    for line in batch.log_lines:
        log(line.level, f"{batch.worker} {line.logger}: {line.message}")
    for clip, failure in failures:
        run.failed[clip.clip_id] = QuarantineEntry(
            subject_id=clip.clip_id,
            source_id=clip.source_id,
            clip_id=clip.clip_id,
            stage=role,
            reason=failure.reason,
            evidence=f"{failure.attempts} tries: {failure.evidence}",
            retryable=True,
        )
        log(logging.ERROR, f"clip {clip.clip_id} failed in {role} after {failure.attempts} tries: {failure.evidence}")
    kept, dropped = _counts(output for _, output in outputs)
    run.progress.add(role, done=len(batch.outcomes), failed=len(failures), kept=kept, dropped=dropped)
    return len(failures)


def _counts(outputs: Iterable[Any]) -> tuple[int, int]:
    kept = dropped = 0
    for output in outputs:
        kept += _kept(output)
        dropped += len(output.rejected)
    return kept, dropped


def _kept(output: Record) -> int:
    match output:
        case MentionSet():
            return len(output.mentions)
        case TrackSet():
            return len(output.tracks)
        case CaptionSet():
            return len(output.captions)
        case VerdictSet():
            return sum(verdict.keep for verdict in output.verdicts)
        case SampleSet():
            return len(output.samples)
    raise TypeError(f"no agent puts out {type(output).__name__}")
