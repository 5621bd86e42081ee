"""The script in which Compose's engine runs Ray and the worker, with two programs in their place."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

COMPOSE = Path(__file__).resolve().parents[2] / "infra/deploy/compose.yaml"

FAKE = """#!/bin/bash
case "$1" in
health-check) exit 0 ;;
esac
trap 'echo ended >> "$0.log"; exit 0' TERM
echo "$$" >> "$0.pid"
while :; do sleep 0.05; done
"""


@pytest.fixture
def both(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The script of Compose's engine, running, with programs in place of `ray` and `prefect` that wait for SIGTERM."""
    for name in ("ray", "prefect"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    said = yaml.safe_load(COMPOSE.read_text())["services"]["engine"]["command"]
    command = [word.replace("$$", "$") for word in said]
    process = subprocess.Popen(command, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    try:
        wait_for(lambda: (tmp_path / "prefect.pid").exists() and (tmp_path / "ray.pid").exists())
        yield process
    finally:
        process.kill()
        for path in tmp_path.glob("*.pid"):
            end(int(path.read_text()), signal.SIGKILL)
        process.wait()


def end(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize(("dies", "other"), [("ray", "prefect"), ("prefect", "ray")])
def test_what_is_left_of_ray_and_worker_ends_with_the_other(
    both: "subprocess.Popen[bytes]", tmp_path: Path, dies: str, other: str
) -> None:
    end(int((tmp_path / f"{dies}.pid").read_text()), signal.SIGKILL)
    both.wait(20)
    assert (tmp_path / f"{other}.log").read_text() == "ended\n"


def test_ray_and_worker_are_told_when_the_container_stops(both: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    end(both.pid, signal.SIGTERM)
    both.wait(20)
    assert [(tmp_path / f"{name}.log").read_text() for name in ("ray", "prefect")] == ["ended\n", "ended\n"]
