"""Bench runs of a tiny model: what reaches it, what is kept, what is missing, and what comes of a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

import flows.bench_model
from benchmark.heuristic import HeuristicScore
from benchmark.question_score import QuestionScore
from flows.bench_plan import plan_bench
from flows.bench_record import (
    BenchAsked,
    BenchError,
    BenchResult,
    GivenAnswers,
    Heuristic,
    Judged,
    ModelAnswers,
    Questions,
)
from flows.bench_score import judge_remarks
from flows.bench_work import alone, predict, score
from model.request import Request

HEIGHT_PX, WIDTH_PX = 64, 96


def square(left_px: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((HEIGHT_PX, WIDTH_PX), np.bool_)
    mask[10:20, left_px : left_px + 10] = True
    return mask


def rle(left_px: int) -> dict[str, Any]:
    made = coco.encode(np.asfortranarray(square(left_px), np.uint8))
    return {"size": [HEIGHT_PX, WIDTH_PX], "counts": made["counts"].decode()}


def masks(*frames: int, absent: tuple[int, ...] = ()) -> dict[str, Any]:
    """An object as the official files have it; its mask begins at as many pixels as its frame's number."""
    return {str(n): {"segmentation": None if n in absent else rle(n)} for n in sorted({*frames, *absent})}


def question(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "id": number, "video": "a.mp4", "Question": f"What is <object0><region> number {number}?",
        "type": "Basic Questions" if number % 2 else "Future Predictions",
        "options": ["(A) A hat", "(B) A long coat", "(C) Shoes", "(D) A watch"], "Answer": "(B) A long coat",
        "frame_idx": "20", "annotation": [masks(3, 20, 30)],
    }  # fmt: skip
    return {key: value for key, value in (row | changes).items() if value is not ...}


def description(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "id": number, "video": "a.mp4", "caption": "A red dog runs to the left.", "frame_idx": "20",
        "annotation": [masks(3, 20, 30)],
    }  # fmt: skip
    return row | changes


class Bench:
    """Runs in folders of a test's own."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model

    def asked(self, rows: list[dict[str, Any]], out: str = "out", **changes: Any) -> BenchAsked:
        items = self.folder / "items.json"
        items.write_text(json.dumps(rows))
        how = {"model": str(self.model), "videos": str(self.folder), "batch_size": 4, "max_new_tokens": 3}
        answers = ModelAnswers(**(how | changes.pop("how", {})))
        whole = {
            "items": str(items), "out": str(self.folder / out), "mode": "single", "answers": answers,
            "scoring": Questions(scorer="letters"),
        }  # fmt: skip
        return BenchAsked(**(whole | changes))

    def run(self, asked: BenchAsked) -> BenchResult:
        planned = plan_bench(asked)
        with alone(asked, planned) as out:
            return score(asked, planned, predict(asked, planned, out, ()), out, ())


@pytest.fixture
def bench(tiny: Any, make_video: Callable[..., Path], tmp_path: Path) -> Bench:
    """40 frames of 96 x 64 pixels in `a.mp4`, each with its number in it."""
    make_video("a.mp4", options={"g": "10"})
    return Bench(tmp_path, tiny.model)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[Request]]:
    """The batches of requests that reach the model, which then says "(B)"."""
    batches: list[list[Request]] = []

    def answer(network: Any, processor: Any, requests: Any, max_new_tokens: int) -> list[str]:
        batches.append(list(requests))
        return ["(B)"] * len(requests)

    monkeypatch.setattr(flows.bench_model, "answer", answer)
    return batches


def masked_frames(request: Request) -> list[list[int]]:
    assert request.scene is not None
    numbers = [round(25 * time_s) for time_s in request.scene.times_s]
    return [[numbers[place] for place in one.frames] for one in request.objects]


def test_single_mode_shows_the_mask_of_the_items_frame_and_multi_mode_all(
    bench: Bench, seen: list[list[Request]]
) -> None:
    two = question(1, Question="Is <object0><region> left of <object1><region>?")
    two["annotation"] = [masks(3, 30, absent=(20,)), masks(3, 20, 30)]
    rows = [question(0), two]
    single = bench.run(bench.asked(rows))
    multi = bench.run(bench.asked(rows, "multi", mode="multi"))
    one, other = seen
    assert [masked_frames(request) for request in one] == [[[20]], [[30], [20]]]
    assert [masked_frames(request) for request in other] == [[[3, 20, 30]], [[3, 30], [3, 20, 30]]]
    assert (one[0].objects[0].masks[0] == square(20)).all()
    assert (single.num_off_frame, multi.num_off_frame) == (1, 0)
    assert "1 objects without a mask in the item's frame" in Path(single.report).read_text()
    assert one[0].messages[0].content == (
        "<video>\nWhat is <object0><region> number 0? (A) A hat (B) A long coat (C) Shoes (D) A watch. "
        "Answer with the option's letter from the given choices directly."
    )


def test_every_form_of_masks_and_videos_is_shown(bench: Bench, seen: list[list[Request]]) -> None:
    (bench.folder / "frames").mkdir()
    for number in range(12):
        cv2.imwrite(
            str(bench.folder / "frames" / f"{number}.png"), np.full((HEIGHT_PX, WIDTH_PX, 3), 9 * number, np.uint8)
        )
    runs = coco.encode(np.asfortranarray(square(20), np.uint8))
    counts = np.diff(np.flatnonzero(np.diff(square(20).T.ravel().astype(int), prepend=0, append=0)), prepend=0).tolist()
    plain = {"size": [HEIGHT_PX, WIDTH_PX], "counts": [*counts, HEIGHT_PX * WIDTH_PX - sum(counts)]}
    polygon = [[20, 10, 29, 10, 29, 19, 20, 19]]
    forms = ({"size": list(runs["size"]), "counts": runs["counts"].decode()}, plain, polygon)
    rows = [question(n, annotation=[{"20": {"segmentation": form}}]) for n, form in enumerate(forms)]
    rows.append(question(3, video="frames", frame_idx=2, annotation=[masks(2)]))
    result = bench.run(bench.asked(rows))
    assert result.missing == ()
    shown = [one.objects[0].masks[0] for one in seen[0]]
    assert all(mask is not None and (mask == square(20)).mean() > 0.99 for mask in shown[:3])
    scene = seen[0][3].scene
    assert scene is not None
    # the file sorted third as text is 10.png, as the official loader counts a folder
    assert [frame[0, 0, 0] // 9 for frame in scene.frames[list(seen[0][3].objects[0].frames)]] == [10]


def test_items_of_ours_show_only_their_span_before_it_ends(bench: Bench, seen: list[list[Request]]) -> None:
    from infra.video import video_sha256

    origin = {
        "start_s": 0.4, "end_s": 1.6, "visible_until_s": 0.8, "made_by": "machine", "checked": False, "fps": 25.0,
        "video_sha256": video_sha256(bench.folder / "a.mp4"),
    }  # fmt: skip
    rows = [
        question(0, frame_idx="15", annotation=[masks(15)], **origin),
        question(1, frame_idx="30", annotation=[masks(30)], **origin),
        question(2, frame_idx="15", annotation=[masks(15)], **origin | {"video_sha256": "0" * 64}),
    ]
    result = bench.run(bench.asked(rows))
    (request,) = seen[0]
    assert request.scene is not None
    assert all(0.4 <= time_s < 0.8 for time_s in request.scene.times_s)
    assert (request.scene.start_s, request.scene.end_s) == (0.4, 0.8)
    assert {item.item_id: item.reason for item in result.missing} == {"1": "frame_outside", "2": "changed_video"}
    assert (result.run.num_machine_made, result.run.num_checked) == (3, 0)
    assert "3 machine-made, 0 of these checked by hand" in Path(result.report).read_text()


def test_bad_items_are_named_counted_and_wrong_and_tried_again(bench: Bench, make_video: Callable[..., Path]) -> None:
    rows = [
        question(0),
        question(1, video="late.mp4"),
        question(2, annotation=[{"20": {"segmentation": {"size": [9, 9], "counts": "x"}}}]),
        question(3, Question="<region> or <region>?"),
        question(4, annotation=[]),
        question(5, video="../a.mp4"),
        question(6),
    ]
    result = bench.run(bench.asked(rows))
    reasons = {item.item_id: item.reason for item in result.missing}
    assert reasons == {"1": "missing_file", "2": "bad_mask", "3": "regions", "4": "bad_row", "5": "outside_root"}
    assert isinstance(result.score, QuestionScore)
    assert (result.score.micro.n, result.score.micro.num_missing, result.asked) == (7, 5, 2)
    assert "item 1: missing_file" in Path(result.report).read_text()
    make_video("late.mp4")
    again = bench.run(bench.asked(rows))
    assert ([item.item_id for item in again.missing], again.asked) == (["2", "3", "4", "5"], 1)


def test_where_no_item_can_be_shown_the_folder_of_videos_is_doubted(bench: Bench) -> None:
    rows = [question(number, video="gone.mp4") for number in range(2)]
    with pytest.raises(BenchError, match=r"none of the 2 items .*gone\.mp4 cannot be found.*Is --videos the folder"):
        bench.run(bench.asked(rows))


def test_a_torn_line_is_asked_again_and_nothing_else(bench: Bench, seen: list[list[Request]]) -> None:
    rows = [question(number) for number in range(6)]
    first = bench.run(bench.asked(rows))
    assert [len(batch) for batch in seen] == [4, 2]
    log = bench.folder / "out" / "answers.jsonl"
    log.write_bytes(log.read_bytes()[:-9])
    seen.clear()
    again = bench.run(bench.asked(rows))
    assert [[request.messages[0].content[:40] for request in batch] for batch in seen] == [
        ["<video>\nWhat is <object0><region> number 5"[:40]]
    ]
    assert again.score == first.score
    assert len(log.read_text().splitlines()) == 6
    seen.clear()
    assert bench.run(bench.asked(rows)).asked == 0
    assert seen == []


def test_another_run_in_the_same_folder_is_refused_and_what_differs_is_told(
    bench: Bench, seen: list[list[Request]]
) -> None:
    bench.run(bench.asked([question(0)]))
    with pytest.raises(BenchError, match=r'holds another run: mode was "single" and is "multi"\. Choose another --out'):
        bench.run(bench.asked([question(0)], mode="multi"))
    with pytest.raises(BenchError, match=r"items_sha256 was .* num_items was 1 and is 2"):
        bench.run(bench.asked([question(0), question(1)]))
    with pytest.raises(BenchError, match=r'max_new_tokens was 3 and is 0; scored_by was "letters" and is "likelihood"'):
        bench.run(bench.asked([question(0)], scoring=Questions(scorer="likelihood")))
    assert bench.run(bench.asked([question(0)], how={"batch_size": 1})).asked == 0


def test_the_likeliest_option_is_that_of_a_pass_over_each_whole_answer(bench: Bench, tiny: Any) -> None:
    import torch

    from flows.bench_requests import Asker
    from flows.train_base import load_base
    from flows.train_profile import FolderBase
    from model.data.scene import scene_config
    from model.request import Message

    rows = [question(number) for number in range(5)]
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
                losses[option] = float(network.eval()(**processor.collate([whole], "left")).loss)
        wanted.append(min(losses, key=losses.__getitem__))
    got = [json.loads(line)["pred"] for line in Path(result.predictions).read_text().splitlines()]
    assert got == wanted
    assert "scored by likelihood" in Path(result.report).read_text()


def test_a_models_predictions_score_alike_when_given_as_a_file(bench: Bench) -> None:
    rows = [question(number) for number in range(5)]
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
def test_without_a_judge_descriptions_get_the_heuristic_under_its_name(bench: Bench) -> None:
    rows = [description(number) for number in range(3)]
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


def test_a_judge_marks_what_the_model_says_and_is_asked_once(bench: Bench, chat_server: Any) -> None:
    names = ("subject_correspondence", "appearance_description", "temporal_description", "hallucination_detection")
    marks = json.dumps(dict(zip(names, (4, 3, 2, 1), strict=True)))
    chat_server.script = lambda _: chat_server.said(marks)
    judged = Judged(
        base_url=chat_server.url, model="SmolLM2-135M-Instruct", prompt_file="", replies="scores", max_tokens=99,
        concurrency=2,
    )  # fmt: skip
    rows = [description(0), description(1, video="gone.mp4"), description(2)]
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
    assert "These scores mean nothing" in page
    assert "not comparable" in page


def test_a_small_judge_is_told_by_its_name() -> None:
    for name in ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen2.5-1.5B-Instruct", "llama3.2:3b"):
        assert judge_remarks(name), name
    for name in ("gpt-4o-2024-08-06", "Qwen2.5-72B-Instruct", "Qwen/Qwen3-8B"):
        assert judge_remarks(name) == (), name


SLOW = """
import json, sys, time
from pathlib import Path
import flows.bench_model
from flows.bench_plan import plan_bench
from flows.bench_record import BenchAsked
from flows.bench_work import alone, predict, score

asked = BenchAsked.model_validate_json(Path(sys.argv[1]).read_text())
answer = flows.bench_model.answer

def told(network, processor, requests, max_new_tokens):
    questions = [request.messages[0].content for request in requests]
    with open(sys.argv[2], "a") as file:
        file.write("".join(question.split("number ")[1].split("?")[0] + "\\n" for question in questions))
    time.sleep(0.2)
    return answer(network, processor, requests, max_new_tokens)

flows.bench_model.answer = told
planned = plan_bench(asked)
with alone(asked, planned) as out:
    score(asked, planned, predict(asked, planned, out, ()), out, ())
"""


def test_a_killed_run_goes_on_without_asking_for_an_answer_it_has(bench: Bench) -> None:
    rows = [question(number) for number in range(12)]
    asked = bench.asked(rows, how={"batch_size": 2})
    (bench.folder / "asked.json").write_text(asked.model_dump_json())
    told, log = bench.folder / "told.txt", bench.folder / "out" / "answers.jsonl"
    command = [sys.executable, "-c", SLOW, str(bench.folder / "asked.json"), str(told)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=env)
    for _ in range(3000):
        if log.exists() and log.read_bytes().count(b"\n") >= 4:
            break
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [json.loads(line)["item_id"] for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    before = told.read_text().split()
    assert 4 <= len(kept) < 12
    told.unlink()
    result = bench.run(asked)
    assert result.asked == 12 - len(kept)
    assert (result.num_predicted, result.missing) == (12, ())
    assert set(before) - set(kept) <= {str(number) for number in range(12)}
    names = [json.loads(line)["item_id"] for line in log.read_text().splitlines()]
    assert sorted(names, key=int) == [str(number) for number in range(12)]
    assert names[: len(kept)] == kept
