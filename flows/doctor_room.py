"""Whether a profile's workers and vLLM servers find room: GPUs of this machine, or CPUs, GPUs and nodes of a cluster.

Torch is loaded only for a profile that asks for GPUs, and Ray only to ask a cluster.
"""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from flows.finding import Finding
from flows.profile_config import ROLES, Profile, Resources

_CLUSTER = "--ray host:port"


class Need(NamedTuple):
    """An agent's workers or a section's vLLM servers: how many, and what each takes of one node."""

    name: str
    number: int
    cpus: float
    gpus: float


class Node(NamedTuple):
    """What Ray hands out of one machine."""

    cpus: float
    gpus: float


def needs_of(profile: Profile) -> list[Need]:
    """What Ray must find room for in a run."""
    found = [(role, profile.batching(role)) for role in ROLES]
    workers = [Need(role, it.workers, it.cpus, it.gpus) for role, it in found if isinstance(it, Resources)]
    return workers + [Need(f"vLLM {vllm.name}", vllm.replicas, vllm.cpus, vllm.gpus) for vllm in profile.vllm]


def gpus_needed(shares: Iterable[float]) -> int:
    """How many GPUs workers with these shares take, each share below one on a single GPU: first fit, largest first."""
    whole, rooms = 0, list[float]()
    for share in sorted(shares, reverse=True):
        if share >= 1:
            whole += int(-(-share // 1))
            continue
        place = next((i for i, room in enumerate(rooms) if room >= share - 1e-9), None)
        if place is None:
            rooms.append(1 - share)
        else:
            rooms[place] -= share
    return whole + len(rooms)


def check_room(needs: Sequence[Need], ray_address: str | None) -> list[Finding]:
    """What is asked for, against the cluster at `ray_address`, or the GPUs that torch sees here.

    A Ray of this machine is started with CPUs enough, which workers then share.
    """
    if ray_address is None:
        return [_gpus_of_machine(needs)]
    try:
        nodes = _nodes(ray_address)
    except RuntimeError as error:
        return [Finding(what="room", ok=False, detail=str(error), mend=f"name a cluster that runs with {_CLUSTER}")]
    where = f"at {ray_address}"
    cpus_needed, cpus = sum(need.number * need.cpus for need in needs), sum(node.cpus for node in nodes)
    of_cpus = ", ".join(f"{need.name} {need.number} x {need.cpus:g}" for need in needs)
    return [
        _sum("CPUs", cpus_needed, of_cpus or "none", cpus, where),
        _gpus(needs, int(sum(node.gpus for node in nodes)), where),
        _largest(needs, nodes, where),
    ]


def _sum(what: str, needed: float, asked: str, there: float, where: str) -> Finding:
    lacking = round(needed - there, 6)
    detail = f"{needed:g} needed ({asked}), {there:g} {where}" + (f": {lacking:g} lacking" if lacking > 0 else "")
    mend = f"lower `workers` or `{what.lower()}` in these sections, or join a cluster that has them: {_CLUSTER}"
    return Finding(what=what, ok=lacking <= 0, detail=detail, mend=mend if lacking > 0 else "")


def _gpus(needs: Sequence[Need], there: int, where: str) -> Finding:
    wanted = [need for need in needs if need.gpus]
    if not wanted:
        return Finding(what="GPUs", ok=True, detail="none asked for")
    asked = ", ".join(f"{need.name} {need.number} x {need.gpus:g}" for need in wanted)
    return _sum("GPUs", gpus_needed(need.gpus for need in wanted for _ in range(need.number)), asked, there, where)


def _largest(needs: Sequence[Need], nodes: Sequence[Node], where: str) -> Finding:
    """Whether each worker and server fits on some node, as one cannot be torn over two."""
    for need in needs:
        if not any(node.cpus >= need.cpus and node.gpus >= need.gpus for node in nodes):
            most = max(nodes, key=lambda node: (node.gpus, node.cpus), default=Node(0, 0))
            detail = (
                f"{need.name}: each takes {need.gpus:g} GPUs and {need.cpus:g} CPUs of one node, and the largest "
                f"{where} has {most.gpus:g} and {most.cpus:g}"
            )
            return Finding(what="nodes", ok=False, detail=detail, mend="lower them there, or join a larger node")
    return Finding(what="nodes", ok=True, detail=f"{len(nodes)} {where}, and each worker fits on one")


def _gpus_of_machine(needs: Sequence[Need]) -> Finding:
    if not any(need.gpus for need in needs):
        return _gpus(needs, 0, "here")
    found = _gpus(needs, _gpus_here(), "here")
    if found.ok or not (build := _torch_without_gpus()):
        return found
    mend = f"install the build of torch for the driver here (pytorch.org/get-started), or join a cluster: {_CLUSTER}"
    return found.model_copy(update={"detail": f"{found.detail}; torch {build} is a build without CUDA", "mend": mend})


def _gpus_here() -> int:
    if find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count()


def _torch_without_gpus() -> str:
    """The version of a torch that was built for processors alone, empty for another and where there is none."""
    if find_spec("torch") is None:
        return ""
    import torch

    return "" if torch.version.cuda or torch.version.hip else str(torch.__version__)


def _nodes(address: str) -> list[Node]:
    import ray

    from infra.ray_cluster import start_ray

    with start_ray(address):
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(cpus=found.get("CPU", 0.0), gpus=found.get("GPU", 0.0)) for found in alive]
