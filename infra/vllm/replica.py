"""The actor behind `infra.vllm.servers`: it keeps one server on the node that Ray chose, with the GPUs Ray gave it."""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from infra.vllm.place import Place
from infra.vllm.process import VllmError, VllmProcess, is_healthy
from infra.vllm.settings import VllmSettings

_LOOK_S = 0.5
_HEALTH_EVERY_S = 15.0
_HEALTH_ANSWER_S = 15.0
_MAX_SICK_LOOKS = 12
"""Looks in a row, three to six minutes, without a word that the server is well; a loaded one is late by seconds."""


@dataclass(frozen=True, slots=True)
class Started:
    """How a start ended: where the server answers, or else the trouble it had."""

    place: Place | None
    trouble: str = ""


class VllmReplica:
    """The actor; its calls run in threads of their own, so that `stop` reaches it while it waits.

    The server dies with the actor's process (`infra.vllm.keeper`), and that with the run which is its owner.
    """

    def __init__(self, vllm: VllmSettings, models: Sequence[str], key: str, number: int) -> None:
        self._vllm = vllm
        self._models = tuple(models)
        self._key = key
        # beside Ray's own logs: the dashboard shows it, and it goes with them
        folder = Path(ray._private.worker._global_node.get_logs_dir_path())
        self._log = folder / f"vllm-{vllm.name}-{number}-{os.getpid()}.log"
        self._stopped = threading.Event()
        self._server: VllmProcess | None = None

    def start(self) -> Started:
        """Start the server, again where one ended before, and wait until it answers."""
        self._end()
        try:
            self._server = VllmProcess(self._vllm, self._models, self._log, ray.util.get_node_ip_address(), self._key)
            self._server.wait_healthy(self._vllm.start_timeout_s, self._stopped)
        except (VllmError, OSError) as error:
            self._end()
            return Started(None, str(error))
        return Started(self._server.place)

    def wait(self) -> str:
        """How the server ended, once it has, or that it hangs: it runs, and does not say that it is well."""
        assert self._server is not None, "start() comes first"
        well_s = looked_s = time.monotonic()
        sick_looks = 0
        while not self._stopped.wait(_LOOK_S):
            if how := self._server.end:
                return how
            if time.monotonic() - looked_s < _HEALTH_EVERY_S:
                continue
            is_well = is_healthy(self._server.place.url, _HEALTH_ANSWER_S)
            looked_s = time.monotonic()
            sick_looks = 0 if is_well else sick_looks + 1
            if is_well:
                well_s = looked_s
            elif sick_looks >= _MAX_SICK_LOOKS:
                return f"vLLM runs, but has not said for {looked_s - well_s:.0f} s that it is well"
        return "vLLM was stopped"

    def stop(self) -> None:
        """End the server; nothing is to be started any more."""
        self._stopped.set()
        self._end()

    def _end(self) -> None:
        if self._server is not None:
            self._server.stop()
