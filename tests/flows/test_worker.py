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
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.events.filters import EventFilter, EventNameFilter
from typer.testing import CliRunner

from flows.build import COMMITTED, build
from flows.cli import app
from flows.deploy import Deployed, cron_schedule, deploy, remove
from flows.doctor import fetch_weights
from flows.server import HOST, ServerError, start_server, stop_server
from flows.started import Server, noted
from flows.work_pool import CRASHED_RUNS, LOST_RUNS, POOL, prepare_pool, watch_over_runs
from flows.worker import running_worker, start_worker, stop_worker
from infra.settings import settings
from infra.synthetic import write_clips

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

    def deploy(self, name: str) -> Deployed:
        """A build into a lake of its own."""
        parameters = {
            "source": str(self.folder / "rows.jsonl"),
            "lake": str(self.folder / name),
            "profile": str(self.folder / "tiny.toml"),
        }
        return deploy(self.server, build, name, parameters, cron_schedule(NEW_YEAR, "UTC"), self.folder)

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

    def agents_of(self, run_id: UUID) -> list[str]:
        """The states of the agents' task runs."""
        tasks = self.client.read_task_runs(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run_id]}}))
        return [task.state_name or "" for task in tasks if " unit " in task.name]

    def states_of(self, run_id: UUID) -> list[str]:
        return [state.name or "" for state in self.client.read_flow_run_states(run_id)]

    def committed(self) -> list[dict[str, object]]:
        """The payloads of the events about new builds."""
        page = self.client.read_events(EventFilter(event=EventNameFilter(name=[COMMITTED])), limit=50)
        return [dict(event.payload) for event in page.events]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    fetch_weights("painted", say=print)
    folder = tmp_path_factory.mktemp("site")
    (folder / "cache").mkdir()
    (folder / "cache" / "files").symlink_to(settings().cache_dir / "files")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, write_clips(folder / "clips", 2, 7))))
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
    done = CliRunner().invoke(app, [*asked, "--cron", "30 2 * * *", "--timezone", "Asia/Kolkata"])
    assert done.exit_code == 0, done.output
    assert f"PREFECT_API_URL={site.server.api_url} prefect deployment run pipeline/scheduled" in done.stdout
    assert "02:30 IST" in done.stdout
    made = site.client.read_deployment_by_name("pipeline/scheduled")
    paths = {"source": "rows.jsonl", "lake": "models/lake", "out": "models", "profile": "tiny.toml"}
    assert {name: made.parameters[name] for name in paths} == {k: str(site.folder / v) for k, v in paths.items()}
    assert (made.entrypoint, made.work_pool_name) == ("flows.pipeline:pipeline", POOL)
    refused = CliRunner().invoke(app, [*asked, "--cron", "nightly"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert CliRunner().invoke(app, ["deploy", "--remove"]).exit_code == 0
    assert "there is no deployment" in CliRunner().invoke(app, ["deploy", "--remove"]).stderr


def test_a_deployed_build_runs_and_the_second_run_does_no_agent_work(site: Site) -> None:
    deployed = site.deploy("lake")
    assert site.deploy("lake") == deployed
    assert len(site.client.read_deployment(UUID(deployed.deployment_id)).schedules) == 1
    first, second = site.start(deployed), site.start(deployed)
    assert [site.end_of(run).state_name for run in (first, second)] == ["Completed"] * 2
    assert sorted(site.agents_of(first)) == ["Completed"] * 5
    assert site.agents_of(second) == ["Cached"] * 5
    build_id = next((site.folder / "lake" / "builds").glob("*/manifest.json")).parent.name
    assert [told["build_id"] for told in site.committed()] == [build_id]
    assert set(site.committed()[0]) == {"build_id", "lake", "counts", "report"}
    assert remove(site.server, "build", "lake")
    assert not remove(site.server, "build", "lake")


def test_a_run_whose_process_is_killed_crashes_and_starts_again(site: Site) -> None:
    run_id = site.start(site.deploy("killed"))
    run = site.wait(run_id, lambda run: "videorefer.process.1" in run.labels)
    os.kill(int(run.infrastructure_pid or 0), signal.SIGKILL)
    ended = site.end_of(run_id)
    assert (ended.state_name, ended.run_count) == ("Completed", 2)
    states = site.states_of(run_id)
    assert states.index("Running") < states.index("Crashed") < states.index("AwaitingRetry") < len(states) - 1


def test_down_ends_the_run_and_up_starts_it_again(site: Site) -> None:
    run_id = site.start(site.deploy("stopped"))
    run = site.wait(run_id, lambda run: "videorefer.process.1" in run.labels)
    assert stop_worker() is not None
    assert not Path(f"/proc/{run.infrastructure_pid}").exists()
    up = [sys.executable, "-c", "from flows.names import main; main()", "up"]
    told = subprocess.run(up, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert f"Prefect was up already: {site.server.url}/runs" in told.stdout
    assert "its worker is up" in told.stdout
    ended = site.end_of(run_id)
    assert (ended.state_name, ended.run_count) == ("Completed", 2)


CHILD = """
import time
from prefect import flow

@flow
def build():
    time.sleep(300)

build()
"""


def test_a_run_without_a_worker_whose_heartbeats_stop_has_crashed(site: Site) -> None:
    pool = prepare_pool(site.client)
    watch_over_runs(site.client, pool, lost_after_s=40.0)
    own = {"PREFECT_API_URL": site.server.api_url, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    with subprocess.Popen([sys.executable, "-c", CHILD], env=os.environ | own) as child:
        running = FlowRunFilter.model_validate({"state": {"name": {"any_": ["Running"]}}})
        while not (runs := site.client.read_flow_runs(flow_run_filter=running)):
            assert child.poll() is None
            time.sleep(0.3)
        time.sleep(35.0)  # past the second heartbeat: one that lives is left alone
        child.kill()
    assert site.client.read_flow_run(runs[0].id).state_name == "Running"
    crashed = site.wait(runs[0].id, lambda run: run.state_name == "Crashed")
    assert crashed.state is not None
    assert "no heartbeat" in (crashed.state.message or "")
    watch_over_runs(site.client, pool)
