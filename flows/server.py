"""The local Prefect server behind `videorefer up` and `down`, and where a build finds its server."""

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
        server = Server(pid=process.pid, began=_began(process.pid) or "", url=url)
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


def point_prefect_at_server() -> None:
    """Choose the server of this process, before Prefect is imported.

    What the user has set counts first; then the server that `up` started; else Prefect starts a temporary one.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # a loaded laptop passes the default of 20 s
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    # the terminal shows progress and errors in a line; logs and tracebacks are on the run's page
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if "PREFECT_API_URL" not in os.environ and (server := running_server()):
        os.environ["PREFECT_API_URL"] = server.api_url


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
    return _began(server.pid) == server.began


def _began(pid: int) -> str | None:
    """When a process began, in words of the system that only serve to compare; None where there is no such process."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # the name, in brackets, may hold spaces; the beginning, in clock ticks from boot, is field 22 (proc(5))
        return stat.rpartition(")")[2].split()[19]
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    said = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}, check=False)
    return said.stdout.strip() or None
