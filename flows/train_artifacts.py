"""A training on its run's page: progress and a table while it goes on."""

import time
from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact

from flows.artifacts import ProgressArtifact, decoration
from flows.train_progress import describe, figures
from model.training.metrics import StepMetrics

UPDATE_EVERY_S = 5.0
"""How often the page is told at most; each time is two calls to the server."""
_TABLE_ROWS = 12


class TrainArtifacts:
    """A progress artifact and a table of recent steps, written at most every `UPDATE_EVERY_S` and at the last step."""

    def __init__(self) -> None:
        self._bar = ProgressArtifact("progress-train")
        self._rows: list[StepMetrics] = []
        self._next_s = 0.0

    def show(self, rows: Sequence[StepMetrics]) -> None:
        """Tell the page, if it is time to."""
        self._rows = [row for row in self._rows if row.step < rows[0].step] + list(rows)
        last = rows[-1]
        if time.monotonic() < self._next_s and last.step < last.num_steps:
            return
        self._next_s = time.monotonic() + UPDATE_EVERY_S
        self._bar.write(100.0 * last.step / last.num_steps, describe(last))
        with decoration():
            create_markdown_artifact(steps_table(self._rows), key="train-metrics", description=describe(last))


def steps_table(rows: Sequence[StepMetrics]) -> str:
    """A dozen steps as a Markdown table, spread over the run, the last one among them."""
    if not rows:
        return "No step was logged."
    spread = rows[:: -max(1, len(rows) // _TABLE_ROWS)][:_TABLE_ROWS][::-1]
    names = tuple(figures(rows[-1]))
    lines = [f"| step | {' | '.join(names)} |", "|---:" * (len(names) + 1) + "|"]
    lines += [f"| {row.step} | {' | '.join(figures(row).values())} |" for row in spread]
    return "\n".join(lines)
