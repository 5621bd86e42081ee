"""A thread that watches a build's run on the server: somebody may cancel it there, and the server may go away.

Prefect leaves both to others. A run that was started by hand has no worker that would act on Cancel, and a server that
is gone is noticed where a call to it has been tried again and again, minutes later.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings

from flows.leftovers import mark_run

ASK_EVERY_S = 2.0
ANSWER_S = 10.0
"""How long an answer may take before it counts as none."""
LOST_AFTER_S = 30.0
"""How long without an answer until the server counts as lost."""


class CancelledOnPageError(RuntimeError):
    """Somebody cancelled the run on its page, or through the server's API."""


class ServerLostError(RuntimeError):
    """The server has not answered for `LOST_AFTER_S`."""


@contextmanager
def watched_run(flow_run_id: UUID, lost_after_s: float = LOST_AFTER_S) -> Iterator[None]:
    """Watch a run meanwhile.

    What stops it is raised in the block as Prefect's TerminationSignal, the way of a SIGTERM, so that whatever is
    under way is tidied up alike, and leaves it as CancelledOnPageError or ServerLostError. Signals reach the main
    thread only; a run in another thread is not watched.
    """
    with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        mark_run(client, flow_run_id)  # without it a later command cannot tell that it is lost; its heartbeats still do
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch(flow_run_id, lost_after_s)
    watch.start()
    try:
        try:
            yield
        finally:
            watch.finish()
    except TerminationSignal:
        if watch.reason is None:
            raise
        raise watch.reason from None


class _Watch:
    def __init__(self, flow_run_id: UUID, lost_after_s: float) -> None:
        self.reason: CancelledOnPageError | ServerLostError | None = None
        self._flow_run_id = flow_run_id
        self._lost_after_s = lost_after_s
        self._settings = get_current_settings()
        self._lock = threading.Lock()
        self._finished = threading.Event()
        watch = partial(copy_context().run, self._watch)  # Prefect's settings are in the context
        self._thread = threading.Thread(target=watch, name="run-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def finish(self) -> None:
        """Stop watching; after this no signal comes."""
        self._finished.set()
        with self._lock:
            pass

    def _watch(self) -> None:
        answered_s = time.monotonic()
        no_retries = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
        with no_retries, get_client({"timeout": ANSWER_S}, sync_client=True) as client:
            while not self._finished.wait(ASK_EVERY_S):
                try:
                    if self._is_cancelled(client):
                        self._interrupt(CancelledOnPageError("cancelled in the UI; the same command goes on from here"))
                        return
                    answered_s = time.monotonic()
                except httpx.TransportError:
                    silent_s = time.monotonic() - answered_s
                    if silent_s >= self._lost_after_s:
                        self._interrupt(ServerLostError(f"not for {silent_s:.0f} s"))
                        return

    def _is_cancelled(self, client: SyncPrefectClient) -> bool:
        try:
            state = client.read_flow_run(self._flow_run_id).state
        except (PrefectException, httpx.HTTPStatusError):  # it does answer
            return False
        return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)

    def _interrupt(self, reason: CancelledOnPageError | ServerLostError) -> None:
        with self._lock:
            if self._finished.is_set():
                return
            self.reason = reason
            if isinstance(reason, ServerLostError):
                # whatever else waits for the server, in any thread, is not to try again either
                self._settings.client.max_retries = 0
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGTERM)  # to this thread, so that a wait in it ends
