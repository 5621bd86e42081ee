"""What the doctor looks at of a machine: versions, disk and access."""

import platform
import shutil
import uuid
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flows.finding import Finding
from infra.lake import Lake, LakeError
from infra.settings import settings

FREE_DISK_GIB = 3
DISTRIBUTION = "videorefer"
SHOWN = ("ray", "prefect", "torch", "transformers")
"""Of all that is installed, the versions that are said; the others are where they are not what they should be."""


def check_python() -> Finding:
    """The interpreter against what the installed package asks for."""
    found = platform.python_version()
    wanted = SpecifierSet(metadata(DISTRIBUTION)["Requires-Python"] if _version(DISTRIBUTION) else "")
    ok = found in wanted
    mend = "" if ok else f"use Python {wanted}: make PYTHON=python3.11 install"
    return Finding(what="Python", ok=ok, detail=found, mend=mend)


def check_versions() -> Finding:
    """What is installed against what the installed package asks for."""
    if not _version(DISTRIBUTION):
        detail = f"{DISTRIBUTION} is not installed here, so nothing says which versions it was tried with"
        return Finding(what="versions", ok=False, detail=detail, mend="in its folder: make install, or pip install .")
    needs = [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    installed = {need.name: _version(need.name) for need in needs if need.marker is None or need.marker.evaluate()}
    wrong = [need for need in needs if need.name in installed and not _fits(need, installed[need.name])]
    said = [f"{name} {installed[name]}" for name in SHOWN if installed.get(name)]
    said += [f"{need.name} is {installed[need.name] or 'missing'}, wanted {need.specifier}" for need in wrong]
    mend = f"pip install {' '.join(repr(f'{need.name}{need.specifier}') for need in wrong)}" if wrong else ""
    return Finding(what="versions", ok=not wrong, detail=", ".join(said), mend=mend)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _fits(need: Requirement, found: str) -> bool:
    return bool(found) and need.specifier.contains(found, prereleases=True)


def check_disk() -> Finding:
    """Room in, and access to, the cache folder."""
    folder = settings().cache_dir
    other = "set VIDEOREFER_CACHE to a folder that can be written"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Finding(what="disk", ok=False, detail=f"cannot write to {folder}: {error.strerror}", mend=other)
    free_gib = shutil.disk_usage(folder).free / 2**30
    ok = free_gib >= FREE_DISK_GIB
    return Finding(
        what="disk",
        ok=ok,
        detail=f"{free_gib:.1f} GiB free in {folder}, and it can be written",
        mend="" if ok else f"free {FREE_DISK_GIB} GiB, or set VIDEOREFER_CACHE to a larger disk",
    )


def check_lake(address: str) -> Finding:
    """Whether the lake can be written; a folder that is not there yet is made, as a build would."""
    try:
        Lake(address).check_writable()
    except LakeError as error:
        mend = "name another folder with --lake, or mend the access to it; an object store wants its credentials here"
        return Finding(what="lake", ok=False, detail=str(error), mend=mend)
    room = "" if "://" in address else f", {shutil.disk_usage(address).free / 2**30:.1f} GiB free"
    return Finding(what="lake", ok=True, detail=f"{address} can be written{room}")
