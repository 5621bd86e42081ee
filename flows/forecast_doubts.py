"""What a measured build cannot tell of a larger one, in a line each with what to do about it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flows.plan import unit_size
from flows.profile_config import ROLES, Profile
from infra.builds import Manifest
from infra.work import CUTTING, AgentWork

_FOR_SPEED = frozenset(
    {"base_url", "batch_size", "concurrency", "cpus", "gpu_memory_utilization", "gpus", "replicas", "workers"}
)
"""Keys of a profile that change how fast agents work and nothing that they make, so that no label tells of them."""


def doubts(
    manifest: Manifest, measured: Mapping[str, AgentWork], profile: Profile, sample_clips: int, ray_address: str | None
) -> Iterator[str]:
    """The doubts about a forecast for `profile` from what the agents did in a build."""
    for role in ROLES:
        chat, clips = profile.chat(role), measured[role].clips
        if chat and clips < 2 * chat.concurrency:
            yield (
                f"{role}: {clips} clips never filled the window of {chat.concurrency}, and a full one makes replies "
                f"slower: --sample {2 * chat.concurrency} would tell"
            )
    unit = unit_size(profile, sample_clips)
    if sample_clips <= unit:
        said = "the sample is one unit, so no two agents were at work at once, nor slowed one another"
        yield f"{said}: --sample {3 * unit} would tell"
    if not any(entry.agent == CUTTING for entry in manifest.work):
        yield "the lake held the cut rows of the sample, so their cutting is left out: another --lake would tell"
    if any(entry.cost and entry.cost.load_s is None for entry in measured.values()):
        yield "the sample is of a version that did not measure loading, which is left out"
    place = manifest.asked.ray
    if place != ray_address:
        yield f"the sample was built on {_ray(place)}, and this is for {_ray(ray_address)}"
    yield from _other_resources(json.loads(manifest.profile_json), profile.model_dump(mode="json"))


def _ray(address: str | None) -> str:
    return f"the Ray at {address}" if address else "a Ray of its own machine"


def _other_resources(before: Any, now: Any) -> Iterator[str]:
    then, wanted = dict(_leaves(before)), dict(_leaves(now))
    shared = [key for key in wanted if key in then and key.rpartition(".")[2] in _FOR_SPEED]
    if other := [f"{key} was {then[key]}, not {wanted[key]}" for key in shared if then[key] != wanted[key]]:
        yield f"the sample was built with other resources: {', '.join(other)}"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested sections by its path, as `refiner.chat.concurrency`."""
    if not isinstance(value, dict | list):
        yield key, value
        return
    items = value.items() if isinstance(value, dict) else ((str(number), item) for number, item in enumerate(value))
    for name, item in items:
        yield from _leaves(item, f"{key}.{name}" if key else name)
