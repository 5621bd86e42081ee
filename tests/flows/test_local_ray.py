"""The Ray of `videorefer up`, in the order of a life: shared, left by a killed driver, killed, replaced, stopped."""

import contextlib
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

import httpx
import pytest
import ray
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter

from flows.build import build
from flows.local_ray import running_ray, start_local_ray, stop_local_ray
from flows.result import BuildResult
from flows.started import Ray, Started, note_file, noted
from flows.train_profile import WorkerResources
from flows.train_workers import run_ranks
from infra.processes import began
from infra.synthetic import write_clips

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
GONE_S = 15.0

DRIVER = """
import ctypes, os, sys
from functools import partial
from pathlib import Path
from flows.ray_of_run import use_ray
from infra.ray_pool import RayPool
from schemas.clip import Clip

class Busy:
    def __init__(self, note): self.note = Path(note)
    def setup(self): pass
    def process(self, jobs):
        self.note.write_text(f"{os.getpid()} {os.getppid()} {os.environ['VIDEOREFER_SAID']}")
        ctypes.PyDLL(None).sleep(600)
    def close(self): pass

JOB = Clip(clip_id="c", source_id="s", video="a.mp4", video_sha256="0" * 64, license="", start_s=0, end_s=1,
           start_frame=0, end_frame=1, fps=1, height_px=1, width_px=1, caption="x")

with use_ray(None, 1), RayPool(partial(Busy, sys.argv[1]), num_workers=1, batch_size=1, timeout_s=900) as pool:
    list(pool.run(0, [JOB]))
"""


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind((HOST, 0))
        other.bind(("", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


def wait_until(true: Callable[[], bool], within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    return began(pid) is not None


def session_of(pid: int) -> list[int]:
    """The processes of a session, the workers of a Ray among them, which have groups of their own."""
    found = []
    for process in (int(folder.name) for folder in Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process) == pid and is_alive(process):
                found.append(process)
    return found


@dataclass(frozen=True)
class Place:
    """The Ray that `up` started, and a folder with painted clips."""

    ray: Ray
    ports: tuple[int, int]
    rows: Path


@pytest.fixture(scope="module")
def place(server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, write_clips(folder / "clips", 2, 7))))
    os.environ.pop("RAY_AUTH_MODE", None)  # as in a process that has started no Ray
    ports = free_ports()
    started, is_new = start_local_ray(*ports)
    assert is_new
    try:
        yield Place(started, ports, rows)
    finally:
        stop_local_ray()


def dashboard_links() -> dict[str, list[Any]]:
    """The flow runs with a link to a dashboard, by where it leads."""
    found: dict[str, list[Any]] = {}
    wanted = ArtifactFilter.model_validate({"key": {"any_": ["ray-dashboard"]}})
    with get_client(sync_client=True) as client:
        for artifact in client.read_artifacts(artifact_filter=wanted):
            found.setdefault(str(artifact.data), []).append(artifact.flow_run_id)
    return found


def built(place: Place, lake: Path) -> BuildResult:
    result = build(str(place.rows), str(lake), profile="painted")
    assert isinstance(result, BuildResult)
    return result


def test_up_again_keeps_it(place: Place) -> None:
    assert running_ray() == place.ray
    assert start_local_ray(*place.ports) == (place.ray, False)


def test_the_dashboard_shows_nothing_without_the_token(place: Place) -> None:
    url = place.ray.dashboard_url
    assert url == f"http://{HOST}:{place.ports[0]}"
    assert httpx.get(url).status_code == 200
    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    for path in ("/nodes?view=summary", "/api/jobs/", "/api/v0/actors"):
        assert httpx.get(url + path).text == "Unauthorized: Missing authentication token"
    told = httpx.get(url + "/nodes?view=summary", headers={"Authorization": f"Bearer {token}"}).json()
    assert len(told["data"]["summary"]) == 1
    assert b"ray_" in httpx.get(f"http://{HOST}:{place.ports[1]}/metrics").content


def test_a_build_uses_it_and_links_its_dashboard(place: Place, tmp_path: Path) -> None:
    result = built(place, tmp_path / "lake")
    assert (result.is_new, result.ray_started, result.num_failed) == (True, True, 0)
    assert not ray.is_initialized()
    assert running_ray() == place.ray
    ((data, runs),) = dashboard_links().items()
    assert data == f"[Ray dashboard]({place.ray.dashboard_url})"
    assert len(runs) == 1
    again = built(place, tmp_path / "lake")
    assert (again.is_new, again.ray_started) == (False, False)


def test_ranks_train_on_it(place: Place, tmp_path: Path) -> None:
    def rank(config: dict[str, Any]) -> None:
        from ray.train import get_context

        context = get_context()
        told = Path(config["out"], f"{context.get_world_rank()} of {context.get_world_size()}")
        told.write_text(str(os.getsid(0)))

    run_ranks(rank, {"out": str(tmp_path)}, WorkerResources(num=2), tmp_path, None, lambda: None, print)
    sessions = [(tmp_path / name).read_text() for name in ("0 of 2", "1 of 2")]
    assert sessions == [str(place.ray.pid)] * 2
    assert not ray.is_initialized()


def test_of_a_driver_that_is_killed_no_actor_stays_nor_agent(place: Place, tmp_path: Path) -> None:
    note, script = tmp_path / "note.txt", tmp_path / "driver.py"
    script.write_text(DRIVER)
    env = os.environ | {"PYTHONPATH": str(ROOT), "VIDEOREFER_SAID": "by the driver"}
    env.pop("RAY_AUTH_MODE", None)
    with subprocess.Popen([sys.executable, str(script), str(note)], env=env) as driver:
        wait_until(lambda: note.exists() and note.read_text() != "", within_s=60)
        agent, actor, said = note.read_text().split(maxsplit=2)
        assert said == "by the driver"
        assert {int(agent), int(actor)} <= set(session_of(place.ray.pid))
        driver.kill()
    wait_until(lambda: not is_alive(int(agent)) and not is_alive(int(actor)), GONE_S)
    assert running_ray() == place.ray


@pytest.mark.parametrize("whole_group", [True, False])
def test_killed_it_is_told_replaced_by_up_and_leaves_nothing(place: Place, tmp_path: Path, whole_group: bool) -> None:
    before = running_ray()
    assert before is not None
    os.killpg(before.pid, signal.SIGKILL) if whole_group else os.kill(before.pid, signal.SIGKILL)
    wait_until(lambda: running_ray() is None, within_s=10)
    links = dashboard_links()
    if whole_group:
        assert built(place, tmp_path / "lake").ray_started
        assert dashboard_links() == links  # a Ray of its own has no dashboard
    after, is_new = start_local_ray(*place.ports)
    assert is_new
    assert running_ray() == noted().ray == after
    wait_until(lambda: not session_of(before.pid), GONE_S)


def test_a_ray_of_a_dead_raylet_ends_with_its_holder(place: Place) -> None:
    before = running_ray()
    assert before is not None
    (raylet,) = (pid for pid in session_of(before.pid) if Path(f"/proc/{pid}/comm").read_text() == "raylet\n")
    os.kill(raylet, signal.SIGKILL)
    wait_until(lambda: running_ray() is None, within_s=GONE_S)
    assert "raylet died of SIGKILL" in note_file().with_name("ray.log").read_text()
    start_local_ray(*place.ports)


def test_down_leaves_no_process_of_it_and_no_note(place: Place) -> None:
    last = running_ray()
    assert last is not None
    assert len(session_of(last.pid)) > 5
    assert stop_local_ray() == last
    wait_until(lambda: not session_of(last.pid), within_s=GONE_S)
    assert running_ray() is None
    assert stop_local_ray() is None
    assert noted() == Started()
    assert not ray.is_initialized()
