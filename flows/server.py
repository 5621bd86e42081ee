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

from flows.started import Server, is_free, note_file, note_part, noted
from infra.processes import began
from schemas.record import short_id

HOST = "127.0.0.1"
DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
HEARTBEAT_S = 30
"""How often a run says that it lives; the least that Prefect takes."""
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0


class ServerError(RuntimeError):
    """The server could not be started or stopped, in one line."""


_temporary: list[str] = []
"""API addresses of servers that end with this process; a second flow run of a process finds the first one's."""


def running_server() -> Server | None:
    """The server that `up` started, if it still answers."""
    server = noted().server
    return server if server and server.runs and _answers(server) else None


def start_server(port: int, database: str | None = None) -> tuple[Server, bool]:
    """Start the server on loopback and wait until it answers; True if it was not running before.

    The server keeps running when this process ends. `database` is an SQLAlchemy address; without it Prefect takes the
    one of its settings, which is an SQLite file where nothing is set. Raises ServerError where the port is taken by
    something else, the server does not come up, or runs already on another database.
    """
    mark = short_id(database) if database else ""  # the address may hold a password
    with FileLock(note_file().with_suffix(".lock")):
        if server := running_server():
            if database and server.database != mark:
                raise ServerError("the server runs already, on another database: first videorefer down")
            return server, False
        if not is_free(HOST, port):
            raise ServerError(f"port {port} is taken: choose another with --port, or stop what listens there")
        log = note_file().with_name("prefect-server.log")
        url = f"http://{HOST}:{port}"
        # the page asks the API at the address that the server is told, which is port 4200 unless said here
        env = os.environ | {"PREFECT_API_URL": f"{url}/api", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        if database:
            env |= {DATABASE: database}
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        server = Server(pid=process.pid, began=began(process.pid) or "", url=url, database=mark)
        try:
            _wait_until_up(process, server, log)
        except BaseException:  # an interrupt too: without its note nothing could stop the server later
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        note_part("server", server)
        return server, True


def stop_server() -> Server | None:
    """Stop the server that `up` started, whether it answers or hangs; None if it does not run."""
    server = noted().server
    if server is None:
        return None
    stopped = server.stop(STOP_TIMEOUT_S)
    note_part("server", None)
    return server if stopped else None


def point_prefect_at_server() -> bool:
    """Choose the server of this process, before a flow is imported; False where it is a temporary one.

    What the user has set counts first; then the server that `up` started; else one is started that ends with this
    process. Raises ServerError where that one does not come up.
    """
    quieten_prefect()
    # a lost server is noticed by `flows.run_watch`; until a call gives up it holds the thread that made it
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "3")
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", str(HEARTBEAT_S))
    if lasting := _lasting_api():
        os.environ["PREFECT_API_URL"] = lasting
        return True
    if os.environ.get("PREFECT_API_URL") not in _temporary:
        os.environ["PREFECT_API_URL"] = _start_temporary()
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()  # looking for a choice has read the settings
    return False


def lasting_api() -> str:
    """The API of the server that deployed runs are for, chosen as for other runs, before Prefect is imported.

    Raises ServerError where there is only a temporary one.
    """
    quieten_prefect()
    if lasting := _lasting_api():
        return lasting
    raise ServerError("no server runs here: first videorefer up, or name one in PREFECT_API_URL")


def named_api() -> str | None:
    """The API that runs of this machine report to, None where each has a temporary server of its own.

    Prefect, which takes a second, is loaded only where its own settings may name one.
    """
    if os.environ.get("PREFECT_API_URL") or running_server() or _has_prefect_settings():
        return _lasting_api()
    return None


def _has_prefect_settings() -> bool:
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    return any(path.is_file() for path in (home / "profiles.toml", Path("prefect.toml"), Path(".env")))


def _lasting_api() -> str | None:
    """The API that the user has set, or that of the server that `up` started: what outlasts this process."""
    if said := os.environ.get("PREFECT_API_URL"):
        return None if said in _temporary else said
    server = running_server()
    return server.api_url if server else _chosen_in_profile()


def quieten_prefect() -> None:
    """Have Prefect say nothing in this process, unless the user has chosen otherwise; before it is imported."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # the terminal shows progress and errors in a line; logs and tracebacks are on the run's page
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")


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
    log = note_file().with_name("prefect-temporary-server.log")
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


def _wait_until_up(process: "subprocess.Popen[bytes]", server: Server, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not _answers(server):
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise ServerError(f"the Prefect server did not come up; its log: {log}")
        time.sleep(0.3)


def _answers(server: Server) -> bool:
    return api_answers(server.api_url)


def api_answers(api_url: str) -> bool:
    """Whether a Prefect server answers at the address of its API."""
    try:
        return httpx.get(f"{api_url}/health", timeout=2.0).status_code == httpx.codes.OK
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
