"""Spatial-temporal convolution connector: the frames of a scene to the tokens that show it to the language model.

The STC connector of VideoLLaMA 2 in the form that VideoRefer-7B uses (paper section 3.2; names, shapes and order of
operations as in the published checkpoint): a stage of bottleneck blocks per frame, one strided convolution over time
and space, a second stage, and a two-layer readout.
"""

import torch
from torch import Tensor, nn

from model.inputs import SceneIndex, offsets

_NORM_EPS = 1e-6
_SQUEEZE_RATIO = 4


def num_scene_tokens(num_frames: int, grid_size: tuple[int, int], stride: tuple[int, int, int]) -> int:
    """How many tokens show a scene of `num_frames` frames, each a grid of `grid_size` (h, w) cells.

    Time is rounded up to whole strides (the last frame is repeated), rows and columns are rounded down, as the
    convolution has no padding. Raises ValueError where nothing would be left.
    """
    steps = -(-num_frames // stride[0])
    rows, columns = grid_size[0] // stride[1], grid_size[1] // stride[2]
    if steps * rows * columns < 1:
        raise ValueError(
            f"got {num_frames} frames of {grid_size[0]} x {grid_size[1]} cells, which connector_stride {stride} leaves "
            "no token of; at least one frame and one stride of rows and columns are needed"
        )
    return steps * rows * columns


class STCConnector(nn.Module):
    """Scenes of features of width `in_channels` to tokens of width `hidden`.

    `depth` bottleneck blocks stand before and after the convolution whose kernel and stride are `stride` (time, rows,
    columns).
    """

    def __init__(self, in_channels: int, hidden: int, depth: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.before = _stage(in_channels, hidden, depth)
        self.sampler = nn.Conv3d(hidden if depth else in_channels, hidden, kernel_size=stride, stride=stride)
        self.after = _stage(hidden, hidden, depth)
        self.readout = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def blocks(self) -> list[nn.Module]:
        """The residual blocks of both stages, 2 * depth of them."""
        return [*self.before, *self.after]

    def forward(self, features: Tensor, scenes: SceneIndex) -> tuple[Tensor, Tensor]:
        """Tokens (sum of numbers, hidden), scene after scene, each in the order time, row, column; and the number of
        tokens of each scene, (scenes,) long.

        `features` (F, h, w, in_channels). At least one scene of at least one frame. A frame that several scenes show
        passes the first stage once; scenes of different lengths lie one after another in time, whole strides each, so
        that no window of the convolution reaches into the next scene.
        """
        shown, places = torch.unique(scenes.frame_index, return_inverse=True)
        frames = self.before(features[shown].permute(0, 3, 1, 2))
        steps = torch.div(scenes.num_frames + self.stride[0] - 1, self.stride[0], rounding_mode="floor")
        frames = frames[places[self._whole_strides(scenes.num_frames, steps)]]
        sampled = nn.functional.silu(self.sampler(frames.transpose(0, 1)[None])[0]).transpose(0, 1)
        grids = self.after(sampled).permute(0, 2, 3, 1)
        tokens_per_step = grids.shape[1] * grids.shape[2]
        return self.readout(grids.flatten(0, 2)), steps * tokens_per_step

    def _whole_strides(self, num_frames: Tensor, steps: Tensor) -> Tensor:
        """Places in the scenes' frames that fill whole strides of time, the last frame of a scene repeated."""
        lengths = steps * self.stride[0]
        within = torch.arange(int(lengths.sum()), device=lengths.device)
        within = within - offsets(lengths).repeat_interleave(lengths)
        last = (num_frames - 1).repeat_interleave(lengths)
        return torch.minimum(within, last) + offsets(num_frames).repeat_interleave(lengths)


class BottleneckBlock(nn.Module):
    """Residual block at one resolution: 1x1, depthwise 3x3, squeeze-excite, 1x1; (N, C, h, w) to (N, channels, h, w).

    The bottleneck is as wide as the output. The shortcut is a projection only where the widths differ.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.norm1 = ChannelLayerNorm(channels, eps=_NORM_EPS)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm2 = ChannelLayerNorm(channels, eps=_NORM_EPS)
        self.squeeze_excite = SqueezeExcite(channels, max(1, in_channels // _SQUEEZE_RATIO))
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm3 = ChannelLayerNorm(channels, eps=_NORM_EPS)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, bias=False)
            self.shortcut = nn.Sequential(projection, ChannelLayerNorm(channels, eps=_NORM_EPS))

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) to (N, channels, h, w)."""
        inner = nn.functional.silu(self.norm1(self.conv1(features)))
        inner = nn.functional.silu(self.norm2(self.conv2(inner)))
        inner = self.norm3(self.conv3(self.squeeze_excite(inner)))
        return nn.functional.silu(inner + self.shortcut(features))


class SqueezeExcite(nn.Module):
    """Channels weighed by what the mean over space says of them; `squeezed` is the width between the two layers."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, channels, h, w), the shape kept."""
        means = features.mean((2, 3), keepdim=True)
        return features * torch.sigmoid(self.fc2(nn.functional.silu(self.fc1(means))))


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell of (N, C, h, w).

    The connector's tensors keep channels last in memory, so that neither this nor a 1x1 convolution copies.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is nn.LayerNorm's
        """(N, C, h, w), the shape kept."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _stage(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(BottleneckBlock(channels if place else in_channels, channels) for place in range(depth)))
