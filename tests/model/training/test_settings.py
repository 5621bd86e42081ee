"""What settings allow, the learning rate's course, and the log of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import get_cosine_schedule_with_warmup

from model.training.metrics import METRICS_FILE, MetricsLog, StepMetrics
from model.training.schedule import cosine_rate
from model.training.settings import TrainSettings


@pytest.mark.parametrize(("num_steps", "warmup_share"), [(100, 0.03), (7, 0.5), (5, 0.0), (1, 1.0)])
def test_the_rate_is_that_of_the_official_schedule_but_for_a_warm_up_one_step_ahead(
    num_steps: int, warmup_share: float
) -> None:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-5)
    warmup_steps = -int(-num_steps * warmup_share // 1)
    schedule = get_cosine_schedule_with_warmup(optimiser, warmup_steps, num_steps)
    official = []
    for _ in range(num_steps + 1):
        official += schedule.get_last_lr()
        optimiser.step()
        schedule.step()
    for step in range(num_steps):
        expected = official[step + (step < warmup_steps)]
        assert cosine_rate(2e-5, step, num_steps, warmup_share) == pytest.approx(expected, abs=1e-15)


def test_a_run_of_one_step_learns_at_the_full_rate() -> None:
    assert [cosine_rate(2e-5, 0, 1, share) for share in (0.0, 0.03, 1.0)] == [2e-5] * 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_steps": None}, "give exactly one"),
        ({"epochs": 1.0}, "give exactly one"),
        ({"parts": ("connector", "connector")}, "names one twice"),
        ({"parts": ("adapter",)}, "an adapter needs both"),
        ({"adapter": {}}, "an adapter needs both"),
        ({"adapter": {}, "parts": ("adapter", "language_model")}, "train one of the two"),
        ({"parts": ()}, "at least 1 item"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(
    make_settings: Callable[..., TrainSettings], wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        make_settings(**wrong)


def test_the_global_batch_is_shared_out(make_settings: Callable[..., TrainSettings]) -> None:
    settings = make_settings(global_batch_size=12, micro_batch_size=2)
    assert [settings.accumulation(world_size) for world_size in (1, 2, 3, 6)] == [6, 3, 2, 1]
    with pytest.raises(ValueError, match="global_batch_size 12 is no multiple of micro_batch_size 2 x 4 ranks = 8"):
        settings.accumulation(4)


def test_epochs_become_steps(make_settings: Callable[..., TrainSettings]) -> None:
    assert make_settings(num_steps=None, epochs=2).total_steps(9) == 5
    assert make_settings(num_steps=None, epochs=0.1).total_steps(4) == 1
    assert make_settings(num_steps=3).total_steps(100) == 3


def line(step: int) -> StepMetrics:
    numbers = dict.fromkeys(("tokens_per_s", "samples_per_s", "data_wait", "mfu", "eta_s", "epoch"), 0.0)
    return StepMetrics(
        step=step, num_steps=9, loss=1.0, learning_rate=0.1, grad_norm=1.0, peak="", memory_peak_bytes=1,
        bad_samples=0, skipped_steps=0, **numbers,
    )  # fmt: skip


def test_a_log_taken_up_again_has_each_step_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3, 4):
        log.write(line(step))
    log.close()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 5, "num')  # as a kill leaves it
    again = MetricsLog(tmp_path, 2)
    again.write(line(3))
    again.close()
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert [StepMetrics.model_validate_json(text).step for text in lines] == [1, 2, 3]
