"""Which Ray a run uses, and the link to its dashboard on the run's page."""

import logging

from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run

from flows.artifacts import decoration
from flows.local_ray import running_ray
from flows.started import Ray
from infra.ray_cluster import RayHandle, RayStartError, start_ray

_log = logging.getLogger(__name__)


def shared_ray(num_cpus: int) -> Ray | None:
    """The Ray of `up`, if it runs and takes so many CPUs' worth of actors; those of other runs are not counted."""
    found = running_ray()
    return found if found and found.num_cpus >= num_cpus else None


def use_ray(address: str | None, num_cpus: int) -> RayHandle:
    """The Ray of a run: the cluster that the user named, else that of `up` where it has room, else one of its own.

    Raises RayStartError.
    """
    shared = shared_ray(num_cpus) if address is None else None
    if shared is None:
        return start_ray(address, num_cpus)
    try:
        return start_ray(shared.address, is_ours=True)
    except RayStartError as error:  # it died a moment ago, or this process has another token
        _log.warning("%s; this run starts a Ray of its own", error)
        return start_ray(None, num_cpus)


def link_dashboard(handle: RayHandle) -> None:
    """Put a link to Ray's dashboard, where it has one, on the page of the run that this is called in, if in any."""
    if handle.dashboard_url and flow_run.id:
        with decoration():
            create_link_artifact(
                handle.dashboard_url,
                link_text="Ray dashboard",
                key="ray-dashboard",
                description="actors, their logs and what they use",
            )
