"""An agent of the async kind in a worker: its jobs side by side, and a server that is lost beneath it."""

import asyncio
import gc
import logging
from collections.abc import Sequence

import pytest

from flows.on_worker import OnWorker
from infra.async_pool import MAX_DECLINED
from infra.chat import ChatDeclinedError, ChatError, ChatLostError, ChatRefusedError
from infra.pool import JobFailure, LocalPool, PoolError
from schemas.label import AgentLabel
from schemas.record import Record


class Job(Record):
    """A clip's name."""

    clip_id: str


class Meeting:
    """An async agent whose jobs wait until all three of them are there; the job "bad" raises."""

    def __init__(self) -> None:
        self.all_there = asyncio.Event()
        self.num, self.finished = 0, 0

    def label(self) -> AgentLabel:
        raise NotImplementedError

    async def setup(self) -> None:
        self.num = self.finished = 0

    async def process_one(self, job: Job) -> Job:
        self.num += 1
        if self.num == 3:
            self.all_there.set()
        await self.all_there.wait()
        if job.clip_id == "bad":
            raise ValueError("a bad clip")
        await asyncio.sleep(0.01)
        self.finished += 1
        return job

    async def probe(self) -> None: ...

    async def close(self) -> None:
        self.all_there.clear()


def test_jobs_of_a_batch_are_in_flight_side_by_side_and_an_error_comes_when_none_is_any_more() -> None:
    meeting = Meeting()
    agent = OnWorker(meeting)
    agent.setup()
    jobs = [Job(clip_id=name) for name in ("a", "b", "c")]
    assert agent.process(jobs) == jobs
    with pytest.raises(ValueError, match="a bad clip"):
        agent.process([Job(clip_id=name) for name in ("d", "bad", "e")])
    assert meeting.finished == 5
    agent.close()


class Served:
    """An async agent whose jobs raise what `errors` holds for their clip, and its probe what it holds for "probe"."""

    def __init__(self, errors: dict[str, Exception]) -> None:
        self.errors = errors
        self.asked: list[str] = []

    def label(self) -> AgentLabel:
        raise NotImplementedError

    async def setup(self) -> None:
        pass

    async def process_one(self, job: Job) -> Job:
        self.answer(job.clip_id)
        return job

    async def probe(self) -> None:
        self.answer("probe")

    async def close(self) -> None:
        pass

    def answer(self, name: str) -> None:
        self.asked.append(name)
        if name in self.errors:
            raise self.errors[name]


def outcomes(served: Served, names: Sequence[str], batch_size: int = 3) -> dict[str, str]:
    """What becomes of each clip, a failure by its evidence; raises PoolError."""
    with LocalPool(lambda: OnWorker(served), batch_size=batch_size) as pool:
        jobs = [Job(clip_id=name) for name in names]
        settled = [outcome for batch in pool.run(0, jobs) for outcome in batch.outcomes]
    return {
        outcome.job.clip_id: outcome.result.evidence if isinstance(outcome.result, JobFailure) else ""
        for outcome in settled
    }


def test_a_server_that_refuses_ends_the_pool_and_costs_no_job() -> None:
    served = Served({"b": ChatRefusedError("HTTP 401: wrong key"), "a": ValueError("a bad clip")})
    with pytest.raises(PoolError, match=r"^HTTP 401: wrong key$"):
        outcomes(served, "abc")
    assert served.asked == ["probe", "a", "b", "c"]


@pytest.mark.parametrize("error", [ChatLostError, ChatDeclinedError])
def test_a_job_without_an_answer_is_the_servers_fault_where_the_probe_has_none_either(error: type[ChatError]) -> None:
    served = Served({"b": error("no answer to b")})
    found = outcomes(served, "abc")
    assert "no answer to b" in found.pop("b")
    assert found == {"a": "", "c": ""}
    served = Served({"b": error("no answer to b")})
    served.answer = lambda name: fail_after_setup(served, name)
    with pytest.raises(PoolError, match=r"^the server is gone: away$"):
        outcomes(served, "abc")


def fail_after_setup(served: Served, name: str) -> None:
    Served.answer(served, name)
    if name == "probe" and served.asked.count("probe") > 1:
        raise ChatLostError("away")


def test_a_server_that_is_not_there_at_setup_ends_the_pool_before_any_job() -> None:
    served = Served({"probe": ChatLostError("away")})
    with pytest.raises(PoolError, match="the agent does not start: away"):
        outcomes(served, "abc")
    assert served.asked == ["probe"]


def test_a_server_that_declines_one_job_after_the_other_ends_the_pool() -> None:
    names = [f"bad {number}" for number in range(20)]  # each is tried twice
    served = Served({name: ChatDeclinedError("HTTP 400: no pictures here") for name in names})
    with pytest.raises(
        PoolError, match=rf"declined {MAX_DECLINED} tries running; the last: HTTP 400: no pictures here"
    ):
        outcomes(served, names, batch_size=1)
    found = outcomes(served, [*names[:10], "good", *names[10:]], batch_size=1)
    assert [name for name, evidence in found.items() if not evidence] == ["good"]


def test_of_several_errors_none_is_left_unread(caplog: pytest.LogCaptureFixture) -> None:
    served = Served({name: ValueError(f"bad {name}") for name in "ab"})
    with caplog.at_level(logging.ERROR, "asyncio"):
        agent = OnWorker(served)
        agent.setup()
        with pytest.raises(ValueError, match="bad a"):
            agent.process([Job(clip_id=name) for name in "abc"])
        agent.close()
        gc.collect()
    assert "never retrieved" not in caplog.text
