"""Whole pipeline runs on painted clips with a tiny network: subflows of one run; a second run finds all done."""

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import CancelledRun
from prefect.states import Cancelling

from benchmark.gate import GateRule
from flows.pipeline import pipeline
from flows.pipeline_record import PipelineError, PipelineResult
from infra.synthetic import put_in_split, write_clips

pytestmark = [pytest.mark.weights, pytest.mark.slow, pytest.mark.timeout(600)]

NUM_CLIPS, NUM_HELD_OUT = 10, 8


@dataclass(frozen=True)
class Story:
    """Two runs of the same command, and what it takes to ask once more."""

    asked: dict[str, Any]
    first: PipelineResult
    again: PipelineResult
    metrics: tuple[bytes, bytes]


@pytest.fixture(scope="module")
def story(server: None, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("pipeline")
    rows = write_clips(folder / "videos", NUM_CLIPS, 5, "crowd")
    for number, row in enumerate(rows):
        put_in_split(folder / str(row["video"]), "held_out" if number < NUM_HELD_OUT else "train")
    source = folder / "clips.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = {
        "source": str(source), "lake": str(folder / "lake"), "out": str(folder / "out"), "profile": "painted",
        "train_profile": tiny.profile(num_steps=2), "rule": GateRule(min_items=1),
    }  # fmt: skip
    first = pipeline(**asked)
    assert isinstance(first, PipelineResult)
    metrics = folder / "out" / "models" / first.gate.model / "metrics.jsonl"
    before = metrics.read_bytes()
    again = pipeline(**asked)
    assert isinstance(again, PipelineResult)
    return Story(asked=asked, first=first, again=again, metrics=(before, metrics.read_bytes()))


def test_build_training_and_bench_are_runs_of_their_own_inside_one(story: Story) -> None:
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
        names = {flow.id: flow.name for flow in client.read_flows()}
        inside = [names[run.flow_id] for run in runs if run.parent_task_run_id is not None]
        outside = [names[run.flow_id] for run in runs if run.parent_task_run_id is None]
        states = {run.state_name for run in runs}
    assert set(inside) == {"build", "train", "bench"}
    assert outside == ["pipeline", "pipeline"]
    assert states == {"Completed"}


def test_runs_are_found_by_their_build_model_and_gate(story: Story) -> None:
    with get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        tags = [(flows[run.flow_id], set(run.tags)) for run in client.read_flow_runs()]
    build, first = f"build={story.first.build.build_id}", story.first.gate
    trained_by = f"profile={Path(story.asked['train_profile']).stem}"
    place = {"lake=lake", build}
    assert {"profile=painted", *place, f"model={first.model}", f"gate={first.outcome}"} in [
        named for flow, named in tags if flow == "pipeline"
    ]
    assert [named for flow, named in tags if flow == "build"] == [{"profile=painted", *place}] * 2
    assert all(named == {trained_by, *place} for flow, named in tags if flow == "train")
    assert {"bench=q", "mode=multi", f"model={first.model}"} in [named for flow, named in tags if flow == "bench"]


def test_the_first_model_is_held_against_its_untrained_self_and_the_folder_tells(story: Story) -> None:
    out, gate = Path(story.asked["out"]), story.first.gate
    (decision,) = gate.decisions
    assert decision.rival == "untrained"
    assert gate.outcome in ("accepted", "rejected")
    assert (out / "latest.json").exists() == (gate.outcome == "accepted") == bool(story.first.latest)
    model = out / "models" / gate.model
    assert json.loads((model / "gate.json").read_text())["reason"] == gate.reason
    page = (model / "report.html").read_text()
    assert all(
        text in page for text in (gate.outcome, story.first.build.build_id, "untrained: 0 steps", "loss by step")
    )


def test_a_second_run_builds_trains_and_asks_nothing_and_decides_alike(story: Story) -> None:
    assert (story.again.build.is_new, story.again.build.ray_started) == (False, False)
    assert story.metrics[0] == story.metrics[1]
    if story.first.latest:
        assert story.again.gate.outcome == "unchanged"
    else:
        assert story.again.gate == story.first.gate
    assert story.again.latest == story.first.latest


def test_cancel_on_the_page_ends_the_run_and_the_part_that_is_under_way(story: Story, tmp_path: Path) -> None:
    asked = story.asked | {"lake": str(tmp_path / "lake"), "out": str(tmp_path / "out")}

    def cancel() -> None:
        with get_client(sync_client=True) as client:
            while len(mine := [run for run in client.read_flow_runs() if lake_of(run) == asked["lake"]]) < 2:
                time.sleep(0.2)
            (whole,) = [run for run in mine if run.parent_task_run_id is None]
            client.set_flow_run_state(whole.id, Cancelling())

    canceller = threading.Thread(target=cancel, daemon=True)
    canceller.start()
    with pytest.raises(CancelledRun, match="cancelled in the UI"):
        pipeline(**asked)
    canceller.join()
    with get_client(sync_client=True) as client:
        ended = {run.name.split()[0]: run.state for run in client.read_flow_runs() if lake_of(run) == asked["lake"]}
    assert ended.keys() == {"pipeline", "build"}
    assert ended["pipeline"].is_cancelled()
    assert all(state.is_final() for state in ended.values())


def lake_of(run: FlowRun) -> str:
    return str(run.parameters.get("lake"))


def test_changed_items_end_the_run_once_a_model_was_accepted_on_them(story: Story) -> None:
    out = Path(story.asked["out"])
    latest = {"model": story.first.gate.model, "items_sha256": "0" * 64}
    (out / "latest.json").write_text(json.dumps(latest))
    with pytest.raises(PipelineError, match="was changed: its SHA-256 is"):
        pipeline(**story.asked)
