"""A folder holds one run: what is asked again after a stop, what is refused there, and what is never written over."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.bench_plan import plan_bench
from flows.bench_record import BenchError, GivenAnswers, Questions
from flows.bench_work import alone
from flows.train_record import TrainingError
from model.request import Request


def test_a_torn_line_is_asked_again_and_nothing_else(bench: Any, seen: list[list[Request]]) -> None:
    rows = [bench.question(number) for number in range(6)]
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


def test_weights_of_the_same_size_are_another_model(bench: Any, seen: list[list[Request]], tmp_path: Path) -> None:
    model = tmp_path / "trained"
    shutil.copytree(bench.model, model)
    asked = bench.asked([bench.question(0)], how={"model": str(model)})
    bench.run(asked)
    weights = model / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[-1] ^= 1
    weights.write_bytes(whole)
    with pytest.raises(BenchError, match=r'run: answered_by was "trained@\w{12}" and is "trained@\w{12}"'):
        bench.run(asked)


def test_weights_that_were_cut_off_are_told_in_one_line_and_may_be_mended(
    bench: Any, seen: list[list[Request]], tmp_path: Path
) -> None:
    model = tmp_path / "torn"
    shutil.copytree(bench.model, model)
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    asked = bench.asked([bench.question(0)], how={"model": str(model)})
    with pytest.raises(TrainingError, match=r"torn holds weights that cannot be read: .*; copy them anew"):
        bench.run(asked)
    weights.write_bytes(whole)
    assert bench.run(asked).asked == 1


def test_a_second_run_at_work_in_the_same_folder_is_refused(bench: Any, seen: list[list[Request]]) -> None:
    asked = bench.asked([bench.question(0)])
    with (
        alone(asked, plan_bench(asked)),
        pytest.raises(BenchError, match=r"another bench run is at work in .*out; wait"),
    ):
        bench.run(asked)
    assert bench.run(asked).asked == 1


def test_what_no_bench_run_left_is_not_written_over(bench: Any, tmp_path: Path) -> None:
    rows, official = [bench.question(0)], tmp_path / "out" / "predictions_0.json"
    official.parent.mkdir()
    official.write_text('{"id": 0, "pred": "(B)", "theirs": 1}\n')
    given = GivenAnswers(predictions=str(official))
    with pytest.raises(BenchError, match=r"predictions_0\.json is of no bench run and would be lost"):
        bench.run(bench.asked(rows, answers=given))
    assert "theirs" in official.read_text()
    assert sorted(path.name for path in official.parent.iterdir()) == [".lock", "predictions_0.json"]
    assert bench.run(bench.asked(rows, "beside", answers=given)).num_predicted == 1


def test_a_folder_in_which_nothing_was_answered_takes_another_run(bench: Any, seen: list[list[Request]]) -> None:
    rows = [bench.question(0, video="gone.mp4")]
    with pytest.raises(BenchError, match="none of the 1 items"):
        bench.run(bench.asked(rows))
    assert bench.run(bench.asked([bench.question(0)], mode="multi")).asked == 1
    assert '"mode": "multi"' in (bench.folder / "out" / "bench.json").read_text()


def test_a_full_disk_ends_a_run_in_one_line_and_the_same_command_goes_on(bench: Any, seen: list[list[Request]]) -> None:
    asked = bench.asked([bench.question(number) for number in range(60)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # of a file, which is what a test may fill
    try:
        with pytest.raises(BenchError, match=r"cannot write in .*out: .*File too large; make room"):
            bench.run(asked)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    num_asked = sum(map(len, seen))
    assert 4 <= num_asked < 60
    result = bench.run(asked)
    assert (result.num_predicted, result.missing) == (60, ())
    assert sum(map(len, seen)) - 60 <= 4  # a batch that was not on the disk whole is asked again


def test_another_run_in_the_same_folder_is_refused_and_what_differs_is_told(
    bench: Any, seen: list[list[Request]]
) -> None:
    bench.run(bench.asked([bench.question(0)]))
    with pytest.raises(BenchError, match=r'holds another run: mode was "single" and is "multi"\. Choose another --out'):
        bench.run(bench.asked([bench.question(0)], mode="multi"))
    with pytest.raises(BenchError, match=r"items_sha256 was .* num_items was 1 and is 2"):
        bench.run(bench.asked([bench.question(0), bench.question(1)]))
    with pytest.raises(BenchError, match=r'max_new_tokens was 3 and is 0; scored_by was "letters" and is "likelihood"'):
        bench.run(bench.asked([bench.question(0)], scoring=Questions(scorer="likelihood")))
    assert bench.run(bench.asked([bench.question(0)], how={"batch_size": 1})).asked == 0


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


def test_a_killed_run_goes_on_without_asking_for_an_answer_it_has(bench: Any) -> None:
    rows = [bench.question(number) for number in range(12)]
    asked = bench.asked(rows, how={"batch_size": 2})
    (bench.folder / "asked.json").write_text(asked.model_dump_json())
    told, log = bench.folder / "told.txt", bench.folder / "out" / "answers.jsonl"
    command = [sys.executable, "-c", SLOW, str(bench.folder / "asked.json"), str(told)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
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
    assert set(kept) <= set(before)
    assert len(before) - len(kept) <= 2  # what was under way is asked again
    names = [json.loads(line)["item_id"] for line in log.read_text().splitlines()]
    assert sorted(names, key=int) == [str(number) for number in range(12)]
    assert names[: len(kept)] == kept
