"""The local Prefect server: started once, found again, stopped with all its processes."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from flows import server as server_module
from flows import started
from flows.server import (
    HOST,
    ServerError,
    point_prefect_at_server,
    running_server,
    start_server,
    stop_server,
)
from flows.started import Server, Started
from infra.processes import began
from infra.settings import settings


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path) -> Iterator[Path]:
    """A cache and a Prefect home of the test's own, and no server named by the environment, which is put back."""
    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    os.environ.update(VIDEOREFER_CACHE=str(tmp_path / "cache"), PREFECT_HOME=str(tmp_path / "prefect"))
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process with a group of its own, as a server has."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


@pytest.fixture
def healthy_url() -> Iterator[str]:
    """Where something that is not our server says that it is well."""

    class Well(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer((HOST, 0), Well) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{other.server_port}"
        other.shutdown()


def group_is_gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether no process of the group is left."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
def test_a_server_is_started_once_found_again_and_stopped_whole(free_port: int, own_folders: Path) -> None:
    assert running_server() is None
    server, is_new = start_server(free_port)
    try:
        assert is_new
        assert server.url == f"http://{HOST}:{free_port}"
        assert running_server() == server
        assert start_server(free_port + 1) == (server, False)
        point_prefect_at_server()
        assert os.environ["PREFECT_API_URL"] == server.api_url
    finally:
        began_s = time.monotonic()
        assert stop_server() == server
        took_s = time.monotonic() - began_s
    assert group_is_gone(server.pid)
    assert took_s < server_module.STOP_TIMEOUT_S, "it was killed, not stopped"
    assert running_server() is None
    assert stop_server() is None


def test_a_taken_port_is_one_clear_error(taken_port: int) -> None:
    with pytest.raises(ServerError, match=rf"^port {taken_port} is taken: .*--port.*$"):
        start_server(taken_port)
    assert running_server() is None


def test_a_server_that_does_not_come_up_names_its_log(free_port: int, own_folders: Path) -> None:
    (own_folders / "prefect").write_text("a file where Prefect wants a folder")
    with pytest.raises(ServerError, match=r"^the Prefect server did not come up; its log: (.*)$") as raised:
        start_server(free_port)
    assert Path(str(raised.value).rsplit(": ", 1)[1]).read_text()
    assert running_server() is None


def test_an_interrupted_start_leaves_no_server_behind(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Server] = []

    def interrupted(server: Server) -> bool:
        started.append(server)
        raise KeyboardInterrupt

    monkeypatch.setattr(server_module, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_server(free_port)
    assert group_is_gone(started[0].pid)
    assert stop_server() is None


def note(server: Server) -> Path:
    state = settings().cache_dir / "prefect-server.json"
    started.note(Started(server=server))
    return state


def test_a_process_that_only_bears_the_old_number_is_left_alone(
    sleeper: "subprocess.Popen[bytes]", healthy_url: str
) -> None:
    long_ago = str(int(began(sleeper.pid) or 0) - 1)
    state = note(Server(pid=sleeper.pid, began=long_ago, url=healthy_url))
    assert running_server() is None
    assert stop_server() is None
    assert not state.exists()
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.3)


def test_a_server_that_hangs_is_stopped_all_the_same(sleeper: "subprocess.Popen[bytes]", free_port: int) -> None:
    noted = Server(pid=sleeper.pid, began=began(sleeper.pid) or "", url=f"http://{HOST}:{free_port}")
    note(noted)
    assert running_server() is None
    assert stop_server() == noted
    assert group_is_gone(sleeper.pid)


def test_a_server_that_ended_before_its_signal_is_no_error(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = Server(pid=sleeper.pid, began=began(sleeper.pid) or "", url=f"http://{HOST}:1")
    note(noted)
    killpg = os.killpg

    def just_ended(pid: int, number: int) -> None:
        sleeper.kill()
        sleeper.wait()
        killpg(pid, number)

    monkeypatch.setattr(started.os, "killpg", just_ended)
    assert stop_server() == noted


def test_a_torn_note_of_the_server_counts_as_none(own_folders: Path) -> None:
    state = own_folders / "cache" / "prefect-server.json"
    state.parent.mkdir()
    state.write_text('{"pid": 1')
    assert running_server() is None
    assert stop_server() is None


def test_what_the_user_has_set_counts_first() -> None:
    os.environ.update(PREFECT_API_URL="http://elsewhere/api", PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="DEBUG")
    point_prefect_at_server()
    assert os.environ["PREFECT_API_URL"] == "http://elsewhere/api"
    assert os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] == "DEBUG"


def test_a_server_chosen_in_a_profile_of_prefect_counts(own_folders: Path) -> None:
    (own_folders / "prefect").mkdir()
    profiles = own_folders / "prefect" / "profiles.toml"
    profiles.write_text('active = "x"\n[profiles.x]\nPREFECT_API_URL = "http://elsewhere/api"\n')
    told = subprocess.run([sys.executable, "-c", CHILD], input="", capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "http://elsewhere/api"]


CHILD = """
import os, sys, time
from flows.server import point_prefect_at_server
has_page = point_prefect_at_server()
print(has_page, os.environ["PREFECT_API_URL"], flush=True)
sys.stdin.read()
"""


def servers_of(folder: Path) -> list[int]:
    """The temporary servers that this test's processes started."""
    return [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if (command := said_by(process / "cmdline"))
        and b"flows.temporary_server" in command
        and os.fsencode(folder) in said_by(process / "environ")
    ]


def said_by(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.parametrize("number", [None, signal.SIGKILL])
def test_without_a_server_a_temporary_one_is_started_that_ends_with_its_process(
    own_folders: Path, number: signal.Signals | None
) -> None:
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        has_page, api_url = process.stdout.readline().split()
        assert has_page == "False"
        assert httpx.get(f"{api_url}/health").status_code == 200
        assert len(servers_of(own_folders)) == 1
        if number is not None:
            process.send_signal(number)
    deadline_s = time.monotonic() + 20.0
    while servers_of(own_folders) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    assert servers_of(own_folders) == []


@pytest.mark.slow
def test_a_temporary_server_that_does_not_come_up_names_its_log(own_folders: Path) -> None:
    (own_folders / "prefect").write_text("a file where Prefect wants a folder")
    with pytest.raises(ServerError, match=r"did not come up; its log: (.*)$") as raised:
        point_prefect_at_server()
    assert Path(str(raised.value).rsplit(": ", 1)[1]).read_text()
    assert servers_of(own_folders) == []
