"""A folder that one run at a time writes into."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def alone_in(out: Path, refusal: Exception) -> Iterator[None]:
    """Hold the folder, which is made where it is absent; a process that dies lets go of it.

    Raises `refusal` where another process holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise refusal from None
    try:
        yield
    finally:
        lock.release()
