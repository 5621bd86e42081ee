"""The pool of async agents: order and window against a slow simulation, and what each kind of trouble costs."""

import asyncio
import contextlib
import heapq
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from infra.async_pool import MAX_DECLINED, AsyncPool
from infra.chat import ChatDeclinedError, ChatLostError, ChatRefusedError, ChatSettings, Message
from infra.chat_client import ChatClient
from infra.pool import MAX_LOSSES, JobFailure, PoolError
from schemas.clip import Clip
from schemas.mention import MentionSet


def clip(name: str, caption: str = "fine") -> Clip:
    return Clip(
        clip_id=name, source_id="s", video="a.mp4", video_sha256="0" * 64, license="CC0", start_s=0, end_s=1,
        start_frame=0, end_frame=30, fps=30, height_px=4, width_px=4, caption=caption,
    )  # fmt: skip


def output(clip_id: str) -> MentionSet:
    return MentionSet(clip_id=clip_id, mentions=(), rejected=())


class Scripted:
    """Does what `act` does with the job and the number of its try; counts jobs in flight."""

    def __init__(self, act: Callable[[Clip, int], Any], probe: Exception | None = None) -> None:
        self.act, self.said_to_probe = act, probe
        self.probes = 0
        self.tries: dict[str, int] = {}
        self.at_once = self.most_at_once = 0
        self.is_closed = False

    async def setup(self) -> None:
        pass

    async def process_one(self, job: Clip) -> MentionSet:
        self.tries[job.clip_id] = self.tries.get(job.clip_id, 0) + 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.act(job, self.tries[job.clip_id]) or output(job.clip_id)
        finally:
            self.at_once -= 1

    async def probe(self) -> None:
        self.probes += 1
        await asyncio.sleep(0.02)
        if self.said_to_probe:
            raise self.said_to_probe

    async def close(self) -> None:
        self.is_closed = True


def pool_of(agent: Any, **options: Any) -> AsyncPool[Any, Any]:
    return AsyncPool(lambda: agent, **({"window": 4, "batch_size": 4, "timeout_s": 5.0} | options))


def results(batches: Sequence[Any]) -> dict[str, Any]:
    return {outcome.job.clip_id: outcome.result for batch in batches for outcome in batch.outcomes}


async def at_once(job: Clip, tries: int) -> None:
    await asyncio.sleep(0)


async def sleeps(job: Clip, tries: int) -> None:
    await asyncio.sleep(float(job.caption))


def by_caption(**acts: Callable[[Clip, int], Any]) -> Callable[[Clip, int], Any]:
    async def act(job: Clip, tries: int) -> Any:
        return await acts.get(job.caption, at_once)(job, tries)

    return act


class Clocked:
    """Serves in a time of its own: the next job ends once nothing more can begin. `began` tells who began when.

    A job's caption is how long each of its tries takes; all but the last fail. Nothing begins before `gate` opens.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began: list[tuple[int, str]] = []
        self.now = 0
        self.ends: list[tuple[int, int, asyncio.Future[None]]] = []
        self.tries: dict[str, int] = {}

    async def setup(self) -> None:
        await asyncio.to_thread(self.gate.wait, 10)
        self.clock = asyncio.create_task(self.tick())

    async def tick(self) -> None:
        while True:
            for _ in range(20):
                await asyncio.sleep(0)
            if self.ends:
                self.now, _, future = heapq.heappop(self.ends)
                future.set_result(None)

    async def process_one(self, job: Clip) -> MentionSet:
        self.began.append((self.now, job.clip_id))
        durations = [int(text) for text in job.caption.split()]
        tried = self.tries[job.clip_id] = self.tries.get(job.clip_id, 0) + 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self.ends, (self.now + durations[tried - 1], len(self.began), future))
        await future
        if tried < len(durations):
            raise RuntimeError("once more")
        return output(job.clip_id)

    async def close(self) -> None:
        self.clock.cancel()


def simulated(units: dict[int, list[Clip]], window: int) -> list[tuple[int, str]]:
    """Who begins when, by looking through all jobs at every step: the plainest words for what the pool promises."""
    order = [(unit, place, job) for unit, jobs in units.items() for place, job in enumerate(jobs)]
    waiting, running = order[:], []
    tried: dict[str, int] = {}
    began: list[tuple[int, str]] = []
    now = 0
    while waiting or running:
        while waiting and len(running) < window:
            first = min(waiting, key=lambda entry: entry[:2])
            waiting.remove(first)
            job = first[2]
            began.append((now, job.clip_id))
            tried[job.clip_id] = tried.get(job.clip_id, 0) + 1
            running.append((now + int(job.caption.split()[tried[job.clip_id] - 1]), len(began), first))
        ended = min(running, key=lambda entry: entry[:2])
        running.remove(ended)
        now = ended[0]
        job = ended[2][2]
        if tried[job.clip_id] < len(job.caption.split()):
            waiting.append(ended[2])
    return began


@pytest.mark.parametrize("seed", range(20))
def test_jobs_begin_in_the_order_and_at_the_times_of_a_plain_simulation(seed: int) -> None:
    rng = random.Random(seed)
    window, agent = rng.randint(1, 6), Clocked()
    units = {
        unit: [
            clip(f"{unit}-{place}", " ".join(str(rng.randint(1, 9)) for _ in range(rng.choice((1, 1, 1, 2)))))
            for place in range(rng.randint(1, 12))
        ]
        for unit in rng.sample(range(9), 4)
    }
    done: dict[int, list[Any]] = {}
    with pool_of(agent, window=window, batch_size=rng.randint(1, 5)) as pool:
        threads = [
            threading.Thread(target=lambda u=unit: done.update({u: list(pool.run(u, units[u]))})) for unit in units
        ]
        for thread in threads:
            thread.start()
        deadline_s = time.monotonic() + 10
        while len(pool._waiting) < sum(map(len, units.values())) and time.monotonic() < deadline_s:
            time.sleep(0.001)
        agent.gate.set()
        for thread in threads:
            thread.join(20)
    assert agent.began == simulated(units, window)
    for unit, jobs in units.items():
        found = results(done[unit])
        assert {name: result.clip_id for name, result in found.items()} == {job.clip_id: job.clip_id for job in jobs}


def test_new_jobs_enter_before_a_micro_batch_is_through() -> None:
    agent = Scripted(sleeps)
    jobs = [clip(str(i), "0.2" if i % 8 == 0 else "0.01") for i in range(64)]
    start_s = time.monotonic()
    with pool_of(agent, window=8, batch_size=8) as pool:
        done = list(pool.run(0, jobs))
    took_s = time.monotonic() - start_s
    assert agent.most_at_once == 8
    assert took_s < 8 * 0.2  # with a barrier behind each micro-batch it would be that at least
    assert sum(batch.busy_s for batch in done) == 0.0  # no server was asked
    assert sorted(results(done)) == sorted(job.clip_id for job in jobs)
    assert agent.is_closed


class Asking(Scripted):
    """Works in a thread for 0.1 s, then asks a server two things, each for 0.06 s; notes the requests in flight."""

    def __init__(self, concurrency: int) -> None:
        super().__init__(at_once)
        self.settings = ChatSettings(base_url="http://127.0.0.1:9/v1", model="m", concurrency=concurrency)
        self.requests = self.most_requests = 0
        self.at_server_s = 0.0

    async def setup(self) -> None:
        self.chat = ChatClient(self.settings, httpx.MockTransport(self.serve))

    async def serve(self, _: httpx.Request) -> httpx.Response:
        start_s = time.monotonic()
        self.requests += 1
        self.most_requests = max(self.most_requests, self.requests)
        await asyncio.sleep(0.06)
        self.requests -= 1
        self.at_server_s += time.monotonic() - start_s
        choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice]})

    async def process_one(self, job: Clip) -> MentionSet:
        await asyncio.to_thread(time.sleep, 0.1)
        for _ in range(2):
            await self.chat.complete((Message(role="user", content="?"),))
        return output(job.clip_id)


def test_a_window_wider_than_the_servers_keeps_it_full_while_jobs_do_other_things_and_busy_tells_of_the_server() -> (
    None
):
    agent = Asking(concurrency=16)
    start_s = time.monotonic()
    with pool_of(agent, window=32, batch_size=8) as pool:
        done = list(pool.run(0, [clip(str(i)) for i in range(192)]))
    took_s = time.monotonic() - start_s
    assert agent.most_requests == 16
    busy_s = sum(batch.busy_s for batch in done)
    assert busy_s == pytest.approx(agent.at_server_s / 16, rel=0.15)
    assert busy_s / took_s > 0.75  # with a window of 16 it would be 0.55; with six threads 0.4


async def raises(job: Clip, tries: int) -> None:
    raise RuntimeError("cannot do this one")


async def swaps(job: Clip, tries: int) -> MentionSet:
    return output("other")


async def cancels_itself(job: Clip, tries: int) -> None:
    raise asyncio.CancelledError


async def hangs(job: Clip, tries: int) -> None:
    await asyncio.sleep(60)


async def own_timeout(job: Clip, tries: int) -> None:
    raise TimeoutError("of my own")


@pytest.mark.parametrize(
    ("act", "reason", "evidence"),
    [
        (raises, "agent_error", "cannot do this one"),
        (swaps, "agent_error", "clip b with an output for clip other"),
        (cancels_itself, "agent_error", "CancelledError"),
        (own_timeout, "agent_error", "of my own"),
    ],
)
def test_a_bad_job_costs_itself_only(act: Any, reason: str, evidence: str) -> None:
    agent = Scripted(by_caption(bad=act))
    with pool_of(agent, max_attempts=3) as pool:
        (done,) = pool.run(0, [clip("a"), clip("b", "bad"), clip("c")])
    a, b, c = (outcome.result for outcome in done.outcomes)
    assert (a.clip_id, c.clip_id) == ("a", "c")
    assert isinstance(b, JobFailure)
    assert (b.reason, b.attempts) == (reason, 3)
    assert evidence in b.evidence
    assert agent.tries == {"a": 1, "b": 3, "c": 1}
    assert sum("b are tried again" in line.message for line in done.log_lines) == 2


def test_a_job_past_its_time_is_cancelled_and_the_rest_goes_on() -> None:
    agent = Scripted(sleeps)
    with pool_of(agent, timeout_s=0.2, batch_size=3) as pool:
        (done,) = pool.run(0, [clip("a", "0"), clip("b", "60"), clip("c", "0.01")])
    assert [getattr(outcome.result, "reason", "done") for outcome in done.outcomes] == ["done", "agent_timeout", "done"]
    assert results([done])["b"].attempts == 2
    assert agent.at_once == 0


def test_what_a_job_logs_comes_with_its_own_clip_whoever_runs_beside_it() -> None:
    async def tells(job: Clip, tries: int) -> None:
        for part in range(3):
            await asyncio.sleep(random.random() / 50)
            await asyncio.to_thread(logging.getLogger("agent").warning, "part %d of %s", part, job.clip_id)

    with pool_of(Scripted(tells), window=8, batch_size=1) as pool:
        for batch in pool.run(0, [clip(f"c{i}") for i in range(24)]):
            (outcome,) = batch.outcomes
            name = outcome.job.clip_id
            told = [line.message for line in batch.log_lines]
            assert told[:3] == [f"clip {name}: part {part} of {name}" for part in range(3)]
            assert told[3].startswith(f"clip {name} in ")


def test_with_several_pools_each_line_is_told_once() -> None:
    async def tells(job: Clip, tries: int) -> None:
        logging.getLogger("agent").warning("this is %s", job.clip_id)
        await asyncio.sleep(0.01)

    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(pool_of(Scripted(tells))) for _ in range(3)]
        runs = [pool.run(0, [clip("a"), clip("b")]) for pool in pools]
        told = [[line.message for batch in run for line in batch.log_lines] for run in runs]
    for lines in told:
        assert sorted(line for line in lines if "this is" in line) == ["clip a: this is a", "clip b: this is b"]


def test_a_server_that_refuses_stops_the_run_with_its_own_words() -> None:
    async def refuses(job: Clip, tries: int) -> None:
        raise ChatRefusedError("http://a/v1 refuses model 'm': HTTP 401: bad key")

    agent = Scripted(by_caption(refused=refuses))
    with pool_of(agent, window=1, batch_size=1) as pool:
        batches = pool.run(0, [clip("a"), clip("b", "refused"), clip("c")])
        assert results([next(batches)])["a"].clip_id == "a"  # what is done stands
        with pytest.raises(PoolError, match=r"^http://a/v1 refuses model 'm': HTTP 401: bad key$"):
            list(batches)
        with pytest.raises(PoolError, match="401"):
            list(pool.run(0, [clip("d")]))
    assert "c" not in agent.tries


NO = "http://a/v1 refuses model 'm': HTTP 400: content_filter"


async def declined(job: Clip, tries: int) -> None:
    raise ChatDeclinedError(NO)


@pytest.mark.parametrize("window", [1, 4])
def test_a_job_that_the_server_declines_fails_alone_at_its_first_try(window: int) -> None:
    agent = Scripted(by_caption(bad=declined))
    with pool_of(agent, window=window, max_attempts=4) as pool:
        done = list(pool.run(0, [clip(str(i), "bad" if i % 3 == 0 else "fine") for i in range(90)]))
    failed = {int(name): result for name, result in results(done).items() if isinstance(result, JobFailure)}
    assert sorted(failed) == list(range(0, 90, 3))
    assert {(item.reason, item.attempts, item.evidence) for item in failed.values()} == {("request_declined", 1, NO)}
    assert agent.probes >= 1


def test_a_server_that_declines_the_probe_too_stops_the_run_at_the_first_job() -> None:
    agent = Scripted(declined, ChatDeclinedError(NO))
    with pool_of(agent, window=1) as pool, pytest.raises(PoolError, match=f"^{NO}$"):
        list(pool.run(0, [clip(str(i)) for i in range(9)]))
    assert agent.tries == {"0": 1}


@pytest.mark.parametrize("window", [1, 2 * MAX_DECLINED])
def test_a_server_that_answers_the_probe_and_declines_all_else_stops_the_run_soon(window: int) -> None:
    agent = Scripted(by_caption(bad=declined))
    with pool_of(agent, window=window) as pool, pytest.raises(PoolError, match=f"^{NO}$"):
        list(pool.run(0, [clip("fine"), *(clip(str(i), "bad") for i in range(500))]))
    assert max(MAX_DECLINED, window) < len(agent.tries) <= MAX_DECLINED + 2 * window


async def lost(job: Clip, tries: int) -> None:
    await asyncio.sleep(0.01)
    raise ChatLostError("no answer in 8 attempts")


async def lost_once(job: Clip, tries: int) -> None:
    await asyncio.sleep(0.01)
    if tries == 1:
        raise ChatLostError("no answer in 8 attempts")


GONE = ChatLostError("http://a/v1 gave no answer in 8 attempts")


def test_a_server_that_comes_back_costs_nobody_a_try() -> None:
    with pool_of(Scripted(by_caption(lost=lost_once)), window=4) as pool:
        done = list(pool.run(0, [clip("a"), *(clip(f"l{i}", "lost") for i in range(12))]))
    assert all(not isinstance(result, JobFailure) for result in results(done).values())


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("lost_names", [["b"], ["b", "c", "d", "e", "f"]])
def test_jobs_that_get_no_answer_from_a_server_that_is_there_fail_alone(window: int, lost_names: list[str]) -> None:
    agent = Scripted(by_caption(lost=lost))
    with pool_of(agent, window=window) as pool:
        done = list(pool.run(0, [clip(name, "lost" if name in lost_names else "fine") for name in "abcdef"]))
    failed = {name: result for name, result in results(done).items() if isinstance(result, JobFailure)}
    assert sorted(failed) == lost_names
    assert {(item.reason, item.attempts) for item in failed.values()} == {("no_answer", MAX_LOSSES)}
    assert 1 <= agent.probes <= MAX_LOSSES * len(lost_names)


@pytest.mark.parametrize("window", [1, 4, 64])
def test_a_server_that_goes_stops_the_run_before_any_job_is_blamed(window: int) -> None:
    agent = Scripted(by_caption(lost=lost), GONE)
    with pool_of(agent, window=window, batch_size=1) as pool:
        batches = pool.run(0, [clip("a"), *(clip(f"l{i}", "lost") for i in range(500))])
        assert results([next(batches)])["a"].clip_id == "a"  # what is done stands
        with pytest.raises(PoolError, match=r"^the server is gone: http://a/v1 gave no answer in 8 attempts$"):
            list(batches)
    assert set(agent.tries.values()) <= {1, 2}
    assert agent.probes == 1


def test_a_server_that_hangs_stops_the_run_too() -> None:
    agent = Scripted(sleeps, GONE)
    with pool_of(agent, window=8, timeout_s=0.1) as pool, pytest.raises(PoolError, match="the server is gone"):
        list(pool.run(0, [clip("a", "0"), *(clip(f"h{i}", "60") for i in range(50))]))


def test_a_server_that_refuses_the_probe_stops_the_run_with_its_own_words() -> None:
    agent = Scripted(lost, ChatRefusedError("HTTP 401: bad key"))
    with pool_of(agent, window=1) as pool, pytest.raises(PoolError, match=r"^HTTP 401: bad key$"):
        list(pool.run(0, [clip("a")]))


@pytest.mark.parametrize("seed", range(5))
def test_through_any_mix_of_trouble_every_job_comes_back_once_with_what_it_had_coming(seed: int) -> None:
    rng = random.Random(seed)
    acts = {"bad": raises, "slow": hangs, "lost": lost, "odd": cancels_itself, "flaky": lost_once}
    acts |= {"declined": declined}
    expected = {"fine": "", "bad": "agent_error", "slow": "agent_timeout", "lost": "no_answer"}
    expected |= {"odd": "agent_error", "flaky": "", "declined": "request_declined"}
    units = {
        unit: [
            clip(f"{unit}-{i}", rng.choices([*expected], (9, 1, 1, 1, 1, 2, 1))[0]) for i in range(rng.randint(1, 60))
        ]
        for unit in range(6)
    }
    found: dict[int, list[Any]] = {}
    agent = Scripted(by_caption(**acts))
    with pool_of(agent, window=rng.randint(1, 16), batch_size=rng.randint(1, 32), timeout_s=0.1) as pool:
        threads = [
            threading.Thread(target=lambda u=unit: found.update({u: list(pool.run(u, units[u]))})) for unit in units
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for unit, jobs in units.items():
        outcomes = [outcome for batch in found[unit] for outcome in batch.outcomes]
        assert sorted(outcome.job.clip_id for outcome in outcomes) == sorted(job.clip_id for job in jobs)
        for outcome in outcomes:
            assert getattr(outcome.result, "reason", "") == expected[outcome.job.caption]
            assert expected[outcome.job.caption] or outcome.result.clip_id == outcome.job.clip_id


class Stubborn(Scripted):
    async def process_one(self, job: Clip) -> MentionSet:
        end_s = time.monotonic() + 30
        while time.monotonic() < end_s:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)
        return output(job.clip_id)


@pytest.mark.parametrize("agent", [Scripted(sleeps), Stubborn(sleeps)], ids=["obeys", "will not be cancelled"])
def test_close_ends_what_is_in_flight_and_callers_that_wait_are_told(agent: Any) -> None:
    pool = pool_of(agent, window=2)
    told: list[BaseException] = []

    def wait() -> None:
        try:
            list(pool.run(0, [clip(str(i), "60") for i in range(6)]))
        except PoolError as error:
            told.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    start_s = time.monotonic()
    pool.close()
    for thread in threads:
        thread.join(5)
    assert time.monotonic() - start_s < 4.5
    assert [str(error) for error in told] == ["the pool is closed"] * 3
    with pytest.raises(PoolError, match="closed"):
        list(pool.run(0, [clip("late")]))


def test_an_iterator_closed_early_leaves_room_for_others() -> None:
    agent = Scripted(sleeps)
    with pool_of(agent, window=2, batch_size=1) as pool:
        batches = pool.run(0, [clip("a", "0"), *(clip(f"b{i}", "60") for i in range(4))])
        next(batches)
        batches.close()
        assert len(list(pool.run(5, [clip("c", "0")]))) == 1
        assert agent.at_once == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError("no prompt"), "the agent does not start: no prompt"),
        (ChatRefusedError("the environment variable KEY is not set"), "^the environment variable KEY is not set$"),
    ],
)
def test_an_agent_that_does_not_start_stops_the_run(error: Exception, said: str) -> None:
    class Broken(Scripted):
        async def setup(self) -> None:
            raise error

    agent = Broken(at_once)
    with pool_of(agent) as pool, pytest.raises(PoolError, match=said):
        list(pool.run(0, [clip("a")]))
    assert agent.is_closed  # of what it opened before that


def test_an_agent_that_is_still_starting_when_its_pool_closes_is_closed_too() -> None:
    class Slow(Scripted):
        async def setup(self) -> None:
            begun.set()
            await asyncio.sleep(60)

    begun, agent = threading.Event(), Slow(at_once)
    pool = pool_of(agent)

    def wait() -> None:
        with pytest.raises(PoolError, match="closed"):
            list(pool.run(0, [clip("a")]))

    thread = threading.Thread(target=wait)
    thread.start()
    assert begun.wait(5)
    pool.close()
    thread.join(5)
    assert agent.is_closed


def test_no_job_is_no_work_and_no_start() -> None:
    with AsyncPool(lambda: 1 / 0, window=1, batch_size=1, timeout_s=1) as pool:  # type: ignore[arg-type,return-value]
        assert list(pool.run(0, [])) == []


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"batch_size": 33}, {"max_attempts": 1}, {"window": 0}])
def test_sizes_that_cannot_work_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="got"):
        pool_of(Scripted(at_once), **sizes)
