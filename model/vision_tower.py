"""Vision towers: frames to grids of features.

VideoRefer takes the second last hidden state of SigLIP (paper section 3.2); any transformers vision model of one
resolution does, and so does the small convolutional network of `model.efficientnet_lite`.
"""

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from model.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig


class VisionTower(Protocol):
    """What the rest of the model needs of a tower: features of `hidden_size` on a grid of `grid_size` (h, w) cells."""

    @property
    def hidden_size(self) -> int:
        """Width D of the features."""
        ...

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the grid of one frame."""
        ...

    def __call__(self, pixels: Tensor) -> Tensor:
        """Frames (F, 3, height, width), normalised as the tower's image processor does, to features (F, h, w, D)."""
        ...


class TransformerTower(nn.Module):
    """A hidden state of a transformers vision model such as SigLIP, CLIP or DINOv2, its patches as a grid.

    `select_layer` counts the hidden states as transformers does: 0 is what enters the first layer, -1 what leaves the
    last, before the final norm. Class and register tokens, which lead the sequence, are dropped. Layers above the
    selected one and SigLIP's pooling head are never computed, but keep their weights and names: a checkpoint then loads
    whole, saves whole, and another layer can be selected later.
    """

    def __init__(self, model: nn.Module, config: PreTrainedConfig, select_layer: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.hidden_size: int = config.hidden_size
        self.image_size = _pair(config.image_size)
        rows_px, columns_px = _pair(config.patch_size)
        self.grid_size = (self.image_size[0] // rows_px, self.image_size[1] // columns_px)
        layers = _layers(model, config)
        if not -len(layers) - 1 <= select_layer <= len(layers):
            raise ValueError(
                f"got vision_select_layer {select_layer} for a {config.model_type} of {len(layers)} layers; "
                f"{-len(layers) - 1} to {len(layers)} are allowed"
            )
        self.select_layer = select_layer % (len(layers) + 1)
        for unused in (*layers[self.select_layer :], getattr(model, "head", None)):
            if isinstance(unused, nn.Module):
                unused.forward = _pass_through

    def forward(self, pixels: Tensor) -> Tensor:
        """(F, 3, height, width) of the configured size to (F, h, w, D)."""
        if tuple(pixels.shape[-2:]) != self.image_size:
            raise ValueError(f"got frames of {tuple(pixels.shape[-2:])} pixels; this tower takes {self.image_size}")
        tokens = self._selected(pixels)
        rows, columns = self.grid_size
        return tokens[:, -rows * columns :].reshape(len(tokens), rows, columns, -1)

    def _selected(self, pixels: Tensor) -> Tensor:
        """The hidden state, caught where it leaves its layer: transformers would keep those of all layers."""
        caught: list[Tensor] = []

        def catch(_module: nn.Module, _given: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            caught.append(output if isinstance(output, Tensor) else output[0])

        # What enters the first layer leaves it unchanged where the first layer is unused.
        layer = _layers(self.model, self.config)[max(self.select_layer - 1, 0)]
        handle = layer.register_forward_hook(catch)
        try:
            self.model(pixel_values=pixels)
        finally:
            handle.remove()
        return caught[0]


def build_tower(vision_config: PreTrainedConfig, select_layer: int) -> nn.Module:
    """A `VisionTower` with fresh weights; `select_layer` is for transformers, a convolutional tower gives all scales.

    Raises ValueError for a model whose layers cannot be found.
    """
    if isinstance(vision_config, EfficientNetLiteConfig):
        return EfficientNetLite(vision_config)
    return TransformerTower(AutoModel.from_config(vision_config), vision_config, select_layer)


def _pass_through(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states


def _layers(model: nn.Module, config: PreTrainedConfig) -> nn.ModuleList:
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return module
    raise ValueError(
        f"{type(model).__name__} has no list of {config.num_hidden_layers} layers; a vision tower must be a plain "
        "transformer such as SigLIP, CLIP or DINOv2"
    )


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
