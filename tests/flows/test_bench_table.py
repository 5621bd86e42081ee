"""Bench runs side by side in one table, and what a blind run asks."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmark.items import QuestionItem
from benchmark.published import Mode
from flows.bench_plan import plan_bench
from flows.bench_record import BenchAsked, GivenAnswers, Heuristic, Questions
from flows.bench_requests import Asker
from flows.bench_work import alone, predict, score
from flows.cli import app
from flows.cli_common import BAD_USAGE
from model.data.scene import SceneConfig

TYPES = ("Basic Questions", "Future Predictions")
OPTIONS = ["(A) A hat", "(B) A coat", "(C) Shoes", "(D) A watch"]

Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run in a folder of its own over a file of predictions: the folder."""

    def one(name: str, preds: Sequence[str], mode: Mode = "single", **changes: Any) -> Path:
        rows = [
            {
                "id": n, "video": "a.mp4", "Question": "What is <object0><region>?", "type": TYPES[n % 2],
                "options": OPTIONS, "Answer": OPTIONS[1], "frame_idx": "0", "annotation": [], "made_by": "machine",
                "caption": "A red dog.",
            } | changes.get("row", {})
            for n in range(len(preds))
        ]  # fmt: skip
        items, predictions = tmp_path / f"{name}-items.json", tmp_path / f"{name}.jsonl"
        items.write_text(json.dumps(rows))
        predictions.write_text("".join(json.dumps({"id": n, "pred": pred}) + "\n" for n, pred in enumerate(preds)))
        asked = BenchAsked(
            items=str(items), out=str(tmp_path / name), mode=mode,
            answers=GivenAnswers(predictions=str(predictions)),
            scoring=changes.get("scoring", Questions(scorer="letters")),
        )  # fmt: skip
        planned = plan_bench(asked)
        with alone(asked, planned) as out:
            score(asked, planned, predict(asked, planned, out, ()), out, ())
        return tmp_path / name

    return one


def table(*args: object) -> Any:
    return CliRunner().invoke(app, ["bench", "table", *map(str, args)])


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_runs_of_the_same_items_stand_in_one_table_best_first_with_errors_by_type(run: Run) -> None:
    blind = run("blind", ["(A)", "(B)", "(A)", "(B)"], mode="blind")
    seeing = run("seeing", ["(B)", "(B)", "(B)", "?"])
    lines = table(blind, seeing).stdout.splitlines()
    assert lines[0] == "# Bench-Q: 2 runs"
    assert "4 machine-made, 0 of these checked by hand" in lines[2]
    start = next(place for place, line in enumerate(lines) if line.startswith("| Model"))
    assert cells(lines[start])[:4] == ["Model", "Basic (n 2)", "Future (n 2)", "All (n 4)"]
    first, second = cells(lines[start + 2]), cells(lines[start + 3])
    assert first[0].startswith("seeing: ")
    assert first[0].endswith(", single")
    assert second[0].startswith("blind: ")
    assert second[0].endswith(", blind")
    assert first[1:4] == ["100.0 ± 0.0", "50.0 ± 35.4", "75.0 ± 21.7"]
    assert second[1:4] == ["0.0 ± 0.0", "100.0 ± 0.0", "50.0 ± 25.0"]
    told = json.loads(table(seeing, blind, "--json").stdout)
    assert [name.partition(":")[0] for name in told] == ["seeing", "blind"]


def test_runs_that_share_no_table_are_refused_with_the_reason(run: Run, tmp_path: Path) -> None:
    one = run("one", ["(A)"])
    other_items = run("two", ["(A)"], row={"Question": "Is <region> red?"})
    other_way = run("three", ["(A)"], scoring=Heuristic())
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "scores.json").write_text("{}")
    for other, said in (
        (other_items, "items (SHA-256)"),
        (other_way, "way of scoring"),
        (tmp_path / "nothing", "holds no scores.json"),
        (broken, "is no result of a bench run"),
        (one, "named twice"),
    ):
        result = table(one, other)
        assert (result.exit_code, result.stdout) == (BAD_USAGE, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert said in line


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("What is <object3><region> not wearing?", "What is <object3> not wearing?"),
        ("<video>\nWhich way does <region> go?", "Which way does the object go?"),
        ("Is <object0> <region> left of <object1><region>?", "Is <object0> left of <object1>?"),
        (
            "There are 2 objects: <region>, <region>.\nDo they touch?",
            "There are 2 objects: object 1, object 2.\nDo they",
        ),
    ],
)
def test_a_blind_run_asks_the_words_alone_and_opens_no_video(question: str, said: str, tmp_path: Path) -> None:
    item = QuestionItem(
        item_id="0", video="absent.mp4", question=question, qtype=TYPES[0], options=tuple(OPTIONS), answer="A", row=0
    )
    config = SceneConfig(num_frames=4, single_frame_share=0.0, side_px=64)
    shown = Asker(tmp_path, "blind", "letters", config).request(item, {})
    assert shown.request.scene is None
    assert shown.request.objects == ()
    (message,) = shown.request.messages
    assert message.content.startswith(said)
    assert "(A) A hat (B) A coat (C) Shoes (D) A watch. Answer with" in message.content
