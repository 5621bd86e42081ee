"""Metrics of a build's agents for Prometheus, beside Ray's own of the nodes.

They go the way of Ray's metrics: every node of a cluster has one page that a Prometheus reads, and each name below
stands there with `ray_` before it. Ray brings them there every 10 s, and forgets a gauge that is not set for 20 s, so
gauges are set again and again while the build runs. A counter stays on the page as long as its node.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import ray
from ray.util.metrics import Counter, Gauge

from flows.profile_config import Role
from flows.progress import AgentProgress

SET_EVERY_S = 4.0
"""Less than the 10 s between two of Ray's reports, so that every gauge is in each."""
LABELS = ("agent", "lake", "profile")
"""Of every metric: which of the five, the lake that is built into, and the profile's name. Runs are not told apart:
each new one would add time series to every page, for ever."""


class Metric(NamedTuple):
    """The name, without Ray's prefix, what it means, and the label it has besides `LABELS`, if any."""

    name: str
    about: str
    label: str = ""


CLIPS = Metric(
    "videorefer_clips",
    "The build's clips, by what the agent has settled of them: waiting, done in this run, cached in the lake, failed "
    "(now or before), or skipped because an agent before failed on them.",
    "state",
)
WORKERS = Metric("videorefer_workers", "Workers that the agent's pool may have.")
RATE = Metric("videorefer_clips_per_second", "Clips worked on per second, since the agent began.")
LEFT = Metric("videorefer_remaining_seconds", "Seconds until the agent is done, at its rate so far.")
BUSY_SHARE = Metric("videorefer_busy_ratio", "Part of its workers' time in which they worked, since the agent began.")
GAUGES = (CLIPS, WORKERS, RATE, LEFT, BUSY_SHARE)
"""The state of a run that is under way."""

WORKED = Metric("videorefer_clips_worked_total", "Clips that the agent worked on, done or failed.", "outcome")
RECORDS = Metric(
    "videorefer_records_total",
    "What the agent made of its clips (mentions, tracks, captions, verdicts, samples), kept or dropped.",
    "outcome",
)
BUSY = Metric("videorefer_busy_seconds_total", "Seconds in which a worker worked, all workers added up.")
LOST = Metric("videorefer_lost_workers_total", "Processes of workers that were lost, each replaced by another.")
TOKENS = Metric(
    "videorefer_chat_tokens_total", "Tokens that chat servers read (prompt) and wrote (completion).", "kind"
)
COUNTERS = (WORKED, RECORDS, BUSY, LOST, TOKENS)
"""Work that was done. A run that was restarted did what both its processes did."""


class AgentMetrics:
    """Whoever is shown a build's progress and sets its metrics from it, from the moment that the build uses Ray.

    A build with nothing stale starts no Ray and so has no metrics. `losses` tells how many workers an agent has lost.
    """

    def __init__(self, lake: str, profile: str, losses: Callable[[Role], int]) -> None:
        self._common = {"lake": lake, "profile": profile}
        self._losses = losses
        self._lock = threading.Lock()
        self._latest: dict[Role, AgentProgress] = {}
        self._gauges: dict[Metric, Any] = {}
        self._counters: dict[Metric, Any] = {}
        self._counted: dict[tuple[Metric, Role, str], float] = defaultdict(float)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._set_again, name="agent-metrics", daemon=True)

    def show(self, progress: dict[Role, AgentProgress]) -> None:
        """Take in the counts; what is set of them is set by a thread of its own."""
        with self._lock:
            self._latest = progress

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join()
        self._set()  # Ray takes the last counts along when this process leaves it

    def _set_again(self) -> None:
        while not self._ended.wait(SET_EVERY_S):
            self._set()

    def _set(self) -> None:
        if not ray.is_initialized():
            return  # to make a metric is enough to load Ray's parts, and there is nobody to show it to
        if not self._gauges:
            self._gauges = {it: Gauge(it.name, it.about, _keys(it)) for it in GAUGES}
            self._counters = {it: Counter(it.name, it.about, _keys(it)) for it in COUNTERS}
        with self._lock:
            latest = self._latest
        for role, agent in latest.items():
            for metric, value, kind in _gauge_values(agent):
                self._gauges[metric].set(value, self._labels_of(metric, role, kind))
            for metric, count, kind in _counts(agent, self._losses(role)):
                more = count - self._counted[metric, role, kind]
                if more > 0:  # Ray refuses to raise a counter by nothing
                    self._counters[metric].inc(more, self._labels_of(metric, role, kind))
                    self._counted[metric, role, kind] = count

    def _labels_of(self, metric: Metric, role: Role, kind: str) -> dict[str, str]:
        return self._common | {"agent": role} | ({metric.label: kind} if metric.label else {})


def _keys(metric: Metric) -> tuple[str, ...]:
    return (*LABELS, metric.label) if metric.label else LABELS


def _gauge_values(agent: AgentProgress) -> Iterator[tuple[Metric, float, str]]:
    """Each gauge that has a value, the value, and that of its own label."""
    yield CLIPS, agent.total - agent.done, "waiting"
    yield CLIPS, agent.worked - _failed_now(agent), "done"
    yield CLIPS, agent.cached - agent.failed_before, "cached"
    yield CLIPS, agent.failed, "failed"
    yield CLIPS, agent.skipped, "skipped"
    yield WORKERS, agent.workers, ""
    yield RATE, agent.rate_per_s, ""
    yield BUSY_SHARE, agent.busy_share, ""
    if agent.left_s is not None:
        yield LEFT, agent.left_s, ""


def _counts(agent: AgentProgress, lost: int) -> Iterator[tuple[Metric, float, str]]:
    """What each counter has come to, and the value of its own label."""
    yield WORKED, agent.worked - _failed_now(agent), "done"
    yield WORKED, _failed_now(agent), "failed"
    yield RECORDS, agent.kept, "kept"
    yield RECORDS, agent.dropped, "dropped"
    yield BUSY, agent.busy_s, ""
    yield LOST, lost, ""
    if agent.tokens is not None:
        yield TOKENS, agent.tokens.prompt_tokens, "prompt"
        yield TOKENS, agent.tokens.completion_tokens, "completion"


def _failed_now(agent: AgentProgress) -> int:
    return agent.failed - agent.failed_before
