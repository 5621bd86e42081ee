"""What a training run is: which parts learn, how fast, on how much, and what is written down on the way."""

import math
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from schemas.record import Record, Share

Part = Literal["vision_tower", "connector", "object_encoder", "language_model", "adapter"]
"""Submodules of the model by their attribute; "adapter" are the low-rank matrices inside the language model."""


class AdapterSettings(Record):
    """Low-rank adapter (LoRA, Hu et al. 2021) of the language model's linear layers.

    A layer named in `targets` (the last part of its name, or "all-linear") gives W x + (alpha / rank) B A x. B starts
    at zero, so that training starts at the plain model. The paper trains none; it is for machines that cannot train
    the whole language model.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    targets: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "k_proj", "v_proj", "o_proj")


class TrainSettings(Record):
    """One training stage; the defaults are the paper's (appendix B.1): AdamW, cosine, warm-up 0.03, no decay, bf16.

    A run lasts `num_steps` optimiser steps (0 leaves the model as it begins, to be compared with) or, where that is
    None, `epochs` passes over the data. Each step takes
    `global_batch_size` samples over all ranks, `micro_batch_size` at a time on each; the product of ranks and
    `micro_batch_size` must divide it. With "bf16", trained weights and the optimiser stay in float32 and are cast for
    the pass, gradients are summed in float32, and frozen parts are held in bfloat16. A run stops once more samples
    were bad than chance gives where `max_bad_share` of the data are (`model.training.budget`), or after more than
    `max_skipped_in_row` steps in a row without a finite gradient.
    """

    parts: tuple[Part, ...] = Field(min_length=1)
    learning_rate: PositiveFloat
    global_batch_size: PositiveInt
    micro_batch_size: PositiveInt = 1
    epochs: PositiveFloat | None = None
    num_steps: NonNegativeInt | None = None
    warmup_share: Share = 0.03
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: PositiveFloat = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    activation_checkpointing: bool = False
    adapter: AdapterSettings | None = None
    seed: int = Field(default=0, ge=0, lt=2**31)
    checkpoint_every_steps: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    log_every_steps: PositiveInt = 10
    max_bad_share: Share = 0.01
    max_skipped_in_row: int = Field(default=5, ge=0)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.epochs is None) == (self.num_steps is None):
            raise ValueError(f"got epochs={self.epochs} and num_steps={self.num_steps}: give exactly one of them")
        if len(set(self.parts)) != len(self.parts):
            raise ValueError(f"parts {list(self.parts)} names one twice: name each once")
        if ("adapter" in self.parts) != (self.adapter is not None):
            raise ValueError('an adapter needs both: "adapter" in parts and its settings under `adapter`')
        if self.adapter is not None and "language_model" in self.parts:
            raise ValueError('parts names "adapter" and "language_model": train one of the two')
        return self

    def accumulation(self, world_size: int) -> int:
        """Micro-batches of one rank in one optimiser step; ValueError where the global batch does not divide so."""
        at_once = self.micro_batch_size * world_size
        if self.global_batch_size % at_once:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is no multiple of micro_batch_size"
                f" {self.micro_batch_size} x {world_size} ranks = {at_once}: change one of the three"
            )
        return self.global_batch_size // at_once

    def total_steps(self, samples_per_epoch: int) -> int:
        """Optimiser steps of the run; the last one is filled up from the epoch that follows."""
        if self.num_steps is not None:
            return self.num_steps
        assert self.epochs is not None
        return max(math.ceil(self.epochs * samples_per_epoch / self.global_batch_size), 1)


FREE_ON_RESUME = frozenset(
    {
        "micro_batch_size",
        "activation_checkpointing",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "log_every_steps",
        "max_bad_share",
        "max_skipped_in_row",
    }
)
"""Settings that may differ between a run and its continuation: they leave what is learnt the same."""
