"""An agent of the async kind in a worker's own process, where a model beside its chat server wants a place in Ray."""

import asyncio
import contextvars
from collections.abc import Sequence
from typing import Generic

from agents.base import AsyncAgent, JobT, OutT
from schemas.label import AgentLabel


class OnWorker(Generic[JobT, OutT]):
    """An `AsyncAgent` as an `Agent`: the jobs of a micro-batch are in flight side by side, in an event loop of its own.

    A server that is away fails the micro-batch, as anything that an agent raises does; there is no probe that would
    tell the pool that it is the server.
    """

    def __init__(self, agent: AsyncAgent[JobT, OutT]) -> None:
        self._agent = agent
        self._runner = asyncio.Runner()

    def label(self) -> AgentLabel:
        """The agent's own."""
        return self._agent.label()

    def setup(self) -> None:
        """Open and load what the jobs share."""
        self._runner.run(self._agent.setup())

    def process(self, jobs: Sequence[JobT]) -> list[OutT]:
        """One output per job, in order; raises the first error, once no job is in flight any more."""
        return self._runner.run(self._all(jobs), context=contextvars.copy_context())

    async def _all(self, jobs: Sequence[JobT]) -> list[OutT]:
        tasks = [asyncio.create_task(self._agent.process_one(job)) for job in jobs]
        await asyncio.wait(tasks)
        return [task.result() for task in tasks]

    def close(self) -> None:
        """Free what `setup` took."""
        self._runner.run(self._agent.close())
        self._runner.close()
