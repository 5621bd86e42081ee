"""The process worker behind `videorefer up` and `down`, which starts the runs of deployments.

It ends with its machine, as the server does; the next `up` starts it again and ends the runs that it left behind.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from flows.server import DATABASE, HEARTBEAT_S, ServerError
from flows.started import Server, Worker, note_file, note_part, noted
from infra.processes import ProcessMark, began

ASK_EVERY_S = 5
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0


def running_worker() -> Worker | None:
    """The worker that `up` started, if it runs."""
    worker = noted().worker
    return worker if worker and worker.runs else None


def start_worker(server: Server) -> tuple[Worker, bool]:
    """Start the worker and wait until the server knows it; True if it was not running before.

    Before, its work pool and the automations that watch over runs are set up, and runs that a worker of this machine
    took on and never began are ended. Raises ServerError where it does not come up.
    """
    from prefect.client.orchestration import SyncPrefectClient

    from flows.leftovers import end_lost_submissions
    from flows.work_pool import has_reported, prepare_pool, watch_over_runs

    name = worker_name()
    with (
        FileLock(note_file().with_suffix(".lock")),
        SyncPrefectClient(server.api_url) as client,
    ):
        watch_over_runs(client, prepare_pool(client))
        worker = running_worker()
        if worker and worker.api_url == server.api_url:
            return worker, False
        if worker:  # of a server that listened elsewhere
            worker.stop(STOP_TIMEOUT_S)
        end_lost_submissions(client, name)
        since = datetime.now(UTC)
        process = _start(server, name)
        worker = Worker(pid=process.pid, began=began(process.pid) or "", api_url=server.api_url)
        note_part("worker", worker)
        try:
            deadline_s = time.monotonic() + START_TIMEOUT_S
            while not has_reported(client, name, since):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise ServerError(f"the Prefect worker did not come up; its log: {_log()}")
                time.sleep(0.3)
        except BaseException:
            stop_worker()
            raise
        return worker, True


def stop_worker() -> Worker | None:
    """Stop the worker and the run that it has under way, which starts again with the next worker.

    None if it does not run.
    """
    worker = noted().worker
    if worker is None:
        return None
    runs = _runs_under_way(worker)
    for run in runs:
        with suppress(ProcessLookupError):
            os.kill(run.pid, signal.SIGTERM)
    stopped = worker.stop(STOP_TIMEOUT_S)
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    while any(run.runs for run in runs) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    note_part("worker", None)
    return worker if stopped else None


def worker_name() -> str:
    """What this machine's worker is called on the page, and on its runs."""
    return f"videorefer on {ProcessMark.of(os.getpid()).host}"


def _runs_under_way(worker: Worker) -> list[ProcessMark]:
    """As far as the server says; without it a run ends by itself."""
    from httpx import HTTPError
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from flows.leftovers import processes_of_worker

    with (
        suppress(HTTPError),
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        SyncPrefectClient(worker.api_url) as client,
    ):
        return processes_of_worker(client, worker_name())
    return []


def _start(server: Server, name: str) -> "subprocess.Popen[bytes]":
    from flows.work_pool import POOL

    own = {
        "PREFECT_API_URL": server.api_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
        "PREFECT_WORKER_QUERY_SECONDS": str(ASK_EVERY_S),
    }
    others = {name: value for name, value in os.environ.items() if name != DATABASE}  # which runs need not know
    command = ["worker", "start", "--pool", POOL, "--type", "process", "--name", name, "--install-policy", "never"]
    with _log().open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            env=others | own,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def _log() -> Path:
    return note_file().with_name("prefect-worker.log")
