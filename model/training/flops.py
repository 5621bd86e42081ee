"""How much arithmetic a step asks for, and how much the device could do: model FLOPs utilisation (MFU).

A product of matrices counts 2 operations per multiply-add. Per layer with a weight (linear, convolution), counted as
it runs: forward 2 x outputs x weights per output; backward as much again for the gradient of its input, if something
before it learns, and as much again for the gradient of its weight, if it learns. Per attention block with s tokens in
a sequence and d = heads x head size: forward 4 d s^2 (scores and values, without a discount for causality, as in PaLM,
Chowdhery et al. 2022, appendix B), backward twice that if anything at or before it learns. Not counted are what
activation checkpointing computes again, norms, activations, the mask pooling and, in the language model, padding.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.training.parts import part
from model.training.sharding import blocks

_PEAKS = (
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("B200", 2250e12),
)
"""Dense bfloat16 operations per second by a part of the device's name, from the vendor's data sheets; first match."""

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Peak(NamedTuple):
    """What one device can do: operations per second, and where the number is from (a data sheet or a measurement)."""

    flops_per_s: float
    label: str


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The vendor's figure for a known GPU in bfloat16, else the best of five large products measured here."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        if found := next((flops for key, flops in _PEAKS if key in name), None):
            return Peak(found, f"{name}, dense bfloat16, data sheet")
    side = 8192 if device.type == "cuda" else 768
    factor = torch.ones(side, side, dtype=dtype, device=device)
    best_s = min(_product_s(factor) for _ in range(5))
    return Peak(2 * side**3 / best_s, f"measured {side} x {side} product, {str(dtype).removeprefix('torch.')}")


def _product_s(factor: Tensor) -> float:
    started = time.perf_counter()
    (factor @ factor)[0, 0].item()  # waits for the device
    return time.perf_counter() - started


class FlopCount:
    """Counts the operations of this rank's passes made inside `passing`.

    Made before the model is split, whose blocks change their class then.
    """

    def __init__(self, model: nn.Module) -> None:
        self._total = 0.0
        self._passing = False
        self._positions = 0
        self._lengths: list[int] = []
        language_model = part(model, "language_model")
        self._handles = [
            *(
                hook
                for name in ("vision_tower", "connector", "object_encoder")
                for hook in self._watch(part(model, name))
            ),
            *self._watch(language_model),
            *(block.register_forward_hook(self._tower_attention) for block in blocks(part(model, "vision_tower"))),
            *(block.register_forward_hook(self._text_attention) for block in blocks(language_model)),
        ]
        config = cast("Any", language_model).config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._text_width = config.num_attention_heads * head_dim

    def close(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def take(self) -> float:
        """The operations since the last taking."""
        total, self._total = self._total, 0.0
        return total

    @contextlib.contextmanager
    def passing(self, attention_mask: Tensor) -> Iterator[None]:
        """Around one forward pass; `attention_mask` (B, L) on the CPU tells the sequences' lengths from padding."""
        self._lengths = attention_mask.sum(1).tolist()
        self._positions = attention_mask.numel()
        self._passing = True
        try:
            yield
        finally:
            self._passing = False

    def _watch(self, module: nn.Module) -> list[RemovableHandle]:
        layers = (layer for layer in module.modules() if isinstance(layer, _LAYERS))
        return [layer.register_forward_hook(self._layer) for layer in layers]

    def _layer(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not self._passing:
            return
        weight = cast("Tensor", layer.weight)
        forward = 2.0 * output.numel() * weight[0].numel()
        if output.shape[:-1].numel() == self._positions and isinstance(layer, nn.Linear):
            forward *= sum(self._lengths) / self._positions
        self._total += forward * (1 + weight.requires_grad + inputs[0].requires_grad)

    def _tower_attention(self, _block: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if any(given is hidden for given in inputs):  # a layer above the selected one, which is not computed
            return
        frames, tokens, width = hidden.shape
        self._attention(4.0 * width * frames * tokens**2, hidden)

    def _text_attention(self, _block: nn.Module, _inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self._attention(4.0 * self._text_width * sum(length**2 for length in self._lengths), hidden)

    def _attention(self, forward: float, output: Tensor) -> None:
        if self._passing:
            self._total += forward * (3 if output.requires_grad else 1)
