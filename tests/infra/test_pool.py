import logging
import threading
import time
from functools import partial

import pytest

from infra.pool import JobFailure, LocalPool, PoolError
from schemas.clip import Clip
from schemas.mention import MentionSet


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


class Recorder:
    """Does what a clip's caption says, and keeps the calls."""

    def __init__(self, calls: list[list[str]]) -> None:
        self.calls = calls
        self.is_closed = False

    def setup(self) -> None:
        logging.getLogger("recorder").warning("set up")

    def process(self, jobs) -> list[MentionSet]:
        self.calls.append([job.clip_id for job in jobs])
        if any(job.caption == "fails" for job in jobs):
            raise RuntimeError("cannot do this one")
        logging.getLogger("recorder").warning("did %d", len(jobs))
        outputs = [
            MentionSet(clip_id="other" if job.caption == "swaps" else job.clip_id, mentions=(), rejected=())
            for job in jobs
        ]
        return outputs[1:] if any(job.caption == "short" for job in jobs) else outputs

    def close(self) -> None:
        self.calls.append(["closed"])


@pytest.fixture
def calls() -> list[list[str]]:
    return []


def test_batches_come_in_order_with_their_jobs(calls):
    with LocalPool(partial(Recorder, calls), batch_size=2) as pool:
        done = list(pool.run(0, [clip(name) for name in "abcde"]))
    assert [[outcome.job.clip_id for outcome in batch.outcomes] for batch in done] == [["a", "b"], ["c", "d"], ["e"]]
    assert all(outcome.result.clip_id == outcome.job.clip_id for batch in done for outcome in batch.outcomes)
    assert calls == [["a", "b"], ["c", "d"], ["e"], ["closed"]]


@pytest.mark.parametrize(
    ("caption", "message"),
    [("fails", "cannot do this one"), ("swaps", "clip b with an output for clip other"), ("short", "0 outputs for 1")],
)
def test_one_bad_job_costs_itself_only(calls, caption, message):
    pool = LocalPool(partial(Recorder, calls), batch_size=4, max_attempts=3)
    (done,) = pool.run(0, [clip("a"), clip("b", caption), clip("c")])
    a, b, c = (outcome.result for outcome in done.outcomes)
    assert (a.clip_id, c.clip_id) == ("a", "c")
    assert isinstance(b, JobFailure)
    assert (b.reason, b.attempts) == ("agent_error", 3)
    assert message in b.evidence
    assert calls == [["a", "b", "c"], ["a"], ["b"], ["c"], ["b"]]


def test_log_lines_of_set_up_and_work_come_with_the_batch(calls):
    pool = LocalPool(partial(Recorder, calls), batch_size=2)
    first, second = pool.run(0, [clip(name) for name in "abc"])
    assert [(line.level, line.logger, line.message) for line in first.log_lines] == [
        (logging.WARNING, "recorder", "set up"),
        (logging.WARNING, "recorder", "did 2"),
    ]
    assert [line.message for line in second.log_lines] == ["did 1"]


def test_the_lowest_priority_number_goes_first_across_threads(calls):
    gate = threading.Event()

    class Gated(Recorder):
        def process(self, jobs):
            gate.wait(10)
            return super().process(jobs)

    pool = LocalPool(partial(Gated, calls), batch_size=1)
    threads = []
    for priority, names in ((5, "x"), (3, "pq"), (1, "ab"), (2, "m")):
        jobs = [clip(name) for name in names]
        threads.append(threading.Thread(target=lambda p=priority, j=jobs: list(pool.run(p, j))))
        threads[-1].start()
        time.sleep(0.05)
    gate.set()
    for thread in threads:
        thread.join(10)
    order = [call[0] for call in calls]
    assert sorted(order) == sorted("xpqabm")
    assert order[:2] == ["x", "a"]
    assert order.index("m") < order.index("q")


def test_an_iterator_closed_early_leaves_the_rest_undone(calls):
    pool = LocalPool(partial(Recorder, calls), batch_size=1)
    batches = pool.run(0, [clip(name) for name in "abc"])
    next(batches)
    batches.close()
    assert calls == [["a"]]
    assert len(list(pool.run(0, [clip("d")]))) == 1


def test_an_agent_that_does_not_start_stops_the_run():
    def factory():
        raise FileNotFoundError("weights.onnx")

    with pytest.raises(PoolError, match=r"does not start: weights\.onnx"):
        list(LocalPool(factory, batch_size=1).run(0, [clip("a")]))


def test_a_closed_pool_says_so(calls):
    pool = LocalPool(partial(Recorder, calls), batch_size=1)
    pool.close()
    with pytest.raises(PoolError, match="closed"):
        list(pool.run(0, [clip("a")]))


@pytest.mark.parametrize(("batch_size", "max_attempts"), [(0, 2), (33, 2), (1, 1)])
def test_sizes_that_cannot_work_are_refused(calls, batch_size, max_attempts):
    with pytest.raises(ValueError, match="got"):
        LocalPool(partial(Recorder, calls), batch_size=batch_size, max_attempts=max_attempts)
