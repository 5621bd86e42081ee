"""Which weights learn: frozen parts, low-rank adapters, and the number formats they are held in."""

from collections.abc import Iterator
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.training.settings import TrainSettings

COMPUTE_DTYPE = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""The format of a pass by `TrainSettings.precision`."""


def part(model: nn.Module, name: str) -> nn.Module:
    """The submodule `name` of a model."""
    return cast("nn.Module", getattr(model, name))


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that learn, in the model's order."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def prepare_parts(model: PreTrainedModel, settings: TrainSettings) -> None:
    """Freezes what does not learn, puts in the adapter, sets formats and modes; in place.

    What learns is float32; what is frozen is held in the format of the pass. Only parameters are cast: buffers such as
    a rotary embedding's frequencies need their precision. A frozen vision tower is in evaluation mode (its batch norms
    keep their statistics), everything else in training mode.
    """
    model.requires_grad_(False)
    model.train()
    if settings.adapter is not None:
        _inject(part(model, "language_model"), settings)
    for name in settings.parts:
        if name != "adapter":
            part(model, name).requires_grad_(True)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(
            torch.float32 if parameter.requires_grad else COMPUTE_DTYPE[settings.precision]
        )
    if "vision_tower" not in settings.parts:
        part(model, "vision_tower").eval()
    if settings.activation_checkpointing:
        language_model = cast("PreTrainedModel", part(model, "language_model"))
        language_model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def _inject(language_model: nn.Module, settings: TrainSettings) -> None:
    """The adapter, the same on every rank: its first weights are drawn from the seed, apart from other draws."""
    assert settings.adapter is not None
    targets = settings.adapter.targets
    config = LoraConfig(
        r=settings.adapter.rank,
        lora_alpha=settings.adapter.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        inject_adapter_in_model(config, language_model)


def merge_adapters(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A full state of a model with adapters as one of the plain model: W + (alpha / rank) B A under W's own name.

    The product is formed in float32 and rounded to W's format once.
    """
    merged = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, module in model.named_modules():
        scaling = getattr(module, "scaling", None)
        if not isinstance(scaling, dict) or not hasattr(module, "lora_A"):
            continue
        for adapter, scale in scaling.items():
            down, up = (state[f"{name}.lora_{side}.{adapter}.weight"].float() for side in "AB")
            weight = merged[f"{name}.weight"]
            merged[f"{name}.weight"] = (weight.float() + scale * (up @ down)).to(weight.dtype)
    return merged
