"""Progress on a run's page: a bar for each agent or stage, updated while it works."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

from flows.profile_config import ROLES, Role
from flows.progress import AgentProgress

_LOG = logging.getLogger(__name__)

UPDATE_EVERY_S = 2.0
"""How often an artifact is written at most; each write is a call to the server."""


@contextmanager
def decoration() -> Iterator[None]:
    """Artifacts, tags and events adorn a run: a server that cannot take one costs that one, never the build."""
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        _LOG.warning("the run's page lacks something: %s", error)


class ProgressArtifact:
    """A bar on the run's page, made when it is first written."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._id: UUID | None = None

    def write(self, percent: float, text: str) -> None:
        """Show so much of the bar, with the text below it."""
        with decoration():
            if self._id is not None:
                update_progress_artifact(self._id, progress=percent, description=text)
                return
            made = create_progress_artifact(progress=percent, key=self._key, description=text)
            assert isinstance(made, UUID)
            self._id = made


class ArtifactProgress:
    """A progress artifact per agent, made at its first clip; the last count is always written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars = {role: ProgressArtifact(f"progress-{role}") for role in ROLES}
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
                agent = progress[role]
                self._bars[role].write(100.0 * agent.done / agent.total, agent.describe())
                self._shown[role] = progress[role]
                self._next_s[role] = now_s + UPDATE_EVERY_S
