"""The bench flow: items to predictions to scores, in two Prefect tasks, in this process.

    items -> predict -> score -> OUT/report.md

The folder OUT is the only memory: its answers say what is still to be asked, its record what may be asked.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TagsContext
from prefect.runtime import flow_run
from prefect.states import Cancelled
from prefect.utilities.annotations import quote

from flows.artifacts import ProgressArtifact, decoration
from flows.bench_answers import Answered
from flows.bench_plan import Bench, plan_bench
from flows.bench_progress import WATCHERS, BenchProgress
from flows.bench_record import BenchAsked, BenchResult, ModelAnswers, headline
from flows.bench_work import alone, predict, score
from flows.run_tags import last_name, tag_run
from flows.run_watch import CancelledOnPageError, watched_run

UPDATE_EVERY_S = 5.0
"""How often the page is told at most."""


class BenchArtifacts:
    """A progress artifact for each stage, written every `UPDATE_EVERY_S` at most, one at a time, and at a stage's end.

    In a thread: where an event loop runs, as a judge's does, Prefect's functions give coroutines.
    """

    def __init__(self, writer: ThreadPoolExecutor) -> None:
        self._writer = writer
        self._bars: dict[str, ProgressArtifact] = {}
        self._next_s: dict[str, float] = {}
        self._written: Future[None] | None = None

    def show(self, progress: BenchProgress) -> None:
        """Have the page told, if it is time to."""
        is_writing = self._written is not None and not self._written.done()
        is_early = is_writing or time.monotonic() < self._next_s.get(progress.stage, 0.0)
        if is_early and progress.done < progress.total:
            return
        self._next_s[progress.stage] = time.monotonic() + UPDATE_EVERY_S
        bar = self._bars.setdefault(progress.stage, ProgressArtifact(f"progress-bench-{progress.stage}"))
        percent = 100.0 * progress.done / progress.total
        told = f"{progress.stage}: {progress.describe()}"
        self._written = self._writer.submit(copy_context().run, bar.write, percent, told)


@contextmanager
def _artifacts() -> Iterator[BenchArtifacts]:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="bench-page") as writer:
        yield BenchArtifacts(writer)


@task(name="predict", task_run_name="predict", cache_policy=NO_CACHE)
def predict_task(asked: BenchAsked, bench: Bench, out: Path) -> Answered:
    """Ask the model for what the folder has no answer to, or read the file of predictions."""
    with _artifacts() as page:
        answered = predict(asked, bench, out, (page, *WATCHERS.sinks()))
    log = get_run_logger()
    log.info("%d predictions, %d asked for now", len(answered.predictions), answered.asked)
    for item in answered.missing:
        log.warning("item %s has no prediction: %s, %s", item.item_id, item.reason, item.said)
    return answered


@task(name="score", task_run_name="score", cache_policy=NO_CACHE)
def score_task(asked: BenchAsked, bench: Bench, answered: Answered, out: Path) -> BenchResult:
    """Score all items, with a judge where one is named, and put the report on the run's page."""
    with _artifacts() as page:
        result = score(asked, bench, answered, out, (page, *WATCHERS.sinks()))
    report = Path(result.report).read_text(encoding="utf-8")
    with decoration():
        create_markdown_artifact(report, key="bench-report", description=headline(result.score))
    get_run_logger().info(result.summary())
    return result


def _run_name() -> str:
    asked = flow_run.parameters["asked"]
    scoring, out = (asked["scoring"], asked["out"]) if isinstance(asked, dict) else (asked.scoring, asked.out)
    bench = scoring["bench"] if isinstance(scoring, dict) else scoring.bench
    return f"bench {bench} " + "/".join(Path(out).parts[-2:])


def _model_tag(asked: BenchAsked) -> dict[str, str]:
    return {"model": last_name(asked.answers.model)} if isinstance(asked.answers, ModelAnswers) else {}


@flow(name="bench", flow_run_name=_run_name, persist_result=False)
def bench(asked: BenchAsked) -> BenchResult | State[None]:
    """Score a model, or a file of predictions, on the items of Bench-D or Bench-Q.

    A run that is cancelled on its page returns the state Cancelled. Raises BenchError, TrainingError, WeightError and
    ServerLostError.

    Args:
        asked: the items, what answers them, how they are scored, and the folder for all that comes of it.
    """
    try:
        # the run's tags are not for its task runs: Prefect would ask the server about limits of each tag
        with watched_run(UUID(str(flow_run.id))), TagsContext(current_tags=set()):
            tag_run(bench=asked.scoring.bench, mode=asked.mode, **_model_tag(asked))
            planned = plan_bench(asked)
            with alone(asked, planned) as out:
                answered: Answered = predict_task(asked, _whole(planned), out)
                result: BenchResult = score_task(asked, _whole(planned), _whole(answered), out)
                return result
    except CancelledOnPageError as said:
        return Cancelled(message=str(said))


def _whole(value: Any) -> Any:
    """Hand a value to a task as it is: Prefect would look through all of it for futures."""
    return quote(value)
