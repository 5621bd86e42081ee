"""A real server and worker, as `videorefer up` starts them: deployed builds, and what is killed ends and restarts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling
from typer.testing import CliRunner

from benchmark.gate import GateRule
from flows.build import COMMITTED, build
from flows.cli import app
from flows.deploy import Deployed, cron_schedule, deploy, remove
from flows.doctor import fetch_weights
from flows.pipeline import pipeline
from flows.server import HOST, ServerError, start_server, stop_server
from flows.started import Server, noted
from flows.work_pool import CRASHED_RUNS, LOST_RUNS, POOL, prepare_pool, watch_over_runs
from flows.worker import running_worker, start_worker, stop_worker
from infra.settings import settings
from infra.synthetic import put_in_split, write_clips

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
NEW_YEAR = "0 0 1 1 *"
PROFILE = """
name = "tiny"
description = "For a test."
[analyzer]
engine = "spacy-chunks+minilm"
[segmenter]
engine = "painted-truth"
[annotator]
engine = "measured-facts"
[reviewer]
engine = "second-look+efficientnet-lite3+minilm"
[refiner]
engine = "template"
"""


@dataclass(frozen=True)
class Site:
    """The server, a client of it, and a folder with two painted clips."""

    server: Server
    client: SyncPrefectClient
    folder: Path

    def deploy(self, name: str, source: str = "rows.jsonl", cron: str = NEW_YEAR) -> Deployed:
        """A build into a lake of its own."""
        parameters = {
            "source": str(self.folder / source),
            "lake": str(self.folder / name),
            "profile": str(self.folder / "tiny.toml"),
        }
        return deploy(self.server.api_url, build, name, parameters, cron_schedule(cron, "UTC"), self.folder)

    def start(self, deployed: Deployed) -> UUID:
        return self.client.create_flow_run_from_deployment(UUID(deployed.deployment_id)).id

    def wait(self, run_id: UUID, is_so: Callable[[FlowRun], bool], within_s: float = 120.0) -> FlowRun:
        """The run, once something is so of it."""
        deadline_s = time.monotonic() + within_s
        while not is_so(run := self.client.read_flow_run(run_id)):
            assert time.monotonic() < deadline_s, f"after {within_s:.0f} s it is {run.state_name}"
            time.sleep(0.2)
        return run

    def end_of(self, run_id: UUID) -> FlowRun:
        return self.wait(run_id, lambda run: run.state_name in ("Completed", "Failed", "Cancelled"))

    def in_try(self, run_id: UUID, number: int) -> FlowRun:
        """The run, once the process of that try is under way."""
        return self.wait(run_id, lambda run: f"videorefer.process.{number}" in run.labels)

    def at_work(self, run_id: UUID, name: str) -> list[psutil.Process]:
        """The processes of a run's first try, once an agent has done something and others are about to."""
        done = self.folder / name / "agents" / "analyzer"
        run = self.wait(run_id, lambda _: any(done.glob("*/part-*.parquet")))
        driver = psutil.Process(int(run.infrastructure_pid or 0))
        processes = [driver, *driver.children(recursive=True)]
        assert any("ray::" in " ".join(process.cmdline()) for process in processes)
        return processes

    def agents_of(self, run_id: UUID) -> list[str]:
        """The states of the agents' task runs."""
        tasks = self.client.read_task_runs(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run_id]}}))
        return [task.state_name or "" for task in tasks if " unit " in task.name]

    def parts_of(self, run_id: UUID) -> list[FlowRun]:
        """The runs that are part of a run."""
        of_run = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [run_id]}})
        return self.client.read_flow_runs(flow_run_filter=of_run)

    def states_of(self, run_id: UUID) -> list[str]:
        return [state.name or "" for state in self.client.read_flow_run_states(run_id)]

    def committed(self) -> list[dict[str, object]]:
        """The payloads of the events about new builds."""
        page = self.client.read_events(EventFilter(event=EventNameFilter(name=[COMMITTED])), limit=50)
        return [dict(event.payload) for event in page.events]


def wait_until_gone(processes: list[psutil.Process], within_s: float) -> float:
    """How long it took; a zombie is gone, as nobody but its parent can end it further."""
    began_s = time.monotonic()
    while alive := [process for process in processes if lives(process)]:
        assert time.monotonic() - began_s < within_s, f"after {within_s:.0f} s: {alive}"
        time.sleep(0.2)
    return time.monotonic() - began_s


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    fetch_weights("painted", say=print)
    folder = tmp_path_factory.mktemp("site")
    (folder / "cache").mkdir()
    (folder / "cache" / "files").symlink_to(settings().cache_dir / "files")
    for name, num_clips in (("rows", 2), ("many", 16)):
        rows = write_clips(folder / name, num_clips, 7)
        put_in_split(folder / str(rows[0]["video"]), "train")
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "tiny.toml").write_text(PROFILE)
    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    os.environ.update(VIDEOREFER_CACHE=str(folder / "cache"), PREFECT_HOME=str(folder / "prefect"))
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    try:
        server, _ = start_server(port, f"sqlite+aiosqlite:///{folder / 'runs.db'}")
        start_worker(server)
        with SyncPrefectClient(server.api_url) as client:
            yield Site(server, client, folder)
    finally:
        stop_worker()
        stop_server()
        os.environ.clear()
        os.environ.update(before)


def test_up_again_starts_what_does_not_run_and_keeps_the_rest(site: Site) -> None:
    worker = running_worker()
    assert worker is not None
    assert start_worker(site.server) == (worker, False)
    os.killpg(worker.pid, signal.SIGKILL)
    wait_until_gone([psutil.Process(worker.pid)], 10.0)
    assert running_worker() is None
    again, is_new = start_worker(site.server)
    assert is_new
    assert noted().server == site.server
    assert noted().worker == again
    pool = site.client.read_work_pool(POOL)
    assert (pool.type, pool.concurrency_limit) == ("process", 1)
    assert sorted(made.name for made in site.client.read_automations()) == sorted((LOST_RUNS, CRASHED_RUNS))


def test_the_database_is_the_one_that_was_named(site: Site) -> None:
    assert (site.folder / "runs.db").stat().st_size > 0
    assert "runs.db" not in (site.folder / "cache" / "prefect-server.json").read_text()
    with pytest.raises(ServerError, match="on another database: first videorefer down"):
        start_server(1, "postgresql+asyncpg://elsewhere/runs")


def test_the_command_deploys_the_pipeline_so_that_it_means_the_same_anywhere(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site.folder)
    asked = ["deploy", "--source", "rows.jsonl", "--lake", "models/lake", "--out", "models", "--profile", "tiny.toml"]
    how = ["--mode", "single", "--scorer", "letter", "--min-items", "7", "--alpha", "0.1", "--margin", "0.02"]
    done = CliRunner().invoke(app, [*asked, *how, "--cron", "30 2 * * *", "--timezone", "Asia/Kolkata"])
    assert done.exit_code == 0, done.output
    assert f"PREFECT_API_URL={site.server.api_url} prefect deployment run pipeline/scheduled" in done.stdout
    assert "02:30 IST" in done.stdout
    assert "nothing starts" not in done.stdout
    made = site.client.read_deployment_by_name("pipeline/scheduled")
    paths = {"source": "rows.jsonl", "lake": "models/lake", "out": "models", "profile": "tiny.toml"}
    assert {name: made.parameters[name] for name in paths} == {k: str(site.folder / v) for k, v in paths.items()}
    assert (made.entrypoint, made.work_pool_name) == ("flows.pipeline:pipeline", POOL)
    taken = pipeline.validate_parameters(made.parameters)
    assert (taken["mode"], taken["scorer"]) == ("single", "letters")
    assert taken["rule"] == GateRule(min_items=7, alpha=0.1, margin=0.02)
    with pytest.raises(PrefectHTTPStatusError, match="minimum of 1"):
        site.client.create_flow_run_from_deployment(made.id, parameters={"rule": {"min_items": 0}})
    refused = CliRunner().invoke(app, [*asked, "--cron", "nightly"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert CliRunner().invoke(app, ["deploy", "--remove"]).exit_code == 0
    assert "there is no deployment" in CliRunner().invoke(app, ["deploy", "--remove"]).stderr


def test_a_deployment_again_is_the_same_with_one_schedule(site: Site) -> None:
    deployed = site.deploy("again")
    assert site.deploy("again") == deployed
    assert len(site.client.read_deployment(UUID(deployed.deployment_id)).schedules) == 1
    assert remove(site.server.api_url, "build", "again")
    assert not remove(site.server.api_url, "build", "again")


def test_submitted_builds_run_one_after_the_other_where_they_were_submitted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clips(site.folder / "bench", 1, 8)
    (site.folder / "bench.toml").write_text(f'{PROFILE}[decontamination]\nbench_videos = ["bench"]\n')  # in this folder
    monkeypatch.chdir(site.folder)
    asked = ["build", "--source", "rows.jsonl", "--lake", "lake", "--profile", "bench.toml", "--submit", "--json"]
    told = [json.loads(CliRunner().invoke(app, asked).stdout) for _ in range(2)]
    first, second = (UUID(one["run_id"]) for one in told)
    runs = [site.end_of(first), site.end_of(second)]
    assert [run.state_name for run in runs] == ["Completed"] * 2
    assert sorted(site.agents_of(first)) == ["Completed"] * 5
    assert site.agents_of(second) == ["Cached"] * 5
    assert runs[0].end_time is not None
    assert runs[1].start_time is not None
    assert runs[0].end_time <= runs[1].start_time
    assert [(run.name, f"{site.server.url}/runs/flow-run/{run.id}") for run in runs] == [
        (one["name"], one["page"]) for one in told
    ]
    made = site.client.read_deployment_by_name("build/submitted")
    assert {run.deployment_id for run in runs} == {made.id}
    assert made.schedules == []
    build_id = next((site.folder / "lake" / "builds").glob("*/manifest.json")).parent.name
    assert [event["build_id"] for event in site.committed()] == [build_id]
    assert set(site.committed()[0]) == {"build_id", "lake", "counts", "report"}


def test_cancel_on_the_page_of_a_deployed_build_frees_its_actors(site: Site) -> None:
    run_id = site.start(site.deploy("cancelled", "many.jsonl"))
    processes = site.at_work(run_id, "cancelled")
    assert "Running" in site.agents_of(run_id)
    site.client.set_flow_run_state(run_id, Cancelling())
    took_s = wait_until_gone(processes, 60.0)
    print(f"{len(processes)} processes had ended {took_s:.1f} s after Cancel")
    ended = site.end_of(run_id)
    assert (ended.state_name, ended.run_count) == ("Cancelled", 1)
    assert "Crashed" not in site.states_of(run_id)
    assert not any((site.folder / "cancelled" / "builds").glob("*/manifest.json"))


def test_a_schedule_starts_runs_by_itself_and_the_second_does_no_agent_work(site: Site) -> None:
    deployed = site.deploy("every-minute", cron="* * * * *")
    of_it = DeploymentFilter.model_validate({"id": {"any_": [deployed.deployment_id]}})
    completed = FlowRunFilter.model_validate({"state": {"name": {"any_": ["Completed"]}}})
    deadline_s = time.monotonic() + 200.0
    while len(runs := site.client.read_flow_runs(flow_run_filter=completed, deployment_filter=of_it)) < 2:
        assert time.monotonic() < deadline_s, [run.state_name for run in runs]
        time.sleep(1.0)
    assert remove(site.server.api_url, "build", "every-minute")
    first, second = sorted(runs, key=lambda run: str(run.expected_start_time))[:2]
    assert all("auto-scheduled" in run.tags for run in (first, second))
    assert sorted(site.agents_of(first.id)) == ["Completed"] * 5
    assert site.agents_of(second.id) == ["Cached"] * 5


def up() -> str:
    """What the command says, in a process of its own, which does not count this one's children as its own."""
    command = [sys.executable, "-c", "from flows.names import main; main()", "up", "--no-ray"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def test_down_ends_the_run_and_up_starts_it_again(site: Site) -> None:
    run_id = site.start(site.deploy("lake"))  # where another test's build may have left little to do
    run = site.in_try(run_id, 1)
    assert stop_worker() is not None
    assert not Path(f"/proc/{run.infrastructure_pid}").exists()
    told = up()
    assert f"Prefect was up already: {site.server.url}/runs" in told
    assert "its worker is up" in told
    ended = site.end_of(run_id)
    assert (ended.state_name, ended.run_count) == ("Completed", 2)


def test_a_pipeline_that_is_killed_with_its_worker_and_then_alone_ends_crashed_and_goes_on(
    site: Site, tiny: Any
) -> None:
    parameters = {
        "source": str(site.folder / "rows.jsonl"),
        "lake": str(site.folder / "both"),
        "out": str(site.folder / "out"),
        "profile": str(site.folder / "tiny.toml"),
        "train_profile": tiny.profile(num_steps=1),
        "rule": {"min_items": 1},
    }
    run_id = site.start(deploy(site.server.api_url, pipeline, "both", parameters, None, site.folder))
    driver = site.at_work(run_id, "both")[0]
    (cut_off,) = site.parts_of(run_id)
    worker = running_worker()
    assert worker is not None
    os.killpg(worker.pid, signal.SIGKILL)  # first, else it would tell the server how the run ended
    driver.kill()
    wait_until_gone([driver, psutil.Process(worker.pid)], 10.0)
    assert site.client.read_flow_run(run_id).state_name == "Running"  # nobody is left to say otherwise
    up()
    assert site.client.read_flow_run(cut_off.id).state_name == "Crashed"
    os.kill(int(site.in_try(run_id, 2).infrastructure_pid or 0), signal.SIGKILL)
    ended = site.end_of(run_id)
    assert (ended.state_name, ended.run_count) == ("Completed", 3)
    states = site.states_of(run_id)
    assert states.index("Running") < states.index("Lost") < states.index("AwaitingRetry") < states.index("Crashed")
    parts = {part.id: (part.name.split()[0], part.state_name) for part in site.parts_of(run_id)}
    assert parts.pop(cut_off.id) == ("build", "Crashed")
    assert sorted(parts.values()) == [("build", "Completed"), ("train", "Completed")]
    assert "Cached" in [state for part in parts for state in site.agents_of(part)]


CHILD = """
import time
from prefect import flow
from prefect.runtime import flow_run

@flow
def build():
    print(flow_run.id, flush=True)
    time.sleep(300)

build()
"""


def test_a_run_without_a_worker_whose_heartbeats_stop_has_crashed(site: Site) -> None:
    pool = prepare_pool(site.client)
    watch_over_runs(site.client, pool, lost_after_s=40.0)
    own = {"PREFECT_API_URL": site.server.api_url, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    command, env = [sys.executable, "-c", CHILD], os.environ | own
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        run_id = UUID(child.stdout.readline().strip())
        time.sleep(5.0)  # past the first heartbeat
        child.kill()
    assert site.client.read_flow_run(run_id).state_name == "Running"
    crashed = site.wait(run_id, lambda run: run.state_name == "Crashed")
    assert crashed.state is not None
    assert "no heartbeat" in (crashed.state.message or "")
    watch_over_runs(site.client, pool)
