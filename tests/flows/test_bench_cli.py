"""`videorefer bench`: a whole run, what is refused in one line, new items of a build, and two files compared."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.bench_plan import plan_bench
from flows.bench_progress import BenchProgress, BenchTerminal, StageCount
from flows.bench_record import BenchAsked, GivenAnswers, Heuristic
from flows.cli import app
from flows.cli_common import BAD_USAGE, FAILED
from infra.builds import BuildWriter, Manifest
from infra.lake import Lake
from schemas.sample import SCHEMA_VERSION

ROOT = Path(__file__).parents[2]
MASK = [[20, 10, 29, 10, 29, 19, 20, 19]]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def questions(num: int = 3, video: str = "a.mp4") -> list[dict[str, Any]]:
    return [
        {
            "id": n, "video": video, "Question": "What is <region>?", "type": "Basic Questions",
            "options": ["(A) A hat", "(B) A coat"], "Answer": "(B) A coat", "frame_idx": "2",
            "annotation": [{"2": {"segmentation": MASK}}],
        }
        for n in range(num)
    ]  # fmt: skip


def descriptions(num: int = 2) -> list[dict[str, Any]]:
    marked = {"frame_idx": "2", "annotation": [{"2": {"segmentation": MASK}}]}
    return [{"id": n, "video": "a.mp4", "caption": "A red dog."} | marked for n in range(num)]


def written(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows))
    return path


def said(path: Path, preds: list[str | None]) -> Path:
    path.write_text("".join(json.dumps({"id": n, "pred": pred}) + "\n" for n, pred in enumerate(preds)))
    return path


def invoke(*args: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, args)])


def one_error(code: int, *args: object) -> str:
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return str(line)


def in_process(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as users run it, on the server of the fixture."""
    line = (sys.executable, "-c", "from flows.names import main; main()", "bench", *map(str, args))
    whole = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | env
    return subprocess.run(line, capture_output=True, text=True, check=False, env=whole)


@pytest.fixture
def on_server(server: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Where the fixture's server is: commands in this process know it, others are told."""
    from prefect.settings import PREFECT_API_URL

    monkeypatch.setattr(logging, "raiseExceptions", True)  # put back, which a command leaves off
    url = str(PREFECT_API_URL.value())
    monkeypatch.setenv("PREFECT_API_URL", url)
    return {"PREFECT_API_URL": url}


@pytest.mark.weights
def test_a_run_leaves_predictions_scores_report_and_a_flow_run(
    on_server: dict[str, str], tiny: Any, make_video: Callable[..., Path], tmp_path: Path
) -> None:
    make_video("a.mp4")
    items = written(tmp_path / "q.json", [*questions(), *(row | {"id": 9} for row in questions(1, "gone.mp4"))])
    asked = ("q", "--items", items, "--videos", tmp_path, "--model", tiny.model, "--out", tmp_path / "out")
    plain = in_process(*asked, "--max-new-tokens", 2, **on_server)
    assert plain.returncode == 0, plain.stderr
    assert "missing: 1 missing_file; the first is item 9: gone.mp4 cannot be found" in plain.stdout
    assert "predict: 4 of 4 items, missing 1" in plain.stderr
    again = in_process(*asked, "--max-new-tokens", 2, "--json", **on_server)
    assert (again.returncode, again.stderr) == (0, "")
    told = json.loads(again.stdout)
    assert (told["asked"], told["num_predicted"], told["score"]["micro"]["num_missing"]) == (0, 3, 1)
    assert told == json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len((tmp_path / "out" / "predictions_0.json").read_text().splitlines()) == 3
    assert "(no label: no training record lies beside it)" in (tmp_path / "out" / "report.md").read_text()

    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
        names = {artifact.key for artifact in client.read_artifacts()}
    assert {(run.name, run.state_name) for run in runs} == {(f"bench q {tmp_path.name}/out", "Completed")}
    assert {"bench-report", "progress-bench-predict"} <= names

    assert 'mode was "single" and is "multi"' in one_error(FAILED, *asked, "--mode", "multi")


@pytest.mark.weights
def test_a_judge_is_asked_within_a_flow_run(
    on_server: dict[str, str], chat_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("subject_correspondence", "appearance_description", "temporal_description", "hallucination_detection")
    chat_server.script = lambda _: chat_server.said(json.dumps(dict.fromkeys(names, 3)))
    items, given = written(tmp_path / "d.json", descriptions()), said(tmp_path / "p.jsonl", ["A dog.", "A cat."])
    judge = ("--judge", chat_server.url, "--judge-model", "m", "--judge-replies", "scores")
    asked = ("d", "--items", items, "--predictions", given, "--out", tmp_path / "out", *judge)
    chat_server.script, script = lambda _: chat_server.reply(401, "{}"), chat_server.script
    refused = invoke(*asked)
    assert (refused.exit_code, refused.stdout) == (FAILED, "")
    said_last = refused.stderr.splitlines()[-1]
    assert said_last.startswith("error: ")
    assert "HTTP 401" in said_last
    assert "Traceback" not in refused.stderr
    assert said_last.endswith("; no key was sent, as VIDEOREFER_JUDGE_KEY is not set")
    chat_server.script = script
    chat_server.headers.clear()
    monkeypatch.setenv("VIDEOREFER_JUDGE_KEY", "k3y")
    done = invoke(*asked, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["score"]["total"]["mean"] == 3.0
    assert {headers["authorization"] for headers in chat_server.headers} == {"Bearer k3y"}
    assert not any(b"k3y" in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_what_is_asked_amiss_is_bad_usage_in_one_line(tmp_path: Path, tiny: Any) -> None:
    items = written(tmp_path / "q.json", questions())
    out = ("--out", tmp_path / "out")
    q, d = ("q", "--items", items, *out), ("d", "--items", written(tmp_path / "d.json", descriptions()), *out)
    given = said(tmp_path / "p.jsonl", ["A", "B"])
    model = ("--model", tiny.model, "--videos", tmp_path)
    assert "give --model DIR or --predictions FILE, got neither" in one_error(BAD_USAGE, *q)
    assert "got both" in one_error(BAD_USAGE, *q, *model, "--predictions", given)
    assert "--model needs --videos" in one_error(BAD_USAGE, *q, "--model", tiny.model)
    assert "--scorer likelihood asks a model" in one_error(
        BAD_USAGE, *q, "--predictions", given, "--scorer", "likelihood"
    )
    assert "there is no folder" in one_error(BAD_USAGE, *q, "--model", tiny.model, "--videos", tmp_path / "no")
    assert "there is no model folder" in one_error(BAD_USAGE, *q, "--model", tmp_path / "no", "--videos", tmp_path)
    assert "cannot be read" in one_error(BAD_USAGE, "q", "--items", tmp_path / "no.json", *out, *model)
    assert "Question is absent" in one_error(BAD_USAGE, "q", "--items", tmp_path / "d.json", *out, *model)
    assert "is a file; name a folder" in one_error(BAD_USAGE, *q[:-1], items, *model)
    assert "no item has id 2" in one_error(
        BAD_USAGE, *d, "--predictions", said(tmp_path / "more.jsonl", ["a", "b", "c"])
    )
    assert "--judge-prompt without --judge URL" in one_error(BAD_USAGE, *d, *model, "--judge-prompt", items)
    assert "--judge without --judge-model" in one_error(BAD_USAGE, *d, *model, "--judge", "http://127.0.0.1:1/v1")
    judge = ("--judge-model", "m", "--judge")
    assert "a server's address looks like" in one_error(BAD_USAGE, *d, *model, *judge, "nowhere")
    prompt = (*judge, "http://127.0.0.1:1/v1", "--judge-prompt", tmp_path / "no.txt")
    assert "no.txt: cannot be read" in one_error(BAD_USAGE, *d, *model, *prompt)
    assert not (tmp_path / "out").exists()


def test_what_is_refused_is_refused_before_prefect_and_torch_are_loaded(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom flows.cli import main\ntry:\n    main()\nfinally:\n"
        "    print(sorted({'prefect', 'ray', 'torch', 'transformers', 'onnxruntime'} & sys.modules.keys()))"
    )
    items = written(tmp_path / "q.json", questions())
    command = ["bench", "q", "--items", items, "--videos", tmp_path, "--model", tmp_path, "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (BAD_USAGE, "[]\n"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_two_files_are_compared(tmp_path: Path) -> None:
    items = written(tmp_path / "q.json", questions(4))
    first, second = said(tmp_path / "1.jsonl", ["B", "B", "A", ""]), said(tmp_path / "2.jsonl", ["B", "A", "B", "B"])
    asked = ("compare", "--items", items, first, second)
    told = json.loads(invoke(*asked, "--json").stdout)
    assert (told["num_both_right"], told["num_only_first"], told["num_only_second"]) == (1, 1, 2)
    assert [item["item_id"] for item in told["changed"]] == ["1", "2", "3"]
    assert "McNemar" in invoke(*asked).stdout
    assert "answer different items" in one_error(BAD_USAGE, *asked[:-1], said(tmp_path / "3.jsonl", ["B"]))


def test_items_made_of_a_build_are_scored_like_official_ones(by_hand: Any, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    samples = [
        sample.model_copy(update={"split": "held_out"})
        for number in range(12)
        for sample in by_hand.samples(by_hand.clip(f"c{number:02}")).samples
        if sample.kind == "detailed_caption" and sample.sample_id.endswith("1")
    ]
    writer = BuildWriter(lake, "b1", 4096)
    for kind in ("short_caption", "detailed_caption", "qa"):
        writer.write_samples(kind, samples if kind == "detailed_caption" else [])
    writer.write_tracks([])
    writer.write_quarantine([])
    writer.commit(
        Manifest(
            build_id="b1", schema_version=SCHEMA_VERSION, created_at="2025-01-01T00:00:00+00:00", source="clips",
            videos_root=str(tmp_path), profile_name="painted", profile_json="{}", labels=(), counts=(),
        )
    )  # fmt: skip
    made = invoke("new", "--lake", lake.root, "--out", tmp_path / "bench", "--num", 11, "--json")
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert (told["build"], told["descriptions"], told["questions"]) == ("b1", 11, 0)
    assert told["left_out"] == {"over the limit": 1}
    items = tmp_path / "bench" / "bench-d.json"
    asked = BenchAsked(
        items=str(items),
        out=str(tmp_path / "out"),
        mode="unstated",
        answers=GivenAnswers(predictions=str(said(tmp_path / "p.jsonl", ["A cat."] * 11))),
        scoring=Heuristic(),
    )
    run = plan_bench(asked).run
    assert (run.num_items, run.num_machine_made, run.num_checked) == (11, 11, 0)
    items.write_text(items.read_text().replace('"checked": false', '"checked": true', 2))
    assert plan_bench(asked).run.num_checked == 2
    again = one_error(FAILED, "new", "--lake", lake.root, "--out", tmp_path / "bench")
    assert "holds 2 items checked by hand" in again


def test_new_says_what_a_build_lacks_in_one_line(lake_by_hand: Any, tmp_path: Path) -> None:
    asked = ("new", "--lake", lake_by_hand.lake.root, "--out", tmp_path / "bench")
    assert "holds no build yet" in one_error(FAILED, *asked)
    lake_by_hand.publish()
    assert "held_out clips" in one_error(FAILED, *asked)
    assert "has no build nope" in one_error(FAILED, *asked, "--build", "nope")
    assert not (tmp_path / "bench").exists()


def test_progress_tells_rate_and_time_left_of_what_was_done_now() -> None:
    shown: list[BenchProgress] = []

    class Sink:
        def show(self, progress: BenchProgress) -> None:
            shown.append(progress)

    count = StageCount("predict", 10, 3, (Sink(),))
    assert shown[0].describe() == "3 of 10 items (3 from before)"
    count.add(done=1, kept=1)
    count.add(done=2, failed=1)
    assert (shown[2].done, shown[2].kept, shown[2].failed) == (6, 4, 1)
    line = shown[2]._replace(elapsed_s=4.0).describe()
    assert line == "6 of 10 items (4 from before), missing 1, 0.50 items/s, ETA 8 s"


def test_a_log_gets_a_line_for_each_stage_and_its_last_counts_at_the_end() -> None:
    text = io.StringIO()
    with BenchTerminal(Console(file=text, width=40)) as terminal:
        for stage in ("predict", "judge"):
            count = StageCount(stage, 3, 0, (terminal,))
            for _ in range(3):
                count.add(done=1)
    lines = text.getvalue().splitlines()
    assert lines[0] == "  predict: 0 of 3 items"
    assert [line.partition(",")[0] for line in lines[1:]] == ["  predict: 3 of 3 items", "    judge: 3 of 3 items"]
