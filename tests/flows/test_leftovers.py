"""Runs that a killed build left on the server are ended by who comes next; those of live processes never."""

import os
import subprocess
from collections.abc import Iterator
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling, Completed, Running
from prefect.testing.utilities import prefect_test_harness

from flows.leftovers import end_lost_runs, other_builds, process_tag
from infra.processes import ProcessMark

pytestmark = pytest.mark.timeout(180)


@flow(name="as a build")
def as_build(lake: str) -> None:
    """Only a name for runs to be made of."""


@task
def as_task() -> None:
    """Only a name for task runs."""


@pytest.fixture(scope="module")
def client() -> Iterator[SyncPrefectClient]:
    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as client:
        yield client
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def gone() -> ProcessMark:
    """A process that ended."""
    with subprocess.Popen(["sleep", "60"]) as process:
        mark = ProcessMark.of(process.pid)
        process.kill()
    return mark


@pytest.fixture
def alive() -> Iterator[ProcessMark]:
    """Another process, which lives."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield ProcessMark.of(process.pid)
        process.kill()


def tag_of(mark: ProcessMark) -> str:
    return f"process={mark.pid}/{mark.began}/{mark.host}"


def start(
    client: SyncPrefectClient, *tags: str, lake: str = "lake", state: object = None, of: str = "source"
) -> FlowRun:
    """A run of a build, which has a `source`, or of a training, which has an `out`."""
    parameters = {"lake": lake, of: "somewhere"}
    return client.create_flow_run(as_build, parameters=parameters, tags=tags, state=state or Running())  # type: ignore[arg-type]


def state_of(client: SyncPrefectClient, run_id: UUID) -> str:
    state = client.read_flow_run(run_id).state
    assert state is not None
    return state.name or ""


def test_the_tag_names_this_process() -> None:
    assert process_tag() == tag_of(ProcessMark.of(os.getpid()))


def test_a_run_whose_process_is_gone_is_crashed_with_its_task_runs(
    client: SyncPrefectClient, gone: ProcessMark
) -> None:
    run = start(client, tag_of(gone), "another tag")
    tasks = [client.create_task_run(as_task, run.id, str(number), state=Running()) for number in range(2)]
    client.set_task_run_state(tasks[0].id, Completed(), force=True)
    assert end_lost_runs() == 1
    assert state_of(client, run.id) == "Crashed"
    told = client.read_task_runs(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run.id]}}))
    assert {task.id: task.state_name for task in told} == {tasks[0].id: "Completed", tasks[1].id: "Crashed"}
    assert end_lost_runs() == 0


def test_a_lost_run_that_was_to_be_cancelled_is_cancelled(client: SyncPrefectClient, gone: ProcessMark) -> None:
    run = start(client, tag_of(gone))
    client.set_flow_run_state(run.id, Cancelling())
    assert end_lost_runs() == 1
    assert state_of(client, run.id) == "Cancelled"


def test_runs_of_live_processes_of_other_machines_and_without_our_tag_are_left_alone(
    client: SyncPrefectClient, alive: ProcessMark, gone: ProcessMark
) -> None:
    elsewhere = gone.model_copy(update={"host": "elsewhere"})
    tags = [tag_of(alive), process_tag(), tag_of(elsewhere), "process=", "process=x/y/z", "other"]
    runs = [start(client, tag) for tag in tags]
    assert end_lost_runs() == 0
    assert {state_of(client, run.id) for run in runs} == {"Running"}
    for run in runs:
        client.set_flow_run_state(run.id, Completed(), force=True)


def test_other_builds_on_a_lake_are_told(
    client: SyncPrefectClient, alive: ProcessMark, gone: ProcessMark, tmp_path: object
) -> None:
    here = str(tmp_path)
    elsewhere = gone.model_copy(update={"host": "elsewhere"})
    told = [start(client, tag_of(mark), lake=here) for mark in (alive, elsewhere)]
    others = [start(client, tag_of(gone), lake=here), start(client, process_tag(), lake=here)]
    others += [start(client, tag_of(alive), lake=f"{here}/other"), start(client, lake=here)]
    others.append(start(client, tag_of(alive), lake=here, of="out"))
    found = other_builds(f"{here}/../{here.rsplit('/', 1)[1]}")
    assert {(other.host, other.pid) for other in found} == {(mark.host, mark.pid) for mark in (alive, elsewhere)}
    assert str(alive.pid) in " ".join(other.describe() for other in found)
    for run in (*told, *others):
        client.set_flow_run_state(run.id, Completed(), force=True)
    assert other_builds(here) == ()
