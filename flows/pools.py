"""The pools of one build, started when their agent has work: a build with nothing stale starts no Ray."""

import logging
import math
import threading
from contextlib import AbstractAsyncContextManager, ExitStack
from functools import partial
from typing import Any, Self

from flows.profile_config import ROLES, Profile, Resources, Role
from flows.ray_of_run import link_dashboard, use_ray
from flows.wiring import Site, agent_factory, make_chat_agent
from infra.async_pool import AsyncPool
from infra.chat import Chat, ChatSettings
from infra.chat_client import ChatClient
from infra.pool import Pool, PoolError
from infra.ray_pool import RayPool
from infra.replicated_chat import ReplicatedChat
from infra.structured_chat import Connect
from infra.vllm.servers import Log, VllmServers

_LOG = logging.getLogger(__name__)
_JOBS_PER_PLACE = 2
"""Jobs in flight for each request that a server is sent at once: while one reads frames, another asks. What is too much
waits in the server's client.
"""


class Pools:
    """One pool per agent, and Ray for those with workers or servers of their own, made on first use, closed together.

    `log` is told how the servers do that the profile has the build start.
    """

    def __init__(self, profile: Profile, site: Site, ray_address: str | None, log: Log = _LOG.log) -> None:
        self._profile = profile
        self._log = log
        self._site = site
        self._ray_address = ray_address
        self._lock = threading.Lock()
        self._pools: dict[Role, RayPool[Any, Any] | AsyncPool[Any, Any]] = {}
        self._servers: dict[str, VllmServers] = {}
        self._stack = ExitStack()
        self._started = False
        self._is_closed = False

    @property
    def started(self) -> bool:
        """Whether Ray was needed."""
        return self._started

    def losses(self, role: Role) -> int:
        """How many processes of an agent's workers were lost so far, each replaced by another; 0 where it has none."""
        pool = self._pools.get(role)
        return pool.losses if isinstance(pool, RayPool) else 0

    def get(self, role: Role) -> Pool[Any, Any]:
        """The pool of one agent."""
        with self._lock:
            if self._is_closed:
                raise PoolError("the pools are closed")
            if role not in self._pools:
                pool = self._async_pool(role) if self._profile.chat(role) else self._ray_pool(role)
                self._pools[role] = pool
                self._stack.enter_context(pool)
            return self._pools[role]

    def connector(self, role: Role) -> Connect:
        """What opens the clients of one agent's chat servers; those that the build starts begin to start here."""
        for asked in self._profile.chats(role).values():
            self._start_servers(asked.replicas_name)
        return self._connect

    def _async_pool(self, role: Role) -> AsyncPool[Any, Any]:
        servers = self._profile.chats(role).values()
        needs = self._profile.batching(role)
        return AsyncPool(
            partial(make_chat_agent, role, self._profile, self._site, self.connector(role)),
            window=_JOBS_PER_PLACE * max(asked.concurrency for asked in servers),
            batch_size=needs.batch_size,
            timeout_s=needs.timeout_s,
            max_attempts=needs.max_attempts,
        )

    def _start_servers(self, name: str) -> None:
        """Have the servers of that name start, without waiting for them: whoever asks them does."""
        if not name or name in self._servers:
            return
        (vllm,) = (section for section in self._profile.vllm if section.name == name)
        models = {
            chat.model for role in ROLES for chat in self._profile.chats(role).values() if chat.replicas_name == name
        }
        self._use_ray()
        self._servers[name] = self._stack.enter_context(VllmServers(vllm, sorted(models), self._log))

    def _connect(self, chat: ChatSettings) -> AbstractAsyncContextManager[Chat]:
        return ReplicatedChat(chat, self._servers[chat.replicas_name]) if chat.replicas_name else ChatClient(chat)

    def _use_ray(self) -> None:
        if not self._started:
            link_dashboard(self._stack.enter_context(use_ray(self._ray_address, self._num_cpus())))
            self._started = True

    def _ray_pool(self, role: Role) -> RayPool[Any, Any]:
        self._use_ray()
        needs = self._profile.batching(role)
        assert isinstance(needs, Resources), "an agent with workers of its own has resources"
        return RayPool(
            agent_factory(role, self._profile, self._site),
            num_workers=needs.workers,
            batch_size=needs.batch_size,
            timeout_s=needs.timeout_s,
            max_attempts=needs.max_attempts,
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            start_timeout_s=needs.start_timeout_s,
        )

    def _num_cpus(self) -> int:
        """Enough for all pools and servers at once: on a laptop they share cores rather than wait for one for ever."""
        all_needs = [needs for needs in map(self._profile.batching, ROLES) if isinstance(needs, Resources)]
        of_pools = sum(needs.workers * needs.cpus for needs in all_needs)
        return math.ceil(of_pools + sum(vllm.replicas * vllm.cpus for vllm in self._profile.vllm))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:  # a Ray that starts in another thread at this moment is waited for, then ended
            self._is_closed = True
            self._stack.close()
