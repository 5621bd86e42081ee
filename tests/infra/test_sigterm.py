"""SIGTERM during asynchronous work, at the moment at which asyncio would lose it."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from infra.sigterm import run_until_sigterm


class EndedError(BaseException):
    pass


@pytest.fixture
def ending() -> Iterator[object]:
    """A handler that ends the process, as Prefect's does while a flow runs."""

    def end(*_: object) -> None:
        raise EndedError

    before = signal.signal(signal.SIGTERM, end)
    yield end
    signal.signal(signal.SIGTERM, before)


def test_a_signal_while_a_callback_runs_ends_the_work_and_reaches_the_handler_before(ending: object) -> None:
    tidied = []

    async def work() -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(20)
        finally:
            tidied.append("work")

    with pytest.raises(EndedError):
        run_until_sigterm(work())
    assert tidied == ["work"]
    assert signal.getsignal(signal.SIGTERM) is ending


def test_without_a_signal_it_is_asyncio_run(ending: object) -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 3

    assert run_until_sigterm(work()) == 3
    assert signal.getsignal(signal.SIGTERM) is ending
