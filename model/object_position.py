"""Where and when a merged token was seen, embedded so that it can be added to the token (ours, not in the paper).

Features averaged over a mask tell what an object looks like but neither where it is nor where it moves. A token that
stands for a run of frames gets the box and the time of the run's first and last frame, and what changed between them.
"""

import math

import torch
from torch import Tensor, nn

NUM_OCTAVES = 6
"""Waves per value, each twice as fast as the one before; the slowest is half a wave over the whole frame or span."""

WIDTH = 256
"""Hidden width of the MLP."""


class ObjectPosition(nn.Module):
    """Fourier features of first box and time, last box and time, and their change, through Linear, GELU, Linear.

    The last layer starts at zero: the encoder begins as the one without positions, so a trained one can be given them
    without harm. That costs a run from scratch nothing but its first step, for the last layer has a gradient from the
    start and the layer before it from the second step on. The values themselves, not only their waves, enter the MLP,
    and so does the change, because a movement of a few pixels is a small difference of two large inputs.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        num_values = 3 * 5
        self.mlp = nn.Sequential(
            nn.Linear(num_values * (1 + 2 * NUM_OCTAVES), WIDTH), nn.GELU(), ZeroLinear(WIDTH, hidden_size)
        )

    def forward(self, boxes: Tensor, times: Tensor, group_sizes: Tensor) -> Tensor:
        """What is to be added to each token, (T, hidden).

        `boxes` (M, 4) xyxy shares and `times` (M,) shares of the span, of rows in the order in which they were merged;
        `group_sizes` (T,) long, how many rows each token stands for, M in all.
        """
        seen = torch.cat([boxes, times[:, None]], 1).float()
        ends = group_sizes.cumsum(0)
        first, last = seen[ends - group_sizes], seen[ends - 1]
        waves = fourier_features(torch.cat([first, last, last - first], 1))
        embedded: Tensor = self.mlp(waves.to(next(self.parameters()).dtype))
        return embedded


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, also where a model's layers are initialised anew one by one."""

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def fourier_features(values: Tensor) -> Tensor:
    """The values, then sine and cosine of pi 2^i times each, i from 0: (..., V) to (..., V (1 + 2 `NUM_OCTAVES`))."""
    speeds = math.pi * 2.0 ** torch.arange(NUM_OCTAVES, dtype=values.dtype, device=values.device)
    angles = (values[..., None] * speeds).flatten(-2)
    return torch.cat([values, angles.sin(), angles.cos()], -1)
