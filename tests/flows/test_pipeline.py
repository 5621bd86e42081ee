"""The pipeline: frozen items, the gate's folder, and whole runs on painted clips with a tiny network."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmark.gate import GateRule
from flows.bench_plan import plan_bench
from flows.bench_record import BenchAsked, BenchResult, GivenAnswers, Questions
from flows.bench_work import alone, predict, score
from flows.pipeline_record import Latest, PipelineError, read_latest, write_latest
from flows.pipeline_report import html_page
from flows.pipeline_work import NoItemsError, frozen_items, judge_model, require_same_items

OPTIONS = ["(A) A hat", "(B) A coat", "(C) Shoes", "(D) A watch"]
NUM = 60


class Place:
    """The folder of a pipeline with sixty items and models that answer from files."""

    def __init__(self, out: Path) -> None:
        self.out, self.items = out, out / "items" / "bench-q.json"
        self.items.parent.mkdir(parents=True)
        self.write_items("What is <region>?")

    def write_items(self, question: str) -> None:
        row: Mapping[str, Any] = {
            "video": "a.mp4", "Question": question, "type": "Basic Questions", "options": OPTIONS,
            "Answer": OPTIONS[1], "frame_idx": "0", "annotation": [],
        }  # fmt: skip
        self.items.write_text(json.dumps([{"id": n} | row for n in range(NUM)]))

    def answers(self, name: str, right: Sequence[int]) -> BenchResult:
        model = self.out / "models" / name
        model.mkdir(parents=True, exist_ok=True)
        said = model / "said.jsonl"
        lines = [json.dumps({"id": n, "pred": "(B)" if n in right else "(A)"}) for n in range(NUM)]
        said.write_text("\n".join(lines) + "\n")
        asked = BenchAsked(
            items=str(self.items), out=str(model / "bench"), mode="multi",
            answers=GivenAnswers(predictions=str(said)), scoring=Questions(scorer="letters"),
        )  # fmt: skip
        planned = plan_bench(asked)
        with alone(asked, planned) as out:
            return score(asked, planned, predict(asked, planned, out, ()), out, ())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "out")


def test_only_a_better_model_takes_the_place_and_every_decision_is_kept(place: Place) -> None:
    assert read_latest(place.out) is None
    poor, good = place.answers("poor", range(10)), place.answers("good", range(40))
    untrained = place.answers("untrained", range(20))

    lost = judge_model(place.out, place.items, ("poor", poor), ("untrained", untrained), GateRule())
    assert (lost.outcome, read_latest(place.out)) == ("rejected", None)
    won = judge_model(place.out, place.items, ("good", good), ("untrained", untrained), GateRule())
    assert won.outcome == "accepted"
    latest = read_latest(place.out)
    assert latest is not None
    assert latest.model == "good"
    again = judge_model(place.out, place.items, ("poor", poor), ("latest", good), GateRule())
    assert (again.outcome, read_latest(place.out)) == ("rejected", latest)
    few = judge_model(place.out, place.items, ("good", good), ("untrained", poor), GateRule(min_items=61))
    assert (few.outcome, read_latest(place.out)) == ("undecided", latest)

    kept = json.loads((place.out / "models" / "poor" / "gate.json").read_text())
    assert kept["outcome"] == "rejected"
    assert kept["decisions"][0]["rival"] == "latest"
    assert "10 of 60 right, latest 40" in kept["reason"]


def test_changed_items_are_refused(place: Place) -> None:
    one, other = place.answers("one", range(40)), place.answers("other", range(10))
    judge_model(place.out, place.items, ("one", one), ("untrained", other), GateRule())
    latest = read_latest(place.out)
    require_same_items(place.items, latest)
    place.write_items("Which thing is <region>?")
    with pytest.raises(PipelineError, match=r"was changed: its SHA-256 is .*, and one was accepted on"):
        require_same_items(place.items, latest)
    with pytest.raises(PipelineError, match="did not answer"):
        judge_model(place.out, place.items, ("one", one), ("untrained", other), GateRule())


def test_a_latest_that_names_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latest.json").write_text('{"model": 3}')
    with pytest.raises(PipelineError, match="names no model"):
        read_latest(tmp_path)
    write_latest(tmp_path, Latest(model="gone", items_sha256="0"))
    with pytest.raises(PipelineError, match="names model gone, which is not in"):
        read_latest(tmp_path)


def test_a_build_without_held_out_questions_gives_no_items(lake_by_hand: Any, tmp_path: Path) -> None:
    build_id = lake_by_hand.publish().build_id
    with pytest.raises(NoItemsError, match=build_id):
        frozen_items(tmp_path / "out", lake_by_hand.lake.root, build_id)
    assert not (tmp_path / "out").exists()


def test_a_page_shows_tables_and_plots_and_no_html_from_outside() -> None:
    plot = "data:image/svg+xml;base64,PHN2Zy8+"
    page = html_page(
        "a <b>", f"# T\n\n| a | b |\n|---|---|\n| 1 | <script>x</script> |\n\n![p]({plot})\n\n[x](javascript:y)"
    )
    assert "<title>a &lt;b&gt;</title>" in page
    assert "<td>&lt;script&gt;x&lt;/script&gt;</td>" in page
    assert f'<img src="{plot}"' in page
    assert 'javascript:y"' not in page
