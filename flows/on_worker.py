"""An agent of the async kind in a worker's own process, where a model beside its chat server wants a place in Ray."""

import asyncio
import contextvars
from collections.abc import Sequence
from typing import Generic

from agents.base import AsyncAgent, JobT, OutT
from infra.async_pool import MAX_DECLINED
from infra.chat import ChatDeclinedError, ChatLostError, ChatRefusedError
from infra.workbench import ServerGoneError
from schemas.label import AgentLabel


class OnWorker(Generic[JobT, OutT]):
    """An `AsyncAgent` as an `Agent`: the jobs of a micro-batch are in flight side by side, in an event loop of its own.

    As in `infra.async_pool.AsyncPool`, a server that refuses, that leaves a job and then a probe without an answer, or
    that declines MAX_DECLINED tries of jobs running, ends the pool and costs no job; `setup` asks it first.
    """

    def __init__(self, agent: AsyncAgent[JobT, OutT]) -> None:
        self._agent = agent
        self._runner = asyncio.Runner()
        self._num_declined = 0

    def label(self) -> AgentLabel:
        """The agent's own."""
        return self._agent.label()

    def setup(self) -> None:
        """Open and load what the jobs share; raises what the agent's probe raises."""
        self._runner.run(self._set_up())

    def process(self, jobs: Sequence[JobT]) -> list[OutT]:
        """One output per job, in order; raises the first error, once no job is in flight any more, and ServerGoneError
        before any other.
        """
        return self._runner.run(self._all(jobs), context=contextvars.copy_context())

    async def _set_up(self) -> None:
        await self._agent.setup()
        await self._agent.probe()

    async def _all(self, jobs: Sequence[JobT]) -> list[OutT]:
        results = await asyncio.gather(*map(self._agent.process_one, jobs), return_exceptions=True)
        await self._check_server(results)
        outputs = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            outputs.append(result)
        return outputs

    async def _check_server(self, results: Sequence[object]) -> None:
        open_errors = [result for result in results if isinstance(result, ChatLostError | ChatRefusedError)]
        for error in open_errors:
            if isinstance(error, ChatRefusedError) and not isinstance(error, ChatDeclinedError):
                raise ServerGoneError(str(error)) from error
        if len(open_errors) < len(results):
            self._num_declined = 0
        self._num_declined += sum(isinstance(error, ChatDeclinedError) for error in open_errors)
        if self._num_declined >= MAX_DECLINED:
            raise ServerGoneError(
                f"the server declined {self._num_declined} tries running; the last: {open_errors[-1]}"
            )
        if open_errors:
            try:
                await self._agent.probe()
            except Exception as error:
                raise ServerGoneError(f"the server is gone: {error}") from error

    def close(self) -> None:
        """Free what `setup` took."""
        self._runner.run(self._agent.close())
        self._runner.close()
