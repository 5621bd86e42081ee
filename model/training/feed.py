"""What the loop takes from a loader, and the empty batch that keeps ranks in step."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

IGNORED = -100
"""The label of a token that the loss leaves out."""


class BadItem(NamedTuple):
    """A sample that was left out: `reason` is one word, `said` what was found, in one line."""

    item_id: str
    source: str
    reason: str
    said: str


class MicroBatch(NamedTuple):
    """What one rank passes through the model at once.

    `inputs` are keyword arguments of the model's `forward`, labels included, on the CPU; None where every sample was
    bad. `num_samples` good and `num_bad` bad samples were drawn for it; `bad` names the bad ones, as far as they have
    names.
    """

    inputs: Mapping[str, Tensor] | None
    num_samples: int
    num_bad: int
    bad: tuple[BadItem, ...] = ()


class Loader(Protocol):
    """Where one rank's micro-batches come from; `num_samples` are those of one epoch over all ranks.

    `micro_batches(step)` yields, without end, what this rank gets from optimiser step `step` (0-based) on, as many
    micro-batches to a step as `TrainSettings.accumulation` says. The same `step` gives the same batches again: that
    number is all a checkpoint holds of the data's position.
    """

    @property
    def num_samples(self) -> int: ...  # noqa: D102 - told by the class

    def micro_batches(self, step: int) -> Iterator[MicroBatch]: ...  # noqa: D102 - told by the class


def answer_tokens(inputs: Mapping[str, Tensor]) -> int:
    """How many tokens of a batch the loss is over: labels (B, L) that are not -100, but for the first position, which
    nothing predicts.
    """
    return int((inputs["labels"][:, 1:] != IGNORED).sum())


def num_tokens(inputs: Mapping[str, Tensor]) -> int:
    """Text and visual tokens of a batch without padding."""
    return int(inputs["attention_mask"].sum())


def stub_inputs() -> dict[str, Tensor]:
    """Two tokens of text without an answer: a pass over them has loss 0 and uses every part that learns."""
    ids = torch.zeros(1, 2, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full_like(ids, IGNORED)}
