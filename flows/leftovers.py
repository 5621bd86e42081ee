"""What a killed build leaves on the Prefect server: a run that stays Running, as nobody is left to say otherwise.

Every build that is started from the command line carries a tag that names its process. So the server itself knows
which runs are whose, from their first moment, and whoever comes next can end those whose process is gone.
"""

import itertools
import time
from collections.abc import Iterator
from datetime import datetime
from os import getpid
from os.path import normpath

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled, Crashed

from infra.lake import Lake, LakeError
from infra.processes import ProcessMark
from schemas.record import Record

TELL_S = 15.0

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

    They become Crashed, or Cancelled where that was asked for, and so do their task runs that have not ended. Runs of
    processes that live, of other machines, and those without a tag of ours are left alone. Raises httpx.HTTPError
    where the server does not answer.
    """
    with get_client(sync_client=True) as client:
        lost = [run for run, mark in _tagged_runs(client) if mark.is_here and not mark.runs]
        for run in lost:
            _end(client, run)
    return len(lost)


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


def _tagged_runs(client: SyncPrefectClient) -> Iterator[tuple[FlowRun, ProcessMark]]:
    """The runs that have not ended, with the process that their tag names."""
    unfinished = FlowRunFilter.model_validate({"state": _UNFINISHED})
    for offset in itertools.count(0, _PAGE):
        runs = client.read_flow_runs(flow_run_filter=unfinished, limit=_PAGE, offset=offset)
        for run in runs:
            for tag in run.tags:
                if mark := _mark_of(tag):
                    yield run, mark
        if len(runs) < _PAGE:
            return


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
    is_cancelled = run.state is not None and run.state.type == StateType.CANCELLING
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run.id]}}),
        task_run_filter=TaskRunFilter.model_validate({"state": _UNFINISHED}),
    )
    for task in tasks:
        client.set_task_run_state(task.id, _final(is_cancelled), force=True)
    client.set_flow_run_state(run.id, _final(is_cancelled), force=True)


def _final(is_cancelled: bool) -> State[None]:
    message = "its process is gone; found by a later command"
    return Cancelled(message=message) if is_cancelled else Crashed(message=message)
