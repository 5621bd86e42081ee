"""One chat over several servers of one model: questions on the same pictures go to one server, the rest where least is.

A server evaluates pictures once for all questions that begin with them, so these have a home among the servers, told by
a hash. No server idles for that: one with room takes what waits for another. The servers come and go while this is
used. What a server does to a request costs an attempt, as with one server; what no server is there for waits. A reply
is that of the very request that its caller sent, whichever server it went to.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Self

import httpx
import numpy as np
from pydantic import JsonValue

from infra.chat import (
    ChatLostError,
    ChatRefusedError,
    ChatSettings,
    Completion,
    ImagePart,
    JsonObject,
    Message,
)
from infra.chat_client import ChatClient, backoff_s, chat_payload
from infra.job_clock import at_server, waiting
from infra.vllm.place import Place, Replicas

_LOOK_S = 0.5
_HEALTH_S = 5.0


@dataclass(eq=False, slots=True)
class _Seat:
    """A server at its address; one that starts again gets another."""

    place: Place
    client: ChatClient
    in_flight: int = 0
    is_well: bool = False


@dataclass(eq=False, slots=True)
class _Turn:
    """A request that waits: for one of the servers, by number, in the order in which it prefers them, `avoids` last."""

    preferred: Sequence[int]
    avoids: _Seat | None
    seat: asyncio.Future[_Seat]


class ReplicatedChat:
    """A `Chat` over replicas; an async context manager, entered once the first of them answers.

    Each is given `settings.concurrency` divided by their number at a time, rounded up; what is more waits here. One
    that breaks a connection, times out or answers with an error that passes (`infra.chat_client`) is asked at once
    whether it is well, since it may be the request; if not, it sits out until it is. While none is well requests wait,
    without using up attempts, for `patience_s`, then they are lost. Raises ChatRefusedError where there will be no
    server any more.
    """

    def __init__(self, settings: ChatSettings, replicas: Replicas) -> None:
        self.settings = settings
        self._replicas = replicas
        self._seats: list[_Seat | None] = [None] * len(replicas.places())
        self._most = -(-settings.concurrency // len(self._seats))
        self._turns: list[_Turn] = []
        self._well_s = time.monotonic()
        self._random = np.random.default_rng()
        self._stack = AsyncExitStack()
        self._looking: asyncio.Task[None] | None = None
        self._http = httpx.AsyncClient(timeout=_HEALTH_S, trust_env=False)

    async def __aenter__(self) -> Self:
        try:
            await self._stack.enter_async_context(self._http)
            while not await self._look():
                if why := self._replicas.failure():
                    raise ChatRefusedError(why)
                await asyncio.sleep(_LOOK_S)
        except BaseException:
            await self._stack.aclose()
            raise
        self._looking = asyncio.create_task(self._keep_looking())
        self._looking.add_done_callback(lambda _: self._hand_out())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await self._stack.aclose()

    def payload(self, messages: Sequence[Message], json_schema: Mapping[str, JsonValue] | None = None) -> JsonObject:
        """As `ChatClient.payload`: the same for all servers, and as if there were one."""
        return chat_payload(self.settings, messages, json_schema)

    async def complete(
        self, messages: Sequence[Message], json_schema: Mapping[str, JsonValue] | None = None
    ) -> Completion:
        """As `ChatClient.complete`; an attempt after the first goes to another server where one has room."""
        preferred = _preferred(messages, len(self._seats))
        lost: ChatLostError | None = None
        before: _Seat | None = None
        for attempt in range(self.settings.max_attempts):
            if attempt:
                await asyncio.sleep(backoff_s(self.settings, self._random, attempt))
            async with self._seat(preferred, before) as seat:
                try:
                    return await seat.client.complete(messages, json_schema)
                except ChatLostError as error:
                    lost, before = error, seat
                    seat.is_well = False
                    await self._ask_health(seat)
        raise ChatLostError(
            f"vLLM {self._replicas.name} gave no answer in {self.settings.max_attempts} attempts; the last: {lost}"
        )

    @contextlib.asynccontextmanager
    async def _seat(self, preferred: Sequence[int], avoids: _Seat | None) -> AsyncIterator[_Seat]:
        """A place at a server, once there is one."""
        turn = _Turn(preferred, avoids, asyncio.get_running_loop().create_future())
        self._turns.append(turn)
        try:
            with waiting():
                self._hand_out()
                seat = await turn.seat
            with at_server(self.settings):
                yield seat
        finally:
            if turn in self._turns:
                self._turns.remove(turn)
            elif not turn.seat.cancelled() and turn.seat.exception() is None:
                turn.seat.result().in_flight -= 1
            self._hand_out()

    def _hand_out(self) -> None:
        """Give places to those who wait: first to whoever is at home where there is room, then to whoever came first.

        Where there is no hope for them, they are told.
        """
        for is_choosy in (True, False):
            for turn in [turn for turn in self._turns if not turn.seat.done()]:
                free = [seat for seat in self._well if seat.in_flight < self._most]
                if not free:
                    break
                seat = self._home(turn)
                if seat not in free:
                    if is_choosy:
                        continue
                    seat = min(free, key=lambda seat: (seat is turn.avoids, seat.in_flight))
                seat.in_flight += 1
                self._turns.remove(turn)
                turn.seat.set_result(seat)
        while self._turns and (error := self._hopeless()):
            turn = self._turns.pop(0)
            if not turn.seat.done():
                turn.seat.set_exception(error)

    def _home(self, turn: _Turn) -> _Seat | None:
        """Where the request had best go; None where it is all the same."""
        seats = (self._seats[number] for number in turn.preferred)
        return next((seat for seat in seats if seat and seat.is_well and seat is not turn.avoids), None)

    @property
    def _well(self) -> list[_Seat]:
        return [seat for seat in self._seats if seat is not None and seat.is_well]

    def _hopeless(self) -> BaseException | None:
        """Why those who wait will wait in vain, as far as one can tell."""
        if why := self._replicas.failure():
            return ChatRefusedError(why)
        if self._looking is not None and self._looking.done():
            return asyncio.CancelledError() if self._looking.cancelled() else self._looking.exception()
        waited_s = time.monotonic() - self._well_s
        if not self._well and waited_s > self._replicas.patience_s:
            return ChatLostError(f"no replica of vLLM {self._replicas.name} answered for {waited_s:.0f} s")
        return None

    async def _keep_looking(self) -> None:
        while True:
            await self._look()
            self._hand_out()  # those who wait look at the time, too
            await asyncio.sleep(_LOOK_S)

    async def _look(self) -> bool:
        """See which servers are where, and which of those that sit out are well again; whether any is."""
        for number, place in enumerate(self._replicas.places()):
            seat = self._seats[number]
            if place != (seat.place if seat else None):
                self._seats[number] = await self._new_seat(place) if place else None
        await asyncio.gather(*(self._ask_health(seat) for seat in self._seats if seat is not None and not seat.is_well))
        if self._well:
            self._well_s = time.monotonic()
        return bool(self._well)

    async def _new_seat(self, place: Place) -> _Seat:
        """One attempt at a time is the client's, since the next may be for another server."""
        here = {"base_url": f"{place.url}/v1", "max_attempts": 1, "concurrency": self._most, "api_key_env": ""}
        client = ChatClient(self.settings.model_copy(update=here), key=place.key)
        return _Seat(place, await self._stack.enter_async_context(client))

    async def _ask_health(self, seat: _Seat) -> None:
        with contextlib.suppress(httpx.RequestError):
            seat.is_well = (await self._http.get(f"{seat.place.url}/health")).is_success


def _preferred(messages: Sequence[Message], num: int) -> tuple[int, ...]:
    """Servers by number in the order in which a question prefers them, told by the pictures that it begins with; none
    where it begins with none. With one gone the homes of the others' pictures stay (rendezvous hashing).
    """
    parts = messages[0].content
    if isinstance(parts, str):
        return ()
    pictures = "".join(takewhile(bool, (part.data_uri if isinstance(part, ImagePart) else "" for part in parts)))
    if not pictures:
        return ()
    digest = hashlib.sha256(pictures.encode()).digest()
    return tuple(sorted(range(num), key=lambda number: hashlib.sha256(digest + number.to_bytes(4)).digest()))
