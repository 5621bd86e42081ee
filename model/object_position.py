"""Where and when a merged token was seen, embedded so that it can be added to the token (ours, not in the paper).

Features averaged over a mask tell what an object looks like but neither where it is nor where it moves. A token that
stands for a run of frames gets the box and the time of the run's first and last frame, what changed between them, and
what changed between the first and the last of all frames that show the object: few frames show little of a movement.
"""

import math

import torch
from torch import Tensor, nn

from model.token_merge import Merged

NUM_OCTAVES = 6
"""Waves per value, each twice as fast as the one before; the slowest is half a wave over the whole frame or span."""

WIDTH = 256
"""Hidden width of the MLP."""


class ObjectPosition(nn.Module):
    """Fourier features of first box and time, last box and time, and both changes, through Linear, GELU, Linear.

    The last layer starts at zero: the encoder begins as the one without positions, so a trained one can be given them
    without harm. What begins anew learns to read positions sooner where they start at the scale of the tokens
    (`model.embedded`). The values themselves, not only their waves, enter the MLP, and so do the changes, because a
    movement of a few pixels is a small difference of two large inputs.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        num_values = 4 * 5
        self.mlp = nn.Sequential(
            nn.Linear(num_values * (1 + 2 * NUM_OCTAVES), WIDTH), nn.GELU(), ZeroLinear(WIDTH, hidden_size)
        )

    def forward(self, boxes: Tensor, times: Tensor, merged: Merged) -> Tensor:
        """What is to be added to each token, (T, hidden).

        `boxes` (M, 4) xyxy shares and `times` (M,) shares of the span, of the rows that became `merged`, in order.
        """
        waves = position_features(boxes, times, merged)
        embedded: Tensor = self.mlp(waves.to(next(self.parameters()).dtype))
        return embedded


def position_features(boxes: Tensor, times: Tensor, merged: Merged) -> Tensor:
    """What `ObjectPosition` reads of each token, (T, 20 (1 + 2 `NUM_OCTAVES`)) float32; arguments as there."""
    seen = torch.cat([boxes, times[:, None]], 1).float()
    ends = merged.group_sizes.cumsum(0)
    first, last = seen[ends - merged.group_sizes], seen[ends - 1]
    token_ends = merged.num_tokens.cumsum(0)
    change = last[(token_ends - 1).repeat_interleave(merged.num_tokens)]
    change = change - first[(token_ends - merged.num_tokens).repeat_interleave(merged.num_tokens)]
    return fourier_features(torch.cat([first, last, last - first, change], 1))


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
