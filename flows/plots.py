"""Plots for Markdown that stands alone: SVG images inside the text, so that a page needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmark.question_score import QuestionScore
from infra.builds import CountEntry
from model.training.metrics import StepMetrics

_SIZE_IN = (8.0, 3.2)
_BAR_IN = 0.24
_GREY = "#777777"
# letters stay letters, so that a page can be searched, and the same figures give the same bytes
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "videorefer",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


def loss_plot(rows: Sequence[StepMetrics], title: str) -> str:
    """The loss by optimiser step, as Markdown; a sentence where no step had a loss."""
    points = [(row.step, row.loss) for row in rows if row.loss is not None]
    if not points:
        return "No step had a finite loss."
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        axes = figure.add_subplot(title=title, xlabel="step", ylabel="loss")
        axes.plot(*zip(*points, strict=True), linewidth=1.2, marker=".", markersize=3)
        axes.set_ylim(bottom=0)
        return _image(figure, "loss by step")


def counts_plot(counts: Sequence[CountEntry]) -> str:
    """What each stage of a build gave, and what was dropped for which reason, as Markdown."""
    groups = {name: [entry for entry in counts if entry.group == name] for name in ("stages", "quarantine")}
    groups["quarantine"].sort(key=lambda entry: -entry.n)
    num_bars = max(map(len, groups.values()))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_SIZE_IN[0], 1.0 + _BAR_IN * num_bars), layout="constrained")
        for place, (name, entries) in enumerate(groups.items(), start=1):
            axes = figure.add_subplot(1, 2, place, title=name)
            bars = axes.barh([entry.name for entry in entries], [entry.n for entry in entries], height=0.7)
            axes.bar_label(bars, padding=2)
            axes.margins(x=0.15)
            axes.set_ylim(num_bars - 0.5, -0.5)  # the first stage on top, and bars as thick here as there
            axes.xaxis.set_visible(False)
            axes.spines["bottom"].set_visible(False)
        return _image(figure, "what each stage gave, and what was dropped")


def accuracy_plot(scores: Mapping[str, QuestionScore]) -> str:
    """Accuracy with its standard error by question type and over all items, a colour for each name, as Markdown."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        axes = figure.add_subplot(ylabel="right, %", ylim=(0, 100))
        width = 0.8 / len(scores)
        for place, (name, score) in enumerate(scores.items()):
            figures = {**score.by_type, "all": score.micro}
            left = [number + width * (place + 0.5) - 0.4 for number in range(len(figures))]
            axes.bar(
                left,
                [100 * one.accuracy for one in figures.values()],
                width,
                yerr=[100 * one.standard_error for one in figures.values()],
                ecolor=_GREY,
                label=name,
            )
            axes.set_xticks(range(len(figures)), [f"{what}\nn {one.n}" for what, one in figures.items()])
        figure.legend(loc="outside upper left", ncols=len(scores), frameon=False)
        return _image(figure, "accuracy by question type")


def _image(figure: Figure, about: str) -> str:
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return f"![{about}](data:image/svg+xml;base64,{base64.b64encode(svg.getvalue()).decode()})"
