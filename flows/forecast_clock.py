"""How long a build lasts by the clock, from what each agent takes: who works side by side, who takes turns."""

from collections.abc import Mapping, Sequence

from flows.plan import unit_size
from flows.profile_config import ROLES, Profile, Resources, Role
from infra.forecasts import Clock, Sharing
from infra.work import WorkCost

PROCESSORS = "processors"
"""Name of what workers without a GPU share on one machine."""


def sharing_of(
    costs: Mapping[Role, WorkCost], walls: Mapping[str, float], profile: Profile, ray_address: str | None
) -> tuple[Sharing, ...]:
    """Who shares what, and how far they took turns on it in a sample, in which agents took `walls` and `costs`.

    Agents without a GPU share the processors of this machine where no cluster is joined, since the engines of each take
    all there are.
    """
    named = {role: _shared_by(role, profile, ray_address) for role in ROLES}
    names = dict.fromkeys(name for of_one in named.values() for name in of_one)
    found = {name: [role for role in ROLES if name in named[role]] for name in names}
    return tuple(
        Sharing(
            name=name, agents=tuple(roles), turns=_turns([costs[role] for role in roles], [walls[r] for r in roles])
        )
        for name, roles in found.items()
        if len(roles) > 1
    )


def _shared_by(role: Role, profile: Profile, ray_address: str | None) -> list[str]:
    needs = profile.batching(role)
    servers = [chat.base_url for chat in profile.chats(role).values()]
    on_processors = isinstance(needs, Resources) and not needs.gpus and ray_address is None
    return [*servers, PROCESSORS] if on_processors else servers


def _turns(costs: Sequence[WorkCost], walls: Sequence[float]) -> float:
    begins, loads = [cost.begin_s or 0.0 for cost in costs], [cost.load_s or 0.0 for cost in costs]
    ends = [begin + cost.elapsed_s for begin, cost in zip(begins, costs, strict=True)]
    by_the_clock = max(ends) - min(begins) - sum(loads)
    # less than the slowest cannot be, and more is time in which none of them worked
    return min(1.0, max(max(walls), by_the_clock) / sum(walls)) if sum(walls) else 1.0


def clock_of(
    walls: Mapping[str, float],
    sharing: Sequence[Sharing],
    *,
    loading_s: float,
    unit_share: float,
    cutting_s: float | None,
) -> Clock:
    """The clock of a build in which the agents take the seconds in `walls`, each with all its workers.

    Units overlap, so agents work side by side and the slowest decides, or those that take turns on what they share.
    Engines are loaded one after another, as the first unit reaches them. While it passes through the chain the slowest
    wait: that is `unit_share` of the others' times.
    """
    times: dict[tuple[str, ...], float] = {(name,): wall_s for name, wall_s in walls.items()}
    for shared in sharing:
        among = tuple(name for name in shared.agents if name in walls)
        if among:
            of_them = [walls[name] for name in among]
            times[among] = max(*of_them, shared.turns * sum(of_them), 0.0)
    bound_by = max(times, key=lambda among: times[among])
    return Clock(
        cutting_s=cutting_s,
        loading_s=loading_s,
        filling_s=unit_share * sum(wall_s for name, wall_s in walls.items() if name not in bound_by),
        bound_by=bound_by,
        bound_s=times[bound_by],
    )


def unit_share(profile: Profile, clips: int) -> float:
    """The part of a build that its first unit is."""
    return min(1.0, unit_size(profile, clips) / clips)


def gpus_held(role: Role, profile: Profile, workers: int) -> float:
    """GPUs that one agent's workers hold from its first clip to the end of the run."""
    needs = profile.batching(role)
    return workers * needs.gpus if isinstance(needs, Resources) else 0.0


def gpus_of_servers(profile: Profile) -> float:
    """GPUs of the vLLM servers that a run starts."""
    return sum(vllm.gpus * vllm.replicas for vllm in profile.vllm)
