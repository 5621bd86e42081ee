"""Who in this process wants to see runs besides the run's page; Prefect's parameters must be plain values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

S = TypeVar("S")


class Watchers(Generic[S]):
    """The sinks that are shown all runs of one flow, in the order in which they came."""

    def __init__(self) -> None:
        self._sinks: list[S] = []

    @contextmanager
    def watched_by(self, sink: S) -> Iterator[None]:
        """Show the runs of this process to `sink` too, meanwhile."""
        self._sinks.append(sink)
        try:
            yield
        finally:
            self._sinks.remove(sink)

    def sinks(self) -> tuple[S, ...]:
        """Those who watch now."""
        return tuple(self._sinks)
