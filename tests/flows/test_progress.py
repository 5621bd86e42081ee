"""Progress counts every clip once, and shows it on a terminal, in a log and on the run's page."""

import io
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from rich.console import Console

from flows import artifacts, progress
from flows.artifacts import ArtifactProgress
from flows.profile_config import ROLES, Role
from flows.progress import AgentProgress, BuildProgress, TerminalProgress
from infra.token_count import TokenCount

WORKERS = dict.fromkeys(ROLES, 1)


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    monkeypatch.setattr(artifacts, "time", made)
    return made


class Seen:
    """A sink that keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[dict[Role, AgentProgress]] = []

    def show(self, progress: dict[Role, AgentProgress]) -> None:
        self.shown.append(progress)


def test_loading_ends_where_the_first_micro_batch_began(clock: Clock) -> None:
    counts = BuildProgress(9, WORKERS, ())
    counts.begin("analyzer")
    clock.now_s += 10.0
    counts.add("analyzer", done=2, busy_s=4.0)
    counts.begin("segmenter")
    clock.now_s += 5.0
    counts.add("analyzer", done=2, busy_s=1.0)
    counts.add("segmenter", done=2, busy_s=3.0)
    analyzer, segmenter = (counts.snapshot()[role] for role in ROLES[:2])
    assert (analyzer.begin_s, analyzer.load_s, analyzer.elapsed_s) == (0.0, 6.0, 15.0)
    assert (segmenter.begin_s, segmenter.load_s, segmenter.elapsed_s) == (10.0, 2.0, 5.0)


def test_counts_add_up_and_every_sink_sees_each_step() -> None:
    seen = Seen()
    counts = BuildProgress(5, WORKERS, (seen,))
    counts.add("analyzer", done=2, cached=2, kept=3, dropped=1)
    counts.add("analyzer", done=3, failed=1, kept=4)
    last = counts.snapshot()
    assert seen.shown[-1] == last
    assert [shown["analyzer"].done for shown in seen.shown] == [2, 5]
    assert last["analyzer"] == AgentProgress(total=5, workers=1, done=5, cached=2, failed=1, kept=7, dropped=1)
    assert [last[role] for role in ROLES[1:]] == [AgentProgress(total=5, workers=1)] * 4


def test_with_many_threads_what_is_shown_last_is_the_latest() -> None:
    class Slow(Seen):
        def show(self, progress: dict[Role, AgentProgress]) -> None:
            time.sleep(0.001 * random.random())
            super().show(progress)

    seen = Slow()
    counts = BuildProgress(200, WORKERS, (seen,))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: counts.add("analyzer", done=1), range(200)))
    done = [shown["analyzer"].done for shown in seen.shown]
    assert (done, done[-1]) == (sorted(done), 200)


def test_the_rate_leaves_out_what_was_cached_and_counts_from_the_first_clip_worked_on(clock: Clock) -> None:
    counts = BuildProgress(10, WORKERS, ())
    counts.add("segmenter", done=4, cached=4)
    assert counts.snapshot()["segmenter"].left_s is None
    clock.now_s += 100
    counts.begin("segmenter")
    clock.now_s += 4
    counts.begin("segmenter")  # the second unit does not set the clock back
    counts.add("segmenter", done=2)
    agent = counts.snapshot()["segmenter"]
    assert (agent.rate_per_s, agent.left_s) == (0.5, 8.0)
    assert agent.describe() == "done 6 of 10 clips (cached 4), kept 0, dropped 0, 0.50 clips/s, busy 0 %, ETA 8 s"


def test_failures_are_said_and_what_is_done_has_no_time_left() -> None:
    agent = AgentProgress(total=2, workers=1, done=2, failed=1, elapsed_s=1.0)
    assert agent.describe() == "done 2 of 2 clips (cached 0), kept 0, dropped 0, failed 1, 2.00 clips/s, busy 0 %"


def test_what_chat_servers_were_asked_is_said_of_agents_that_ask_them(clock: Clock) -> None:
    text = io.StringIO()
    with TerminalProgress(Console(file=text, width=200, force_terminal=True, color_system=None)) as terminal:
        counts = BuildProgress(4, WORKERS, (terminal,))
        counts.add("analyzer", done=2, busy_s=3.0, tokens=TokenCount(requests=2, cached=1, prompt_tokens=1200))
        counts.add("analyzer", done=1, busy_s=1.0, tokens=TokenCount(requests=1, reasks=1, completion_tokens=45))
        counts.add("segmenter", done=1, busy_s=1.0)
    agents = counts.snapshot()
    assert "busy 0 %, 3 requests (1 more cached, 1 re-asks), 1,200 + 45 tokens" in agents["analyzer"].describe()
    assert "requests" not in agents["segmenter"].describe()
    assert (agents["analyzer"].batches.num, agents["analyzer"].batches.clips) == (2, 3)
    lines = [line.split() for line in text.getvalue().splitlines() if line.split()[:1] in (["analyzer"], ["segmenter"])]
    assert "3 1,200 + 45" in " ".join(lines[-2])
    assert "+" not in lines[-1]


def test_clips_that_failed_before_count_as_done_but_not_as_work() -> None:
    agent = AgentProgress(total=4, workers=1, done=3, skipped=1, elapsed_s=1.0)
    assert (agent.rate_per_s, agent.left_s) == (2.0, 0.5)
    assert "skipped 1" in agent.describe()


def test_workers_are_busy_for_a_part_of_all_their_time_since_the_agent_began(clock: Clock) -> None:
    counts = BuildProgress(10, WORKERS | {"segmenter": 2}, ())
    counts.add("segmenter", done=4, cached=4)
    assert counts.snapshot()["segmenter"].busy_share == 0.0
    clock.now_s += 100
    counts.begin("segmenter")
    clock.now_s += 4
    counts.add("segmenter", done=1, busy_s=4.0)  # one of the two worked, the other was still loading
    assert counts.snapshot()["segmenter"].busy_share == 0.5
    clock.now_s += 4
    counts.add("segmenter", done=2, busy_s=8.0)
    agent = counts.snapshot()["segmenter"]
    assert (agent.busy_s, agent.busy_share) == (12.0, 0.75)
    assert "busy 75 %" in agent.describe()


def test_a_log_gets_a_line_per_agent_now_and_then_and_the_last_counts_at_the_end(clock: Clock) -> None:
    text = io.StringIO()
    with TerminalProgress(Console(file=text, width=40)) as terminal:  # lines are not broken, however narrow
        counts = BuildProgress(3, WORKERS, (terminal,))
        counts.add("analyzer", done=1)
        counts.add("analyzer", done=1)  # too soon for another line
        assert text.getvalue().count("analyzer") == 1
        clock.now_s += progress.LINE_EVERY_S
        counts.add("segmenter", done=1)
        assert text.getvalue().count("analyzer") == 2
        counts.add("segmenter", done=1)
    lines = text.getvalue().splitlines()
    assert lines[-1].strip().startswith("segmenter: done 2 of 3 clips")
    assert sum("analyzer: done 2 of 3" in line for line in lines) == 1


def test_a_terminal_gets_a_table_of_all_agents(clock: Clock) -> None:
    text = io.StringIO()
    with TerminalProgress(Console(file=text, width=120, force_terminal=True, color_system=None)) as terminal:
        counts = BuildProgress(4, WORKERS, (terminal,))
        counts.add("analyzer", done=4, cached=1, kept=7)
        counts.begin("reviewer")
        clock.now_s += 8
        counts.add("reviewer", done=1, busy_s=7.0)
    last = text.getvalue()
    assert all(role in last for role in ROLES)
    assert "4/4" in last
    assert "1/4" in last
    assert "88 %" in last
    assert "done" in last


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, str]]:
    """What was written to the run's page: the artifact's key, percent and text; Prefect's server is left out."""
    keys: dict[UUID, str] = {}
    written: list[tuple[str, float, str]] = []

    def create(progress: float, key: str, description: str) -> UUID:
        made = uuid4()
        keys[made] = key
        written.append((key, progress, description))
        return made

    def update(artifact_id: UUID, progress: float, description: str) -> None:
        written.append((keys[artifact_id], progress, description))

    monkeypatch.setattr(artifacts, "create_progress_artifact", create)
    monkeypatch.setattr(artifacts, "update_progress_artifact", update)
    return written


def test_the_page_is_written_now_and_then_and_always_at_the_end(clock: Clock, page: list[Any]) -> None:
    counts = BuildProgress(4, WORKERS, (ArtifactProgress(),))
    for _ in range(3):
        counts.add("refiner", done=1)
    assert [(key, percent) for key, percent, _ in page] == [("progress-refiner", 25.0)]
    counts.add("refiner", done=1)
    assert [percent for _, percent, _ in page] == [25.0, 100.0]
    assert page[-1][2].startswith("done 4 of 4 clips")


def test_the_page_goes_on_after_a_while(clock: Clock, page: list[Any]) -> None:
    counts = BuildProgress(4, WORKERS, (ArtifactProgress(),))
    counts.add("analyzer", done=1)
    clock.now_s += artifacts.UPDATE_EVERY_S
    counts.add("analyzer", done=1)
    counts.add("segmenter", done=1)
    assert [(key, percent) for key, percent, _ in page] == [
        ("progress-analyzer", 25.0),
        ("progress-analyzer", 50.0),
        ("progress-segmenter", 25.0),
    ]
