import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from infra import ray_cluster
from infra.ray_cluster import RayStartError, start_ray

INTERRUPTED = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
from infra.ray_cluster import start_ray
from infra.ray_pool import RayPool
from schemas.clip import Clip

class Sleeper:
    def __init__(self, note): self.note = Path(note)
    def setup(self): pass
    def process(self, jobs):
        self.note.write_text(str(os.getpid()))
        time.sleep(600)
    def close(self): pass

JOB = Clip(clip_id="c", source_id="s", video="a.mp4", video_sha256="0" * 64, license="", start_s=0, end_s=1,
           start_frame=0, end_frame=1, fps=1, height_px=1, width_px=1, caption="x")

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    factory = partial(Sleeper, sys.argv[1])
    with start_ray(num_cpus=1) as handle, RayPool(factory, num_workers=1, batch_size=1, timeout_s=900) as pool:
        print(handle.temp_dir, flush=True)
        list(pool.run(0, [JOB]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_address_where_nobody_answers_is_told_at_once():
    start = time.monotonic()
    with pytest.raises(RayStartError, match="cannot join the Ray cluster at 127") as info:
        start_ray(f"127.0.0.1:{free_port()}")
    assert time.monotonic() - start < 10
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("address", ["head", "ray://head", ":6379"])
def test_an_address_of_another_form_is_refused(address):
    with pytest.raises(RayStartError, match="auto or host:port"):
        start_ray(address)


@pytest.mark.parametrize("mode", ["disabled", "Disabled", "", "tokens"])
def test_a_ray_that_asks_nobody_for_the_token_is_not_started(monkeypatch, mode):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(RayStartError, match=rf"^Ray would run commands of anyone .* RAY_AUTH_MODE is '{mode}': unset"):
        start_ray()
    assert not ray.is_initialized()


def test_a_ray_started_here_refuses_who_lacks_its_token(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    asks = (
        "import sys; from ray._raylet import GcsClient; print(GcsClient(sys.argv[1]).internal_kv_keys(b'', b'session'))"
    )
    callers = {"knows": {}, "guesses": {"RAY_AUTH_TOKEN": "0" * 64}, "has none": {"RAY_AUTH_MODE": "disabled"}}
    with start_ray(num_cpus=1):
        command = [sys.executable, "-c", asks, ray.get_runtime_context().gcs_address]
        answers = {
            who: subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=60)
            for who, env in callers.items()
        }
    assert answers["knows"].stdout == "[b'session_name']\n"
    for who in ("guesses", "has none"):
        assert answers[who].stdout == ""
        assert "AuthenticationError" in answers[who].stderr


def test_a_long_temporary_folder_is_not_used_for_sockets(tmp_path, monkeypatch):
    long = tmp_path / "a-folder-of-a-long-name-for-temporary-files"
    long.mkdir()
    monkeypatch.setattr(ray_cluster.tempfile, "gettempdir", lambda: str(long))
    folder = ray_cluster._short_temp_dir()
    folder.rmdir()
    assert folder.parent == Path("/tmp")


def test_an_interrupt_ends_workers_and_cluster_and_takes_their_files_away(tmp_path):
    script, note = tmp_path / "driver.py", tmp_path / "pid.txt"
    script.write_text(INTERRUPTED)
    driver = subprocess.Popen(
        [sys.executable, str(script), str(note)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
    )
    temp_dir = Path(driver.stdout.readline().strip())
    end = time.monotonic() + 30
    while not note.exists() or not note.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(30) != 0
    assert driver.stdout.read() == ""
    assert not temp_dir.exists()
    assert not Path(f"/proc/{note.read_text()}").exists()
