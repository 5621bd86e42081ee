"""The training flow on a tiny network and a build made by hand, through a real Prefect server and a real Ray."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun
from prefect.states import Cancelling
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText, AutoProcessor

import model.auto  # noqa: F401 - tells transformers our classes
from flows.train import train
from flows.train_card import model_card
from flows.train_plan import plan_training
from flows.train_record import TrainingError, TrainRecord, read_record, write_record
from infra.ray_cluster import start_ray

pytestmark = [pytest.mark.weights, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def ray_here(server: None) -> Iterator[None]:
    with start_ray(None, 2):
        yield


@pytest.fixture
def built(ray_here: None, lake_by_hand: Any) -> Any:
    lake_by_hand.publish()
    return lake_by_hand


def test_a_build_becomes_a_model_that_loads_and_says_what_it_is(built: Any, tiny: Any, tmp_path: Path) -> None:
    out, profile = tmp_path / "out", tiny.profile()
    record = train(built.lake.root, str(out), profile=profile)
    assert isinstance(record, TrainRecord)
    assert record.outcome is not None
    assert record == read_record(out)
    assert (record.outcome.label, record.outcome.num_samples, record.outcome.num_bad_samples) == ("4 steps", 8, 0)
    assert [row.step for row in tiny.steps(out)] == [1, 2, 3, 4]

    trained = AutoModelForImageTextToText.from_pretrained(out / "model").state_dict()
    before = AutoModelForImageTextToText.from_pretrained(tiny.model).state_dict()
    moved = {name.split(".")[0] for name, value in trained.items() if not torch.equal(value, before[name])}
    assert moved == {"connector", "object_encoder", "language_model"}
    assert AutoProcessor.from_pretrained(out / "model").num_frames == 2

    card = (out / "model" / "README.md").read_text()
    assert f"Build `{record.run.build_id}`" in card
    assert "Training label: **4 steps**" in card
    assert "import model.auto" in card

    told = record.run.profile
    data = told.data.model_copy(update={"max_rounds": 3})
    run = record.run.model_copy(update={"profile": told.model_copy(update={"data": data})})
    in_rounds = record.model_copy(update={"run": run})
    assert ("of 2 samples (8 drawn" in card, "8 samples drawn" in record.summary(out)) == (True, True)
    assert "of 2 conversations of up to 3 samples (8 drawn" in model_card(in_rounds)
    assert "8 conversations of up to 3 samples drawn" in in_rounds.summary(out)

    curves = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("train/loss")] == [1, 2, 3, 4]

    # the same again is finished; another is refused, and what differs is named
    asked = (built.lake.root, str(out), None, None)
    assert plan_training(*asked, profile, None, None).outcome == record.outcome
    with pytest.raises(TrainingError, match=r"settings\.learning_rate was 0\.001 and is 0\.5"):
        plan_training(*asked, tiny.profile(learning_rate=0.5), None, None)
    with pytest.raises(TrainingError, match=r"settings\.num_steps was 4 and is 9"):
        plan_training(*asked, profile, None, 9)


def test_a_changed_file_of_other_data_is_another_training(built: Any, tiny: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": 1}\n')
    profile = tiny.profile(extra=f'[[data.extra]]\npath = "{rows}"\nroot = "{tmp_path}"')
    asked = (built.lake.root, str(tmp_path / "out"), None, None, profile, None, None)
    (tmp_path / "out").mkdir()
    write_record(tmp_path / "out", plan_training(*asked))
    assert plan_training(*asked) == read_record(tmp_path / "out")
    rows.write_text('{"id": 1}\n{"id": 2}\n')
    with pytest.raises(TrainingError, match=r"rows\.jsonl was \"10 bytes, changed at .* and is \"20 bytes"):
        plan_training(*asked)


@pytest.mark.slow
def test_cancel_on_the_page_leaves_a_checkpoint_and_no_model(built: Any, tiny: Any, tmp_path: Path) -> None:
    out, profile = tmp_path / "out", tiny.profile(num_steps=3000)

    def cancel() -> None:
        with get_client(sync_client=True) as client:
            (run,) = [run for run in client.read_flow_runs() if run.parameters.get("out") == str(out)]
            client.set_flow_run_state(run.id, Cancelling())

    tiny.when_logged(out, 5, cancel)
    with pytest.raises(CancelledRun, match="cancelled in the UI"):
        train(built.lake.root, str(out), profile=profile)
    (checkpoint,) = (out / "checkpoints").glob("step-*")
    step = json.loads((checkpoint / "checkpoint.json").read_text())["progress"]["step"]
    assert 5 <= step < 3000
    assert read_record(out).outcome is None  # type: ignore[union-attr]
    assert not (out / "model").exists()
