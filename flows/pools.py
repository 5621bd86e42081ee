"""The pools of one build, started when their agent has work: a build with nothing stale starts no Ray."""

import threading
from contextlib import ExitStack
from typing import Any, Self

from flows.profile_config import ROLES, Profile, Role
from flows.ray_of_run import link_dashboard, use_ray
from flows.wiring import Site, agent_factory
from infra.pool import PoolError
from infra.ray_pool import RayPool


class Pools:
    """Ray and one pool per agent, made on first use and closed together."""

    def __init__(self, profile: Profile, site: Site, ray_address: str | None) -> None:
        self._profile = profile
        self._site = site
        self._ray_address = ray_address
        self._lock = threading.Lock()
        self._pools: dict[Role, RayPool[Any, Any]] = {}
        self._stack = ExitStack()
        self._is_closed = False

    @property
    def started(self) -> bool:
        """Whether Ray was needed."""
        return bool(self._pools)

    def losses(self, role: Role) -> int:
        """How many processes of an agent's workers were lost so far, each replaced by another."""
        pool = self._pools.get(role)
        return pool.losses if pool else 0

    def get(self, role: Role) -> RayPool[Any, Any]:
        """The pool of one agent."""
        with self._lock:
            if self._is_closed:
                raise PoolError("the pools are closed")
            if not self._pools:
                link_dashboard(self._stack.enter_context(use_ray(self._ray_address, self._num_cpus())))
            if role not in self._pools:
                needs = self._profile.resources(role)
                self._pools[role] = self._stack.enter_context(
                    RayPool(
                        agent_factory(role, self._profile, self._site),
                        num_workers=needs.workers,
                        batch_size=needs.batch_size,
                        timeout_s=needs.timeout_s,
                        max_attempts=needs.max_attempts,
                        num_cpus=needs.cpus,
                        num_gpus=needs.gpus,
                    )
                )
            return self._pools[role]

    def _num_cpus(self) -> int:
        """Enough for every pool at once: on a laptop actors share cores rather than wait for one for ever."""
        wanted = sum(needs.workers * needs.cpus for needs in map(self._profile.resources, ROLES))
        return int(-(-wanted // 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:  # a Ray that starts in another thread at this moment is waited for, then ended
            self._is_closed = True
            self._stack.close()
