"""The lasting Ray behind `videorefer up` and `down`, in a process of its own (`flows.ray_head`)."""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from flows.server import DATABASE
from flows.started import Ray, is_free, note_file, note_part, noted
from infra.processes import began
from infra.ray_address import LOOPBACK, knock
from schemas.record import Record

NUM_CPUS = 64
"""Places for actors, not cores: on one machine they share cores, and would wait for a place for ever."""
DASHBOARD_PORT = 8265
METRICS_PORT = 9464
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
_END_S = 15.0
"""How long the processes of a Ray whose holder was killed may need to end by themselves."""


class LocalRayError(RuntimeError):
    """The lasting Ray could not be started, in one line."""


class RayPlace(Record):
    """Where a Ray that was started is found, as its process says it."""

    address: str
    dashboard_url: str


def running_ray() -> Ray | None:
    """The Ray that `up` started, if its process runs and its address answers."""
    found = noted().ray
    if found is None or not found.runs:
        return None
    with suppress(OSError):
        knock(found.address)
        return found
    return None


def start_local_ray(
    dashboard_port: int = DASHBOARD_PORT, metrics_port: int = METRICS_PORT, num_cpus: int = NUM_CPUS
) -> tuple[Ray, bool]:
    """Start a Ray with its dashboard and wait until drivers can join it; True if it was not running before.

    It keeps running when this process ends. Raises LocalRayError where a port is taken by something else or Ray does
    not come up.
    """
    with FileLock(note_file().with_suffix(".lock")):
        if found := running_ray():
            return found, False
        before = noted().ray
        if before is not None:  # it hangs, or the machine has another address now
            before.stop(STOP_TIMEOUT_S)
            before.end_rest()
        free_by_s = time.monotonic() + (_END_S if before is not None else 0.0)
        _wait_until_free(LOOPBACK, dashboard_port, "--ray-dashboard-port", free_by_s)
        _wait_until_free("", metrics_port, "--ray-metrics-port", free_by_s)
        found = _start(num_cpus, dashboard_port, metrics_port)
        note_part("ray", found)
        return found, True


def stop_local_ray() -> Ray | None:
    """Stop the Ray that `up` started, and what runs on it; None if it does not run."""
    found = noted().ray
    if found is None:
        return None
    stopped = found.stop(STOP_TIMEOUT_S)
    found.end_rest()
    note_part("ray", None)
    return found if stopped else None


def _wait_until_free(host: str, port: int, option: str, until_s: float) -> None:
    while not is_free(host, port):
        if time.monotonic() > until_s:
            raise LocalRayError(
                f"port {port} is taken: choose another with {option}, or stop what listens there, or do without a "
                "lasting Ray with --no-ray"
            )
        time.sleep(0.5)


def _start(num_cpus: int, dashboard_port: int, metrics_port: int) -> Ray:
    asked = map(str, (num_cpus, dashboard_port, metrics_port))
    with _log_file().open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.ray_head", *asked],
            env={name: value for name, value in os.environ.items() if name != DATABASE},
            cwd=note_file().parent,  # the folder of whoever called may go while Ray's workers stand in it
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=out,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        with process.stdout as answer:
            has_answered = bool(select.select([answer], [], [], START_TIMEOUT_S)[0])
            place = _place(answer.readline().decode().strip() if has_answered else "")
    except BaseException:  # an interrupt too: without its note nothing could stop it later
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return Ray(
        pid=process.pid,
        began=began(process.pid) or "",
        address=place.address,
        dashboard_url=place.dashboard_url,
        num_cpus=num_cpus,
    )


def _place(said: str) -> RayPlace:
    try:
        return RayPlace.model_validate_json(said)
    except ValidationError:
        raise LocalRayError(said or f"Ray did not come up; its log: {_log_file()}") from None


def _log_file() -> Path:
    return note_file().with_name("ray.log")
