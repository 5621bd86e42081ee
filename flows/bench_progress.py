"""Live progress of a bench run: items answered or judged, with rate and time left."""

import time
from typing import Literal, NamedTuple, Protocol

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table

from flows.progress import Terminal, duration
from flows.watchers import Watchers

Stage = Literal["predict", "judge"]


class BenchProgress(NamedTuple):
    """Counts of a stage; of `done` items `kept` were done before, `failed` have no prediction, or lack a score."""

    stage: Stage
    total: int
    done: int
    kept: int
    failed: int
    elapsed_s: float

    @property
    def rate_per_s(self) -> float:
        """Items a second in this run."""
        return (self.done - self.kept) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left(self) -> str:
        """The time left at that rate, `done` at the end, nothing before the first item."""
        if self.done >= self.total:
            return "done"
        return f"ETA {duration((self.total - self.done) / self.rate_per_s)}" if self.rate_per_s > 0 else ""

    def describe(self) -> str:
        """The counts in one line."""
        kept = f" ({self.kept} from before)" if self.kept else ""
        failed = f", {'missing' if self.stage == 'predict' else 'unscored'} {self.failed}" if self.failed else ""
        rate = f", {self.rate_per_s:.2f} items/s" if self.done > self.kept else ""
        left = f", {self.left}" if self.left else ""
        return f"{self.done} of {self.total} items{kept}{failed}{rate}{left}"


class BenchSink(Protocol):
    """Whoever shows a bench run."""

    def show(self, progress: BenchProgress) -> None:
        """Called whenever items are done."""


class StageCount:
    """Counts a stage and tells the sinks, which see it begin with the items that are `kept`."""

    def __init__(self, stage: Stage, total: int, kept: int, sinks: tuple[BenchSink, ...]) -> None:
        self._progress = BenchProgress(stage, total, kept, kept, 0, 0.0)
        self._sinks = sinks
        self._began_s = time.monotonic()
        self._show()

    def begin(self) -> None:
        """Rates count from here, not from when the count was made."""
        self._began_s = time.monotonic()

    def add(self, *, done: int, kept: int = 0, failed: int = 0) -> None:
        """So many items more, the kept and the failed ones among `done`."""
        old = self._progress
        self._progress = old._replace(
            done=old.done + done,
            kept=old.kept + kept,
            failed=old.failed + failed,
            elapsed_s=time.monotonic() - self._began_s,
        )
        self._show()

    def _show(self) -> None:
        for sink in self._sinks:
            sink.show(self._progress)


class BenchTerminal(Terminal):
    """A bar for each stage on the terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._stages: dict[Stage, BenchProgress] = {}

    def show(self, progress: BenchProgress) -> None:
        """Draw the counts."""
        self._stages[progress.stage] = progress
        self.draw(_table(self._stages), {progress.stage: progress.describe()})


def _table(stages: dict[Stage, BenchProgress]) -> Table:
    table = Table.grid(padding=(0, 1))
    for stage, progress in stages.items():
        bar = ProgressBar(total=max(progress.total, 1), completed=progress.done, width=24)
        table.add_row(stage, bar, progress.describe())
    return table


WATCHERS: Watchers[BenchSink] = Watchers()
"""Of bench runs."""
