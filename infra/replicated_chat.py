"""One chat over several servers of one model: each request goes to the one with the fewest of ours in flight.

The servers come and go while it is used. What a server does to a request costs an attempt, as with one server; what no
server is there for waits. A reply is that of the very request that its caller sent, whichever server it went to.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
import numpy as np
from pydantic import JsonValue

from infra.chat import ChatLostError, ChatRefusedError, ChatSettings, Completion, JsonObject, Message
from infra.chat_client import ChatClient, backoff_s, chat_payload
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


class ReplicatedChat:
    """A `Chat` over replicas; an async context manager, entered once the first of them answers.

    Each is given `settings.concurrency` divided by their number at a time, rounded up; what is more waits here. One
    that breaks a connection, times out or answers with an error that passes (`infra.chat_client`) sits out until it
    says that it is well. While none is well requests wait, without using up attempts, for `patience_s`, then they are
    lost. Raises ChatRefusedError where there will be no server any more.
    """

    def __init__(self, settings: ChatSettings, replicas: Replicas) -> None:
        self.settings = settings
        self._replicas = replicas
        self._seats: list[_Seat | None] = [None] * len(replicas.places())
        self._most = -(-settings.concurrency // len(self._seats))
        self._changed = asyncio.Event()
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
        """As `ChatClient.complete`; an attempt after the first goes to another server where one is well."""
        lost: ChatLostError | None = None
        for attempt in range(self.settings.max_attempts):
            if attempt:
                await asyncio.sleep(backoff_s(self.settings, self._random, attempt))
            async with self._seat() as seat:
                try:
                    return await seat.client.complete(messages, json_schema)
                except ChatLostError as error:
                    lost = error
                    seat.is_well = False
        raise ChatLostError(
            f"vLLM {self._replicas.name} gave no answer in {self.settings.max_attempts} attempts; the last: {lost}"
        )

    @contextlib.asynccontextmanager
    async def _seat(self) -> AsyncIterator[_Seat]:
        """A place at the server with the fewest requests of ours."""
        while not (free := [seat for seat in self._well if seat.in_flight < self._most]):
            self._check_patience()
            self._changed.clear()
            await self._changed.wait()
        seat = min(free, key=lambda seat: seat.in_flight)
        seat.in_flight += 1
        try:
            yield seat
        finally:
            seat.in_flight -= 1
            self._changed.set()

    @property
    def _well(self) -> list[_Seat]:
        return [seat for seat in self._seats if seat is not None and seat.is_well]

    def _check_patience(self) -> None:
        if why := self._replicas.failure():
            raise ChatRefusedError(why)
        if self._looking is not None and self._looking.done():
            self._looking.result()  # its error: nobody would wake who waits
        waited_s = time.monotonic() - self._well_s
        if not self._well and waited_s > self._replicas.patience_s:
            raise ChatLostError(f"no replica of vLLM {self._replicas.name} answered for {waited_s:.0f} s")

    async def _keep_looking(self) -> None:
        try:
            while True:
                await self._look()
                self._changed.set()  # those who wait look at the time, too
                await asyncio.sleep(_LOOK_S)
        finally:
            self._changed.set()

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
