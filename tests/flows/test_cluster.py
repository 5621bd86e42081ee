"""A build on a cluster of three nodes with two fake GPUs each, one of which is killed and another joins.

What the segmenter's workers do is held back where the story needs it, by files that all nodes see, so that nothing
hangs on who is fast. The nodes are processes of this machine (`ray.cluster_utils`).
"""

import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from ray.cluster_utils import Cluster

from flows import pools
from flows.build import build
from flows.pools import Pools
from flows.profile_config import Profile, Role
from flows.result import BuildResult
from flows.wiring import Site, make_agent
from infra.builds import CONTENTS, read_manifest, verify_build
from infra.lake import Lake
from infra.pool import JobFailure
from infra.ray_cluster import start_ray
from infra.ray_pool import RayPool
from infra.workbench import clip_id_of
from schemas.clip import Clip
from schemas.mention import MentionSet

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.timeout(400)]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

NUM_NODES, GPUS_PER_NODE = 3, 2
NUM_WORKERS = NUM_NODES * GPUS_PER_NODE
SPANS_S = [(0.1 * number, 0.1 * number + 2.0) for number in range(10)]
NUM_HELD = 2 * NUM_WORKERS
"""Clips that wait for the node that joins: more than the workers left to begin with have in hand, two each."""
NODE = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
PROFILE = """
name = "cluster"
description = "For a test."
clips_per_unit = 30
[analyzer]
engine = "spacy-chunks+minilm"
resources = { batch_size = 16 }
[segmenter]
engine = "painted-truth"
resources = { workers = 6, gpus = 1, batch_size = 1 }
[annotator]
engine = "measured-facts"
resources = { batch_size = 8 }
[reviewer]
engine = "second-look+efficientnet-lite3+minilm"
resources = { batch_size = 8 }
[refiner]
engine = "template"
resources = { batch_size = 16 }
"""
WORKED = re.compile(r"(\w{8}):(\d+) worker: clips \w+ in ")


class Held:
    """A segmenter that notes its worker, begins once all of them are there, and does some clips once two more are."""

    def __init__(self, profile: Profile, site: Site, notes: Path, held: frozenset[str]) -> None:
        self._agent = make_agent("segmenter", profile, site)
        self._notes, self._held = notes, held

    def setup(self) -> None:
        self._agent.setup()

    def process(self, jobs: Any) -> Any:
        (self._notes / str(os.getppid())).touch()
        wanted = NUM_WORKERS + GPUS_PER_NODE * (clip_id_of(jobs[0]) in self._held)
        while len(list(self._notes.iterdir())) < wanted:
            time.sleep(0.05)
        time.sleep(0.2)
        return self._agent.process(jobs)

    def close(self) -> None:
        self._agent.close()


class Idle:
    """An agent that has nothing to say of a clip."""

    def setup(self) -> None:
        pass

    def process(self, jobs: Sequence[Clip]) -> list[MentionSet]:
        time.sleep(0.1)
        return [MentionSet(clip_id=job.clip_id, mentions=(), rejected=()) for job in jobs]

    def close(self) -> None:
        pass


class Lines(logging.Handler):
    """What the segmenter's task runs log of clips as they are committed: the worker's node and process, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.worked: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        found = WORKED.match(record.getMessage())
        if found and getattr(record, "task_run_name", "").startswith("segmenter"):
            self.worked.append((found[1], found[2]))

    @contextmanager
    def taken(self) -> Iterator[None]:
        logger = logging.getLogger("prefect.task_runs")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)


def wait_until(true: Callable[[], bool], run: Future[Any], within_s: float = 120.0) -> None:
    """While the run goes on."""
    deadline_s = time.monotonic() + within_s
    while not true():
        assert not run.done(), "the run is over"
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(server: None) -> Iterator[Cluster]:
    """A head without places and three nodes."""
    made = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
    for _ in range(NUM_NODES):
        made.add_node(num_cpus=4, num_gpus=GPUS_PER_NODE, wait=False, **NODE)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@dataclass(frozen=True)
class Story:
    """Two builds of one source: in this process alone, and on the cluster that loses a node and gets another.

    `worked` is what the segmenter's workers did, in order; the first `at_loss` of it when the node was killed, the
    first `at_joining` when the other was about to join.
    """

    alone: BuildResult
    alone_lake: Lake
    result: BuildResult
    lake: Lake
    pools: Pools
    worked: list[tuple[str, str]]
    at_loss: int
    at_joining: int
    lost: str
    joined: str

    def workers(self, since: int = 0, until: int | None = None) -> Counter[str]:
        """How many workers of each node finished a clip in a part of the story."""
        return Counter(node for node, _ in set(self.worked[since:until]))


@pytest.fixture(scope="module")
def story(cluster: Cluster, small_builds: Any, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    small_builds.write(
        [
            row | {"id": f"{row['id']}-{number}", "start_s": start_s, "end_s": end_s}
            for row in small_builds.rows
            for number, (start_s, end_s) in enumerate(SPANS_S)
        ]
    )
    alone = small_builds.build()
    clips = small_builds.seen["segmenter"]
    (notes := folder / "notes").mkdir()
    (profile := folder / "cluster.toml").write_text(PROFILE)
    seen: list[Pools] = []

    class SeenPools(Pools):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            seen.append(self)

    def factory(role: Role, profile: Profile, site: Site) -> Any:
        if role == "segmenter":
            return partial(Held, profile, site, notes, frozenset(clips[-NUM_HELD:]))
        return partial(make_agent, role, profile, site)

    lines, lake = Lines(), folder / "lake"
    victim = min(cluster.worker_nodes, key=lambda node: node.node_id)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as thread, lines.taken():
        patch.setattr(pools, "agent_factory", factory)
        patch.setattr("flows.build.Pools", SeenPools)
        told = {"profile": str(profile), "ray_address": cluster.address}
        # Prefect's settings are in the context; nodes can be added by the main thread alone
        run = thread.submit(copy_context().run, partial(build, str(small_builds.source), str(lake), **told))
        try:
            wait_until(lambda: len(set(lines.worked)) >= NUM_WORKERS, run)
            at_loss = len(lines.worked)
            cluster.remove_node(victim, allow_graceful=False)
            in_hand = 2 * GPUS_PER_NODE  # of the lost workers; tried again when the others are through
            wait_until(lambda: len(lines.worked) >= len(clips) - NUM_HELD - in_hand, run)
            at_joining = len(lines.worked)
            joined = cluster.add_node(num_cpus=4, num_gpus=GPUS_PER_NODE, **NODE)
            result = run.result(timeout=120)
        finally:
            for number in range(NUM_WORKERS + GPUS_PER_NODE):  # whatever went wrong, the build ends
                (notes / f"end-{number}").touch()
    assert isinstance(result, BuildResult)
    ids = victim.node_id[:8], joined.node_id[:8]
    return Story(alone, small_builds.lake, result, Lake(lake), seen[0], lines.worked, at_loss, at_joining, *ids)


def test_workers_with_a_share_of_a_gpu_spread_over_the_nodes(cluster: Cluster, by_hand: Any) -> None:
    clips = [by_hand.clip(f"c{number}") for number in range(60)]
    sizes = {"num_workers": NUM_WORKERS, "batch_size": 1}
    with start_ray(cluster.address), RayPool(Idle, **sizes, timeout_s=60, num_cpus=0.25, num_gpus=0.5) as pool:
        workers: set[str] = set()
        while len(workers) < NUM_WORKERS:  # those that are ready first may do it all
            workers |= {batch.worker for batch in pool.run(0, clips)}
    assert Counter(worker.split(":")[0] for worker in workers) == {
        node.node_id[:8]: NUM_WORKERS // NUM_NODES for node in cluster.worker_nodes
    }


def test_a_worker_that_finds_no_room_waits_while_others_work(cluster: Cluster, by_hand: Any) -> None:
    clips = [by_hand.clip(f"c{number}") for number in range(60)]
    sizes = {"num_workers": NUM_NODES + 1, "batch_size": 1}
    with start_ray(cluster.address), RayPool(Idle, **sizes, timeout_s=60, num_gpus=GPUS_PER_NODE) as pool:
        workers: set[str] = set()
        while len(workers) < NUM_NODES:
            workers |= {batch.worker for batch in pool.run(0, clips)}
        pool._start_timeout_s = 0.2  # from now on, so that nothing hangs on how long the others took to start
        batches = list(pool.run(0, clips))
    assert not any(isinstance(outcome.result, JobFailure) for batch in batches for outcome in batch.outcomes)
    assert len({batch.worker for batch in batches}) <= NUM_NODES
    assert (len(batches), pool.losses) == (len(clips), 0)


def test_workers_with_whole_gpus_are_on_all_nodes_when_one_is_lost(story: Story) -> None:
    assert list(story.workers(until=story.at_loss).values()) == [GPUS_PER_NODE] * NUM_NODES
    assert story.lost in story.workers(until=story.at_loss)


def test_the_others_go_on_and_lost_workers_come_back_on_a_node_that_joins(story: Story) -> None:
    others = story.workers(until=story.at_loss).keys() - {story.lost}
    assert story.workers(story.at_loss, story.at_joining).keys() >= others
    assert story.workers() == dict.fromkeys((*others, story.lost, story.joined), GPUS_PER_NODE)
    assert story.lost not in story.workers(since=story.at_joining)
    # a new one may be sent to the node before Ray knows that it is dead
    assert GPUS_PER_NODE <= story.pools.losses("segmenter") <= 2 * GPUS_PER_NODE


def test_the_build_is_that_of_one_process_byte_for_byte(story: Story) -> None:
    assert verify_build(story.lake, story.result.build_id) == []
    ours, theirs = (
        read_manifest(story.lake, story.result.build_id),
        read_manifest(story.alone_lake, story.alone.build_id),
    )
    for content in CONTENTS:
        shards = [[entry.sha256 for entry in told.shards_of(content)] for told in (ours, theirs)]
        assert shards[0] == shards[1] != []
    assert (story.result.num_failed, ours.labels) == (0, theirs.labels)
