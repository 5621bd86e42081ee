"""EfficientNet-lite0 as a vision tower: a small convolutional network whose packaged weights a laptop can use.

Architecture after Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019), in the
lite form of the TensorFlow TPU models: no squeeze-excite, ReLU6, padding "same" of TensorFlow.
"""

import math
from collections.abc import Mapping
from dataclasses import field

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

IMAGE_MEAN = (127 / 255,) * 3
"""What to take off the pixels, given as shares of full scale, before the network (TensorFlow's lite models)."""
IMAGE_STD = (128 / 255,) * 3
"""What to divide the pixels by after that."""

_GRID_STRIDE_PX = 16
_FIRST_STRIDE_PX = 4
"""Features of stride 2 are left out: they cost most and say little more than those of stride 4."""
_FRAMES_AT_ONCE = 8
"""On a CPU, whose caches and allocator do badly with more: 64 frames at once take three times as long."""

_PACKAGED_STEM = {"_conv_stem": "stem.conv", "_bn0": "stem.norm"}
_PACKAGED_BLOCK = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    """Shape of the network; the defaults are lite0 at 224 x 224 pixels.

    Lists have one value per stage: blocks, output channels, kernel, stride of the first block, and by how much a block
    widens its input.
    """

    model_type = "videorefer_efficientnet_lite"

    image_size: int = 224
    stem_channels: int = 32
    stage_depths: list[int] = field(default_factory=lambda: [1, 2, 2, 3, 3, 4, 1])
    stage_channels: list[int] = field(default_factory=lambda: [16, 24, 40, 80, 112, 192, 320])
    stage_kernels: list[int] = field(default_factory=lambda: [3, 3, 5, 3, 5, 5, 3])
    stage_strides: list[int] = field(default_factory=lambda: [1, 2, 2, 2, 1, 2, 1])
    stage_expansions: list[int] = field(default_factory=lambda: [1, 6, 6, 6, 6, 6, 6])
    batch_norm_eps: float = 1e-3


class EfficientNetLite(PreTrainedModel):
    """Features of all scales on the grid of stride 16 pixels.

    Early stages know colour and texture, late ones what a thing is; an object is described by both, so the features
    that leave each resolution from stride 4 on are brought to one grid and concatenated: `hidden_size` is the sum of
    their channels (496 for lite0).
    """

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    # Scales are joined at the end, and a ConvNorm reads its norm's tensors without calling it.
    _no_split_modules = ("EfficientNetLite", "ConvNorm")

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = ConvNorm(3, config.stem_channels, 3, 2, 1, config.batch_norm_eps)
        blocks: list[nn.Module] = []
        self._scale_ends: list[int] = []
        channels, stride_px, widths = config.stem_channels, 2, []
        for depth, out, kernel, stride, expansion in zip(
            config.stage_depths,
            config.stage_channels,
            config.stage_kernels,
            config.stage_strides,
            config.stage_expansions,
            strict=True,
        ):
            if stride > 1 and stride_px >= _FIRST_STRIDE_PX:
                self._scale_ends.append(len(blocks) - 1)
                widths.append(channels)
            stride_px *= stride
            for place in range(depth):
                step = stride if place == 0 else 1
                blocks.append(InvertedResidual(channels, out, kernel, step, expansion, config.batch_norm_eps))
                channels = out
        self._scale_ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.hidden_size = sum((*widths, channels))
        self.grid_size = (math.ceil(config.image_size / _GRID_STRIDE_PX),) * 2
        self.post_init()

    def scales(self, pixel_values: Tensor) -> list[Tensor]:
        """(F, 3, height, width) to what leaves each resolution, finest first, each (F, channels, rows, columns)."""
        features = nn.functional.relu6(self.stem(pixel_values))
        found = []
        for place, block in enumerate(self.blocks):
            features = block(features)
            if place in self._scale_ends:
                found.append(features)
        return found

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(F, 3, height, width) of the configured size to (F, h, w, D): finer scales averaged, coarser ones
        interpolated.
        """
        size = self.config.image_size
        if tuple(pixel_values.shape[-2:]) != (size, size):
            raise ValueError(f"got frames of {tuple(pixel_values.shape[-2:])} pixels; this tower takes {(size, size)}")
        at_once = _FRAMES_AT_ONCE if pixel_values.device.type == "cpu" else max(len(pixel_values), 1)
        return torch.cat([self._of_some(frames) for frames in pixel_values.split(at_once)])

    def _of_some(self, frames: Tensor) -> Tensor:
        scales = self.scales(frames.contiguous(memory_format=torch.channels_last))
        return torch.cat([self._on_grid(features) for features in scales], 1).permute(0, 2, 3, 1)

    def _on_grid(self, features: Tensor) -> Tensor:
        if features.shape[-2] > self.grid_size[0]:
            return nn.functional.adaptive_avg_pool2d(features, self.grid_size)
        return nn.functional.interpolate(features, self.grid_size, mode="bilinear", align_corners=False)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; added to its input where the shapes agree."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int, eps: float) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = ConvNorm(channels, wide, 1, 1, 1, eps) if expansion > 1 else None
        self.depthwise = ConvNorm(wide, wide, kernel, stride, wide, eps)
        self.project = ConvNorm(wide, out, 1, 1, 1, eps)
        self._adds = stride == 1 and channels == out

    def forward(self, features: Tensor) -> Tensor:
        """(F, channels, rows, columns) to (F, out, rows / stride, columns / stride), rounded up."""
        wide = features if self.expand is None else nn.functional.relu6(self.expand(features))
        narrow: Tensor = self.project(nn.functional.relu6(self.depthwise(wide)))
        return narrow + features if self._adds else narrow


class ConvNorm(nn.Module):
    """Convolution, padded so that the output has ceil(size / stride) cells, and batch norm."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, groups: int, eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, groups=groups, bias=False)
        self.norm = FrozenBatchNorm(out, eps=eps)

    def forward(self, features: Tensor) -> Tensor:
        """(F, channels, rows, columns) to (F, out, rows / stride, columns / stride), rounded up."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        # TensorFlow's "same": an odd cell of padding goes below and to the right.
        top, bottom = _same_padding(features.shape[-2], kernel, stride)
        left, right = _same_padding(features.shape[-1], kernel, stride)
        padded = nn.functional.pad(features, (left, right, top, bottom))
        scale, shift = self.norm.scale_and_shift()
        weight = (self.conv.weight.float() * scale[:, None, None, None]).to(features.dtype)
        return nn.functional.conv2d(padded, weight, shift.to(features.dtype), stride, groups=self.conv.groups)


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm by its stored statistics, in training too: the few frames of a batch are too alike to measure them.

    It is folded into the convolution before it, in float32, whatever the formats of weights and statistics.
    """

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Scale and shift (channels,), float32."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight.float() * torch.rsqrt(self.running_var.float() + self.eps)
        return scale, self.bias.float() - self.running_mean.float() * scale


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The packaged weights (`efficientnet-lite0` of `infra/weights.toml`) under our names, without their classifier.

    Raises ValueError for a name that the packaged file does not have.
    """
    return {_our_name(name): tensor for name, tensor in state.items() if not name.startswith(_CLASSIFIER)}


def _our_name(name: str) -> str:
    match name.split("."):
        case ["_blocks", number, part, kind] if part in _PACKAGED_BLOCK:
            return f"blocks.{number}.{_PACKAGED_BLOCK[part]}.{kind}"
        case [part, kind] if part in _PACKAGED_STEM:
            return f"{_PACKAGED_STEM[part]}.{kind}"
    raise ValueError(f"got the weight {name!r}, which the packaged EfficientNet-lite does not have")


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
