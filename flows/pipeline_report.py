"""The report of a pipeline run: Markdown for the run's page, and the same as one HTML file."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from benchmark.question_score import QuestionScore
from flows.bench_record import BenchResult
from flows.bench_table import bench_table
from flows.pipeline_record import Gate
from flows.plots import accuracy_plot, counts_plot, loss_plot
from flows.result import BuildResult
from flows.train_artifacts import steps_table
from flows.train_record import TrainRecord
from model.training.metrics import StepMetrics

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0;display:block;overflow-x:auto}"
    "td,th{border:1px solid #ccc;padding:.25em .6em}th{background:#f4f4f4}img{max-width:100%}code{background:#f4f4f4}"
)


def pipeline_markdown(
    built: BuildResult,
    trained: TrainRecord,
    rows: Sequence[StepMetrics],
    results: Mapping[str, BenchResult],
    gate: Gate,
    out: Path,
) -> str:
    """Decision first, then build, training and bench; `results` are the runs that were compared, by who answered."""
    assert trained.outcome is not None
    parts = [
        f"# Pipeline: {gate.outcome}",
        f"Model `{gate.model}`: {gate.reason}.",
        built.markdown(),
        counts_plot(built.counts),
        f"# Training: {trained.outcome.label}",
        trained.summary(out).replace("\n", "  \n"),  # lines of their own in Markdown
        loss_plot(rows, f"loss, {trained.outcome.label} on build {built.build_id}"),
        steps_table(rows),
    ]
    if results:
        parts.append(bench_table({f"{who}: {result.run.model_name}": result for who, result in results.items()}))
        scores = {who: result.score for who, result in results.items() if isinstance(result.score, QuestionScore)}
        parts.append(accuracy_plot(scores))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def html_page(title: str, markdown: str) -> str:
    """A page that needs no network. Raw HTML in the Markdown is shown as text."""
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    renderer.validateLink = _is_safe  # type: ignore[method-assign]
    body = renderer.render(markdown)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><body>{body}</body></html>\n"
    )


def _is_safe(url: str) -> bool:
    """Links to files and pages, and plots as images in the page itself."""
    return url.startswith(("http://", "https://", "file://", "data:image/svg+xml;base64,"))
