"""One chat over several servers: who gets a request, what a server's trouble costs, and whose answer it is."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from infra.chat import ChatLostError, ChatRefusedError, ChatSettings, ImagePart, Message, TextPart
from infra.chat_client import ChatClient
from infra.replicated_chat import ReplicatedChat
from infra.vllm.place import Place

Act = Callable[[ReplicatedChat], Awaitable[None]]


class Fleet:
    """`infra.vllm.place.Replicas` of which the test decides who runs."""

    name = "text"

    def __init__(self, *urls: str | None, patience_s: float = 30.0) -> None:
        self.now: list[Place | None] = []
        self.why = ""
        self.patience_s = patience_s
        self.set(*urls)

    def set(self, *urls: str | None) -> None:
        self.now = [Place(url=url.removesuffix("/v1"), key="k") if url else None for url in urls]

    def places(self) -> Sequence[Place | None]:
        return tuple(self.now)

    def failure(self) -> str:
        return self.why


def settings(**changes: Any) -> ChatSettings:
    quick = {"first_wait_s": 0.01, "max_wait_s": 0.05, "timeout_s": 5.0, "max_attempts": 4, "concurrency": 6}
    return ChatSettings.model_validate({"base_url": "vllm://text", "model": "small"} | quick | changes)


def asked(number: int) -> tuple[Message, ...]:
    return (Message(role="user", content=f"question {number}"),)


def echo(server: Any, delay_s: float = 0.0) -> Callable[[Mapping[str, Any]], Any]:
    def script(payload: Mapping[str, Any]) -> Any:
        time.sleep(delay_s)
        return server.said("echo " + payload["messages"][-1]["content"])

    return script


def all_right(chat: ReplicatedChat, numbers: Sequence[int]) -> Awaitable[Any]:
    async def one(number: int) -> None:
        assert (await chat.complete(asked(number))).text == f"echo question {number}"

    return asyncio.gather(*map(one, numbers))


def run(fleet: Fleet, act: Act, **changes: Any) -> None:
    async def whole() -> None:
        async with ReplicatedChat(settings(**changes), fleet) as chat:
            await act(chat)

    asyncio.run(whole())


@pytest.fixture
def pair(chat_servers: Any) -> Any:
    """Two servers that echo."""
    servers = [chat_servers(None) for _ in range(2)]
    for server in servers:
        server.script = echo(server)
    yield servers
    for server in servers:
        server.stop()


def test_requests_spread_and_none_gets_more_than_its_share_at_once(pair: Any) -> None:
    for server in pair:
        server.script = echo(server, 0.02)
    run(Fleet(*(server.url for server in pair)), lambda chat: all_right(chat, range(60)))
    assert [server.most_at_once for server in pair] == [3, 3]
    assert sum(len(server.received) for server in pair) == 60
    assert all(len(server.received) >= 20 for server in pair)
    assert all(headers["authorization"] == "Bearer k" for server in pair for headers in server.headers)


def test_the_slower_one_gets_less(pair: Any) -> None:
    pair[0].script = echo(pair[0], 0.2)
    run(Fleet(*(server.url for server in pair)), lambda chat: all_right(chat, range(60)))
    slow, fast = (len(server.received) for server in pair)
    assert 0 < slow < fast / 2


@pytest.mark.parametrize("trouble", ["reset", "error", "no completion"])
def test_one_in_trouble_sits_out_until_it_is_well_and_its_requests_go_to_the_other(pair: Any, trouble: str) -> None:
    ill, other = pair
    replies = {"reset": ill.reply(0), "error": ill.reply(500, "engine dead"), "no completion": ill.reply(200, "<html>")}

    def fails(_: Mapping[str, Any]) -> Any:
        ill.is_well = False
        return replies[trouble]

    async def act(chat: ReplicatedChat) -> None:
        ill.script = fails
        await all_right(chat, range(40))
        assert len(other.received) == 40
        assert 1 <= len(ill.received) <= 3  # those in flight when the first of them failed
        num_before = len(ill.received)
        await all_right(chat, range(40))
        assert len(ill.received) == num_before
        ill.script, ill.is_well = echo(ill), True
        await asyncio.sleep(0.8)
        await all_right(chat, range(40))
        assert len(ill.received) > num_before

    run(Fleet(*(server.url for server in pair)), act)


def test_a_request_that_no_server_answers_keeps_none_from_the_others_questions(pair: Any) -> None:
    for server in pair:
        server.script = lambda payload, server=server: (
            server.reply(500, "cannot do this one")
            if payload["messages"][-1]["content"] == "question 0"
            else echo(server)(payload)
        )

    async def act(chat: ReplicatedChat) -> None:
        start_s = time.monotonic()
        with pytest.raises(ChatLostError, match="cannot do this one"):
            await chat.complete(asked(0))
        assert time.monotonic() - start_s < 1.5  # at a look each time they were well again, it took 2.5 s
        assert [len(server.received) for server in pair] == [4, 4]  # to the other one each time

    run(Fleet(*(server.url for server in pair)), act, max_attempts=8)


def about(picture: int, text: str) -> tuple[Message, ...]:
    seen = ImagePart.of_jpeg(f"picture {picture}".encode())
    return (Message(role="user", content=(seen, TextPart(text=text))),)


def picture_of(payload: Mapping[str, Any]) -> str:
    return str(payload["messages"][-1]["content"][0]["image_url"]["url"])


@pytest.fixture
def four(chat_servers: Any) -> Any:
    """Servers that take their time, each time another."""
    servers = [chat_servers(None) for _ in range(4)]
    for server in servers:
        server.script = lambda _, server=server: time.sleep(random.uniform(0.01, 0.05)) or server.said("yes")
    yield servers
    for server in servers:
        server.stop()


def test_questions_on_the_same_pictures_go_to_one_server(four: Any) -> None:
    async def both(chat: ReplicatedChat, picture: int) -> None:
        for text in ("what does it do?", "what does it look like?"):
            await chat.complete(about(picture, text))
            await asyncio.sleep(0.002)  # as kept answers are looked up between two questions

    async def act(chat: ReplicatedChat) -> None:
        jobs = asyncio.Semaphore(16)

        async def job(picture: int) -> None:
            async with jobs:
                await both(chat, picture)

        await asyncio.gather(*map(job, range(80)))

    run(Fleet(*(server.url for server in four)), act, concurrency=8)
    counts = [Counter(map(picture_of, server.received)) for server in four]
    assert sum(counts, Counter()).total() == 160
    assert sum(n == 2 for count in counts for n in count.values()) >= 48  # of 80; by load alone it were a quarter
    assert [server.most_at_once for server in four] == [2, 2, 2, 2]


def test_a_server_with_room_takes_questions_whose_own_has_none(four: Any) -> None:
    def ask_all(chat: ReplicatedChat) -> Awaitable[Any]:
        return asyncio.gather(*(chat.complete(about(1, f"question {number}")) for number in range(40)))

    run(Fleet(*(server.url for server in four)), ask_all, concurrency=8)
    assert min(len(server.received) for server in four) >= 4


def test_pictures_have_their_home_again_when_it_comes_back_and_another_meanwhile(four: Any) -> None:
    servers = four[:3]
    for server in servers:
        server.script = lambda _, server=server: server.said("yes")
    urls = [server.url for server in servers]

    async def homes(chat: ReplicatedChat) -> dict[str, int]:
        for server in servers:
            server.received.clear()
        for picture in range(12):
            await chat.complete(about(picture, "what is it?"))
        return {picture_of(payload): number for number, server in enumerate(servers) for payload in server.received}

    async def act(chat: ReplicatedChat) -> None:
        before = await homes(chat)
        assert set(before.values()) == {0, 1, 2}
        fleet.set(urls[0], None, urls[2])
        await asyncio.sleep(0.8)
        without = await homes(chat)
        assert set(without.values()) == {0, 2}
        assert all(without[picture] == home for picture, home in before.items() if home != 1)
        fleet.set(*urls)
        await asyncio.sleep(0.8)
        assert await homes(chat) == before

    fleet = Fleet(*urls)
    run(fleet, act)


def test_one_that_times_out_sits_out(pair: Any) -> None:
    slow, other = pair

    def late(payload: Mapping[str, Any]) -> Any:
        slow.is_well = False
        return echo(slow, 1.0)(payload)

    slow.script = late
    run(Fleet(*(server.url for server in pair)), lambda chat: all_right(chat, range(30)), timeout_s=0.3)
    assert len(slow.received) <= 3
    assert len(other.received) == 30


def test_answers_that_come_after_others_were_asked_are_nobody_elses(pair: Any) -> None:
    """Replies that were given up arrive late, while the next questions are on the same connections' servers."""

    def odd(server: Any) -> Callable[[Mapping[str, Any]], Any]:
        def script(payload: Mapping[str, Any]) -> Any:
            number = int(payload["messages"][-1]["content"].split()[1])
            if number % 7 == len(server.received) % 7:
                time.sleep(0.35)
            return server.reply(0) if number % 5 == len(server.received) % 5 else echo(server)(payload)

        return script

    for server in pair:
        server.script = odd(server)
    fleet = Fleet(*(server.url for server in pair))
    run(fleet, lambda chat: all_right(chat, range(80)), timeout_s=0.3, max_attempts=30, concurrency=20)


def test_with_all_down_requests_wait_for_one_that_starts_again_and_cost_no_attempts(pair: Any) -> None:
    first, again = pair

    async def act(chat: ReplicatedChat) -> None:
        fleet.set(None, None)
        await asyncio.sleep(0.6)
        waiting = asyncio.ensure_future(all_right(chat, range(20)))
        await asyncio.sleep(1.5)
        assert not waiting.done()
        fleet.set(None, again.url)  # at another address
        await waiting
        assert len(again.received) == 20

    fleet = Fleet(first.url, None)
    run(fleet, act, max_attempts=1)
    assert first.received == []


def test_patience_ends_and_what_will_never_come_is_not_waited_for(pair: Any) -> None:
    async def act(chat: ReplicatedChat) -> None:
        fleet.set(None, None)
        with pytest.raises(ChatLostError, match=r"^no replica of vLLM text answered for \d s$"):
            await asyncio.gather(*(chat.complete(asked(number)) for number in range(9)))
        fleet.patience_s = 600
        waiting = asyncio.ensure_future(chat.complete(asked(1)))
        await asyncio.sleep(0.1)
        fleet.why = "all are given up"
        with pytest.raises(ChatRefusedError, match=r"^all are given up$"):
            await waiting

    fleet = Fleet(*(server.url for server in pair), patience_s=1.0)
    run(fleet, act)
    with pytest.raises(ChatRefusedError, match=r"^all are given up$"):
        run(fleet, lambda chat: all_right(chat, [1]))


def test_a_request_no_server_answers_is_lost_after_its_attempts(pair: Any) -> None:
    for server in pair:
        server.script = lambda _, server=server: server.reply(500, "engine dead")
    with pytest.raises(ChatLostError, match=r"^vLLM text gave no answer in 4 attempts; .*HTTP 500: engine dead$"):
        run(Fleet(*(server.url for server in pair)), lambda chat: all_right(chat, [1]))
    assert sum(len(server.received) for server in pair) == 4


def test_what_cannot_be_mended_is_said_at_once(pair: Any) -> None:
    for server in pair:
        server.script = lambda _, server=server: server.reply(404, "no such model")
    with pytest.raises(ChatRefusedError, match="no such model"):
        run(Fleet(*(server.url for server in pair)), lambda chat: all_right(chat, [1]))
    assert sum(len(server.received) for server in pair) == 1


def test_a_cancelled_request_gives_its_place_back(pair: Any) -> None:
    async def act(chat: ReplicatedChat) -> None:
        for server in pair:
            server.script = echo(server, 0.5)
        tasks = [asyncio.ensure_future(chat.complete(asked(number))) for number in range(12)]
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for server in pair:
            server.script = echo(server)
        await asyncio.wait_for(all_right(chat, range(12)), 10)

    run(Fleet(*(server.url for server in pair)), act)


def test_questions_are_identified_as_with_one_server(chat_server: Any) -> None:
    schema = {"type": "object"}
    with_address = settings().model_copy(update={"base_url": chat_server.url})
    alone = ChatClient(with_address).payload(asked(1), schema)
    assert ReplicatedChat(settings(), Fleet(chat_server.url)).payload(asked(1), schema) == alone


def test_one_client_refuses_servers_that_only_a_build_starts() -> None:
    with pytest.raises(ChatRefusedError, match=r"^vllm://text stands for servers that only a build starts[^\n]+$"):
        ChatClient(settings())
