"""Start a small Ray on this machine, or join one that runs.

A Ray that is started here listens on ports of its own choice: control store, scheduler, object manager, agents, workers
and this process, on all interfaces of the machine; no option of `ray.init` keeps them to loopback. Whoever calls must
send Ray's token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, which Ray writes at its first start), or is
refused. Only pages of metrics and of health answer anyone. So the token is what guards the machine, and an environment
that turns it off is refused.
"""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray

OBJECT_STORE_BYTES = 256 * 2**20  # records only: frames never pass through Ray
_AUTH_MODE = "RAY_AUTH_MODE"
_KNOCK_S = 5.0
_LONGEST_FOLDER = 26  # a socket's whole path must stay under 104 characters, of which Ray and we take up to 77

_log = logging.getLogger(__name__)


class RayStartError(RuntimeError):
    """Ray did not start, or no cluster answers at the address given."""


@dataclass(frozen=True, slots=True)
class RayHandle:
    """The Ray that this process uses; `temp_dir` holds the files of one that was started here.

    `stop` leaves the cluster, and ends it where it was started here. As a context manager it stops on leaving.
    """

    temp_dir: Path | None
    is_owner: bool

    def stop(self) -> None:
        """Leave or end the cluster; does nothing where Ray was already in use before."""
        if self.is_owner:
            ray.shutdown()
        if self.temp_dir is not None:
            shutil.rmtree(self.temp_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def start_ray(address: str | None = None, num_cpus: int | None = None) -> RayHandle:
    """Join the cluster at `address`, or start one on this machine with `num_cpus` (None: all of them).

    What is started here has no dashboard, a small object store, and files in a new temporary folder that goes with it.
    Where this process uses Ray already, that one is taken. Raises RayStartError.
    """
    if ray.is_initialized():
        return RayHandle(temp_dir=None, is_owner=False)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray warns on every start of a change to come; set to 0 it makes that change: no GPU asked, none hidden
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray prints news of every dead worker on stdout, which belongs to the program; no option turns that off
    ray._private.worker.print_to_stdstream = _log_news
    return _start_here(num_cpus) if address is None else _join(address)


def _join(address: str) -> RayHandle:
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise RayStartError(
            f"cannot join the Ray cluster at {address}: {_first_line(error)}; it must run, with this user's Ray token"
        ) from error
    return RayHandle(temp_dir=None, is_owner=True)


def _knock(address: str) -> None:
    """Try the port first: Ray itself needs two minutes to give up, and then exits the process."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("an address is auto or host:port of the head node")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _start_here(num_cpus: int | None) -> RayHandle:
    _refuse_without_token()
    temp_dir = _short_temp_dir()
    try:
        # "local" said outright: without it Ray joins whatever cluster it finds on the machine
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(temp_dir),
        )
    except BaseException as error:
        with contextlib.suppress(Exception):
            ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)
        if isinstance(error, Exception):
            raise RayStartError(f"Ray did not start: {_first_line(error)}") from error
        raise
    return RayHandle(temp_dir=temp_dir, is_owner=True)


def _refuse_without_token() -> None:
    # Ray takes every value but "token" as "disabled", an empty one too, and asks for the token where there is none
    mode = os.environ.get(_AUTH_MODE, "token")
    if mode.lower() != "token":
        raise RayStartError(
            f"Ray would run commands of anyone on the network, because {_AUTH_MODE} is {mode!r}: unset it, or set it "
            "to 'token'"
        )


def _log_news(data: Mapping[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001 - Ray passes it by name
    _log.debug("Ray: %s", " ".join(data["lines"]))


def _short_temp_dir() -> Path:
    folder = tempfile.gettempdir()
    if len(folder) > _LONGEST_FOLDER:
        folder = "/tmp"  # noqa: S108 - mkdtemp makes a folder of its own there
    return Path(tempfile.mkdtemp(prefix="vr-", dir=folder))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
