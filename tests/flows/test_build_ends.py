"""How a build ends when something bad happens to it: a clip that kills its agent, Cancel on the run's page.

On three tiny clips, through a real Prefect server and a real local Ray.
"""

import json
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import CancelledRun
from prefect.states import Cancelling

from flows import pools
from flows.build import build
from flows.profile_config import ROLES, Profile, Role
from flows.wiring import Site, make_agent
from infra.builds import KINDS, read_quarantine, read_samples
from infra.lake import Lake
from infra.synthetic import write_clips
from infra.workbench import clip_id_of

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.timeout(300)]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

SEED = 7
PROFILE = Path(pools.__file__).parent / "profiles" / "painted.toml"


class Fragile:
    """An agent that a clip of one video kills, and that may take its time over every call."""

    def __init__(self, role: Role, profile: Profile, site: Site, poison: str, slow_s: float) -> None:
        self._agent = make_agent(role, profile, site)
        self._poison = poison
        self._slow_s = slow_s

    def setup(self) -> None:
        self._agent.setup()

    def process(self, jobs: Any) -> Any:
        time.sleep(self._slow_s)
        for job in jobs:
            if self._poison and self._poison in getattr(job, "clip", job).video:
                sys.stderr.write(f"about to die of {clip_id_of(job)}\n")
                sys.stderr.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        return self._agent.process(jobs)

    def close(self) -> None:
        self._agent.close()


@pytest.fixture(scope="module")
def source(server: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, write_clips(folder / "clips", 3, SEED))))
    return rows


def make_fragile(monkeypatch: pytest.MonkeyPatch, role: Role, poison: str = "", slow_s: float = 0.0) -> None:
    def factory(of: Role, profile: Profile, site: Site) -> Any:
        if of == role:
            return partial(Fragile, of, profile, site, poison, slow_s)
        return partial(make_agent, of, profile, site)

    monkeypatch.setattr(pools, "agent_factory", factory)


def runs_of(lake: Path) -> dict[str, dict[str, str]]:
    """State of every run on a lake, with the types of its task runs' states, once all have arrived."""
    deadline_s = time.monotonic() + 20.0
    with get_client(sync_client=True) as client:
        while True:
            runs = [run for run in client.read_flow_runs() if run.parameters.get("lake") == str(lake)]
            told = {
                run.state_name or "": {
                    task.name: task.state_type.value if task.state_type else ""
                    for task in client.read_task_runs(
                        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
                    )
                }
                for run in runs
            }
            is_final = all(not {"PENDING", "RUNNING"} & set(tasks.values()) for tasks in told.values())
            if is_final or time.monotonic() > deadline_s:
                return told
            time.sleep(0.3)


def test_a_clip_that_kills_its_agent_is_quarantined_and_the_others_are_untouched(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(str(source), str(tmp_path / "whole"), profile=str(PROFILE))
    poison = "synthetic-7-01"
    make_fragile(monkeypatch, "annotator", poison)
    hurt = build(str(source), str(tmp_path / "hurt"), profile=str(PROFILE))

    lake = Lake(tmp_path / "hurt")
    (entry,) = [entry for entry in read_quarantine(lake, hurt.build_id) if entry.stage == "annotator"]
    assert (entry.reason, entry.retryable) == ("agent_died", True)
    assert entry.evidence.startswith("2 tries: ")
    assert "SIGKILL" in entry.evidence
    assert f"about to die of {entry.clip_id}" in entry.evidence
    for kind in KINDS:
        before = list(read_samples(Lake(tmp_path / "whole"), whole.build_id, kind))
        after = list(read_samples(lake, hurt.build_id, kind))
        assert after == [row for row in before if poison not in row.video]
        assert len(after) < len(before)


def test_cancel_on_the_page_ends_the_run_and_its_steps_and_the_same_command_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_fragile(monkeypatch, "annotator", slow_s=60.0)
    lake = tmp_path / "lake"

    def cancel_once_the_segmenter_is_through() -> None:
        with get_client(sync_client=True) as client:
            while not list(lake.glob("agents/segmenter/*/part-*.parquet")):
                time.sleep(0.2)
            (run,) = [run for run in client.read_flow_runs() if run.parameters.get("lake") == str(lake)]
            client.set_flow_run_state(run.id, Cancelling())

    threading.Thread(target=cancel_once_the_segmenter_is_through, daemon=True).start()
    began_s = time.monotonic()
    with pytest.raises(CancelledRun, match="cancelled in the UI"):
        build(str(source), str(lake), profile=str(PROFILE))
    assert time.monotonic() - began_s < 60.0
    (tasks,) = (told := runs_of(lake)).values()
    assert list(told) == ["Cancelled"]
    assert {name: state for name, state in tasks.items() if state != "COMPLETED"} == {
        f"{role} unit 000": "FAILED" for role in ("annotator", "reviewer", "refiner")
    }

    monkeypatch.undo()
    kept = {path: path.stat().st_mtime_ns for path in lake.glob("agents/*/*/part-*.parquet")}
    result = build(str(source), str(lake), profile=str(PROFILE))
    assert result.is_new
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    for role in ROLES:
        is_through = role in ("analyzer", "segmenter")
        parts = list(lake.glob(f"agents/{role}/*/part-*.parquet"))
        assert {part in kept for part in parts} == {is_through}
