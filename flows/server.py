"""The local Prefect server behind `videorefer up` and `down`, and where a build finds its server."""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
from filelock import FileLock
from pydantic import ValidationError

from infra.processes import began
from infra.settings import settings
from schemas.record import Record

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0


class ServerError(RuntimeError):
    """The server could not be started or stopped, in one line."""


class Server(Record):
    """A server that `up` started: its process, when that began, and where it listens."""

    pid: int
    began: str
    url: str

    @property
    def api_url(self) -> str:
        """The address that Prefect clients want."""
        return f"{self.url}/api"


_temporary: list[str] = []
"""API addresses of servers that end with this process; a second flow run of a process finds the first one's."""


def running_server() -> Server | None:
    """The server that `up` started, if it still answers."""
    server = _noted()
    return server if server and _runs(server) and _answers(server) else None


def start_server(port: int) -> tuple[Server, bool]:
    """Start the server on loopback and wait until it answers; True if it was not running before.

    The server keeps running when this process ends. Raises ServerError where the port is taken by something else or
    the server does not come up.
    """
    with FileLock(_state_file().with_suffix(".lock")):
        if server := running_server():
            return server, False
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise ServerError(
                    f"port {port} is taken: choose another with --port, or stop what listens there"
                ) from error
        log = _state_file().with_name("prefect-server.log")
        url = f"http://{HOST}:{port}"
        # the page asks the API at the address that the server is told, which is port 4200 unless said here
        env = os.environ | {"PREFECT_API_URL": f"{url}/api", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        server = Server(pid=process.pid, began=began(process.pid) or "", url=url)
        try:
            _wait_until_up(process, server, log)
        except BaseException:  # an interrupt too: without its note nothing could stop the server later
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        _state_file().write_text(server.model_dump_json())
        return server, True


def stop_server() -> Server | None:
    """Stop the server that `up` started, whether it answers or hangs; None if it does not run."""
    server = _noted()
    if server is None:
        return None
    stopped = _runs(server)
    if stopped:
        _signal(server, signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while _runs(server) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        if _runs(server):
            _signal(server, signal.SIGKILL)
    _state_file().unlink(missing_ok=True)
    return server if stopped else None


def point_prefect_at_server() -> bool:
    """Choose the server of this process, before a flow is imported; False where it is a temporary one.

    What the user has set counts first; then the server that `up` started; else one is started that ends with this
    process. Raises ServerError where that one does not come up.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # the terminal shows progress and errors in a line; logs and tracebacks are on the run's page
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    # a lost server is noticed by `flows.run_watch`; until a call gives up it holds the thread that made it
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "3")
    if "PREFECT_API_URL" in os.environ:
        return os.environ["PREFECT_API_URL"] not in _temporary
    server = running_server()
    if lasting := server.api_url if server else _chosen_in_profile():
        os.environ["PREFECT_API_URL"] = lasting
        return True
    os.environ["PREFECT_API_URL"] = _start_temporary()
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()  # looking for a choice has read the settings
    return False


def _chosen_in_profile() -> str | None:
    """The server that `prefect config set` or a file of settings names."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def _start_temporary() -> str:
    """Start a server that ends with this process, however this one ends, and return the address of its API.

    Its database is that of every server of this user, so what it was told outlives it.
    """
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        url = f"http://{HOST}:{probe.getsockname()[1]}"
    log = _state_file().with_name("prefect-temporary-server.log")
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.temporary_server", url.rpartition(":")[2]],
            env=os.environ | {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR"},  # which is the log here
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            start_new_session=True,  # a Ctrl-C at the terminal is not for it
        )
    assert process.stdin is not None
    server = Server(pid=process.pid, began=began(process.pid) or "", url=url)
    try:
        _wait_until_up(process, server, log)
    except BaseException:
        process.kill()
        process.wait()
        raise
    _temporary.append(server.api_url)
    atexit.register(_end_temporary, process)  # runs after Prefect has told its last, which it does before `atexit`
    return server.api_url


def _end_temporary(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _state_file() -> Path:
    folder = settings().cache_dir
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "prefect-server.json"


def _noted() -> Server | None:
    """The server that `up` noted last; a note that was cut off is none."""
    state = _state_file()
    try:
        return Server.model_validate_json(state.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _wait_until_up(process: "subprocess.Popen[bytes]", server: Server, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not _answers(server):
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise ServerError(f"the Prefect server did not come up; its log: {log}")
        time.sleep(0.3)


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.api_url}/health", timeout=2.0).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _signal(server: Server, number: signal.Signals) -> None:
    """Signal the server and the processes that it started; it may have ended a moment ago."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, number)


def _runs(server: Server) -> bool:
    """Whether the noted process runs: its number may be another's by now, its number and beginning are not."""
    with suppress(ChildProcessError):  # started by this very process: it would stay a zombie until waited for
        os.waitpid(server.pid, os.WNOHANG)
    return began(server.pid) == server.began
