import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from infra import ray_folder
from infra.ray_cluster import RayStartError, start_ray
from infra.ray_folder import RayFolder

BUSY = """
import ctypes, os, signal, sys
from functools import partial
from pathlib import Path
from infra.pool import PoolError
from infra.ray_cluster import start_ray
from infra.ray_pool import RayPool
from schemas.clip import Clip

class Busy:
    def __init__(self, note): self.note = Path(note)
    def setup(self): pass
    def process(self, jobs):
        self.note.write_text(str(os.getpid()))
        ctypes.PyDLL(None).sleep(600)
    def close(self): pass

JOB = Clip(clip_id="c", source_id="s", video="a.mp4", video_sha256="0" * 64, license="", start_s=0, end_s=1,
           start_frame=0, end_frame=1, fps=1, height_px=1, width_px=1, caption="x")

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    factory = partial(Busy, sys.argv[1])
    with start_ray(num_cpus=1) as handle, RayPool(factory, num_workers=1, batch_size=1, timeout_s=900) as pool:
        print(handle.temp_dir, flush=True)
        try:
            list(pool.run(0, [JOB]))
        except PoolError as error:
            print(error, flush=True)
"""


TERMINATED = """
import os, signal, threading, time
from concurrent.futures import ThreadPoolExecutor
from infra.ray_cluster import start_ray

told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
with ThreadPoolExecutor(1) as threads:
    handle = threads.submit(start_ray, None, 1).result()
    os.kill(os.getpid(), signal.SIGTERM)
    main = threading.main_thread().ident
    during = threading.Timer(0.5, lambda: signal.pthread_kill(main, signal.SIGTERM))
    during.start()
    handle.stop()
    during.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
print(len(told))
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


@pytest.mark.slow
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
    monkeypatch.setattr(ray_folder.tempfile, "gettempdir", lambda: str(long))
    folder = RayFolder.make()
    folder.remove()
    assert folder.path.parent == Path("/tmp")


@pytest.fixture
def short_folder(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        monkeypatch.setattr(ray_folder.tempfile, "gettempdir", lambda: folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_folders_of_dead_owners_go_and_those_of_living_ones_stay(short_folder):
    script = "import sys, time; from infra.ray_folder import RayFolder; RayFolder.make(); print(); time.sleep(600)"
    owners = [driver("-c", script) for _ in range(2)]
    for owner in owners:
        owner.stdout.readline()
    (short_folder / "vr-file").touch()
    (short_folder / "vr-headset-recordings").mkdir()
    dead, alive = owners
    before = set(short_folder.iterdir())
    dead.kill()
    dead.wait()
    mine = RayFolder.make()
    (mine.path / "session").mkdir()
    gone = before - set(short_folder.iterdir())
    assert [path.name[:3] for path in gone] == ["vr-"]
    alive.kill()
    alive.wait()
    again = RayFolder.make()
    kept = {short_folder / "vr-file", short_folder / "vr-headset-recordings", mine.path, again.path}
    assert set(short_folder.iterdir()) == kept
    mine.remove()
    again.remove()


def test_a_folder_into_which_a_process_still_writes_is_gone_once_that_ended(short_folder):
    folder = RayFolder.make()
    session = folder.path / "session"
    session.mkdir()
    script = "import itertools\nfor i in itertools.count(): open(f'{i % 50}.log', 'w').close()"
    with subprocess.Popen([sys.executable, "-c", script], cwd=session, stderr=subprocess.DEVNULL) as writer:
        try:
            wait_until(lambda: (session / "49.log").exists(), within_s=15)
            folder.remove()
            assert not folder.path.exists()
        finally:
            writer.kill()
    RayFolder.make().remove()
    assert list(short_folder.iterdir()) == []


def driver(*arguments: str) -> "subprocess.Popen[str]":
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, env=env, text=True)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_that_name(path: Path) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdecimal() and str(path) in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def wait_until(true: Callable[[], bool], within_s: float) -> float:
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < within_s
        time.sleep(0.05)
    return time.monotonic() - start


@dataclass
class Build:
    """A driver with an agent that is in the middle of a call."""

    process: "subprocess.Popen[str]"
    temp_dir: Path
    agent: int


@pytest.fixture
def build(tmp_path, short_folder):
    script, note = tmp_path / "driver.py", tmp_path / "pid.txt"
    script.write_text(BUSY)
    process = driver(str(script), str(note))
    temp_dir = Path(process.stdout.readline().strip())
    wait_until(lambda: note.exists() and note.read_text() != "", within_s=30)
    yield Build(process, temp_dir, int(note.read_text()))
    process.kill()
    process.wait()


@pytest.mark.slow
def test_an_interrupt_ends_workers_and_cluster_and_takes_their_files_away(build):
    build.process.send_signal(signal.SIGINT)
    assert build.process.wait(30) != 0
    assert build.process.stdout.read() == ""
    assert not build.temp_dir.exists()
    assert not is_running(build.agent)


@pytest.mark.slow
def test_of_a_driver_that_is_killed_nothing_stays(build, short_folder):
    build.process.kill()
    build.process.wait()
    wait_until(lambda: not is_running(build.agent) and not processes_that_name(build.temp_dir), within_s=15)
    assert build.temp_dir.exists()
    RayFolder.make().remove()
    assert list(short_folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_the_death_of_ray_ends_the_work_within_seconds_and_with_one_line(build, victim):
    (pid,) = [
        pid
        for pid in processes_that_name(build.temp_dir)
        if Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0].endswith(victim)
    ]
    os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    told = build.process.stdout.readline()
    assert time.monotonic() - start < 10
    assert told == (
        f"Ray on this machine died: {victim} died of SIGKILL (killed from outside, or for want of memory); "
        "the same command goes on from here\n"
    )
    assert build.process.wait(30) == 0
    wait_until(lambda: not is_running(build.agent), within_s=10)
    assert not build.temp_dir.exists()


TWO_NODES = """
import sys, threading, time
from ray.cluster_utils import Cluster
from infra.pool import JobFailure, PoolError
from infra.ray_cluster import start_ray
from infra.ray_pool import RayPool
from schemas.clip import Clip
from schemas.mention import MentionSet

class Slow:
    def setup(self): pass
    def process(self, jobs):
        time.sleep(0.3)
        return [MentionSet(clip_id=job.clip_id, mentions=(), rejected=()) for job in jobs]
    def close(self): pass

def clip(n):
    return Clip(clip_id=str(n), source_id="s", video="a.mp4", video_sha256="0" * 64, license="", start_s=0, end_s=1,
                start_frame=0, end_frame=1, fps=1, height_px=1, width_px=1, caption="x")

node = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 2})
second = cluster.add_node(num_cpus=1, **node)
with start_ray(cluster.address), RayPool(Slow, num_workers=3, batch_size=2, timeout_s=60) as pool:
    list(pool.run(0, [clip(-1)] ))
    list(pool.run(0, [clip(-n) for n in range(2, 40)]))  # every worker is at work
    threading.Timer(1.0, lambda: cluster.remove_node(second, allow_graceful=False)).start()
    done = [outcome for batch in pool.run(0, [clip(n) for n in range(200)]) for outcome in batch.outcomes]
    failed = [outcome for outcome in done if isinstance(outcome.result, JobFailure)]
    print(len(done), len(failed), pool.losses, flush=True)
    {'store': cluster.head_node.kill_gcs_server, 'node': cluster.head_node.kill_raylet}[sys.argv[1]]()
    start = time.monotonic()
    try:
        list(pool.run(0, [clip(n) for n in range(200)] * 2))
    except PoolError as error:
        print(error, time.monotonic() - start < 30, flush=True)
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "said"),
    [
        ("store", r"the Ray cluster does not answer for 2\d s; the same command goes on from here"),
        ("node", r"this machine's node of the Ray cluster died; the same command goes on from here"),
    ],
)
def test_a_cluster_outlives_a_node_and_neither_its_control_store_nor_the_drivers_node(victim: str, said: str):
    process = driver("-c", TWO_NODES, victim)
    after_node, after_victim = process.communicate(timeout=150)[0].splitlines()[-2:]
    assert after_node == "200 0 1"
    assert re.fullmatch(f"{said} True", after_victim)


@pytest.mark.slow
def test_the_answer_to_sigterm_stays_that_of_the_process_while_ray_runs_and_after():
    process = driver("-c", TERMINATED)
    assert process.communicate(timeout=60)[0].strip() == "3"
    assert process.returncode == 0
