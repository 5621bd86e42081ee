"""Sharded checkpoints of a run: each rank writes its part of what learns, and a rename makes the whole count.

A checkpoint is a folder `checkpoints/step-N` of the run's folder, which all ranks share. It is written under a hidden
name and renamed by rank 0 once every rank is done, so that a folder of that name is complete. It holds trained weights
and the optimiser's state (`torch.distributed.checkpoint`, which can be read by any number of ranks), the random state
of each rank and `checkpoint.json`. The schedule and the data's position are functions of the step.
"""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from model.training.settings import FREE_ON_RESUME, TrainSettings
from model.training.sharding import group_device, summed
from schemas.record import Record, content_id

_INFO = "checkpoint.json"
_FOLDER = re.compile(r"step-\d{8,}")
_OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or does not belong to the run that would go on from it."""


class Progress(Record):
    """How far a run is, summed over the ranks: finished steps, samples drawn, bad ones, steps without an update."""

    step: int = 0
    samples: int = 0
    bad_samples: int = 0
    skipped_steps: int = 0
    skipped_in_row: int = 0


class CheckpointInfo(Record):
    """What `checkpoint.json` holds; `settings_id` is the identity of those settings that a continuation must share."""

    progress: Progress
    num_steps: int
    finished: bool
    world_size: int
    settings_id: str
    settings: TrainSettings

    @classmethod
    def of(cls, progress: Progress, num_steps: int, settings: TrainSettings) -> Self:
        """The record of a checkpoint written now."""
        return cls(
            progress=progress,
            num_steps=num_steps,
            finished=progress.step >= num_steps,
            world_size=dist.get_world_size(),
            settings_id=content_id(json.dumps(_lasting(settings), sort_keys=True)),
            settings=settings,
        )

    def require_same_run(self, num_steps: int, settings: TrainSettings) -> None:
        """Raises CheckpointError, naming the settings, where they would change what this run learns."""
        before = _lasting(self.settings) | {"num_steps": self.num_steps}
        now = _lasting(settings) | {"num_steps": num_steps}
        if changed := [f"{name} was {before[name]!r}, is {now[name]!r}" for name in now if now[name] != before[name]]:
            raise CheckpointError(
                f"the checkpoint of step {self.progress.step} is of another run: {'; '.join(changed)}."
                " Take the old values, or another run folder"
            )


def _lasting(settings: TrainSettings) -> dict[str, Any]:
    return {name: value for name, value in settings.model_dump(mode="json").items() if name not in FREE_ON_RESUME}


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The complete checkpoint of the most steps, None where there is none; needs no process group."""
    return next(reversed(_complete(run_dir)), None)


def _complete(run_dir: Path) -> list[Path]:
    """Complete checkpoints by their steps; other names, such as a copy put aside as `step-00000002.bak`, are none."""
    folders = [folder for folder in (run_dir / "checkpoints").glob("step-*") if _FOLDER.fullmatch(folder.name)]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("step-")))


def agreed_checkpoint(run_dir: Path, wait_s: float = 30.0) -> Path | None:
    """`latest_checkpoint` as rank 0 sees it, on all ranks: a shared folder may show a rename late on other nodes.

    Raises CheckpointError on every rank where one does not see that checkpoint within `wait_s` seconds.
    """
    found = latest_checkpoint(run_dir) if dist.get_rank() == 0 else None
    told = [found.name if found is not None else None]
    dist.broadcast_object_list(told, src=0, device=group_device())
    (name,) = told
    if name is None:
        return None
    chosen = run_dir / "checkpoints" / name
    end_s = time.monotonic() + wait_s
    while not (seen := (chosen / _INFO).exists()) and time.monotonic() < end_s:
        time.sleep(0.1)
    (num_blind,) = summed([not seen], group_device())
    if num_blind:
        raise CheckpointError(
            f"rank 0 goes on from {name}, which {num_blind:.0f} of {dist.get_world_size()} ranks do not see in"
            f" {chosen.parent} after {wait_s:g} s: all ranks need the same run folder, on storage that they share"
        )
    return chosen


def read_info(checkpoint: Path) -> CheckpointInfo:
    """What a complete checkpoint says of itself."""
    return CheckpointInfo.model_validate_json((checkpoint / _INFO).read_bytes())


def save_checkpoint(run_dir: Path, model: nn.Module, optimiser: Optimizer, info: CheckpointInfo, keep: int) -> Path:
    """Writes a checkpoint with all ranks, then drops all but the newest `keep`.

    Raises CheckpointError on every rank where one could not write (a full disk, say); what was there before stays. An
    old checkpoint that cannot be deleted is let be.
    """
    final = run_dir / "checkpoints" / f"step-{info.progress.step:08d}"
    partial = final.with_name(f".{final.name}.partial")
    rank = dist.get_rank()

    def prepare() -> None:
        if rank == 0:
            for left in final.parent.glob(".step-*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir(parents=True)

    _together(partial, prepare)
    state: dict[str, Any] = {
        "model": get_model_state_dict(model, options=_OPTIONS),
        "optimiser": get_optimizer_state_dict(model, optimiser, options=_OPTIONS),
    }

    def write() -> None:
        save(state, checkpoint_id=partial)
        torch.save(_random_state(), _random_file(partial, rank))
        _sync(_random_file(partial, rank))

    def publish() -> None:
        if rank == 0:
            (partial / _INFO).write_text(info.model_dump_json(indent=1))
            _sync(partial / _INFO)
            _sync(partial)
            partial.rename(final)
            _sync(final.parent)

    _together(partial, write)
    _together(partial, publish)
    if rank == 0:
        for old in _complete(run_dir)[:-keep]:
            _drop(old)
    return final


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, would survive a power cut."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _drop(old: Path) -> None:
    """Deletes a checkpoint as far as it can be; what is left bears the name of an unfinished one."""
    left = old.with_name(f".{old.name}.partial")
    with contextlib.suppress(OSError):
        old.rename(left)
        shutil.rmtree(left, ignore_errors=True)


def load_checkpoint(checkpoint: Path, model: nn.Module, optimiser: Optimizer) -> None:
    """Reads weights and optimiser back into a model that is split alike or over another number of ranks.

    A rank that the checkpoint knows also takes up its random state.
    """
    state: dict[str, Any] = {
        "model": get_model_state_dict(model, options=_OPTIONS),
        "optimiser": get_optimizer_state_dict(model, optimiser, options=_OPTIONS),
    }
    load(state, checkpoint_id=checkpoint)
    set_model_state_dict(model, state["model"], options=_OPTIONS)
    set_optimizer_state_dict(model, optimiser, state["optimiser"], options=_OPTIONS)
    file = _random_file(checkpoint, dist.get_rank())
    if file.exists():
        states = torch.load(file, weights_only=True)
        torch.set_rng_state(states[0])
        if group_device().type == "cuda" and len(states) > 1:
            torch.cuda.set_rng_state(states[1])


def _random_state() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if group_device().type == "cuda" else [])]


def _random_file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"random-{rank}.pt"


def _together(partial: Path, action: Callable[[], None]) -> None:
    """Does `action` and waits for all ranks; where it failed on one, cleans up and raises on all."""
    failure: BaseException | None = None
    try:
        action()
    except (OSError, RuntimeError, CheckpointException) as error:  # torch turns a failed write into any of the three
        failure = error
    if summed([failure is not None], group_device())[0]:
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"could not write {partial.parent}: {failure or 'another rank failed'}. Make room or mend the folder and"
            " start again: the run goes on from its last checkpoint"
        ) from failure
