"""What `videorefer up` sets up on its Prefect server: the work pool of deployed runs, and who ends and restarts runs.

Prefect does neither by itself: a run whose process is gone stays Running and, in a pool of one, holds up all others.
"""

from datetime import datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType, WorkPool
from prefect.events import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, ResourceSpecification
from prefect.exceptions import ObjectNotFound

from flows.leftovers import MAX_RESTARTS

POOL = "videorefer"
LOST_RUNS = "videorefer: runs without heartbeats have crashed"
CRASHED_RUNS = "videorefer: crashed runs start again"
LOST_AFTER_S = 200.0
"""Longer than Prefect's own interval of heartbeats, 180 s: some may start our flows without our command line."""
RESTART_AFTER_S = 20.0
"""A worker tells of one crash twice, seconds apart: a run that had started again in between would start twice."""

_FLOWS = ["pipeline", "build", "train", "bench"]
_RUN = "prefect.flow-run"


def prepare_pool(client: SyncPrefectClient) -> WorkPool:
    """The work pool, made if there is none: processes, one run at a time. What somebody changed about it stays."""
    try:
        return client.read_work_pool(POOL)
    except ObjectNotFound:
        return client.create_work_pool(WorkPoolCreate(name=POOL, type="process", concurrency_limit=1))


def watch_over_runs(client: SyncPrefectClient, pool: WorkPool, lost_after_s: float = LOST_AFTER_S) -> None:
    """Make, or bring up to date, the automations that end lost runs and start crashed runs of the pool again."""
    _put(client, _lost_runs(lost_after_s))
    _put(client, _crashed_runs(pool))


def has_reported(client: SyncPrefectClient, worker_name: str, since: datetime) -> bool:
    """Whether a worker of this name has reported to the pool since then."""
    workers = client.read_workers_for_work_pool(POOL)
    return any(
        worker.name == worker_name and worker.last_heartbeat_time is not None and worker.last_heartbeat_time >= since
        for worker in workers
    )


def _lost_runs(lost_after_s: float) -> AutomationCore:
    heartbeat = f"{_RUN}.heartbeat"
    ended = {f"{_RUN}.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    return AutomationCore(
        name=LOST_RUNS,
        description=f"A run that has not been heard of for {lost_after_s:.0f} s has lost its process.",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *ended},
            match=ResourceSpecification({"prefect.resource.id": f"{_RUN}.*"}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": _FLOWS}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=lost_after_s),
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message="no heartbeat: its process is gone")
        ],
    )


def _crashed_runs(pool: WorkPool) -> AutomationCore:
    begun = [str(count) for count in range(1, MAX_RESTARTS + 1)]
    crashed = f"{_RUN}.Crashed"
    goes_on = {f"{_RUN}.{state}" for state in ("AwaitingRetry", "Scheduled", "Pending", "Running", "Cancelled")}
    return AutomationCore(
        name=CRASHED_RUNS,
        description=f"At most {MAX_RESTARTS} times; what a run had done by then is not done again.",
        trigger=EventTrigger(
            after={crashed},
            expect={crashed, *goes_on},
            match=ResourceSpecification({"prefect.resource.id": f"{_RUN}.*", "prefect.run-count": begun}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "work-pool", "prefect.resource.id": f"prefect.work-pool.{pool.id}"}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=RESTART_AFTER_S),
        ),
        actions=[
            ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="starts again: it crashed")
        ],
    )


def _put(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return
    if found[0].model_dump(include=set(AutomationCore.model_fields)) != wanted.model_dump():
        client.update_automation(found[0].id, wanted)  # which forgets what it has seen of the runs under way
    for spare in found[1:]:
        client.delete_automation(spare.id)
