"""A training on its run's page: progress and a table while it goes on, the loss curve at the end."""

import base64
import time
from collections.abc import Sequence
from html import escape

from prefect.artifacts import create_markdown_artifact

from flows.artifacts import ProgressArtifact, decoration
from flows.train_progress import describe, figures
from model.training.metrics import StepMetrics

UPDATE_EVERY_S = 5.0
"""How often the page is told at most; each time is two calls to the server."""
_TABLE_ROWS = 12
_WIDTH, _HEIGHT, _MARGIN = 640, 240, 44


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


def loss_image(rows: Sequence[StepMetrics], title: str) -> str:
    """The loss by step as an SVG image inside Markdown; a sentence where no step had a loss."""
    points = [(row.step, row.loss) for row in rows if row.loss is not None]
    if not points:
        return "No step had a finite loss."
    svg = base64.b64encode(_svg(points, title).encode()).decode()
    return f"![loss by step](data:image/svg+xml;base64,{svg})"


def _svg(points: Sequence[tuple[int, float]], title: str) -> str:
    last, top = points[-1][0], max(loss for _, loss in points) or 1.0
    wide, high = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
    path = " ".join(
        f"{_MARGIN + wide * step / last:.1f},{_MARGIN + high * (1 - loss / top):.1f}" for step, loss in points
    )
    axis, bottom = "#888", _HEIGHT - _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{_MARGIN}" y="20">{escape(title)}</text>'
        f'<path d="M{_MARGIN},{_MARGIN} V{bottom} H{_WIDTH - _MARGIN}" fill="none" stroke="{axis}"/>'
        f'<text x="4" y="{_MARGIN + 4}">{top:.3g}</text><text x="4" y="{bottom + 4}">0</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{bottom + 18}" text-anchor="end">step {last}</text>'
        f'<polyline points="{path}" fill="none" stroke="#1f77b4" stroke-width="1.5"/></svg>'
    )
