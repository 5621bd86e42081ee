"""One (unit, agent): what is in the lake is not done again, batches are committed as they end, failures stay apart."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from flows.chain import Chain
from flows.pools import Pools
from flows.profile_config import ROLES
from flows.progress import BuildProgress
from flows.step import BuildRun, StepResult, run_step
from infra.lake import Lake
from infra.pool import LocalPool
from infra.workbench import clip_id_of
from schemas.record import Record

LOGGER = logging.getLogger("by-hand")


class HandAgent:
    """Answers every job with the record made by hand; raises for the clips named in `bad`."""

    def __init__(self, role: str, by_hand: Any, bad: Sequence[str], seen: list[list[str]]) -> None:
        self.role, self.by_hand, self.bad, self.seen = role, by_hand, bad, seen

    def setup(self) -> None:
        LOGGER.warning("engine loaded")

    def process(self, jobs: Sequence[Record]) -> list[Record]:
        ids = [clip_id_of(job) for job in jobs]
        self.seen.append(ids)
        if broken := set(ids) & set(self.bad):
            raise ValueError(f"cannot do {sorted(broken)}")
        return [self.by_hand.outputs(getattr(job, "clip", job))[self.role] for job in jobs]

    def close(self) -> None:
        LOGGER.info("closed")


class LocalPools:
    """Pools in this process, in the place of those on Ray; `seen` are the batches that each agent was handed."""

    def __init__(self, by_hand: Any, bad: dict[str, Sequence[str]] | None = None, batch_size: int = 2) -> None:
        self.by_hand, self.bad, self.batch_size = by_hand, bad or {}, batch_size
        self.seen: dict[str, list[list[str]]] = {}

    def get(self, role: str) -> LocalPool[Any, Any]:
        seen = self.seen.setdefault(role, [])
        bad = self.bad.get(role, ())
        return LocalPool(lambda: HandAgent(role, self.by_hand, bad, seen), batch_size=self.batch_size)


def a_run(lake: Path, by_hand: Any, pools: LocalPools, num_clips: int = 3) -> BuildRun:
    return BuildRun(
        chain=Chain(Lake(lake), by_hand.labels(), "tracks"),
        pools=cast("Pools", pools),
        progress=BuildProgress(num_clips, dict.fromkeys(ROLES, 1), ()),
    )


def steps(run: BuildRun, clips: Sequence[Any], lines: list[tuple[int, str]] | None = None) -> list[StepResult]:
    """All agents in turn."""
    said = [] if lines is None else lines
    return [run_step(role, 0, clips, run, lambda level, line: said.append((level, line))) for role in ROLES]


@pytest.fixture
def clips(by_hand: Any) -> list[Any]:
    return [by_hand.clip(f"c{number}") for number in (1, 2, 3)]


def parts(lake: Path, role: str) -> list[Path]:
    return sorted(lake.glob(f"agents/{role}/*/part-*.parquet"))


def test_every_agent_leaves_its_outputs_in_the_lake_one_part_a_batch(
    tmp_path: Path, by_hand: Any, clips: list[Any]
) -> None:
    pools = LocalPools(by_hand)
    run = a_run(tmp_path, by_hand, pools)
    results = steps(run, clips)
    assert {(result.cached, result.done, result.failed, result.skipped) for result in results} == {(0, 3, 0, 0)}
    assert pools.seen == {role: [["c1", "c2"], ["c3"]] for role in ROLES}
    assert [len(parts(tmp_path, role)) for role in ROLES] == [2] * 5
    again = Chain(Lake(tmp_path), by_hand.labels(), "tracks")
    for role in ROLES:
        assert again.outputs(role, clips) == {clip.clip_id: by_hand.outputs(clip)[role] for clip in clips}


def test_a_batch_is_committed_before_the_next_one_is_begun(tmp_path: Path, by_hand: Any, clips: list[Any]) -> None:
    class Watching(LocalPools):
        def __init__(self) -> None:
            super().__init__(by_hand, batch_size=1)
            self.held: list[int] = []

        def get(self, role: str) -> LocalPool[Any, Any]:
            pool = super().get(role)
            serve = pool.run

            def watched(priority: int, jobs: Sequence[Any]) -> Iterator[Any]:
                for batch in serve(priority, jobs):
                    self.held.append(len(parts(tmp_path, role)))
                    yield batch

            pool.run = watched  # type: ignore[method-assign]
            return pool

    pools = Watching()
    run_step("analyzer", 0, clips, a_run(tmp_path, by_hand, pools), lambda *_: None)
    assert pools.held == [0, 1, 2]


def test_of_a_large_unit_few_jobs_are_in_memory_at_once(
    tmp_path: Path, by_hand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: dict[str, list[list[str]]] = {}

    class Counting(LocalPools):
        def get(self, role: str) -> LocalPool[Any, Any]:
            pool = super().get(role)
            serve = pool.run

            def counted(priority: int, jobs: Sequence[Any]) -> Iterator[Any]:
                handed.setdefault(role, []).append([clip_id_of(job) for job in jobs])
                yield from serve(priority, jobs)

            pool.run = counted  # type: ignore[method-assign]
            return pool

    monkeypatch.setattr("flows.step.CLIPS_AT_ONCE", 2)
    clips = [by_hand.clip(f"c{number}") for number in range(5)]
    results = steps(a_run(tmp_path, by_hand, Counting(by_hand), num_clips=5), clips)
    assert {(result.cached, result.done, result.failed) for result in results} == {(0, 5, 0)}
    assert handed == {role: [["c0", "c1"], ["c2", "c3"], ["c4"]] for role in ROLES}


def test_what_is_in_the_lake_is_not_computed_again(tmp_path: Path, by_hand: Any, clips: list[Any]) -> None:
    steps(a_run(tmp_path, by_hand, LocalPools(by_hand)), clips[:2])
    pools = LocalPools(by_hand)
    run = a_run(tmp_path, by_hand, pools)
    results = steps(run, clips)
    assert {(result.cached, result.done) for result in results} == {(2, 1)}
    assert pools.seen == {role: [["c3"]] for role in ROLES}
    nothing = LocalPools(by_hand)
    assert {result.cached for result in steps(a_run(tmp_path, by_hand, nothing), clips)} == {3}
    assert nothing.seen == {}


def test_progress_counts_hits_as_done_and_what_came_of_the_work(tmp_path: Path, by_hand: Any, clips: list[Any]) -> None:
    steps(a_run(tmp_path, by_hand, LocalPools(by_hand)), clips[:1])
    run = a_run(tmp_path, by_hand, LocalPools(by_hand))
    steps(run, clips)
    counts = run.progress.snapshot()
    assert {(agent.done, agent.total, agent.cached, agent.failed) for agent in counts.values()} == {(3, 3, 1, 0)}
    assert {role: (agent.kept, agent.dropped) for role, agent in counts.items()} == {
        "analyzer": (4, 2),
        "segmenter": (2, 2),
        "annotator": (2, 0),
        "reviewer": (2, 0),
        "refiner": (12, 0),
    }


def test_a_failing_clip_costs_itself_only_and_later_agents_leave_it_out(
    tmp_path: Path, by_hand: Any, clips: list[Any]
) -> None:
    pools = LocalPools(by_hand, bad={"segmenter": ["c2"]})
    run = a_run(tmp_path, by_hand, pools)
    results = dict(zip(ROLES, steps(run, clips), strict=True))
    assert (results["segmenter"].done, results["segmenter"].failed) == (2, 1)
    assert [(results[role].done, results[role].skipped) for role in ROLES[2:]] == [(2, 1)] * 3
    assert sorted(run.chain.outputs("refiner", clips)) == ["c1", "c3"]
    assert [ids for ids in pools.seen["annotator"] if "c2" in ids] == []
    entry = run.failed["c2"]
    assert (entry.subject_id, entry.clip_id, entry.source_id) == ("c2", "c2", "row-c2")
    assert (entry.stage, entry.reason, entry.retryable) == ("segmenter", "agent_error", True)
    assert entry.evidence.startswith("2 tries: ValueError: cannot do ['c2']")
    assert list(run.failed) == ["c2"]
    counts = run.progress.snapshot()
    assert [(counts[role].done, counts[role].failed, counts[role].skipped) for role in ROLES] == [
        (3, 0, 0), (3, 1, 0), (3, 0, 1), (3, 0, 1), (3, 0, 1),
    ]  # fmt: skip


def test_the_next_run_does_not_try_a_failed_clip_again(tmp_path: Path, by_hand: Any, clips: list[Any]) -> None:
    first = a_run(tmp_path, by_hand, LocalPools(by_hand, bad={"segmenter": ["c2"]}))
    steps(first, clips)
    pools = LocalPools(by_hand)
    run = a_run(tmp_path, by_hand, pools)
    results = dict(zip(ROLES, steps(run, clips), strict=True))
    assert pools.seen == {}
    assert run.failed == first.failed
    assert (results["segmenter"].cached, results["segmenter"].failed_before, results["segmenter"].failed) == (3, 1, 0)
    assert [(results[role].cached, results[role].skipped) for role in ROLES[2:]] == [(2, 1)] * 3
    counts = run.progress.snapshot()
    assert {role: (counts[role].done, counts[role].failed) for role in ROLES[:2]} == {
        "analyzer": (3, 0),
        "segmenter": (3, 1),
    }
    assert {role: counts[role].failed_before for role in ROLES} == dict.fromkeys(ROLES, 0) | {"segmenter": 1}


def test_a_failure_taken_out_is_tried_again_and_no_other(tmp_path: Path, by_hand: Any, clips: list[Any]) -> None:
    first = a_run(tmp_path, by_hand, LocalPools(by_hand, bad={"segmenter": ["c2", "c3"]}))
    steps(first, clips)
    first.chain.failure_store("segmenter").remove([first.chain.keys(clips[1])["segmenter"]])
    pools = LocalPools(by_hand)
    run = a_run(tmp_path, by_hand, pools)
    steps(run, clips)
    assert list(run.failed) == ["c3"]
    assert pools.seen == {role: [["c2"]] for role in ROLES[1:]}
    assert sorted(run.chain.outputs("refiner", clips)) == ["c1", "c2"]


def test_a_failure_taken_out_while_a_build_runs_is_tried_again_by_it(
    tmp_path: Path, by_hand: Any, clips: list[Any]
) -> None:
    first = a_run(tmp_path, by_hand, LocalPools(by_hand, bad={"segmenter": ["c2", "c3"]}))
    steps(first, clips)
    pools = LocalPools(by_hand)
    run = a_run(tmp_path, by_hand, pools)
    assert len(run.chain.failures("segmenter", clips)) == 2
    first.chain.failure_store("segmenter").remove([first.chain.keys(clips[1])["segmenter"]])
    steps(run, clips)
    assert list(run.failed) == ["c3"]
    assert pools.seen == {role: [["c2"]] for role in ROLES[1:]}


def test_a_failure_that_another_build_commits_meanwhile_is_not_tried_again(
    tmp_path: Path, by_hand: Any, clips: list[Any]
) -> None:
    pools = LocalPools(by_hand)
    run = a_run(tmp_path, by_hand, pools)
    assert run.chain.failures("segmenter", clips) == []
    first = a_run(tmp_path, by_hand, LocalPools(by_hand, bad={"segmenter": ["c2"]}))
    steps(first, clips)
    steps(run, clips)
    assert (run.failed, pools.seen) == (first.failed, {})


def test_a_failure_taken_out_in_the_middle_of_a_step_counts_as_none(
    tmp_path: Path, by_hand: Any, clips: list[Any]
) -> None:
    first = a_run(tmp_path, by_hand, LocalPools(by_hand, bad={"segmenter": ["c2", "c3"]}))
    steps(first, clips)
    store = first.chain.failure_store("segmenter")
    run = a_run(tmp_path, by_hand, LocalPools(by_hand))
    mine = run.chain.failure_store("segmenter")
    refresh = mine.refresh

    def refresh_then_removal() -> None:
        refresh()
        mine.refresh = refresh  # type: ignore[method-assign]
        store.remove([first.chain.keys(clips[1])["segmenter"]])

    mine.refresh = refresh_then_removal  # type: ignore[method-assign]
    results = dict(zip(ROLES, steps(run, clips), strict=True))
    assert (results["segmenter"].done, results["segmenter"].failed_before) == (1, 1)
    assert (list(run.failed), sorted(run.chain.outputs("refiner", clips))) == (["c3"], ["c1", "c2"])


def test_an_output_that_another_run_made_counts_for_more_than_a_failure(
    tmp_path: Path, by_hand: Any, clips: list[Any]
) -> None:
    steps(a_run(tmp_path, by_hand, LocalPools(by_hand, bad={"segmenter": ["c2"]})), clips)
    run = a_run(tmp_path, by_hand, LocalPools(by_hand))
    by_hand.fill(run.chain, clips[1])
    assert {(result.cached, result.failed_before) for result in steps(run, clips)} == {(3, 0)}
    assert run.failed == {}


def test_another_label_of_an_agent_tries_what_it_failed_on(tmp_path: Path, by_hand: Any, clips: list[Any]) -> None:
    steps(a_run(tmp_path, by_hand, LocalPools(by_hand, bad={"segmenter": ["c2"]})), clips)
    pools = LocalPools(by_hand)
    labels = by_hand.labels(segmenter="another prompt")
    run = dataclasses.replace(a_run(tmp_path, by_hand, pools), chain=Chain(Lake(tmp_path), labels, "tracks"), failed={})
    steps(run, clips)
    assert (run.failed, "analyzer" in pools.seen) == ({}, False)
    assert pools.seen["segmenter"] == [["c1", "c2"], ["c3"]]


def test_of_two_failures_on_one_clip_the_earlier_agents_stands_whichever_came_first(
    tmp_path: Path, by_hand: Any, clips: list[Any]
) -> None:
    bad = {"segmenter": ["c2"], "annotator": ["c2"]}
    stages = []
    for order in (("segmenter", "annotator"), ("annotator", "segmenter")):
        lake = tmp_path / order[0]
        beside = Chain(Lake(lake), by_hand.labels(), "mentions")  # the annotator does not wait for the segmenter
        run = dataclasses.replace(a_run(lake, by_hand, LocalPools(by_hand, bad=bad)), chain=beside, failed={})
        results = {role: run_step(role, 0, clips, run, lambda *_: None) for role in ("analyzer", *order, "reviewer")}
        assert [results[role].failed for role in order] == [1, 1]
        assert results["reviewer"].skipped == 1
        stages.append(run.failed["c2"].stage)
    assert stages == ["segmenter", "segmenter"]


def test_two_lakes_in_which_the_same_fails_hold_the_same_evidence(
    tmp_path: Path, by_hand: Any, clips: list[Any]
) -> None:
    class Lost(HandAgent):
        def process(self, jobs: Sequence[Record]) -> list[Record]:
            raise OSError(f"no answer from 10.0.0.{id(jobs) % 255}:{1024 + id(jobs) % 999} for {object()}")

    held = []
    for name in ("one", "two"):
        pools = LocalPools(by_hand)
        pools.get = lambda role: LocalPool(lambda: Lost(role, by_hand, (), []), batch_size=2)  # type: ignore[method-assign]
        run = a_run(tmp_path / name, by_hand, pools)
        run_step("analyzer", 0, clips, run, lambda *_: None)
        held.append(run.failed)
    assert held[0] == held[1]
    assert "OSError: no answer from … for <object object at 0x…>" in held[0]["c1"].evidence


def test_the_work_of_a_run_is_added_up_for_each_agent(tmp_path: Path, by_hand: Any, clips: list[Any]) -> None:
    run = a_run(tmp_path, by_hand, LocalPools(by_hand, bad={"segmenter": ["c2"]}))
    results = dict(zip(ROLES, steps(run, clips), strict=True))
    assert [(work.agent, work.engine, work.clips) for work in run.work] == [
        (role, "by hand", num_clips) for role, num_clips in zip(ROLES, (3, 3, 2, 2, 2), strict=True)
    ]
    assert [work.busy_s for work in run.work] == [results[role].busy_s for role in ROLES]
    again = a_run(tmp_path, by_hand, LocalPools(by_hand))
    steps(again, clips)
    assert again.work == ()


def test_a_batch_of_failures_only_commits_no_output(tmp_path: Path, by_hand: Any, clips: list[Any]) -> None:
    run = a_run(tmp_path, by_hand, LocalPools(by_hand, bad={"analyzer": ["c1", "c2", "c3"]}))
    results = steps(run, clips)
    assert (results[0].done, results[0].failed, results[1].skipped) == (0, 3, 3)
    assert parts(tmp_path, "analyzer") == []


def test_what_an_agent_logs_and_its_failures_reach_the_run(tmp_path: Path, by_hand: Any, clips: list[Any]) -> None:
    lines: list[tuple[int, str]] = []
    steps(a_run(tmp_path, by_hand, LocalPools(by_hand, bad={"analyzer": ["c1"]})), clips, lines)
    assert (logging.WARNING, "local by-hand: engine loaded") in lines
    assert any(
        level == logging.ERROR and "clip c1 failed in analyzer after 2 tries: ValueError" in line
        for level, line in lines
    )


def test_a_step_describes_itself_in_one_line() -> None:
    figures = {"done": 2, "failed": 3, "skipped": 4, "busy_s": 5.04}
    said = StepResult(cached=7, failed_before=0, **figures).describe()
    assert said == "7 clips in the lake, 2 done, 3 failed, 4 skipped, 5.0 s of work"
    said = StepResult(cached=7, failed_before=1, **figures).describe()
    assert said == "7 clips in the lake (1 as failures), 2 done, 3 failed, 4 skipped, 5.0 s of work"
