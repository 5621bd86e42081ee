"""`asyncio.run` for work that SIGTERM must end, whatever the process does about SIGTERM otherwise."""

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_until_sigterm(work: Coroutine[Any, Any, T]) -> T:
    """Run the work; SIGTERM cancels it, and then the handler that was there before is called.

    Without this, what that handler raises while one of asyncio's own callbacks runs is logged by asyncio and forgotten:
    the signal is lost. In other threads than the main one, which signals do not reach, it is `asyncio.run`.
    """
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    came = False

    async def watched() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel(*_: object) -> None:
            nonlocal came
            came = True
            loop.call_soon_threadsafe(task.cancel)

        signal.signal(signal.SIGTERM, cancel)
        try:
            return await work
        finally:
            signal.signal(signal.SIGTERM, before)

    try:
        return asyncio.run(watched())
    finally:
        if came:
            before(signal.SIGTERM, None)
