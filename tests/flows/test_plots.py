"""Plots in pages: what they say can be read in them, and their bars are as long as the figures."""

import base64
import re
from xml.etree import ElementTree as ET

import pytest

from benchmark.question_score import QuestionFigure, QuestionScore
from flows.pipeline_report import html_page
from flows.plots import accuracy_plot, counts_plot, loss_plot
from infra.builds import CountEntry
from model.training.metrics import StepMetrics

SVG = "{http://www.w3.org/2000/svg}"
COUNTS = (
    CountEntry(group="stages", name="source: clips", n=20),
    CountEntry(group="stages", name="analyzer: mentions", n=50),
    CountEntry(group="samples", name="qa basic train", n=7),
    CountEntry(group="quarantine", name="segmenter plural", n=3),
    CountEntry(group="quarantine", name="reviewer colour_mismatch", n=12),
)


def drawn(markdown: str) -> ET.Element:
    """The picture in a line of Markdown."""
    found = re.fullmatch(r"!\[[^\]]+\]\(data:image/svg\+xml;base64,([^)]+)\)", markdown)
    assert found is not None
    return ET.fromstring(base64.b64decode(found[1]))


def texts(markdown: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in drawn(markdown).iter(f"{SVG}text")]


def bars(markdown: str) -> list[tuple[float, float]]:
    """Width and height of each bar: what is clipped to the axes and closed."""
    found = []
    for path in drawn(markdown).iter(f"{SVG}path"):
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", path.get("d", ""))]
        if path.get("clip-path") and path.get("d", "").rstrip().endswith("z") and len(numbers) == 8:
            found.append((max(numbers[::2]) - min(numbers[::2]), max(numbers[1::2]) - min(numbers[1::2])))
    return found


def row(step: int, loss: float | None) -> StepMetrics:
    numbers = dict.fromkeys(("tokens_per_s", "samples_per_s", "data_wait", "mfu", "eta_s", "epoch"), 0.0)
    return StepMetrics(
        step=step, num_steps=9, loss=loss, learning_rate=0.1, grad_norm=1.0, peak="", memory_peak_bytes=1,
        bad_samples=0, skipped_steps=0, **numbers,
    )  # fmt: skip


def figure(num_right: int, n: int) -> QuestionFigure:
    return QuestionFigure(
        n=n, num_right=num_right, accuracy=num_right / n, standard_error=0.1, num_no_option=0, num_unparsed=0,
        num_missing=0,
    )  # fmt: skip


def test_counts_are_bars_as_long_as_the_figures_with_the_most_dropped_first() -> None:
    page = counts_plot(COUNTS)
    said = texts(page)
    assert [text for text in said if ":" in text] == ["source: clips", "analyzer: mentions"]
    assert said.index("reviewer colour_mismatch") < said.index("segmenter plural")
    assert {"20", "50", "3", "12"} <= set(said)
    assert "7" not in said
    widths = [width for width, _ in bars(page)]
    assert widths[0] / widths[1] == pytest.approx(20 / 50, abs=0.01)
    assert widths[3] / widths[2] == pytest.approx(3 / 12, abs=0.01)


def test_a_build_without_drops_has_a_plot_too() -> None:
    assert "source: clips" in texts(counts_plot(COUNTS[:2]))


def test_accuracies_stand_side_by_side_by_type_and_over_all() -> None:
    new = QuestionScore(by_type={"Basic": figure(8, 10), "Future": figure(3, 10)}, micro=figure(11, 20))
    old = QuestionScore(by_type={"Basic": figure(2, 10), "Future": figure(3, 10)}, micro=figure(5, 20))
    page = accuracy_plot({"new": new, "untrained": old})
    assert {"new", "untrained", "Basic", "Future", "all", "n 20"} <= set(texts(page))
    heights = [height for _, height in bars(page)]
    shares = [0.8, 0.3, 11 / 20, 0.2, 0.3, 5 / 20]
    assert [height / heights[0] for height in heights] == pytest.approx([share / 0.8 for share in shares], abs=0.02)


def test_a_loss_curve_leaves_out_steps_without_a_loss() -> None:
    page = loss_plot([row(1, 2.0), row(2, None), row(3, 1.0)], "loss & more")
    assert {"loss & more", "step", "loss"} <= set(texts(page))
    assert loss_plot([row(1, None)], "loss") == "No step had a finite loss."


def test_the_same_figures_give_the_same_bytes_and_a_page_shows_the_picture() -> None:
    assert counts_plot(COUNTS) == counts_plot(COUNTS)
    assert '<img src="data:image/svg+xml;base64,' in html_page("a", counts_plot(COUNTS))
