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
from prefect.states import Cancelling, Completed, Pending, Running
from prefect.testing.utilities import prefect_test_harness

from flows.leftovers import MAX_RESTARTS, end_lost_runs, end_lost_submissions, mark_run, other_builds, process_tag
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


@flow(name="as a pipeline", persist_result=False)
def as_pipeline() -> None:
    """Ends at once; its run is set back to what a kill would leave."""
    as_build("lake")


def deployed(client: SyncPrefectClient) -> FlowRun:
    """A run of a deployment that no worker asks for."""
    deployment_id = client.create_deployment(client.create_flow(as_build), "by hand", parameters={"lake": "lake"})
    return client.create_flow_run_from_deployment(deployment_id)


def test_a_lost_run_of_a_deployment_starts_again_but_not_for_ever(
    client: SyncPrefectClient, gone: ProcessMark, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = deployed(client)
    monkeypatch.setattr("flows.leftovers.process_tag", lambda: tag_of(gone))
    seen = []
    for _ in range(MAX_RESTARTS + 1):
        client.set_flow_run_state(run.id, Pending(), force=True)
        assert end_lost_runs() == 0, "the process of the last try says nothing of the next one"
        client.set_flow_run_state(run.id, Running(), force=True)
        assert end_lost_runs() == 0
        mark_run(client, run.id)
        assert end_lost_runs() == 1
        seen.append(state_of(client, run.id))
    assert seen == ["AwaitingRetry"] * MAX_RESTARTS + ["Crashed"]


def test_a_run_that_a_worker_took_on_and_never_began_ends_with_it(client: SyncPrefectClient) -> None:
    runs = [deployed(client), deployed(client), deployed(client)]
    for run, name in zip(runs, ("mine", "mine", "another's"), strict=True):
        client.set_flow_run_state(run.id, Pending(), force=True)
        client.update_flow_run_labels(run.id, {"prefect.worker.name": name})
    client.set_flow_run_state(runs[1].id, Running(), force=True)
    mark_run(client, runs[1].id)
    assert end_lost_submissions(client, "mine") == 1
    assert [state_of(client, run.id) for run in runs] == ["AwaitingRetry", "Running", "Pending"]
    for run in runs:
        client.set_flow_run_state(run.id, Completed(), force=True)


def test_a_part_of_a_run_ends_with_it(client: SyncPrefectClient, gone: ProcessMark) -> None:
    whole = as_pipeline(return_state=True).state_details.flow_run_id
    assert whole is not None
    parts = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [whole]}})
    )
    assert len(parts) == 1
    client.set_flow_run_state(parts[0].id, Running(), force=True)
    assert end_lost_runs() == 1
    assert state_of(client, parts[0].id) == "Crashed"
    assert state_of(client, whole) == "Completed"
