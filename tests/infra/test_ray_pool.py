import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import cloudpickle
import pytest
import ray

from infra.pool import MAX_LOSSES, JobFailure, PoolError
from infra.ray_cluster import start_ray
from infra.ray_pool import RayPool
from schemas.clip import Clip
from schemas.mention import MentionSet

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


class Scripted:
    """Does what each clip's caption says; appends each clip it begins to `began.txt`, each call to `calls.txt`."""

    def __init__(self, folder: str, at_setup: str = "") -> None:
        self.folder = Path(folder)
        self.at_setup = at_setup

    def setup(self) -> None:
        self.note("setups.txt", str(os.getpid()))
        self.act(self.at_setup)

    def process(self, jobs) -> list[MentionSet]:
        self.note("calls.txt", " ".join(job.clip_id for job in jobs))
        for job in jobs:
            self.note("began.txt", job.clip_id)
            self.act(job.caption)
        logging.getLogger("scripted").info("did %d", len(jobs))
        return [
            MentionSet(clip_id="other" if job.caption == "swap" else job.clip_id, mentions=(), rejected=())
            for job in jobs
        ]

    def close(self) -> None:
        self.note("closed.txt", str(os.getpid()))

    def note(self, name: str, line: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write(f"{line}\n")

    def act(self, what: str) -> None:
        if what == "raise":
            raise RuntimeError("cannot do this one")
        if what == "exit":
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "crash":
            ctypes.string_at(0)
        if what == "hang":
            ctypes.PyDLL(None).sleep(600)  # in C, holding the interpreter's lock
        if what == "hang if second" and lines(self.folder / "setups.txt")[1:2] == [str(os.getpid())]:
            self.act("hang")
        if what == "kill worker":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        if what.startswith("sleep"):
            time.sleep(float(what.split()[1]))
        if what == "wait":
            while not (self.folder / "go").exists():
                time.sleep(0.01)


def clip(name: str, caption: str = "fine") -> Clip:
    return Clip(
        clip_id=name,
        source_id="s",
        video="a.mp4",
        video_sha256="0" * 64,
        license="CC0",
        start_s=0,
        end_s=1,
        start_frame=0,
        end_frame=30,
        fps=30,
        height_px=4,
        width_px=4,
        caption=caption,
    )


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with start_ray(num_cpus=2) as handle:
        yield handle


@pytest.fixture
def make_pool(tmp_path):
    pools = []

    def make(at_setup: str = "", **options) -> RayPool:
        sizes = {"num_workers": 1, "batch_size": 1, "timeout_s": 60.0, "num_cpus": 0.5} | options
        pools.append(RayPool(partial(Scripted, str(tmp_path), at_setup), **sizes))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for(path: Path, count: int = 1) -> list[str]:
    end = time.monotonic() + 30
    while len(lines(path)) < count:
        assert time.monotonic() < end, f"{path.name} never had {count} lines"
        time.sleep(0.01)
    return lines(path)


def results(batches) -> dict[str, MentionSet | JobFailure]:
    return {outcome.job.clip_id: outcome.result for done in batches for outcome in done.outcomes}


def test_every_job_comes_back_once_under_its_own_id(make_pool, tmp_path):
    pool = make_pool(num_workers=2, batch_size=3)
    done = list(pool.run(0, [clip(f"c{n}") for n in range(20)]))
    found = results(done)
    assert {name: result.clip_id for name, result in found.items()} == {f"c{n}": f"c{n}" for n in range(20)}
    assert sorted(len(batch.outcomes) for batch in done) == [2, 3, 3, 3, 3, 3, 3]
    assert sorted(lines(tmp_path / "began.txt")) == sorted(found)
    assert len(lines(tmp_path / "setups.txt")) <= 2


def test_the_lowest_unit_is_served_first_whoever_calls(make_pool, tmp_path):
    pool = make_pool(window=1)
    jobs = {9: [clip("first", "wait")], 5: [clip("e1"), clip("e2")], 1: [clip("a1"), clip("a2")], 3: [clip("c1")]}
    threads = []
    for priority, batch in jobs.items():
        threads.append(threading.Thread(target=lambda p=priority, b=batch: list(pool.run(p, b))))
        threads[-1].start()
        wait_for(tmp_path / "began.txt")
    time.sleep(0.2)
    (tmp_path / "go").touch()
    for thread in threads:
        thread.join(30)
    assert lines(tmp_path / "began.txt") == ["first", "a1", "a2", "c1", "e1", "e2"]


def test_an_exception_costs_its_own_job_only(make_pool, tmp_path):
    pool = make_pool(batch_size=4, max_attempts=2)
    found = results(pool.run(0, [clip("a"), clip("bad", "raise"), clip("c"), clip("swapped", "swap")]))
    assert (found["a"].clip_id, found["c"].clip_id) == ("a", "c")
    assert (found["bad"].reason, found["bad"].attempts) == ("agent_error", 2)
    assert "cannot do this one" in found["bad"].evidence
    assert "clip swapped with an output for clip other" in found["swapped"].evidence
    assert lines(tmp_path / "began.txt").count("bad") == 2
    assert len(lines(tmp_path / "setups.txt")) == 1


@pytest.mark.parametrize(
    ("how", "position", "reason", "told"),
    [
        ("exit", 0, "agent_died", r"its process exited with status 3\nits stderr:\nlast words"),
        pytest.param("kill", 5, "agent_died", r"its process died of SIGKILL", marks=pytest.mark.slow),
        ("crash", 6, "agent_died", r"its process died of SIGSEGV(.|\n)*Segmentation fault(.|\n)*in act"),
        ("raise", 3, "agent_error", r"RuntimeError: cannot do this one"),
        ("hang", 11, "agent_timeout", r"no answer within 2 s; its process was killed"),
    ],
)
def test_a_poison_job_runs_max_attempts_times_and_the_others_pass(make_pool, tmp_path, how, position, reason, told):
    pool = make_pool(batch_size=4, max_attempts=3, timeout_s=2.0)
    jobs = [clip(f"c{n}", how if n == position else "fine") for n in range(12)]
    found = results(pool.run(0, jobs))
    poison = found.pop(f"c{position}")
    assert (poison.reason, poison.attempts) == (reason, 3)
    assert re.match(told, poison.evidence)
    assert found == {f"c{n}": MentionSet(clip_id=f"c{n}", mentions=(), rejected=()) for n in range(12) if n != position}
    began = lines(tmp_path / "began.txt")
    assert began.count(f"c{position}") == 3
    batch = {f"c{n}" for n in range(12) if n // 4 == position // 4}
    assert all(began.count(name) == 1 for name in found if name not in batch)
    assert all(began.count(name) <= 2 for name in found)
    assert pool.losses == (0 if how == "raise" else 3)


def test_the_log_of_the_run_tells_what_became_of_a_batch(make_pool):
    (done,) = make_pool(batch_size=3).run(0, [clip("a"), clip("b", "exit"), clip("c")])
    told = [line.message for line in done.log_lines if (line.logger, line.level) == ("pool", logging.WARNING)]
    assert told == ["agent_died, clips a b c are tried again one by one: its process exited with status 3"]


def state_and_parent(pid: int) -> tuple[str, int]:
    state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    return state, int(parent)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and state_and_parent(pid)[0] != "Z"


@pytest.mark.parametrize("who", ["agent", "worker"])
def test_a_process_killed_from_outside_costs_nothing_lasting(make_pool, tmp_path, who):
    pool = make_pool(batch_size=2)
    batches = pool.run(0, [clip("a", "wait"), clip("b"), clip("c"), clip("d")])
    found = {}
    thread = threading.Thread(target=lambda: found.update(results(batches)))
    thread.start()
    wait_for(tmp_path / "began.txt")
    pid = int(wait_for(tmp_path / "setups.txt")[0])
    os.kill(pid if who == "agent" else state_and_parent(pid)[1], signal.SIGKILL)
    (tmp_path / "go").touch()
    thread.join(30)
    assert {name: result.clip_id for name, result in found.items()} == {name: name for name in "abcd"}
    # what waited behind was no suspect, and stayed whole
    assert sorted(lines(tmp_path / "calls.txt")) == ["a", "a b", "b", "c d"]
    assert not is_running(pid)
    assert pool.losses == 1


def test_an_idle_agent_killed_from_outside_costs_no_attempt(make_pool, tmp_path):
    pool = make_pool(batch_size=2)
    list(pool.run(0, [clip("a")]))
    os.kill(int(lines(tmp_path / "setups.txt")[0]), signal.SIGKILL)
    (done,) = pool.run(0, [clip("b"), clip("c")])
    assert [outcome.result.clip_id for outcome in done.outcomes] == ["b", "c"]
    assert lines(tmp_path / "calls.txt") == ["a", "b c"]


def test_a_job_that_loses_its_worker_again_and_again_is_given_up(make_pool, tmp_path):
    found = results(make_pool(batch_size=4).run(0, [clip("a"), clip("b", "kill worker"), clip("c"), clip("d")]))
    poison = found.pop("b")
    assert (poison.reason, poison.attempts) == ("agent_died", MAX_LOSSES)
    assert {name: result.clip_id for name, result in found.items()} == {name: name for name in "acd"}
    assert lines(tmp_path / "began.txt").count("b") == MAX_LOSSES


def test_waiting_behind_another_call_does_not_count_as_time_out(make_pool):
    pool = make_pool(timeout_s=1.5, window=4)
    found = results(pool.run(0, [clip(f"c{n}", "sleep 0.6") for n in range(5)]))
    assert not any(isinstance(result, JobFailure) for result in found.values())


def test_log_lines_of_the_worker_arrive(make_pool):
    (done,) = make_pool(batch_size=2).run(0, [clip("a"), clip("b")])
    assert ("scripted", logging.INFO, "did 2") in [(line.logger, line.level, line.message) for line in done.log_lines]


def test_many_threads_share_one_pool(make_pool):
    pool = make_pool(num_workers=2, batch_size=2)
    found: dict[int, dict] = {}

    def work(unit: int) -> None:
        found[unit] = results(pool.run(unit, [clip(f"{unit}-{n}", "exit" if n == 3 else "fine") for n in range(6)]))

    threads = [threading.Thread(target=work, args=(unit,)) for unit in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for unit in range(2):
        assert set(found[unit]) == {f"{unit}-{n}" for n in range(6)}
        failed = [name for name, result in found[unit].items() if isinstance(result, JobFailure)]
        assert failed == [f"{unit}-3"]


@pytest.mark.parametrize(
    ("at_setup", "message"), [("raise", "does not start"), ("exit", "4 workers in a row were lost .* status 3")]
)
def test_an_agent_that_does_not_start_stops_the_run(make_pool, at_setup, message):
    pool = make_pool(at_setup)
    for _ in range(2):
        with pytest.raises(PoolError, match=message):
            list(pool.run(0, [clip("a")]))


def test_workers_that_find_no_room_are_told(make_pool):
    pool = make_pool(num_gpus=3, start_timeout_s=0.5)
    with pytest.raises(PoolError, match=r"each needs 0\.5 CPUs and 3 GPUs, the cluster has \{'CPU': 2\.0\}"):
        list(pool.run(0, [clip("a")]))


@pytest.mark.slow
def test_agents_that_take_too_long_to_set_up_are_not_said_to_lack_room(make_pool):
    pool = make_pool("hang", num_workers=2, start_timeout_s=4.0)
    said = r"^no worker was ready 4 s after Ray had placed it: 2 of 2 have a place .* raise start_timeout_s of the"
    with pytest.raises(PoolError, match=said):
        list(pool.run(0, [clip("a"), clip("b")]))
    assert pool.losses == 0


@pytest.mark.slow
def test_a_worker_that_hangs_at_setup_is_replaced_while_another_works(make_pool, tmp_path):
    pool = make_pool("hang if second", num_workers=2, window=1, start_timeout_s=8.0)
    found = {}
    batches = pool.run(0, [clip("a", "wait"), clip("b", "wait")])
    thread = threading.Thread(target=lambda: found.update(results(batches)))
    thread.start()
    wait_for(tmp_path / "began.txt", 2)  # at once, so that two work
    _, hung, _ = lines(tmp_path / "setups.txt")
    (tmp_path / "go").touch()
    thread.join(30)
    assert {name: result.clip_id for name, result in found.items()} == {"a": "a", "b": "b"}
    assert not is_running(int(hung))
    assert pool.losses == 1


def test_an_iterator_closed_early_abandons_the_rest(make_pool, tmp_path):
    pool = make_pool(window=1)
    batches = pool.run(0, [clip(f"c{n}", "sleep 0.05") for n in range(50)])
    next(batches)
    batches.close()
    assert set(results(pool.run(1, [clip("after")]))) == {"after"}
    assert len(lines(tmp_path / "began.txt")) < 10


def test_close_ends_busy_workers_at_once_and_wakes_callers(make_pool, tmp_path):
    pool = make_pool()
    raised = []

    def work() -> None:
        try:
            list(pool.run(0, [clip("stuck", "hang")]))
        except PoolError as error:
            raised.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    wait_for(tmp_path / "began.txt")
    pid = int(lines(tmp_path / "setups.txt")[0])
    start = time.monotonic()
    pool.close()
    thread.join(10)
    assert time.monotonic() - start < 5
    assert raised == ["the pool is closed"]
    while is_running(pid):
        assert time.monotonic() - start < 5
        time.sleep(0.02)


def test_close_lets_idle_agents_close_and_later_calls_fail(make_pool, tmp_path):
    pool = make_pool()
    list(pool.run(0, [clip("a")]))
    pool.close()
    assert lines(tmp_path / "closed.txt") == lines(tmp_path / "setups.txt")
    with pytest.raises(PoolError, match="closed"):
        list(pool.run(0, [clip("b")]))


def test_workers_compute_on_the_threads_they_were_given(make_pool):
    assert ray.get(ray.remote(os.getenv).options(num_cpus=0.5).remote("OMP_NUM_THREADS")) == "1"


def test_a_death_is_told_as_evidence_and_not_on_stdout(make_pool, capfd):
    found = results(make_pool().run(0, [clip("a", "kill worker")]))
    assert "Worker exit type: SYSTEM_ERROR" in found["a"].evidence
    assert "common causes" not in found["a"].evidence
    time.sleep(1)
    assert capfd.readouterr().out == ""


def test_a_second_start_uses_the_ray_that_runs(cluster):
    with start_ray() as second:
        assert (second.temp_dir, second.is_owner) == (None, False)
    assert ray.is_initialized()
    assert cluster.temp_dir.exists()


JOINS = """
import sys
from functools import partial
from infra.ray_cluster import start_ray
from infra.ray_pool import RayPool
from schemas.clip import Clip
from schemas.mention import MentionSet

class Echo:
    def setup(self): pass
    def process(self, jobs): return [MentionSet(clip_id=job.clip_id, mentions=(), rejected=()) for job in jobs]
    def close(self): pass

JOB = Clip.model_validate_json(sys.argv[2])
with start_ray(sys.argv[1]), RayPool(Echo, num_workers=1, batch_size=1, timeout_s=60, num_cpus=0.5) as pool:
    for done in pool.run(0, [JOB]):
        print(done.outcomes[0].result.clip_id)
"""


def test_another_process_joins_by_address_and_leaves_the_cluster_running(cluster):
    command = [sys.executable, "-c", JOINS, ray.get_runtime_context().gcs_address, clip("far").model_dump_json()]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    joined = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert (joined.returncode, joined.stdout) == (0, "far\n"), joined.stderr
    assert ray.get(ray.put("still here")) == "still here"


def test_sizes_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got 0 and 2"):
        RayPool(partial(Scripted, str(tmp_path)), num_workers=0, batch_size=1, timeout_s=1)
