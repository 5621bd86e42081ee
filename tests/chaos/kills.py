"""What happens to a build in a chaos trial: each kill takes a running driver and does one thing to it, for real."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx

MARK = "VIDEOREFER_CHAOS"
"""The variable in the environment of everything that a trial starts."""


def processes_of(mark: str) -> dict[int, str]:
    """Number and command of every process whose environment bears a mark that begins so."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                stat = (folder / "stat").read_text()
                if stat.rpartition(")")[2].split()[0] not in "ZX":
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
    return found


def parent_of(pid: int) -> int:
    """The number of a process's parent, 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


class Target:
    """A running build: its driver, the mark of its processes, its lake, and the API of the server that it talks to."""

    def __init__(self, driver: "subprocess.Popen[bytes]", mark: str, lake: Path, api_url: str, server_pid: int) -> None:
        self.driver = driver
        self.mark = mark
        self.lake = lake
        self.api_url = api_url
        self.server_pid = server_pid

    def wait_for(self, is_wanted: Callable[[int, str, dict[int, str]], bool]) -> int | None:
        """The first process of the trial that is wanted; None where the build ends before there is one."""
        while self.driver.poll() is None:
            found = processes_of(self.mark)
            if wanted := [pid for pid, command in found.items() if is_wanted(pid, command, found)]:
                return wanted[0]
            time.sleep(0.02)
        return None


def _kill(pid: int | None) -> str:
    if pid is None:
        return "the build ended before"
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return f"{pid} ended before"
    return f"SIGKILL to {pid}"


def kill_driver(target: Target) -> str:
    """SIGKILL to the driver."""
    return _kill(target.driver.pid)


def kill_actor(target: Target) -> str:
    """SIGKILL to a Ray actor in the middle of a call."""
    return _kill(target.wait_for(lambda _pid, command, _all: command == "ray::RayWorker.work"))


def kill_child(target: Target) -> str:
    """SIGKILL to the process of an agent in the middle of a call."""
    return _kill(
        target.wait_for(
            lambda pid, command, all_: "child_main" in command and all_.get(parent_of(pid), "") == "ray::RayWorker.work"
        )
    )


def kill_raylet(target: Target) -> str:
    """SIGKILL to Ray's node process."""
    return _kill(target.wait_for(lambda _pid, command, _all: "/raylet/raylet" in command.partition(" ")[0]))


def kill_server(target: Target) -> str:
    """SIGKILL to the Prefect server, lasting or temporary."""
    if target.server_pid:
        os.killpg(target.server_pid, signal.SIGKILL)
        return f"SIGKILL to the lasting server {target.server_pid}"
    said = _kill(target.wait_for(lambda _pid, command, _all: "flows.temporary_server" in command))
    return f"{said}, the temporary server"


def interrupt(target: Target) -> str:
    """Ctrl-C: SIGINT to the driver's whole process group, as a terminal does."""
    os.killpg(target.driver.pid, signal.SIGINT)
    return "SIGINT to the process group"


def terminate(target: Target) -> str:
    """SIGTERM to the driver."""
    target.driver.send_signal(signal.SIGTERM)
    return "SIGTERM"


def cancel(target: Target) -> str:
    """Cancel through the API, which is what the page's button does."""
    while target.driver.poll() is None:
        for run in runs_on(target.api_url, target.lake):
            if run["state_type"] == "RUNNING":
                asked = {"state": {"type": "CANCELLING"}}
                httpx.post(
                    f"{target.api_url}/flow_runs/{run['id']}/set_state", json=asked, timeout=30
                ).raise_for_status()
                return "Cancel"
        time.sleep(0.2)
    return "the build ended before"


def fill_disk(target: Target) -> str:
    """No room left: the lake's own small disk is filled; without one, no file of the driver may grow past 4 KiB."""
    if target.lake.parent.is_mount():
        with (target.lake.parent / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:  # the build writes too meanwhile, so that nobody knows how much is left
                file.write(bytes(65536))
        return "disk filled"
    try:
        resource.prlimit(target.driver.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    except ProcessLookupError:
        return "the build ended before"
    return "RLIMIT_FSIZE"


def runs_on(api_url: str, lake: Path) -> list[dict[str, str]]:
    """The flow runs of the builds on a lake, as the server tells them."""
    runs = httpx.post(f"{api_url}/flow_runs/filter", json={"sort": "START_TIME_DESC"}, timeout=30).json()
    return [run for run in runs if run["parameters"].get("lake") == str(lake)]


KILLS: dict[str, Callable[[Target], str]] = {
    "driver": kill_driver,
    "actor": kill_actor,
    "agent child": kill_child,
    "raylet": kill_raylet,
    "server": kill_server,
    "ctrl-c": interrupt,
    "sigterm": terminate,
    "cancel": cancel,
    "disk full": fill_disk,
}
TWO = "two at once"
KINDS = (*KILLS, TWO)
ENDS: dict[str, set[int]] = {
    "driver": {-signal.SIGKILL},
    "actor": set(),
    "agent child": set(),
    "raylet": {1},
    "server": {1},
    "ctrl-c": {130},
    "sigterm": {130, -signal.SIGTERM},  # the latter before the command line is up
    "cancel": {130},
    "disk full": {1},
}
"""How a build may end that was hit; 0 always: it may have been through already, or not have minded."""
