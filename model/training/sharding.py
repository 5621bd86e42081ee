"""Ranks: the process group, and the model split over them (FSDP2)."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from model.training.parts import COMPUTE_DTYPE, part, trained
from model.training.settings import TrainSettings


@contextlib.contextmanager
def process_group() -> Iterator[torch.device]:
    """The device of this rank, inside the process group that is there or else in one of this process alone.

    A group of one takes the GPU if there is one, and keeps its addresses in memory; it needs no port and no file. It is
    taken down at the end.
    """
    if dist.is_initialized():
        yield group_device()
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield group_device()
    finally:
        dist.destroy_process_group()


def group_device() -> torch.device:
    """The device that this rank's process group works on: whoever started it on the CPU wants no GPU that is there."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def shard(model: PreTrainedModel, settings: TrainSettings, device: torch.device) -> None:
    """Splits the model over the ranks, in place: each block of the language model and of a trained tower is a unit.

    A frozen tower is not split but whole on each rank: ranks see different numbers of frames, so its passes need not
    be in step. Inputs are not cast here; the model casts to its parts' formats, and boxes and times stay float32.
    Up to here every rank holds the whole model in the host's memory: 4 bytes per trained parameter and 2 per frozen one
    (4 with "fp32"), so a node needs that many times as often as it has ranks. Training all of 8e9 parameters takes
    32 GB per rank before the split.

    Raises ValueError where ranks hold different weights to train (they would learn apart).
    """
    _check_same(model, device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=COMPUTE_DTYPE[settings.precision], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    tower, language_model = part(model, "vision_tower"), part(model, "language_model")
    whole: set[nn.Parameter] = set()
    if "vision_tower" not in settings.parts:
        tower.to(device)
        whole = set(tower.parameters())
    for block in [*(() if whole else blocks(tower)), *blocks(language_model)]:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=whole)
    model.to(device)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformer: those of its `_no_split_modules` that stand in lists."""
    names = {name for inner in module.modules() for name in getattr(inner, "_no_split_modules", None) or ()}
    lists = (inner for inner in module.modules() if isinstance(inner, nn.ModuleList))
    return [block for inner in lists for block in inner if type(block).__name__ in names]


def summed(values: list[float], device: torch.device) -> list[float]:
    """The given numbers, each summed over the ranks, in float64 so that counts stay exact."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(value) for value in total]


def _check_same(model: nn.Module, device: torch.device) -> None:
    """Compares one sum per trained parameter over the ranks, bit by bit."""
    names, sums = [], []
    for name, parameter in trained(model):
        names.append(name)
        sums.append(_sum(parameter))
    here = torch.stack(sums).to(device)
    low, high = here.clone(), here.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    if different := [name for name, same in zip(names, (low == high).tolist(), strict=True) if not same]:
        raise ValueError(
            f"{len(different)} weights differ between ranks, {different[0]} first: load or seed them alike on each"
        )


def _sum(parameter: Tensor) -> Tensor:
    return parameter.detach().abs().sum(dtype=torch.float64)
