"""The processes that `videorefer up` started, and the one note that says which they are."""

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from infra.processes import began
from infra.settings import settings
from infra.whole_file import write_whole
from schemas.record import Record


class StartedProcess(Record):
    """A process that leads a group of its own, and when it began."""

    pid: int
    began: str

    @property
    def runs(self) -> bool:
        """Whether the noted process runs: its number may be another's by now, its number and beginning are not."""
        runs = began(self.pid) == self.began
        # waited for only after it was looked at: one that ended in between would be seen gone, and stay a zombie
        with suppress(ChildProcessError):  # not started by this very process
            os.waitpid(self.pid, os.WNOHANG)
        return runs

    def stop(self, within_s: float) -> bool:
        """Ask it and its group to end, and kill them where they have not after `within_s`; False if it ran no more."""
        if not self.runs:
            return False
        self._signal(signal.SIGTERM)
        deadline_s = time.monotonic() + within_s
        while self.runs and time.monotonic() < deadline_s:
            time.sleep(0.2)
        if self.runs:
            self._signal(signal.SIGKILL)
        return True

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # it may have ended a moment ago
            os.killpg(self.pid, number)


class Server(StartedProcess):
    """A Prefect server, where it listens, and a hash of its database's address, empty for the default one."""

    url: str
    database: str = ""

    @property
    def api_url(self) -> str:
        """The address that Prefect clients want."""
        return f"{self.url}/api"


class Worker(StartedProcess):
    """A process worker, and the API that it asks for work; it listens nowhere."""

    api_url: str


class Ray(StartedProcess):
    """The process that holds a Ray, where drivers join it, its dashboard, and how many CPUs' worth of actors it takes.

    Ray's own processes are of its group; they, and the workers outside it, end when it does.
    """

    address: str
    dashboard_url: str
    num_cpus: int

    def end_rest(self) -> None:
        """Kill what is left of the group where the process itself is gone; until then its number is no other's."""
        if began(self.pid) is None:
            self._signal(signal.SIGKILL)


class Started(Record):
    """What runs, or ran when it was noted."""

    server: Server | None = None
    ray: Ray | None = None
    worker: Worker | None = None


def note_file() -> Path:
    """Where it is noted; the folder is made, and logs and locks lie beside."""
    folder = settings().cache_dir
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "prefect-server.json"


def noted() -> Started:
    """What `up` noted last; a note that was cut off is none."""
    file = note_file()
    try:
        return Started.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return Started()


def note(started: Started) -> None:
    """Note what runs; no note where nothing does."""
    if started == Started():
        note_file().unlink(missing_ok=True)
    else:
        write_whole(note_file(), started.model_dump_json().encode())


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def note_part(part: Literal["server", "ray", "worker"], process: StartedProcess | None) -> None:
    """Note one process, or that it runs no more; what is noted of the others stays."""
    note(noted().model_copy(update={part: process}))
