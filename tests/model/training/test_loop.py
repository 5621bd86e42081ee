"""The loop against plain torch on one process, and what it does when things go wrong."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from model.training.export import whole_state
from model.training.feed import BadItem, MicroBatch
from model.training.loop import TrainingError, fit
from model.training.metrics import METRICS_FILE, StepMetrics
from model.training.settings import AdapterSettings, TrainSettings
from model.training.sharding import process_group

Batches = Callable[[int], list[MicroBatch]]


def never() -> bool:
    return False


def reference(
    model: Any, settings: TrainSettings, batches: Sequence[MicroBatch]
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of plain AdamW on the loss's mean over all answer tokens of a step, one sample at a time."""
    model.train()
    model.vision_tower.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in settings.parts)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    assert settings.num_steps is not None
    schedule = get_cosine_schedule_with_warmup(optimiser, 0, settings.num_steps)
    losses = []
    for step in range(settings.num_steps):
        total, answers = torch.zeros(()), 0
        for place in range(settings.global_batch_size):
            inputs = batches[(step * settings.global_batch_size + place) % len(batches)].inputs
            if inputs is None:
                continue
            logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits[0, :-1]
            labels = inputs["labels"][0, 1:]
            chosen = labels != -100
            total = total - logits.log_softmax(-1)[chosen, labels[chosen]].sum()
            answers += int(chosen.sum())
        optimiser.zero_grad()
        (total / answers).backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.clip_norm)
        optimiser.step()
        schedule.step()
        losses.append((total / answers).item())
    return losses, {name: value.detach() for name, value in model.state_dict().items()}


def same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def logged(run_dir: Path) -> list[StepMetrics]:
    return [StepMetrics.model_validate_json(line) for line in (run_dir / METRICS_FILE).read_text().splitlines()]


@pytest.mark.parametrize(("micro_batch_size", "checkpointing"), [(4, False), (2, True), (1, False)])
def test_one_rank_learns_what_plain_torch_learns(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    micro_batches: Batches,
    make_settings: Callable[..., TrainSettings],
    repeated: Any,
    micro_batch_size: int,
    checkpointing: bool,
) -> None:
    settings = make_settings(micro_batch_size=micro_batch_size, activation_checkpointing=checkpointing)
    losses, expected = reference(tiny_model(), settings, micro_batches(1))
    model, seen = tiny_model(), []
    loader = repeated(micro_batches(micro_batch_size), 4 // micro_batch_size)
    result = fit(model, loader, settings, tmp_path, seen.append, never)
    assert result.finished
    assert [step.loss for step in seen] == pytest.approx(losses, abs=1e-4)
    assert logged(tmp_path) == seen
    same(whole_state(model), expected, 1e-3)


def test_two_ranks_learn_what_plain_torch_learns(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    micro_batches: Batches,
    make_settings: Callable[..., TrainSettings],
    train_in_ranks: Callable[..., list[int]],
) -> None:
    settings = make_settings(micro_batch_size=1)
    losses, expected = reference(tiny_model(), settings, micro_batches(1))
    assert train_in_ranks(settings, tmp_path / "run", 2) == [0, 0]
    assert [step.loss for step in logged(tmp_path / "run")] == pytest.approx(losses, abs=1e-4)
    same(torch.load(tmp_path / "run" / "weights.pt"), expected, 1e-3)


def test_a_rank_with_nothing_but_bad_samples_keeps_step(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    micro_batches: Batches,
    make_settings: Callable[..., TrainSettings],
    train_in_ranks: Callable[..., list[int]],
) -> None:
    bad = MicroBatch(None, 0, 1)
    batches = [batch if place % 4 < 2 else bad for place, batch in enumerate(micro_batches(1))]
    settings = make_settings(max_bad_share=1.0)
    losses, expected = reference(tiny_model(), settings, batches)
    assert train_in_ranks(settings, tmp_path / "run", 2, batches=batches) == [0, 0]
    lines = logged(tmp_path / "run")
    assert [step.loss for step in lines] == pytest.approx(losses, abs=1e-4)
    assert [step.bad_samples for step in lines] == [2, 4, 6, 8]
    same(torch.load(tmp_path / "run" / "weights.pt"), expected, 1e-3)


@pytest.mark.parametrize(
    ("parts", "moves"),
    [
        (("connector",), "connector."),
        (("object_encoder",), "object_encoder."),
        (("vision_tower",), "vision_tower."),
        (("adapter",), ".lora_"),
    ],
)
def test_only_the_named_parts_move(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    micro_batches: Batches,
    make_settings: Callable[..., TrainSettings],
    repeated: Any,
    parts: tuple[str, ...],
    moves: str,
) -> None:
    before = {name: value.clone() for name, value in tiny_model().state_dict().items()}
    adapter = AdapterSettings(rank=2) if "adapter" in parts else None
    model = tiny_model()
    fit(
        model,
        repeated(micro_batches(2), 2),
        make_settings(parts=parts, micro_batch_size=2, num_steps=2, adapter=adapter),
        tmp_path,
        lambda _: None,
        never,
    )
    after = {name.replace(".base_layer.", "."): value for name, value in whole_state(model).items()}
    moved = {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}
    assert moved
    assert all(moves in name for name in moved)
    assert before.keys() - after.keys() == set()


def test_no_step_leaves_the_model_as_it_began_and_finished(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    micro_batches: Batches,
    make_settings: Callable[..., TrainSettings],
    repeated: Any,
) -> None:
    before, model = whole_state(tiny_model()), tiny_model()
    settings = make_settings(micro_batch_size=2, num_steps=0)
    result = fit(model, repeated(micro_batches(2), 2), settings, tmp_path, lambda _: None, never)
    assert (result.finished, result.progress.step, result.progress.samples) == (True, 0, 0)
    after = whole_state(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_half_precision_keeps_what_learns_in_float32(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    micro_batches: Batches,
    make_settings: Callable[..., TrainSettings],
    repeated: Any,
) -> None:
    losses, _ = reference(tiny_model(), make_settings(), micro_batches(1))
    model, seen = tiny_model(), []
    fit(
        model,
        repeated(micro_batches(2), 2),
        make_settings(precision="bf16", micro_batch_size=2),
        tmp_path,
        seen.append,
        never,
    )
    assert [step.loss for step in seen] == pytest.approx(losses, rel=0.05)
    formats = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {formats[name] for name in formats if name.startswith("vision_tower.")} == {torch.bfloat16}
    assert {formats[name] for name in formats if not name.startswith("vision_tower.")} == {torch.float32}


def broken(batch: MicroBatch) -> MicroBatch:
    assert batch.inputs is not None
    return batch._replace(inputs={**batch.inputs, "pixel_values": batch.inputs["pixel_values"] * float("nan")})


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    micro_batches: Batches,
    make_settings: Callable[..., TrainSettings],
    repeated: Any,
) -> None:
    good = micro_batches(4)
    seen: list[StepMetrics] = []
    weights: list[Tensor] = []
    model = tiny_model()

    def report(step: StepMetrics) -> None:
        seen.append(step)
        weights.append(model.connector.readout[0].weight.to_local().clone())

    fit(
        model,
        repeated([good[0], broken(good[1]), good[1]], 1),
        make_settings(micro_batch_size=4, num_steps=3),
        tmp_path,
        report,
        never,
    )
    assert [step.loss is None for step in seen] == [False, True, False]
    assert [step.skipped_steps for step in seen] == [0, 1, 1]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_too_many_steps_in_a_row_that_are_not_finite_stop_the_run(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    micro_batches: Batches,
    make_settings: Callable[..., TrainSettings],
    repeated: Any,
) -> None:
    loader = repeated([broken(micro_batches(4)[0])], 1)
    settings = make_settings(micro_batch_size=4, max_skipped_in_row=2)
    with pytest.raises(TrainingError, match="3 steps in a row"):
        fit(tiny_model(), loader, settings, tmp_path, lambda _: None, never)


def test_too_many_bad_samples_stop_the_run_and_are_named(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    micro_batches: Batches,
    make_settings: Callable[..., TrainSettings],
    repeated: Any,
) -> None:
    lost = [BadItem(str(number), "rows.json", "missing_file", f"absent: {number}.mp4") for number in range(3)]
    odd = BadItem("9", "rows.json", "bad_mask", "empty")
    good = micro_batches(1)[0]
    loader = repeated([good, *(MicroBatch(None, 0, 1, (one,)) for one in (odd, lost[0], lost[1]))], 4)
    settings = make_settings(max_bad_share=0.05, num_steps=20)
    seen: list[StepMetrics] = []
    with pytest.raises(TrainingError) as stopped:
        fit(tiny_model(), loader, settings, tmp_path, seen.append, never)
    first_line = str(stopped.value).splitlines()[0]
    assert first_line.startswith("12 of 16 samples were bad, at most 0.05 of them may be")
    assert "most often missing_file (8 since the last start), such as 0 of rows.json: absent: 0.mp4" in first_line
    assert "bad_samples/" in first_line
    assert len(seen) == 3


def test_bad_samples_are_counted_on_over_a_resumed_run(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    micro_batches: Batches,
    make_settings: Callable[..., TrainSettings],
    repeated: Any,
) -> None:
    loader = repeated([micro_batches(1)[0], MicroBatch(None, 0, 1)], 4)
    settings = make_settings(max_bad_share=0.05, num_steps=20)
    asked = iter(range(100))
    fit(tiny_model(), loader, settings, tmp_path, lambda _: None, lambda: next(asked) == 3)
    with pytest.raises(TrainingError, match="10 of 20 samples were bad"):
        fit(tiny_model(), loader, settings, tmp_path, lambda _: None, never)


def test_a_group_on_the_cpu_leaves_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with process_group() as own:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with process_group() as device:
            assert device == own
