"""Start a small Ray on this machine, or join one that runs.

A Ray that is started here listens on ports of its own choice: control store, scheduler, object manager, agents, workers
and this process, on all interfaces of the machine; no option of `ray.init` keeps them to loopback. Whoever calls must
send Ray's token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, which Ray writes at its first start), or is
refused. Only pages of metrics and of health answer anyone, and the dashboard's empty frame. So the token is what guards
the machine, and an environment that turns it off is refused.
"""

import contextlib
import ctypes
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # its stub lacks them

from infra.ray_address import LOOPBACK, knock
from infra.ray_folder import RayFolder

OBJECT_STORE_BYTES = 256 * 2**20  # records only: frames never pass through Ray
_INLINE_BYTES = 64 * 2**20
"""Of arguments and results, which up to this size go from process to process: where Ray dies, whoever uses its object
store at that moment is ended by it without a word."""
_AUTH_MODE = "RAY_AUTH_MODE"
_OURS = "VIDEOREFER_"

_log = logging.getLogger(__name__)


class RayStartError(RuntimeError):
    """Ray did not start, or no cluster answers at the address given."""


@dataclass(frozen=True, slots=True)
class RayPages:
    """Ports of what a Ray that is started here shows: its dashboard, on loopback, and its metrics for Prometheus."""

    dashboard_port: int
    metrics_port: int


@dataclass(frozen=True, slots=True)
class RayHandle:
    """The Ray that this process uses; `folder` holds the files of one that was started here.

    `dashboard_url` is empty where it has no dashboard, or was in use before. `stop` leaves the cluster, and ends it
    where it was started here. As a context manager it stops on leaving.
    """

    folder: RayFolder | None
    is_owner: bool
    dashboard_url: str = ""

    @property
    def temp_dir(self) -> Path | None:
        """Where a Ray that was started here keeps its files."""
        return self.folder.path if self.folder else None

    def stop(self) -> None:
        """Leave or end the cluster; does nothing where Ray was already in use before."""
        if self.is_owner:
            # between Ray's answer to SIGTERM and ours there is none: what comes meanwhile waits
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            try:
                with _own_sigterm():
                    ray.shutdown()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self.folder is not None:
            self.folder.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def start_ray(
    address: str | None = None, num_cpus: int | None = None, pages: RayPages | None = None, is_ours: bool = False
) -> RayHandle:
    """Join the cluster at `address`, or start one on this machine with `num_cpus` (None: all of them).

    What is started here has a small object store, no dashboard unless `pages` are asked for, and files in a new
    temporary folder that goes with it; the folders of such Rays whose process was killed are taken away now.
    A cluster that `is_ours` was started by this package on this machine: it is sent Ray's token, which Ray itself sends
    to no address unless told so by RAY_AUTH_MODE=token, and its workers get this process's VIDEOREFER_ variables.
    Where this process uses Ray already, that one is taken. Raises RayStartError.
    """
    if ray.is_initialized():
        return RayHandle(folder=None, is_owner=False)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray warns on every start of a change to come; set to 0 it makes that change: no GPU asked, none hidden
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray prints news of every dead worker on stdout, which belongs to the program; no option turns that off
    ray._private.worker.print_to_stdstream = _log_news
    with _own_sigterm():
        return _start_here(num_cpus, pages) if address is None else _join(address, is_ours)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM: Ray puts before it one that prints a stack and aborts the process three
    seconds later, when it still tidies up, and leaves none when it ends, so that the process would just die. Python's
    `signal.signal` would mend that in the main thread only; there Ray also puts a Python function in place of ours.
    """
    get, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    get.restype = put.restype = ctypes.c_void_p
    get.argtypes, put.argtypes = [ctypes.c_int], [ctypes.c_int, ctypes.c_void_p]
    handler, function = get(signal.SIGTERM), signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, function)
        put(signal.SIGTERM, handler)


def _join(address: str, is_ours: bool) -> RayHandle:
    variables = {name: value for name, value in os.environ.items() if is_ours and name.startswith(_OURS)}
    try:
        knock(address)
        if is_ours:
            _send_token()
        context = ray.init(
            address=address,
            runtime_env={"env_vars": variables} if variables else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RayStartError(
            f"cannot join the Ray cluster at {address}: {_first_line(error)}; it must run, and where it asks for a "
            f"token, this user must have it and set {_AUTH_MODE}=token"
        ) from error
    return RayHandle(folder=None, is_owner=True, dashboard_url=_url(context.dashboard_url))


def _send_token() -> None:
    """Have this process send the user's token to the cluster that it is about to join."""
    if _AUTH_MODE not in os.environ and AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        os.environ[_AUTH_MODE] = "token"
        Config.initialize("")  # Ray read its environment when it was imported


def _start_here(num_cpus: int | None, pages: RayPages | None) -> RayHandle:
    _refuse_without_token()
    folder = RayFolder.make()
    try:
        # "local" said outright: without it Ray joins whatever cluster it finds on the machine
        context = ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=pages is not None,
            dashboard_host=LOOPBACK,
            dashboard_port=pages.dashboard_port if pages else None,
            _metrics_export_port=pages.metrics_port if pages else None,
            object_store_memory=OBJECT_STORE_BYTES,
            _system_config={
                "max_direct_call_object_size": _INLINE_BYTES,
                "task_rpc_inlined_bytes_limit": _INLINE_BYTES,
            },
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder.path),
        )
    except BaseException as error:
        with contextlib.suppress(Exception):
            ray.shutdown()
        folder.remove()
        if isinstance(error, Exception):
            raise RayStartError(f"Ray did not start: {_first_line(error)}") from error
        raise
    return RayHandle(folder=folder, is_owner=True, dashboard_url=_url(context.dashboard_url))


def _url(host_and_port: str | None) -> str:
    return f"http://{host_and_port}" if host_and_port else ""


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


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
