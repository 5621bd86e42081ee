"""Live progress of a training: the metrics file as its driver follows it, and the terminal that shows it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table

from flows.progress import Terminal, duration
from flows.watchers import Watchers
from model.training.metrics import StepMetrics


class TrainSink(Protocol):
    """Whoever shows a training."""

    def show(self, rows: Sequence[StepMetrics]) -> None:
        """Called with rows that are new; where ranks were started again, steps go back to where they went on."""


class MetricsFollower:
    """Reads a metrics file that another process writes, cuts and writes on, and hands rows to `sinks`.

    What it holds when opened is taken for news too, so that sinks show a resumed run whole. `rows` are those that count
    now, in rising steps.
    """

    def __init__(self, path: Path, sinks: Sequence[TrainSink]) -> None:
        self.rows: list[StepMetrics] = []
        self._path = path
        self._sinks = sinks
        self._last_line = b""
        self._end = 0
        """Where the next line begins; the last one stands before it, if nobody has cut the file."""

    def look(self) -> None:
        """Take in what was written since the last look."""
        news = list(self._news())
        if not news:
            return
        self.rows = [row for row in self.rows if row.step < news[0].step] + news
        for sink in self._sinks:
            sink.show(news)

    def _news(self) -> Iterator[StepMetrics]:
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self._end - len(self._last_line))
            if file.read(len(self._last_line)) != self._last_line:  # cut at a checkpoint before it
                self._end, self._last_line = 0, b""
                file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):  # still being written
                    return
                self._end += len(line)
                self._last_line = line
                yield StepMetrics.model_validate_json(line)


def figures(row: StepMetrics) -> dict[str, str]:
    """What a row says, by name, as people read it."""
    return {
        "loss": "skipped" if row.loss is None else f"{row.loss:.4f}",
        "learning rate": f"{row.learning_rate:.2e}",
        "grad norm": "-" if row.grad_norm is None else f"{row.grad_norm:.3f}",
        "tokens/s": f"{row.tokens_per_s:,.0f}",
        "samples/s": f"{row.samples_per_s:.2f}",
        "MFU": f"{100 * row.mfu:.1f} %",
        "data wait": f"{100 * row.data_wait:.0f} %",
        "memory": f"{row.memory_peak_bytes / 2**30:.1f} GiB",
        "bad samples": str(row.bad_samples),
    }


def describe(row: StepMetrics) -> str:
    """A row in one line."""
    shown = {name: value for name, value in figures(row).items() if name not in ("learning rate", "samples/s")}
    left = "" if row.step >= row.num_steps else f", ETA {duration(row.eta_s)}"
    return f"step {row.step} of {row.num_steps}: {', '.join(f'{name} {value}' for name, value in shown.items())}{left}"


class TrainTerminal(Terminal):
    """A bar and the latest figures on the terminal."""

    def show(self, rows: Sequence[StepMetrics]) -> None:
        """Draw the latest row."""
        self.draw(_panel(rows[-1]), {"train": describe(rows[-1])})


def _panel(row: StepMetrics) -> Group:
    bar = Table.grid(padding=(0, 1))
    left = "done" if row.step >= row.num_steps else f"ETA {duration(row.eta_s)}"
    bar.add_row(
        "train",
        ProgressBar(total=row.num_steps, completed=row.step, width=24),
        f"{row.step}/{row.num_steps} steps",
        left,
    )
    shown = figures(row)
    table = Table(*shown, box=None, header_style="dim")
    table.add_row(*shown.values())
    return Group(bar, table)


WATCHERS: Watchers[TrainSink] = Watchers()
"""Of trainings."""
