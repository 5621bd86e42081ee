"""Whether the Ray in use still lives. Ray itself tells a driver late or not at all, or ends it.

Seen with Ray 2.60: without its raylet a driver waits for new actors for ever; a minute without its control store (GCS)
and Ray exits the whole process.
"""

import socket
import time

import ray
from ray.exceptions import RayError

from infra.child import death_of

_EVERY_S = 2.0
_PATIENCE_S = 20.0
"""How long a cluster's control store may be silent: it may be moving to another node."""
_ANSWER_S = 1.0
_VITAL = {"gcs_server", "raylet"}
_ADVICE = "the same command goes on from here"
_NODE_DIED = f"this machine's node of the Ray cluster died; {_ADVICE}"


class RayHealth:
    """Looks at the Ray in use; for one thread."""

    def __init__(self) -> None:
        self._looked_s = self._answered_s = time.monotonic()

    def trouble(self, at_once: bool = False) -> str:
        """One line about what died, or nothing; nothing too within two seconds of the last look, unless `at_once`.

        Of a Ray started here: the processes that all work needs. Of a cluster: whether this machine's node listens,
        and whether the control store answers and takes that node for alive.
        """
        now = time.monotonic()
        if now - self._looked_s < _EVERY_S and not at_once:
            return ""
        self._looked_s = now
        worker = ray._private.worker
        if worker._global_node is None:
            return ""  # shut down
        if worker._global_node.is_head():
            return _dead_here(worker._global_node)
        if not _listens(worker._global_node.raylet_socket_name):
            return _NODE_DIED
        return self._silent_cluster(worker.global_worker.gcs_client)

    def _silent_cluster(self, gcs_client: ray._raylet.GcsClient) -> str:
        node_id = ray.NodeID.from_hex(ray.get_runtime_context().get_node_id())
        try:
            is_alive = gcs_client.check_alive([node_id], timeout=_ANSWER_S)[0]
        except RayError:
            silent_s = time.monotonic() - self._answered_s
            return f"the Ray cluster does not answer for {silent_s:.0f} s; {_ADVICE}" if silent_s > _PATIENCE_S else ""
        self._answered_s = time.monotonic()
        return "" if is_alive else _NODE_DIED


def _listens(path: str) -> bool:
    """Whether a process still answers at a Unix socket, which costs it no work."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_S)
        try:
            probe.connect(path)
        except (ConnectionError, FileNotFoundError):
            return False
        except OSError:  # a full queue, or no descriptor left: alive, as far as this tells
            return True
    return True


def _dead_here(node: ray._private.node.Node) -> str:
    dead = [f"{name} {death_of(process.returncode)}" for name, process in node.dead_processes() if name in _VITAL]
    return f"Ray on this machine died: {', '.join(dead)}; {_ADVICE}" if dead else ""
