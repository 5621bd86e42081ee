"""What a machine lacks for a profile, what it costs, and the command that mends it."""

import shutil
from collections.abc import Callable

from flows.doctor_checks import check_disk, check_lake, check_python, check_versions
from flows.doctor_room import check_room, needs_of
from flows.doctor_servers import check_chats, check_ports, check_prefect, check_ray, check_vllms
from flows.finding import Finding
from flows.profile_config import Profile, load_profile
from flows.train_base import EMBEDDED_WEIGHTS
from flows.wiring import packaged_weights, required_checkpoints
from infra.checkpoints import CheckpointError, checkpoint_folder
from infra.settings import settings
from infra.weights import CATALOGUE, FETCH_COMMAND, fetch, missing


def demo_material() -> tuple[str, ...]:
    """Names of the sample clips and photos that the demo and the synthetic clips are made of."""
    return tuple(name for name in CATALOGUE if name.startswith(("clip-", "photo-")))


def fetch_weights(profile_name: str, say: Callable[[str], None]) -> None:
    """Fetch what the profile's engines load, the small model that trainings begin with, and the demo's material.

    Sizes and licences are said first.
    """
    fetch((*_needed(load_profile(profile_name)), *demo_material()), say)


def examine(profile: Profile, lake: str | None = None, ray_address: str | None = None) -> list[Finding]:
    """Every finding for a profile on this machine, in the order in which they would stop a build.

    With `lake`, that one is written to; with `ray_address`, room is looked for in that cluster.
    """
    return [
        Finding(what="profile", ok=True, detail=f"{profile.name}: {profile.description}"),
        check_python(),
        check_versions(),
        check_disk(),
        *([] if lake is None else [check_lake(lake)]),
        *(_checkpoint(model) for model in dict.fromkeys(required_checkpoints(profile))),
        *_weights(_needed(profile)),
        _demo_clips(),
        check_prefect(),
        check_ray(ray_address),
        *check_room(needs_of(profile), ray_address),
        *check_vllms(profile, ray_address),
        *check_chats(profile),
        *check_ports(),
    ]


def _needed(profile: Profile) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*packaged_weights(profile), *EMBEDDED_WEIGHTS.values())))


def _checkpoint(model: str) -> Finding:
    try:
        folder = checkpoint_folder(model)
    except CheckpointError as error:
        fault, _, mend = str(error).partition("; ")
        return Finding(what=f"model {model}", ok=False, detail=fault, mend=mend)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Finding(what=f"model {model}", ok=True, detail=f"{size / 1e9:.1f} GB of weights in {folder}")


def _weights(names: tuple[str, ...]) -> list[Finding]:
    absent = {entry.name for entry in missing(names)}
    return [
        Finding(
            what=name,
            ok=name not in absent,
            detail=f"{CATALOGUE[name].role}; licence: {CATALOGUE[name].license}",
            mend=_fetch_with(name) if name in absent else "",
        )
        for name in names
    ]


def _fetch_with(name: str) -> str:
    entry = CATALOGUE[name]
    if settings().offline:
        return f"unset VIDEOREFER_OFFLINE, then: {FETCH_COMMAND}"
    if shutil.which(entry.client) is None and entry.client == "npm":
        return f"install npm (it comes with Node.js), then: {FETCH_COMMAND}"
    return f"{FETCH_COMMAND} ({entry.bytes / 1e6:.0f} MB from {entry.client})"


def _demo_clips() -> Finding:
    absent = missing(demo_material())
    detail = f"{len(demo_material()) - len(absent)} of {len(demo_material())} sample clips and photos there"
    return Finding(what="demo", ok=True, detail=detail, mend=FETCH_COMMAND if absent else "")
