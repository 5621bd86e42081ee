"""The watch of a run: Cancel on its page and a lost server end what is under way; a busy server does not."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows import run_watch
from flows.run_watch import CancelledOnPageError, ServerLostError, watched_run

pytestmark = pytest.mark.timeout(60)

RUN = uuid4()


class FakeServer(BaseHTTPRequestHandler):
    """Tells the one run; a real server takes ten seconds to start and could not be told to be busy."""

    state = "RUNNING"
    status = 200

    def do_PATCH(self) -> None:
        self.send_response(204)
        self.end_headers()

    def do_GET(self) -> None:
        if self.path.startswith("/api/csrf-token"):  # which a real one answers so where it asks for none
            self.send_error(422)
            return
        state = {"type": self.state, "name": self.state.title()}
        told = {"id": str(RUN), "flow_id": str(uuid4()), "state": state, "state_type": self.state}
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(run_watch, "ASK_EVERY_S", 0.05)
    monkeypatch.setattr(FakeServer, "state", "RUNNING")
    monkeypatch.setattr(FakeServer, "status", 200)
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
            yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def as_in_a_flow() -> Iterator[None]:
    """What Prefect does with SIGTERM while a flow runs."""

    def handler(*_: object) -> None:
        raise TerminationSignal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, handler)
    yield
    signal.signal(signal.SIGTERM, before)


def work(seconds: float = 20.0) -> float:
    """Wait as a build does, in a lock; how long it was."""
    began_s = time.monotonic()
    threading.Event().wait(seconds)
    return time.monotonic() - began_s


@pytest.mark.parametrize("state", ["CANCELLING", "CANCELLED"])
def test_cancel_ends_what_is_under_way(server: ThreadingHTTPServer, state: str) -> None:
    tidied = []
    began_s = time.monotonic()
    threading.Timer(0.5, lambda: setattr(FakeServer, "state", state)).start()
    with (
        pytest.raises(CancelledOnPageError, match="the same command goes on from here"),
        watched_run(RUN),
        closing(SimpleNamespace(close=lambda: tidied.append(True))),
    ):
        work()
    assert tidied
    assert time.monotonic() - began_s < 10


def test_a_lost_server_ends_it_and_nothing_tries_again(server: ThreadingHTTPServer) -> None:
    threading.Timer(0.3, lambda: (server.shutdown(), server.server_close())).start()
    with pytest.raises(ServerLostError, match=r"not for \d+ s"), watched_run(RUN, lost_after_s=1.0):
        work()
    assert PREFECT_CLIENT_MAX_RETRIES.value() == 0


def test_a_run_that_goes_on_is_left_alone_though_the_server_is_busy(server: ThreadingHTTPServer) -> None:
    with watched_run(RUN, lost_after_s=0.5):
        assert work(1.0) >= 1.0
        FakeServer.status = 503
        assert work(1.5) >= 1.5


def test_a_sigterm_from_elsewhere_stays_one(server: ThreadingHTTPServer) -> None:
    with pytest.raises(TerminationSignal), watched_run(RUN):
        signal.raise_signal(signal.SIGTERM)


def test_after_the_block_no_signal_comes(server: ThreadingHTTPServer) -> None:
    for _ in range(20):
        FakeServer.state = "RUNNING"
        try:
            with watched_run(RUN):
                FakeServer.state = "CANCELLING"
                time.sleep(0.05)
        except CancelledOnPageError:
            pass
        time.sleep(0.01)
    work(0.3)


def test_in_another_thread_nothing_is_watched(server: ThreadingHTTPServer) -> None:
    FakeServer.state = "CANCELLING"
    done: list[UUID] = []

    def run() -> None:
        with watched_run(RUN):
            time.sleep(0.5)
            done.append(RUN)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [RUN]
