"""One chat over several servers: who gets a request, what a server's trouble costs, and whose answer it is."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from infra.chat import ChatLostError, ChatRefusedError, ChatSettings, Message
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
