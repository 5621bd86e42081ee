"""What a killed build leaves on the Prefect server: a run that stays Running, as nobody is left to say otherwise.

Every build that is started from the command line carries a tag that names its process; one that a worker starts gets a
label. So the server itself knows which runs are whose, and whoever comes next can end those whose process is gone.
"""

import itertools
import time
from collections.abc import Iterator
from datetime import datetime
from os import getpid
from os.path import normpath
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import AwaitingRetry, Cancelled, Crashed

from infra.lake import Lake, LakeError
from infra.processes import ProcessMark
from schemas.record import Record

TELL_S = 15.0
MAX_RESTARTS = 2
"""How often a deployed run that crashed starts again."""

WORKER_LABEL = "prefect.worker.name"
"""Of runs that a worker took on."""

_GONE = "its process is gone; found by a later command"
_PREFIX = "process="
_PAGE = 200
"""How many runs a server gives at once."""
_UNFINISHED = {"type": {"any_": [StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]}}


class OtherBuild(Record):
    """A build that runs now, in another process."""

    lake: str
    host: str
    pid: int
    since: datetime | None

    def describe(self) -> str:
        """One line for a terminal."""
        since = f" since {self.since.astimezone():%H:%M:%S}" if self.since else ""
        return f"another build works on this lake{since} too: process {self.pid} on {self.host}; both will end alike"


def process_tag() -> str:
    """The tag that names this process on the runs that it starts."""
    mark = ProcessMark.of(getpid())
    return f"{_PREFIX}{mark.pid}/{mark.began}/{mark.host}"


def end_lost_runs() -> int:
    """End the runs whose process, of this machine, is gone; how many there were.

    They become Crashed, or Cancelled where that was asked for, and so do their task runs that have not ended; one of a
    deployment starts again, `MAX_RESTARTS` times at most. Runs of processes that live, of other machines, and those
    without a mark of ours are left alone; but a subflow's run ends with the run that it is part of. Raises
    httpx.HTTPError where the server does not answer.
    """
    with get_client(sync_client=True) as client:
        lost = [run for run, mark in _tagged_runs(client) if mark.is_here and not mark.runs]
        for run in lost:
            _end(client, run)
        return len(lost) + _end_parts_of_ended(client)


def end_lost_submissions(client: SyncPrefectClient, worker_name: str) -> int:
    """End the runs that a worker, which is gone, had taken on and not begun; how many there were.

    One that had begun has a process of its own, which may outlive the worker: see `end_lost_runs`. Raises
    httpx.HTTPError where the server does not answer.
    """
    taken_on = [run for run in _unfinished_runs(client) if run.labels.get(WORKER_LABEL) == worker_name]
    lost = [run for run in taken_on if not _marks_of(run)]
    for run in lost:
        _end(client, run)
    return len(lost)


def mark_run(client: SyncPrefectClient, flow_run_id: UUID) -> None:
    """Name this process on a run that another program may have started, and that so has no tag of ours."""
    run = client.read_flow_run(flow_run_id)
    client.update_flow_run_labels(run.id, {_label(run): process_tag()})


def processes_of_worker(client: SyncPrefectClient, worker_name: str) -> list[ProcessMark]:
    """The processes, of this machine, of the runs that a worker has under way."""
    runs = [run for run in _unfinished_runs(client) if run.labels.get(WORKER_LABEL) == worker_name]
    return [mark for run in runs for mark in _marks_of(run) if mark.is_here and mark.runs]


def other_builds(lake: str) -> tuple[OtherBuild, ...]:
    """The builds that other processes, of this machine or another, run on a lake now, as far as this server knows."""
    root = normpath(Lake(lake).root)
    with get_client(sync_client=True) as client:
        found = [
            OtherBuild(lake=root, host=mark.host, pid=mark.pid, since=run.start_time)
            for run, mark in _tagged_runs(client)
            if mark.pid != getpid() and _root_of(run) == root and (mark.runs or not mark.is_here)
            if "source" in run.parameters  # a training reads a lake, and nobody need wait for it
        ]
    return tuple(found)


def wait_until_told(within_s: float = TELL_S) -> None:
    """Wait until the server has taken in how this process's task runs ended, which Prefect tells it beside the build.

    A server that ends with this process would forget what it has not written down.
    """
    own = FlowRunFilter.model_validate({"tags": {"all_": [process_tag()]}})
    unfinished = TaskRunFilter.model_validate({"state": _UNFINISHED})
    deadline_s = time.monotonic() + within_s
    with get_client(sync_client=True) as client:
        while client.read_task_runs(flow_run_filter=own, task_run_filter=unfinished):
            if time.monotonic() > deadline_s:
                return
            time.sleep(0.2)


def _unfinished_runs(client: SyncPrefectClient) -> Iterator[FlowRun]:
    unfinished = FlowRunFilter.model_validate({"state": _UNFINISHED})
    for offset in itertools.count(0, _PAGE):
        runs = client.read_flow_runs(flow_run_filter=unfinished, limit=_PAGE, offset=offset)
        yield from runs
        if len(runs) < _PAGE:
            return


def _tagged_runs(client: SyncPrefectClient) -> Iterator[tuple[FlowRun, ProcessMark]]:
    """The runs that have not ended, with the process that their tag names."""
    for run in _unfinished_runs(client):
        for mark in _marks_of(run):
            yield run, mark


def _end_parts_of_ended(client: SyncPrefectClient) -> int:
    """End the runs of subflows whose parent's run has ended; how many there were."""
    num_ended = 0
    for run in list(_unfinished_runs(client)):
        if run.parent_task_run_id is None:
            continue
        of_parent = TaskRunFilter.model_validate({"id": {"any_": [run.parent_task_run_id]}})
        parents = client.read_flow_runs(task_run_filter=of_parent)
        if parents and all(parent.state is not None and parent.state.is_final() for parent in parents):
            _end(client, run)
            num_ended += 1
    return num_ended


def _marks_of(run: FlowRun) -> list[ProcessMark]:
    """The process that a run's label or tag names; none where it is about to start again, in another one."""
    if run.state is not None and run.state.type == StateType.PENDING:
        return []
    said = [str(run.labels[_label(run)])] if _label(run) in run.labels else run.tags
    return [mark for tag in said if (mark := _mark_of(tag))]


def _label(run: FlowRun) -> str:
    """Each try of a run has a process, and so a label, of its own."""
    return f"videorefer.process.{run.run_count}"


def _mark_of(tag: str) -> ProcessMark | None:
    pid, _, rest = tag.removeprefix(_PREFIX).partition("/")
    began, _, host = rest.partition("/")
    if not (tag.startswith(_PREFIX) and pid.isdecimal() and began and host):
        return None
    return ProcessMark(host=host, pid=int(pid), began=began)


def _root_of(run: FlowRun) -> str | None:
    try:
        return normpath(Lake(str(run.parameters.get("lake"))).root)
    except LakeError:  # of a kind that this machine cannot open
        return None


def _end(client: SyncPrefectClient, run: FlowRun) -> None:
    """End a run and its parts, these first: a run may start again as soon as it has crashed."""
    is_cancelled = run.state is not None and run.state.type == StateType.CANCELLING
    parts = FlowRunFilter.model_validate({"state": _UNFINISHED, "parent_flow_run_id": {"any_": [run.id]}})
    for part in client.read_flow_runs(flow_run_filter=parts):
        _end(client, part)
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run.id]}}),
        task_run_filter=TaskRunFilter.model_validate({"state": _UNFINISHED}),
    )
    for task in tasks:
        client.set_task_run_state(task.id, _final(is_cancelled), force=True)
    if run.deployment_id is None or is_cancelled or run.run_count > MAX_RESTARTS:
        client.set_flow_run_state(run.id, _final(is_cancelled), force=True)
        return
    # the automation that starts crashed runs again goes by the name, and may hear of it many minutes later or never
    client.set_flow_run_state(run.id, Crashed(name="Lost", message=_GONE), force=True)
    client.set_flow_run_state(run.id, AwaitingRetry(message="starts again: its process was gone"), force=True)


def _final(is_cancelled: bool) -> State[None]:
    return Cancelled(message=_GONE) if is_cancelled else Crashed(message=_GONE)
