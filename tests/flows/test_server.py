"""The local Prefect server: started once, found again, stopped with all its processes."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import server as server_module
from flows.server import (
    HOST,
    Server,
    ServerError,
    point_prefect_at_server,
    running_server,
    start_server,
    stop_server,
)


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


def test_a_process_that_only_bears_the_old_number_is_left_alone(free_port: int, own_folders: Path) -> None:
    state = own_folders / "cache" / "prefect-server.json"
    state.parent.mkdir()
    stale = Server(pid=os.getpid(), url=f"http://{HOST}:{free_port}")
    state.write_text(stale.model_dump_json())
    assert running_server() is None
    assert stop_server() == stale
    assert not state.exists()


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


def test_without_a_server_prefect_is_left_to_start_its_own() -> None:
    point_prefect_at_server()
    assert "PREFECT_API_URL" not in os.environ
