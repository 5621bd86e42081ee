"""How answers are scored: by letter, likelihood, a judge or the heuristic; and what the report says of a judge."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.heuristic import HeuristicScore
from benchmark.judging import JudgeRun
from benchmark.question_score import QuestionScore
from flows.bench_plan import chat_settings, plan_bench
from flows.bench_record import GivenAnswers, Heuristic, Judged, Questions
from flows.bench_report import judge_remark
from flows.bench_requests import Asker
from flows.train_base import load_base
from flows.train_profile import FolderBase
from model.data.scene import scene_config
from model.request import Message


def test_the_likeliest_option_is_that_of_a_pass_over_each_whole_answer(bench: Any, tiny: Any) -> None:
    rows = [bench.question(number) for number in range(5)]
    asked = bench.asked(rows, scoring=Questions(scorer="likelihood"))
    result = bench.run(asked)
    network, processor = load_base(FolderBase(kind="model", path=str(tiny.model)), seed=0)
    asker = Asker(bench.folder, "single", "likelihood", scene_config(processor, single_frame_share=0.0))
    wanted = []
    for item, row in zip(plan_bench(asked).items, rows, strict=True):
        request = asker.request(item, row).request
        assert request.messages[0].content == f"<video>\n{row['Question']}"
        losses = {}
        for option in row["options"]:
            messages = (*request.messages, Message("assistant", option[4:]))
            with torch.no_grad():
                whole = processor.encode(request._replace(messages=messages), True)
                losses[option] = float(network.eval()(**processor.collate([whole], "left")).loss_sum)
        wanted.append(min(losses, key=losses.__getitem__))
    got = [json.loads(line)["pred"] for line in Path(result.predictions).read_text().splitlines()]
    assert got == wanted
    assert "scored by likelihood" in Path(result.report).read_text()


def test_a_models_predictions_score_alike_when_given_as_a_file(bench: Any) -> None:
    rows = [bench.question(number) for number in range(5)]
    result = bench.run(bench.asked(rows))
    assert not result.missing
    given = GivenAnswers(predictions=result.predictions)
    again = bench.run(bench.asked(rows, "again", answers=given, mode="unstated"))
    assert (again.score, again.asked) == (result.score, 0)
    assert again.run.answered_by.startswith("predictions_0.json@")
    few = bench.folder / "few.jsonl"
    few.write_text("".join(Path(result.predictions).read_text().splitlines(keepends=True)[:3]))
    some = bench.run(bench.asked(rows, "some", answers=GivenAnswers(predictions=str(few)), mode="multi"))
    assert [item.item_id for item in some.missing] == ["3", "4"]
    assert isinstance(some.score, QuestionScore)
    assert some.score.micro.num_missing == 2


@pytest.mark.weights
def test_without_a_judge_descriptions_get_the_heuristic_under_its_name(bench: Any) -> None:
    rows = [bench.description(number) for number in range(3)]
    given = bench.folder / "given.jsonl"
    said = ("A red dog runs to the left.", "A blue puppy.", "")
    given.write_text("".join(json.dumps({"id": n, "pred": text}) + "\n" for n, text in enumerate(said)))
    result = bench.run(bench.asked(rows, answers=GivenAnswers(predictions=str(given)), scoring=Heuristic()))
    assert isinstance(result.score, HeuristicScore)
    assert [item.fact_recall for item in result.score.items] == [1.0, pytest.approx(1 / 3), 0.0]
    assert result.score.missing == 1
    page = Path(result.report).read_text()
    assert "## Heuristic (no judge)" in page
    assert not any(f"| {name} |" in page for name in ("SC", "AD", "TD", "HD"))


def test_a_judge_marks_what_the_model_says_and_is_asked_once(bench: Any, chat_server: Any) -> None:
    names = ("subject_correspondence", "appearance_description", "temporal_description", "hallucination_detection")
    marks = json.dumps(dict(zip(names, (4, 3, 2, 1), strict=True)))
    chat_server.script = lambda _: chat_server.said(marks)
    judged = Judged(
        base_url=chat_server.url, model="SmolLM2-135M-Instruct", prompt_file="", replies="scores", max_tokens=99,
        concurrency=2,
    )  # fmt: skip
    rows = [bench.description(0), bench.description(1, video="gone.mp4"), bench.description(2)]
    asked = bench.asked(rows, scoring=judged)
    first = bench.run(asked)
    num_asked = len(chat_server.answered)
    again = bench.run(asked)
    assert 1 <= num_asked <= 2  # equal descriptions are one question
    assert len(chat_server.answered) == num_asked
    assert first.score == again.score
    told = json.loads((bench.folder / "out" / "scores.json").read_text())["score"]
    assert told["dimensions"]["SC"] | {"spread": None} == {
        "mean": 4.0, "spread": None, "n_scored": 2, "n_items": 3, "unscored": {"no_prediction": 1},
        "mean_unscored_as_0": pytest.approx(8 / 3),
    }  # fmt: skip
    page = Path(first.report).read_text()
    assert "The scores of judge SmolLM2-135M-Instruct mean nothing" in page
    assert "not comparable" in page
    assert chat_settings(judged.model_copy(update={"timeout_s": 600.0})).timeout_s == 600


def judge(asked: str, *answered: str) -> JudgeRun:
    return JudgeRun(
        model_asked=asked, models_answered=answered, server_versions=(), system_fingerprints=(), rubric="own words",
        prompt_hash="0" * 64, temperature=0, max_tokens=9, reply_format="json", explained=True, max_reasks=2,
    )  # fmt: skip


def test_of_a_judge_the_report_says_that_it_is_small_or_that_nobody_knows() -> None:
    for small in ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen2.5-1.5B-Instruct", "llama3.2:3b"):
        assert "mean nothing.**" in judge_remark(judge(small))
    assert "it has 135M parameters" in judge_remark(judge("judge", "SmolLM2-135M-Instruct"))
    assert "it has 360M parameters" in judge_remark(judge("Qwen2.5-72B-Instruct", "smollm2_360m"))
    for unknown in (judge("judge"), judge("bge-m3"), judge("gpt-4o", "served-judge")):
        assert "is not known here" in judge_remark(unknown)
    for large in ("gpt-4o-2024-08-06", "Qwen2.5-72B-Instruct", "Qwen/Qwen3-8B", "mixtral-8x7b", "Qwen3-30B-A3B"):
        assert judge_remark(judge(large)) == "", large
