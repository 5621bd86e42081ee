"""Runs that are stopped, killed or out of room, and what they go on from."""

import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.training.checkpoint import CheckpointError, latest_checkpoint, read_info
from model.training.export import whole_state
from model.training.feed import MicroBatch
from model.training.loop import FitResult, fit
from model.training.metrics import METRICS_FILE, StepMetrics
from model.training.settings import AdapterSettings, TrainSettings

Train = Callable[..., FitResult]


def steps(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / METRICS_FILE).read_text().splitlines()]


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def train(tiny_model: Callable[..., Any], micro_batches: Callable[[int], list[MicroBatch]], repeated: Any) -> Train:
    """`train(settings, run_dir, model=None, report=None, stop_after=None)` in this process, two passes a step."""

    def run(
        settings: TrainSettings,
        run_dir: Path,
        model: Any = None,
        report: Callable[[StepMetrics], None] | None = None,
        stop_after: int | None = None,
    ) -> FitResult:
        asked = iter(range(10**6))
        loader = repeated(micro_batches(2), 2)
        return fit(
            model if model is not None else tiny_model(),
            loader,
            settings,
            run_dir,
            report or (lambda _: None),
            lambda: next(asked) == stop_after,
        )

    return run


def test_a_stopped_run_goes_on_to_the_same_bits(
    tmp_path: Path, train: Train, make_settings: Callable[..., TrainSettings], tiny_model: Callable[..., Any]
) -> None:
    settings = make_settings(
        micro_batch_size=2, num_steps=5, parts=("connector", "adapter"), adapter=AdapterSettings(rank=2)
    )
    whole, halves = tiny_model(), tiny_model()
    train(settings, tmp_path / "whole", whole)
    stopped = train(settings, tmp_path / "halves", stop_after=3)
    assert not stopped.finished
    assert stopped.progress.step == 3
    assert latest_checkpoint(tmp_path / "halves") == stopped.checkpoint
    assert train(settings, tmp_path / "halves", halves).finished
    assert same_bits(whole_state(halves), whole_state(whole))
    assert steps(tmp_path / "halves") == [1, 2, 3, 4, 5]


def test_a_finished_run_is_loaded_and_not_trained_again(
    tmp_path: Path, train: Train, make_settings: Callable[..., TrainSettings], tiny_model: Callable[..., Any]
) -> None:
    settings = make_settings(micro_batch_size=2, num_steps=2)
    first, again, seen = tiny_model(), tiny_model(seed=1), []
    again.vision_tower.load_state_dict(first.vision_tower.state_dict())  # what is frozen is not in a checkpoint
    train(settings, tmp_path, first)
    result = train(settings, tmp_path, again, report=seen.append)
    assert result.finished
    assert seen == []
    assert same_bits(whole_state(again), whole_state(first))


def test_only_the_newest_checkpoints_are_kept(
    tmp_path: Path, train: Train, make_settings: Callable[..., TrainSettings]
) -> None:
    settings = make_settings(micro_batch_size=2, num_steps=5, checkpoint_every_steps=1, keep_checkpoints=2)
    train(settings, tmp_path)
    kept = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000005"]
    assert [read_info(tmp_path / "checkpoints" / name).finished for name in kept] == [False, True]


@pytest.mark.slow
def test_a_killed_run_of_two_ranks_goes_on_to_the_same_bits_and_on_one_rank_too(
    tmp_path: Path,
    train: Train,
    train_in_ranks: Callable[..., list[int]],
    make_settings: Callable[..., TrainSettings],
    tiny_model: Callable[..., Any],
) -> None:
    settings = make_settings(micro_batch_size=2)
    assert train_in_ranks(settings, tmp_path / "whole", 2) == [0, 0]
    killed = train_in_ranks(settings, tmp_path / "killed", 2, die_at_step=3)
    assert killed[0] == -signal.SIGKILL
    assert steps(tmp_path / "killed") == [1, 2, 3]
    found = latest_checkpoint(tmp_path / "killed")
    assert found is not None
    assert read_info(found).progress.step == 2
    shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    assert train_in_ranks(settings, tmp_path / "killed", 2) == [0, 0]
    assert steps(tmp_path / "killed") == [1, 2, 3, 4]
    expected = torch.load(tmp_path / "whole" / "weights.pt")
    assert same_bits(torch.load(tmp_path / "killed" / "weights.pt"), expected)
    alone = tiny_model()
    assert train(settings, tmp_path / "copy", alone).progress.step == 4
    for name, value in whole_state(alone).items():
        torch.testing.assert_close(value, expected[name], atol=1e-3, rtol=0)


def test_a_copy_under_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert latest_checkpoint(tmp_path) is None
    for name in ("step-00000001", "step-00000002.bak", "step-2", "step-00000003 (copy)", ".step-00000004.partial"):
        (folder / name).mkdir(parents=True)
    assert latest_checkpoint(tmp_path) == folder / "step-00000001"
    (folder / "step-100000000").mkdir()
    (folder / "step-99999999").mkdir()
    assert latest_checkpoint(tmp_path) == folder / "step-100000000"


def test_what_cannot_be_deleted_does_not_fail_a_checkpoint(
    tmp_path: Path, train: Train, make_settings: Callable[..., TrainSettings]
) -> None:
    settings = make_settings(micro_batch_size=2, num_steps=3, checkpoint_every_steps=1, keep_checkpoints=1)
    train(settings, tmp_path, stop_after=1)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000001").rename(tmp_path / "elsewhere")  # a link is not deleted as a folder is
    (folder / "step-00000001").symlink_to(tmp_path / "elsewhere")
    (folder / ".step-00000009.partial").write_text("no folder")
    assert train(settings, tmp_path).finished
    assert [path.name for path in folder.glob("step-*")] == ["step-00000003"]
    assert (tmp_path / "elsewhere" / "checkpoint.json").exists()


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(
    tmp_path: Path, train: Train, make_settings: Callable[..., TrainSettings]
) -> None:
    settings = make_settings(micro_batch_size=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: StepMetrics) -> None:
        if step.step == 4:  # no file may grow beyond what the log is now
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    try:
        with pytest.raises(CheckpointError, match="could not write"):
            train(settings, tmp_path, report=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert train(settings, tmp_path).progress.step == 4
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_settings_that_change_what_is_learnt_are_refused_by_name(
    tmp_path: Path, train: Train, make_settings: Callable[..., TrainSettings]
) -> None:
    train(make_settings(micro_batch_size=2), tmp_path, stop_after=1)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.01, is 0\.02\. Take the old values"):
        train(make_settings(micro_batch_size=2, learning_rate=0.02), tmp_path)
    with pytest.raises(CheckpointError, match="num_steps was 4, is 5"):
        train(make_settings(micro_batch_size=2, num_steps=5), tmp_path)
    assert train(make_settings(micro_batch_size=2, keep_checkpoints=1), tmp_path).finished
