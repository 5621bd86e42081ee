"""Trainings that are hit: a rank, the driver, the driver's command; the same command ends with the same losses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from flows.cli_common import INTERRUPTED

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.timeout(600)]

NUM_STEPS = 30


class Command:
    """`videorefer train` on the hand-made lake, as often as wanted, in processes of its own."""

    def __init__(self, lake: str, out: Path, profile: str) -> None:
        self.out = out
        asked = ("train", "--lake", lake, "--out", str(out), "--profile", profile)
        self._line = (sys.executable, "-c", "from flows.names import main; main()", *asked)

    def start(self) -> subprocess.Popen[str]:
        env = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
        pipe = subprocess.PIPE
        return subprocess.Popen(self._line, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True)

    def finish(self) -> None:
        """Run to the end."""
        process = self.start()
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said

    def last_step(self) -> int:
        (newest, *_) = sorted((self.out / "checkpoints").glob("step-*"), reverse=True)
        step: int = json.loads((newest / "checkpoint.json").read_text())["progress"]["step"]
        return step


def ranks_of(pid: int) -> set[int]:
    """Ranks that descend from a process; others on the machine may train too, and are not ours to kill."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        rank = int(path.parent.name)
        try:
            if path.read_bytes().startswith(b"ray::RayTrainWorker") and descends(rank, pid):
                found.add(rank)
        except OSError:  # it ended meanwhile
            continue
    return found


def descends(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == ancestor


def states_of_runs(out: Path) -> list[str]:
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if run.parameters.get("out") == str(out)]
        return [run.state.type.value for run in runs if run.state]


@pytest.fixture
def profile(tiny: Any) -> str:
    path: str = tiny.profile(num_steps=NUM_STEPS, workers=2, checkpoint_every_steps=5)
    return path


@pytest.fixture
def losses(server: None, lake_by_hand: Any, tiny: Any, tmp_path: Path, profile: str) -> list[float]:
    """Of a training that nobody hits."""
    lake_by_hand.publish()
    calm = Command(lake_by_hand.lake.root, tmp_path / "calm", profile)
    calm.finish()
    return [row.loss for row in tiny.steps(calm.out)]


def test_whatever_is_hit_costs_no_step(
    losses: list[float], lake_by_hand: Any, tiny: Any, tmp_path: Path, profile: str
) -> None:
    def begin(name: str) -> tuple[Command, subprocess.Popen[str]]:
        command = Command(lake_by_hand.lake.root, tmp_path / name, profile)
        process = command.start()
        tiny.when_logged(command.out, 8, lambda: None).join(240)
        return command, process

    def assert_whole(command: Command) -> None:
        rows = tiny.steps(command.out)
        assert [row.step for row in rows] == list(range(1, NUM_STEPS + 1))
        assert [row.loss for row in rows] == losses
        weights = [(out / "model" / "model.safetensors").read_bytes() for out in (tmp_path / "calm", command.out)]
        assert weights[0] == weights[1]

    command, process = begin("rank")
    before = ranks_of(process.pid)
    os.kill(min(before), signal.SIGKILL)
    while not ranks_of(process.pid) - before:
        assert process.poll() is None  # the kill came before the end, and ranks are started again
        time.sleep(0.05)
    assert process.wait(300) == 0
    assert_whole(command)

    command, process = begin("terminated")
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (INTERRUPTED, ""), stderr
    step = command.last_step()
    assert 8 <= step < NUM_STEPS
    assert stderr.splitlines()[-1] == f"error: stopped; the same command goes on from step {step}"
    assert states_of_runs(command.out) == ["CRASHED"]
    command.finish()
    assert_whole(command)

    command, process = begin("killed")
    ranks = ranks_of(process.pid)
    process.kill()
    process.communicate(timeout=60)
    assert 5 <= command.last_step() < NUM_STEPS
    assert len(ranks) == 2
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):  # pytest's own time limit ends it
        time.sleep(0.1)
    command.finish()
    assert_whole(command)
    assert sorted(states_of_runs(command.out)) == ["COMPLETED", "CRASHED"]
