"""One (unit, agent): what is not in the lake goes through the agent's pool and is committed batch by batch."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.chain import Chain
from flows.pools import Pools
from flows.profile_config import ROLES, Role
from flows.progress import BuildProgress
from infra.evidence import steady
from infra.pool import BatchDone, JobFailure
from infra.work import AgentWork, WorkCost
from infra.workbench import clip_id_of
from schemas.caption import CaptionSet, MentionTextSet
from schemas.clip import Clip
from schemas.mention import MentionSet
from schemas.quarantine import QuarantineEntry
from schemas.record import Record
from schemas.sample import SampleSet
from schemas.track import TrackSet
from schemas.verdict import VerdictSet

Log = Callable[[int, str], None]
"""Takes a logging level and a line."""

CLIPS_AT_ONCE = 512
"""Of a unit that is larger, no more clips are handed to an agent at once: their jobs, with all masks of their objects,
are in the run's memory. It is a few times what the workers of a large pool hold.
"""


@dataclass(frozen=True)
class BuildRun:
    """What the steps of one build share. `failed` fills up: clips that an agent could not finish, in this run or in one
    before, by clip id.
    """

    chain: Chain
    pools: Pools
    progress: BuildProgress
    failed: dict[str, QuarantineEntry] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)
    """What stopped the build, the first one first: with any, no further step begins."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, entry: QuarantineEntry) -> None:
        """Note a failure; of two on one clip the one of the earlier agent stands, whichever ended first."""
        with self._lock:
            held = self.failed.get(entry.clip_id)
            if held is None or _place(entry) < _place(held):
                self.failed[entry.clip_id] = entry

    @property
    def work(self) -> tuple[AgentWork, ...]:
        """What each agent did in this run, those left out that did nothing."""
        return tuple(
            AgentWork(
                agent=role,
                engine=self.chain.labels[role].engine,
                clips=agent.worked,
                busy_s=agent.busy_s,
                cost=WorkCost(
                    elapsed_s=agent.elapsed_s,
                    begin_s=agent.begin_s,
                    load_s=agent.load_s,
                    error_s_per_clip=agent.batches.error_s_per_clip,
                    stored_bytes=agent.stored_bytes,
                    tokens=agent.tokens,
                ),
            )
            for role, agent in self.progress.snapshot().items()
            if agent.worked
        )


@dataclass(frozen=True)
class StepResult:
    """What one step did: `cached` clips were settled by a run before, `failed_before` of them as failures; `done` ones
    were worked on, `failed` ones too, without success; `skipped` ones failed in an agent that this one reads.
    """

    cached: int
    failed_before: int
    done: int
    failed: int
    skipped: int
    busy_s: float

    def describe(self) -> str:
        """One line for the log and the state."""
        before = f" ({self.failed_before} as failures)" if self.failed_before else ""
        return (
            f"{self.cached} clips in the lake{before}, {self.done} done, {self.failed} failed, {self.skipped} skipped, "
            f"{self.busy_s:.1f} s of work"
        )


def run_step(role: Role, unit: int, clips: Sequence[Clip], run: BuildRun, log: Log) -> StepResult:
    """Bring one unit through one agent.

    Outputs and failures are committed as their micro-batch ends, so whatever stops this step leaves only uncommitted
    clips to do, and a clip that failed is not tried again before it is taken out of quarantine. It is left out of what
    follows; the others go on.
    """
    upstream = run.chain.upstream[role]
    lost = {clip_id for clip_id, entry in list(run.failed.items()) if entry.stage in upstream}
    alive = [clip for clip in clips if clip.clip_id not in lost]
    run.chain.store(role).refresh()  # another build on this lake may have done some meanwhile
    run.chain.failure_store(role).refresh()  # or `quarantine retry` taken some failures out
    before = run.chain.failures(role, alive)
    given_up = {entry.clip_id for entry in before}
    held = run.chain.store(role).keys()
    # not by the failures' keys: those may change between two looks, and a clip must be in one of the three
    stale = [clip for clip in alive if clip.clip_id not in given_up and run.chain.keys(clip)[role] not in held]
    for entry in before:
        run.fail(entry)
    cached, skipped = len(alive) - len(stale), len(clips) - len(alive)
    if skipped:
        run.progress.add(role, done=skipped, skipped=skipped)
    if cached:
        run.progress.add(role, done=cached, cached=cached, failed=len(before), failed_before=len(before))
    done = failed = 0
    busy_s = 0.0
    if stale:
        run.progress.begin(role)
        by_id = {clip.clip_id: clip for clip in stale}
        pool = run.pools.get(role)
        for start in range(0, len(stale), CLIPS_AT_ONCE):
            for batch in pool.run(unit, run.chain.jobs(role, stale[start : start + CLIPS_AT_ONCE])):
                failures = _commit(role, batch, by_id, run, log)
                done += len(batch.outcomes) - failures
                failed += failures
                busy_s += batch.busy_s
    return StepResult(
        cached=cached, failed_before=len(before), done=done, failed=failed, skipped=skipped, busy_s=busy_s
    )


def _commit(role: Role, batch: BatchDone[Any, Any], by_id: dict[str, Clip], run: BuildRun, log: Log) -> int:
    results = [(by_id[clip_id_of(outcome.job)], outcome.result) for outcome in batch.outcomes]
    outputs = [(clip, result) for clip, result in results if not isinstance(result, JobFailure)]
    failures = [(clip, _entry(role, clip, result)) for clip, result in results if isinstance(result, JobFailure)]
    stored_bytes = run.chain.store(role).append([(run.chain.keys(clip)[role], output) for clip, output in outputs])
    run.chain.failure_store(role).append([(run.chain.keys(clip)[role], entry) for clip, entry in failures])
    for line in batch.log_lines:
        log(line.level, f"{batch.worker} {line.logger}: {line.message}")
    for clip, entry in failures:
        run.fail(entry)
        log(logging.ERROR, f"clip {clip.clip_id} failed in {role} after {entry.evidence}")
    kept, dropped = _counts(output for _, output in outputs)
    done, failed = len(batch.outcomes), len(failures)
    run.progress.add(
        role,
        done=done,
        failed=failed,
        kept=kept,
        dropped=dropped,
        busy_s=batch.busy_s,
        stored_bytes=stored_bytes,
        tokens=batch.tokens,
    )
    return len(failures)


def _entry(role: Role, clip: Clip, failure: JobFailure) -> QuarantineEntry:
    evidence = f"{failure.attempts} tries: {steady(failure.evidence)}"
    return QuarantineEntry.of_clip(clip, role, failure.reason, evidence, retryable=True)


def _place(entry: QuarantineEntry) -> int:
    return [str(role) for role in ROLES].index(entry.stage)


def _counts(outputs: Iterable[Any]) -> tuple[int, int]:
    kept = dropped = 0
    for output in outputs:
        kept += num_kept(output)
        dropped += len(output.rejected)
    return kept, dropped


def num_kept(output: Record) -> int:
    """How many records an agent's output keeps, a verdict only where it is a yes."""
    match output:
        case MentionSet():
            return len(output.mentions)
        case TrackSet():
            return len(output.tracks)
        case CaptionSet():
            return len(output.captions)
        case MentionTextSet():
            return len(output.texts)
        case VerdictSet():
            return sum(verdict.keep for verdict in output.verdicts)
        case SampleSet():
            return len(output.samples)
    raise TypeError(f"no agent puts out {type(output).__name__}")
