"""The pipeline flow: build, train, bench as subflows of one run, and the gate.

    source -> build -> train -> bench -> gate -> latest.json
                |                 ^
                +-> items (frozen)

The folder OUT is the only memory: models by name, items that stay, and which model is the latest. A run that finds all
of it done does no agent work, trains nothing and says so.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TagsContext
from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run
from prefect.states import Cancelled
from prefect.utilities.annotations import quote

from benchmark.gate import GateRule, Rival
from benchmark.published import Mode, Scorer
from flows.artifacts import decoration
from flows.bench import bench
from flows.bench_plan import plan_bench
from flows.bench_record import BenchAsked, BenchResult, ModelAnswers, Questions
from flows.build import build
from flows.out_folder import alone_in
from flows.pipeline_record import (
    BENCH_FOLDER,
    MODELS_FOLDER,
    REPORT_FILE,
    UNTRAINED_FOLDER,
    Gate,
    Latest,
    PipelineError,
    PipelineResult,
    read_latest,
)
from flows.pipeline_report import html_page, pipeline_markdown
from flows.pipeline_work import (
    NoItemsError,
    frozen_items,
    judge_model,
    keep_gate,
    model_name,
    require_same_items,
)
from flows.result import BuildResult
from flows.run_tags import last_name, tag_run
from flows.run_watch import CancelledOnPageError, watched_run
from flows.train import train
from flows.train_plan import plan_training
from flows.train_progress import MetricsFollower
from flows.train_record import TrainRecord
from flows.watchers import Watchers
from infra.whole_file import write_whole
from model.training.metrics import METRICS_FILE
from schemas.record import short_id

Stage = Literal["build", "train", "bench"]
NEW: Literal["new"] = "new"
DEFAULT_RULE = GateRule()
_BATCH_SIZE, _MAX_NEW_TOKENS, _DIGITS = 4, 32, 8


class StageSink(Protocol):
    """Somebody besides the run's page who follows the stages, each while it lasts."""

    def during(self, stage: Stage) -> AbstractContextManager[object]:
        """What is entered for a stage."""


WATCHERS: Watchers[StageSink] = Watchers()
"""Of pipelines."""


@task(name="items", task_run_name="items", cache_policy=NO_CACHE)
def items_task(out: Path, lake: str, build_id: str, latest: Latest | None) -> Path:
    """The frozen questions, drawn where there are none yet."""
    items = frozen_items(out, lake, build_id)
    require_same_items(items, latest)
    get_run_logger().info("models are held against one another on %s", items)
    return items


@task(name="gate", task_run_name="gate", cache_policy=NO_CACHE)
def gate_task(out: Path, items: Path, name: str, results: dict[str, BenchResult], rival: Rival, rule: GateRule) -> Gate:
    """Whether the new model takes the place."""
    gate = judge_model(out, items, (name, results[NEW]), (rival, results[rival]), rule)
    get_run_logger().info("model %s %s: %s", name, gate.outcome, gate.reason)
    return gate


def _run_name() -> str:
    return "pipeline " + "/".join(Path(flow_run.parameters["out"]).parts[-2:])


@flow(name="pipeline", flow_run_name=_run_name, persist_result=False)
def pipeline(
    source: str,
    lake: str,
    out: str,
    root: str | None = None,
    profile: str = "embedded",
    train_profile: str = "embedded",
    limit: int | None = None,
    num_steps: int | None = None,
    mode: Mode = "multi",
    scorer: Scorer = "likelihood",
    rule: GateRule = DEFAULT_RULE,
    ray_address: str | None = None,
) -> PipelineResult | State[None]:
    """Build a dataset, train a model on it, and let it take the latest one's place if it answers better.

    A run that is cancelled on its page, or of which a part is, returns the state Cancelled. Raises PipelineError,
    besides what build, training and bench raise.

    Args:
        source: a folder of videos with sidecar captions, or a CSV, JSONL or Parquet manifest.
        lake: the folder or object-store prefix that holds agent outputs and builds.
        out: the folder for frozen items, models, reports and `latest.json`.
        root: what the manifest's `video` column is relative to; the manifest's folder if not given.
        profile: the build's: the name of a shipped profile, or the path of a TOML file.
        train_profile: the training's: the name of a shipped training profile, or the path of a TOML file.
        limit: only the first rows of the source.
        num_steps: how many optimiser steps, in place of what the training profile says.
        mode: how the bench shows objects: masks of one frame, of all, or none and no video.
        scorer: how the bench chooses options: by the answer's letter, or by likelihood.
        rule: what the gate asks for.
        ray_address: a Ray cluster to join; if not given, that of `videorefer up`, or a small one for this run alone.
    """
    folder = Path(out).absolute()
    taken = PipelineError(f"another pipeline is at work in {folder}; wait for it, or choose another --out")
    try:
        with watched_run(UUID(str(flow_run.id))), TagsContext(current_tags=set()), alone_in(folder, taken):
            tag_run(profile=last_name(profile), lake=last_name(lake))
            latest = read_latest(folder)
            with _shown("build"):
                built: Any = build(source, lake, root, profile, limit, ray_address)
            tag_run(build=built.build_id)
            training = _Training(lake, built.build_id, train_profile, num_steps, ray_address)
            name = training.name(folder / MODELS_FOLDER)
            with _shown("train"):
                trained = training.run(folder / MODELS_FOLDER / name)
            judging = _Judging(folder, name, training, trained.videos_root, mode, scorer)
            gate = judging.gate(latest, rule)
            tag_run(model=gate.model, gate=gate.outcome)
            return _finish(folder, built, trained, gate, judging.results)
    except (CancelledOnPageError, CancelledRun) as said:
        return Cancelled(message=str(said))


@dataclass(frozen=True)
class _Training:
    """The training that this run is about, in whatever folder, or its model before the first step."""

    lake: str
    build_id: str
    profile: str
    num_steps: int | None
    ray_address: str | None

    def name(self, models: Path) -> str:
        """Of the model's folder among the models."""
        planned = plan_training(self.lake, str(models), self.build_id, None, self.profile, None, self.num_steps)
        return model_name(planned.run)

    def run(self, out: Path, *, is_untrained: bool = False) -> TrainRecord:
        """A subflow run; finished at once where the folder holds the training finished."""
        num_steps = 0 if is_untrained else self.num_steps
        record: Any = train(
            self.lake, str(out), self.build_id, profile=self.profile, num_steps=num_steps, ray_address=self.ray_address
        )
        assert isinstance(record, TrainRecord)
        return record


@dataclass(frozen=True)
class _Judging:
    """One model against its rival; `results` are the bench runs that this took, by who answered."""

    folder: Path
    name: str
    training: _Training
    videos_root: str
    mode: Mode
    scorer: Scorer
    results: dict[str, BenchResult] = field(default_factory=dict)

    def gate(self, latest: Latest | None, rule: GateRule) -> Gate:
        """What becomes of the model."""
        try:
            items: Path = items_task(self.folder, self.training.lake, self.training.build_id, latest)
        except NoItemsError as error:
            gate = Gate(model=self.name, outcome="undecided", reason=str(error))
            keep_gate(self.folder, gate)
            return gate
        models = self.folder / MODELS_FOLDER
        self._bench(NEW, items, models / self.name)
        if latest is not None and latest.model == self.name:
            return Gate(model=self.name, outcome="unchanged", reason="this very model is the latest already")
        if latest is not None:
            self._bench("latest", items, models / latest.model)
            return self._decided(items, "latest", rule)
        untrained = models / self.name / UNTRAINED_FOLDER
        with _shown("train"):
            self.training.run(untrained, is_untrained=True)
        self._bench("untrained", items, untrained)
        return self._decided(items, "untrained", rule)

    def _decided(self, items: Path, rival: Rival, rule: GateRule) -> Gate:
        results: Any = quote(self.results)
        gate: Gate = gate_task(self.folder, items, self.name, results, rival, rule)
        return gate

    def _bench(self, who: str, items: Path, model: Path) -> None:
        """A subflow run, in a folder of its own for each way of asking: what was answered there is not asked again."""
        answers = ModelAnswers(
            model=str(model), videos=self.videos_root, batch_size=_BATCH_SIZE, max_new_tokens=_MAX_NEW_TOKENS
        )
        asked = BenchAsked(
            items=str(items), out="", mode=self.mode, answers=answers, scoring=Questions(scorer=self.scorer)
        )
        place = model / f"{BENCH_FOLDER}-{short_id(plan_bench(asked).run.model_dump_json())[:_DIGITS]}"
        with _shown("bench"):
            result: Any = bench(asked.model_copy(update={"out": str(place)}))
        assert isinstance(result, BenchResult)
        self.results[who] = result


def _finish(
    folder: Path, built: BuildResult, trained: TrainRecord, gate: Gate, results: dict[str, BenchResult]
) -> PipelineResult:
    """The report beside the model, and on the run's page."""
    model = folder / MODELS_FOLDER / gate.model
    follower = MetricsFollower(model / METRICS_FILE, ())
    follower.look()
    page = pipeline_markdown(built, trained, follower.rows, results, gate, model)
    report = model / REPORT_FILE
    write_whole(report, html_page(f"pipeline, model {gate.model}", page).encode())
    with decoration():
        create_markdown_artifact(page, key="pipeline-report", description=f"model {gate.model} {gate.outcome}")
        create_link_artifact(report.as_uri(), link_text=REPORT_FILE, key="pipeline-page", description=gate.outcome)
    latest = read_latest(folder)
    result = PipelineResult(
        build=built,
        train=trained,
        gate=gate,
        latest=latest.model if latest else "",
        folder=str(folder),
        report_uri=report.as_uri(),
    )
    get_run_logger().info(result.summary())
    return result


@contextmanager
def _shown(stage: Stage) -> Iterator[None]:
    with ExitStack() as stack:
        for sink in WATCHERS.sinks():
            stack.enter_context(sink.during(stage))
        yield
