"""The process that holds the Ray of `videorefer up`: `python -m flows.ray_head CPUS DASHBOARD_PORT METRICS_PORT`.

It says in one line of JSON on stdout where that Ray is, or in a line of text why it did not start. SIGTERM ends both;
and where Ray dies, this process ends too, so that whoever looks after it sees one thing.
"""

import os
import signal
import sys
import threading

import ray

from flows.local_ray import RayPlace
from infra.ray_cluster import RayPages, RayStartError, start_ray
from infra.ray_health import RayHealth

LOOK_EVERY_S = 2.0


def main(num_cpus: int, pages: RayPages) -> int:
    """Start Ray, say where, and wait until it is told to end or Ray died; the exit status."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    # Ray's processes inherit stdout, and would hold it, and write to it, after whoever reads it is gone
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        handle = start_ray(None, num_cpus, pages)
    except RayStartError as error:
        answer.write(f"{error}\n")
        answer.close()
        return 1
    with handle:
        place = RayPlace(address=ray.get_runtime_context().gcs_address, dashboard_url=handle.dashboard_url)
        answer.write(f"{place.model_dump_json()}\n")
        answer.close()
        health = RayHealth()
        while not ended.wait(LOOK_EVERY_S):
            if trouble := health.trouble():
                sys.stderr.write(f"{trouble}\n")
                return 1
    return 0


if __name__ == "__main__":
    cpus, dashboard_port, metrics_port = map(int, sys.argv[1:])
    sys.exit(main(cpus, RayPages(dashboard_port, metrics_port)))
