"""A job's clock: what counts into its limit and into how busy the servers are, against the fake server's own notes."""

import asyncio
import contextlib
import time

import httpx
import pytest

from infra.chat import ChatSettings, Message
from infra.chat_client import ChatClient
from infra.job_clock import JobClock, at_server, waiting

QUESTION = (Message(role="user", content="?"),)
REPLY = {"model": "m", "choices": [{"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}]}


def settings(**changes: object) -> ChatSettings:
    return ChatSettings.model_validate({"base_url": "http://127.0.0.1:9/v1", "model": "m"} | changes)


class Slow:
    """Answers after `takes_s`, and notes the seconds of all requests."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s, self.seconds = takes_s, 0.0

    async def handle(self, _: httpx.Request) -> httpx.Response:
        start_s = time.monotonic()
        await asyncio.sleep(self.takes_s)
        self.seconds += time.monotonic() - start_s
        return httpx.Response(200, json=REPLY)

    def client(self, **changes: object) -> ChatClient:
        return ChatClient(settings(**changes), httpx.MockTransport(self.handle))


def test_the_wait_for_the_servers_turn_is_no_part_of_a_jobs_time() -> None:
    async def run() -> list[float]:
        async with Slow(0.1).client(concurrency=1) as client:

            async def job() -> float:
                async with JobClock(0.3) as clock:
                    await client.complete(QUESTION)
                    await client.complete(QUESTION)
                return clock.busy_s

            return await asyncio.gather(*(job() for _ in range(6)))  # the last one takes 1.2 s by the clock

    assert all(0.2 <= busy_s < 0.3 for busy_s in asyncio.run(run()))


def test_time_at_the_server_and_elsewhere_is() -> None:
    async def run() -> None:
        async with Slow(0.1).client(concurrency=1) as client:
            for rest_s in (0.0, 0.15):
                clock = JobClock(0.2)
                with pytest.raises(TimeoutError) if rest_s else contextlib.nullcontext():
                    async with clock:
                        await asyncio.sleep(rest_s)
                        await client.complete(QUESTION)
                assert clock.has_expired == bool(rest_s)

    asyncio.run(run())


@pytest.mark.parametrize("rest_s", [0.0, 0.2])
def test_with_several_requests_of_a_job_the_clock_stands_still_while_any_of_them_waits(rest_s: float) -> None:
    async def run() -> None:
        async with Slow(0.1).client(concurrency=2) as client, JobClock(0.25):
            await asyncio.gather(*(client.complete(QUESTION) for _ in range(8)))  # waits for 0.3 s, then 0.1 s more
            await asyncio.sleep(rest_s)

    with pytest.raises(TimeoutError) if rest_s else contextlib.nullcontext():
        asyncio.run(run())


def test_a_request_that_outlives_its_job_changes_nothing() -> None:
    async def run() -> None:
        places = asyncio.Semaphore(0)

        async def wait() -> None:
            with waiting():
                await places.acquire()

        async with JobClock(5.0):
            late = asyncio.create_task(wait())
            await asyncio.sleep(0.01)
        places.release()
        await late

    asyncio.run(run())


def test_busy_is_requests_at_the_server_over_its_concurrency_whatever_else_a_job_does() -> None:
    server = Slow(0.02)

    async def run() -> float:
        async with server.client(concurrency=4) as client:

            async def job() -> float:
                async with JobClock(30.0) as clock:
                    await asyncio.sleep(0.05)
                    await client.complete(QUESTION)
                return clock.busy_s

            return sum(await asyncio.gather(*(job() for _ in range(40))))

    assert asyncio.run(run()) == pytest.approx(server.seconds / 4, rel=0.2)


def test_of_two_servers_the_busier_counts_and_a_block_within_a_block_counts_once() -> None:
    async def run() -> float:
        async with JobClock(5.0) as clock:
            with at_server(settings(model="text", concurrency=10)), at_server(settings(model="replica", concurrency=1)):
                await asyncio.sleep(0.05)
            with at_server(settings(model="seer", concurrency=2)):
                await asyncio.sleep(0.05)
        return clock.busy_s

    assert 0.05 / 2 <= asyncio.run(run()) < 0.05


def test_without_a_job_there_is_nothing_to_count() -> None:
    async def run() -> str:
        async with Slow(0.0).client() as client:
            return (await client.complete(QUESTION)).text

    assert asyncio.run(run()) == "yes"
