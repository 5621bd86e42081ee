"""From a trained, split model to a folder that loads like any other model."""

import shutil
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, ProcessorMixin

from model.training.parts import merge_adapters


def export_pretrained(model: PreTrainedModel, processor: ProcessorMixin, out: Path, dtype: torch.dtype) -> None:
    """Writes model and processor to the folder `out`, weights whole, adapters merged, floating weights in `dtype`.

    All ranks of the process group take part, if there is one; rank 0 writes. The folder appears by a rename, in the
    place of one that was there. Weights are gathered into the memory of rank 0, so that it must hold the whole model.
    Raises OSError where the folder cannot be written.
    """
    state = whole_state(model)
    if dist.is_initialized() and dist.get_rank() != 0:
        return
    tensors = merge_adapters(model, state)
    with torch.device("meta"):
        plain = _plain_class(model)(model.config)
    plain.load_state_dict(
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}, assign=True
    )
    plain.tie_weights()
    plain.generation_config = model.generation_config  # which a class builds anew from the configuration alone
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        plain.save_pretrained(partial)
        processor.save_pretrained(partial)
        _put(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def whole_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All weights of a model that may be split, by name, on the CPU of rank 0; empty on other ranks."""
    options = StateDictOptions(full_state_dict=dist.is_initialized(), cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    # after a group of one process is gone, its only part is the whole
    return {
        name: value.to_local() if isinstance(value, DTensor) else cast("torch.Tensor", value)
        for name, value in state.items()
    }


def _plain_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The model's own class, under the one that splitting put over it."""
    return next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))


def _put(partial: Path, out: Path) -> None:
    """Renames a folder to a name that may be taken: a folder with content cannot be renamed over."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
