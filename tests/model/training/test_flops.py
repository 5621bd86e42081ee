"""Counted operations against those that torch's counter sees in the same passes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.training.feed import MicroBatch
from model.training.flops import FlopCount, device_peak
from model.training.parts import prepare_parts
from model.training.settings import AdapterSettings, TrainSettings

STAGES = [
    ("connector",),
    ("object_encoder",),
    ("connector", "object_encoder", "language_model"),
    ("connector", "object_encoder", "adapter"),
    ("vision_tower", "connector", "object_encoder", "language_model"),
]


@pytest.mark.parametrize("parts", STAGES, ids="+".join)
def test_the_count_agrees_with_the_operations_done(
    tiny_model: Callable[..., Any],
    micro_batches: Callable[[int], list[MicroBatch]],
    make_settings: Callable[..., TrainSettings],
    parts: tuple[str, ...],
) -> None:
    model = tiny_model()
    adapter = AdapterSettings(rank=2) if "adapter" in parts else None
    for transformer in (model.language_model, model.vision_tower.model):
        transformer.set_attn_implementation("eager")  # torch's counter does not know the CPU's fused attention
    prepare_parts(model, make_settings(parts=parts, adapter=adapter))
    count = FlopCount(model)
    inputs = micro_batches(1)[1].inputs
    assert inputs is not None
    with FlopCounterMode(display=False) as seen:
        with count.passing(inputs["attention_mask"]):
            loss = model(**inputs).loss
        loss.backward()
    # torch's counter takes one gradient of a depthwise convolution for that of a dense one, which is 2 to 4 % here
    assert count.take() == pytest.approx(seen.get_total_flops(), rel=0.04)
    assert count.take() == 0


def test_recomputing_and_padding_are_not_counted(
    tiny_model: Callable[..., Any],
    micro_batches: Callable[[int], list[MicroBatch]],
    make_settings: Callable[..., TrainSettings],
) -> None:
    totals = []
    for checkpointing, size in ((False, 1), (True, 1), (False, 2)):
        model = tiny_model()
        prepare_parts(model, make_settings(activation_checkpointing=checkpointing))
        count = FlopCount(model)
        for batch in micro_batches(size)[: 2 // size]:
            assert batch.inputs is not None
            with count.passing(batch.inputs["attention_mask"]):
                loss = model(**batch.inputs).loss
            loss.backward()
        totals.append(count.take())
    assert totals[1] == totals[0]
    assert totals[2] == pytest.approx(totals[0], rel=1e-6)


def test_an_unknown_device_is_measured_and_says_so() -> None:
    peak = device_peak(torch.device("cpu"), torch.float32)
    assert peak.label == "measured 768 x 768 product, float32"
    assert 1e8 < peak.flops_per_s < 1e14
