"""The actor behind `infra.ray_pool`: it keeps a child process in which the agent works, and imports none of that."""

import os
from dataclasses import dataclass
from typing import Literal

import ray
from ray.exceptions import RayError

from infra.child import AgentSetupError, Child, ChildLostError, ChildTimeoutError

_CLOSE_S = 2.0
_EVIDENCE_CHARS = 1500

Trouble = Literal["", "agent_died", "agent_timeout", "not_at_work", "does_not_start"]
"""What went wrong with a call: nothing; the agent's process died or was killed while at work on it; the process died
before it took the call up; the agent raised while it was set up."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an actor answers: a pickled result, or the trouble and its evidence."""

    worker: str
    result: bytes = b""
    trouble: Trouble = ""
    evidence: str = ""


class RayWorker:
    """The actor. Deaths of the agent's process come back as values; the next call starts another process."""

    def __init__(self, factory: bytes, timeout_s: float) -> None:
        self._factory = factory
        self._timeout_s = timeout_s
        self._child: Child | None = None

    def start(self) -> Reply:
        """Start the process and set its agent up."""
        return self._guarded(None)

    def work(self, jobs: bytes) -> Reply:
        """One call of the agent."""
        return self._guarded(jobs)

    def close(self) -> None:
        """Let the agent close."""
        if self._child is not None:
            self._child.close(_CLOSE_S)

    def _guarded(self, jobs: bytes | None) -> Reply:
        trouble: Trouble
        try:
            if self._child is None:
                self._child = Child(self._factory)
            result = b"" if jobs is None else self._child.work(jobs, self._timeout_s)
            return Reply(self._name(), result)
        except AgentSetupError as error:
            trouble, evidence = "does_not_start", str(error)
        except ChildLostError as error:
            trouble, evidence = "agent_died" if error.was_at_work else "not_at_work", str(error)
        except ChildTimeoutError as error:
            trouble, evidence = "agent_timeout", str(error)
        name = self._name()
        self._child = None
        return Reply(name, trouble=trouble, evidence=evidence)

    def _name(self) -> str:
        node_id = ray.get_runtime_context().get_node_id()
        return f"{node_id[:8]}:{self._child.pid if self._child else os.getpid()}"


def death_text(error: RayError) -> str:
    """What Ray says of an actor's death, without its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "exit" in line.lower() or "memory" in line.lower()]
    text = " ".join(told or lines[:1]).partition(" Some common causes include")[0]
    return f"{type(error).__name__}: {text}"[:_EVIDENCE_CHARS]
