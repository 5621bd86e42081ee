"""Progress on the run's page: one artifact per agent, updated while it works."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

from flows.profile_config import Role
from flows.progress import AgentProgress

_LOG = logging.getLogger(__name__)

UPDATE_EVERY_S = 2.0
"""How often an artifact is written at most; each write is a call to the server."""


@contextmanager
def decoration() -> Iterator[None]:
    """Artifacts adorn a run: a server that cannot take one costs the artifact, never the build."""
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        _LOG.warning("an artifact was not written: %s", error)


class ArtifactProgress:
    """A progress artifact per agent, made at its first clip; the last count is always written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: dict[Role, UUID] = {}
        self._shown: dict[Role, AgentProgress] = {}
        self._next_s: dict[Role, float] = {}

    def show(self, progress: dict[Role, AgentProgress]) -> None:
        """Write what changed, at most every `UPDATE_EVERY_S` seconds per agent."""
        now_s = time.monotonic()
        with self._lock:
            due = [
                role
                for role, agent in progress.items()
                if agent.done
                and agent != self._shown.get(role)
                and (agent.done == agent.total or now_s >= self._next_s.get(role, 0.0))
            ]
            for role in due:
                self._write(role, progress[role])
                self._shown[role] = progress[role]
                self._next_s[role] = now_s + UPDATE_EVERY_S

    def _write(self, role: Role, agent: AgentProgress) -> None:
        percent = 100.0 * agent.done / agent.total
        text = f"{role}: {agent.describe()}"
        with decoration():
            if role in self._ids:
                update_progress_artifact(self._ids[role], progress=percent, description=text)
            else:
                made = create_progress_artifact(progress=percent, key=f"progress-{role}", description=text)
                assert isinstance(made, UUID)
                self._ids[role] = made
