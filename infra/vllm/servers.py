"""Replicas of a vLLM server under Ray, started for a run and ended with it; each is started again when it dies.

Ray places an actor for each (`infra.vllm.replica`) and gives it its GPUs. One thread here looks after each actor: it
learns the address, notes when the server or the whole actor is lost, with its node say, and has another start.
"""

import contextlib
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import ray
from ray.exceptions import RayError

from infra.ray_health import RayHealth
from infra.ray_worker import death_text
from infra.vllm.place import Place
from infra.vllm.replica import Started, VllmReplica
from infra.vllm.settings import VllmSettings

Log = Callable[[int, str], None]
"""Takes a logging level and a line."""

_LOOK_S = 1.0
_STOP_S = 30.0
_PLACING_S = 30.0
"""Ray places actors within seconds of each other, as far as there is room for them."""
_FORGIVEN_AFTER_S = 3600.0
"""Service after which what befell a replica before counts no more: over days, one failure has little to do with the
next."""


class _EndedError(Exception):
    """A replica that is no more; the text says how it came."""


class _ClosedError(Exception):
    """The run has no need of servers any more."""


class VllmServers:
    """The replicas of one model, as `infra.vllm.place.Replicas`; as a context manager they end on leaving.

    Ray must be running (`infra.ray_cluster.start_ray`), and the threads of this process are at work at once: nobody
    waits here for a server. `models` are the names by which the model is served; `log` is told who answers and who is
    lost. The key is drawn anew, so that nobody else on the network is served.

    While none ever answered, a replica whose start fails is given up, once those that start beside it have failed too:
    what kept them from it keeps the next one too. Afterwards one that fails, ends or hangs is started again,
    `max_restarts` times, and from the start of the count after an hour of service. Where no node has room for a replica
    it waits, as long as there is another; if there is none, it is given up after `start_timeout_s`.
    """

    def __init__(self, vllm: VllmSettings, models: Sequence[str], log: Log) -> None:
        self._vllm = vllm.resolved()
        self._log = log
        self._begin_s = time.monotonic()
        self._lock = threading.Lock()
        self._places: list[Place | None] = [None] * vllm.replicas
        self._placed: set[int] = set()
        self._starting: set[int] = set()
        self._has_answered = False
        self._given_up: dict[int, str] = {}
        self._closing = threading.Event()
        self._actor_class = ray.remote(VllmReplica).options(
            num_cpus=vllm.cpus,
            num_gpus=vllm.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=4,
            scheduling_strategy="SPREAD" if vllm.gpus else "DEFAULT",
        )
        self._arguments = (self._vllm, tuple(models), secrets.token_hex(16))
        self._threads = [
            threading.Thread(target=self._keep, args=(number,), name=f"vllm-{vllm.name}-{number}", daemon=True)
            for number in range(vllm.replicas)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def name(self) -> str:
        """What people call them."""
        return self._vllm.name

    @property
    def patience_s(self) -> float:
        """How long requests wait while no server answers: as long as a start may take."""
        return self._vllm.start_timeout_s

    def places(self) -> Sequence[Place | None]:
        """Where each answers; None for one that does not run at the moment."""
        with self._lock:
            return tuple(self._places)

    def failure(self) -> str:
        """Why none will ever answer again; empty as long as one may."""
        if self._closing.is_set():
            return f"the vLLM servers {self.name!r} are closed"
        with self._lock:
            return next(iter(self._given_up.values())) if len(self._given_up) == len(self._places) else ""

    def close(self) -> None:
        """End all servers."""
        self._closing.set()
        end_s = time.monotonic() + _STOP_S + 2 * _LOOK_S
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # From here on everything runs in the thread of one replica.

    def _keep(self, number: int) -> None:
        replica = _Replica(number, self._closing)
        restarts = 0
        try:
            while True:
                replica.answered_s = math.inf
                how = self._serve_once(replica)
                restarts = 1 if time.monotonic() - replica.answered_s > _FORGIVEN_AFTER_S else restarts + 1
                if restarts > self._vllm.max_restarts:
                    raise _EndedError(f"it ended for the {restarts}. time, the last time: {how}")
                again = f"started again, {restarts} of {self._vllm.max_restarts} times"
                self._log(logging.WARNING, f"vLLM {self.name}: replica {number + 1} is {again}: {how}")
        except _ClosedError:
            pass
        except _EndedError as error:
            self._give_up(number, str(error))
        except BaseException as error:
            self._give_up(number, repr(error))
            raise
        finally:
            self._placed.discard(number)
            replica.end()

    def _serve_once(self, replica: "_Replica") -> str:
        """From a start to the end of the server; returns how it ended.

        Raises _EndedError where there is no use in another start.
        """
        try:
            self._place_actor(replica)
            self._starting.add(replica.number)
            started: Started = replica.ask("start")
        except RayError as error:
            self._placed.discard(replica.number)
            replica.forget()
            return death_text(error)
        finally:
            self._starting.discard(replica.number)
        if started.place is None:
            while not self._has_answered and self._another_may_answer():
                replica.pause()
            if not self._has_answered:
                raise _EndedError(started.trouble)
            return started.trouble
        replica.answered_s = time.monotonic()
        self._has_answered = True
        self._put(replica.number, started.place)
        try:
            how: str = replica.ask("wait")
        except RayError as error:
            self._placed.discard(replica.number)
            replica.forget()
            how = death_text(error)
        self._put(replica.number, None)
        return how

    def _another_may_answer(self) -> bool:
        """Whether a replica starts, or may be about to."""
        is_being_placed = len(self._placed) + len(self._given_up) < self._vllm.replicas
        return bool(self._starting) or (is_being_placed and time.monotonic() - self._begin_s < _PLACING_S)

    def _place_actor(self, replica: "_Replica") -> None:
        if replica.actor is not None:
            return
        replica.actor = self._actor_class.remote(*self._arguments, replica.number)
        end_s = time.monotonic() + self._vllm.start_timeout_s
        while not replica.is_placed():
            if time.monotonic() > end_s and not self._placed:
                has = ray.cluster_resources()
                raise _EndedError(
                    f"Ray found no place for it in {self._vllm.start_timeout_s:g} s; each replica needs "
                    f"{self._vllm.needs}, the cluster has {has.get('CPU', 0):g} CPUs and "
                    f"{has.get('GPU', 0):g} GPUs, which others share"
                )
        self._placed.add(replica.number)

    def _put(self, number: int, place: Place | None) -> None:
        with self._lock:
            self._places[number] = place
            answer = sum(other is not None for other in self._places)
        if place is not None:
            took_s = time.monotonic() - self._begin_s
            self._log(
                logging.INFO,
                f"vLLM {self.name}: {answer} of {self._vllm.replicas} replicas answer after {took_s:.0f} s; "
                f"replica {number + 1} at {place.url}",
            )

    def _give_up(self, number: int, why: str) -> None:
        with self._lock:
            self._given_up[number] = told = f"vLLM {self.name}: replica {number + 1} is given up: {why}"
        self._log(logging.ERROR, told)


class _Replica:
    """An actor as its thread sees it."""

    def __init__(self, number: int, closing: threading.Event) -> None:
        self.number = number
        self.actor: Any = None
        self.answered_s = math.inf
        self._closing = closing
        self._health = RayHealth()
        self._placed: Any = None

    def is_placed(self) -> bool:
        """Whether the actor runs; waits a moment where it does not. Raises RayError where it died."""
        if self._placed is None:
            self._placed = self.actor.__ray_ready__.remote()
        if not self._has_come(self._placed):
            return False
        ray.get(self._placed)
        return True

    def ask(self, method: str) -> Any:
        """What a method of the actor returns, however long that takes."""
        ref = getattr(self.actor, method).remote()
        while not self._has_come(ref):
            pass
        return ray.get(ref)

    def forget(self) -> None:
        """The actor is dead."""
        self.end()
        self.actor = self._placed = None

    def end(self) -> None:
        """Have the actor stop its server, then end the actor."""
        if self.actor is None or not ray.is_initialized() or self._health.trouble(at_once=True):
            return
        with contextlib.suppress(RayError, ValueError):
            if self._placed is not None and ray.wait([self._placed], timeout=0)[0]:
                ray.wait([self.actor.stop.remote()], timeout=_STOP_S)
            ray.kill(self.actor)

    def pause(self) -> None:
        """Wait a moment."""
        self._check_run()
        self._closing.wait(_LOOK_S)

    def _has_come(self, ref: Any) -> bool:
        self._check_run()
        return bool(ray.wait([ref], timeout=_LOOK_S)[0])

    def _check_run(self) -> None:
        if self._closing.is_set():
            raise _ClosedError
        if trouble := self._health.trouble():
            raise _EndedError(trouble)
