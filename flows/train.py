"""The training flow: a committed build to a model folder, in three Prefect tasks.

    build -> resolve -> fit (Ray Train, one rank per worker) -> export -> OUT/model

Prefect is the control plane, Ray Train starts and watches the ranks, and `model.training` is all that they run. The
folder OUT is the only memory: its checkpoints say where to go on, its record what may go on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TagsContext
from prefect.runtime import flow_run
from prefect.states import Cancelled
from prefect.utilities.annotations import quote

from flows.artifacts import decoration
from flows.out_folder import alone_in
from flows.plots import loss_plot
from flows.run_tags import last_name, tag_run
from flows.run_watch import CancelledOnPageError, watched_run
from flows.train_artifacts import TrainArtifacts, steps_table
from flows.train_board import TensorBoardSink
from flows.train_card import model_card
from flows.train_plan import plan_training, training_outcome
from flows.train_progress import WATCHERS, MetricsFollower
from flows.train_rank import RankTask, train_rank
from flows.train_record import MODEL_FOLDER, TrainingError, TrainRecord, write_record
from flows.train_workers import run_ranks
from model.training.metrics import METRICS_FILE, StepMetrics

BOARD_FOLDER = "tensorboard"


@task(name="resolve", task_run_name="resolve", cache_policy=NO_CACHE)
def resolve_task(
    lake: str,
    out: Path,
    build_id: str | None,
    videos: str | None,
    profile: str,
    init: str | None,
    num_steps: int | None,
) -> TrainRecord:
    """Hold what is asked for against build and folder, and write down what the folder is for from now on."""
    record = plan_training(lake, str(out), build_id, videos, profile, init, num_steps)
    run = record.run
    get_run_logger().info(
        "build %s, samples to train on: %s; base %s; %d workers",
        run.build_id,
        ", ".join(f"{count.n} {count.kind}" for count in run.samples) or "none of the build's",
        ", ".join(label.weights for label in run.base),
        run.profile.workers.num,
    )
    if record.outcome is None:
        write_record(out, record)
    return record


@task(name="fit", task_run_name="fit", cache_policy=NO_CACHE)
def fit_task(record: TrainRecord, out: Path, ray_address: str | None) -> list[StepMetrics]:
    """Train on Ray until the last step; the rows that were logged."""
    profile = record.run.profile
    rank_task = RankTask(
        lake=record.lake,
        build_id=record.run.build_id,
        videos_root=record.videos_root,
        out=str(out),
        profile=profile,
    )
    with TensorBoardSink(out / BOARD_FOLDER) as board:
        follower = MetricsFollower(out / METRICS_FILE, (board, TrainArtifacts(), *WATCHERS.sinks()))
        config = rank_task.model_dump(mode="json")
        run_ranks(
            train_rank, config, profile.workers, out, ray_address, look=follower.look, log=get_run_logger().warning
        )
    return follower.rows


@task(name="export", task_run_name="export", cache_policy=NO_CACHE)
def export_task(record: TrainRecord, out: Path, rows: Sequence[StepMetrics]) -> TrainRecord:
    """The model card beside the weights, the record with its outcome, and the loss curve on the run's page."""
    last_loss = next((row.loss for row in reversed(rows) if row.loss is not None), None)
    outcome = training_outcome(out, record.run, last_loss)
    done = record.model_copy(update={"outcome": outcome})
    (out / MODEL_FOLDER / "README.md").write_text(model_card(done), encoding="utf-8")
    write_record(out, done)
    title = f"loss, {outcome.label} on build {done.run.build_id}"
    parts = (f"# Training: {outcome.label}", done.summary(out), loss_plot(rows, title), steps_table(rows))
    with decoration():
        create_markdown_artifact("\n\n".join(parts), key="train-result", description=title)
        create_link_artifact(
            (out / MODEL_FOLDER).as_uri(), link_text="model", key="train-model", description=outcome.label
        )
    get_run_logger().info(done.summary(out))
    return done


def _run_name() -> str:
    return "train " + "/".join(Path(flow_run.parameters["out"]).parts[-2:])


@flow(name="train", flow_run_name=_run_name, persist_result=False)
def train(
    lake: str,
    out: str,
    build_id: str | None = None,
    videos: str | None = None,
    profile: str = "embedded",
    init: str | None = None,
    num_steps: int | None = None,
    ray_address: str | None = None,
) -> TrainRecord | State[None]:
    """Train a model on a build.

    A run that is cancelled on its page returns the state Cancelled. Raises ProfileError, LakeError, TrainingError and
    ServerLostError.

    Args:
        lake: the folder or object-store prefix that holds the build.
        out: where checkpoints, metrics and the model go; a folder that every worker sees.
        build_id: the build to train on; the one that `out` was begun with, or else the latest, if not given.
        videos: where the build's videos lie now; where they lay when it was made if not given.
        profile: the name of a shipped training profile, or the path of a TOML file.
        init: a model folder that takes the place of the profile's base model.
        num_steps: how many optimiser steps, in place of what the profile says.
        ray_address: a Ray cluster to join; if not given, that of `videorefer up`, or a small one for this run alone.
    """
    try:
        # the run's tags are not for its task runs: Prefect would ask the server about limits of each tag
        with watched_run(UUID(str(flow_run.id))), TagsContext(current_tags=set()), alone_in(Path(out), _taken(out)):
            tag_run(profile=last_name(profile), lake=last_name(lake))
            folder = Path(out).absolute()
            record: TrainRecord = resolve_task(lake, folder, build_id, videos, profile, init, num_steps)
            tag_run(build=record.run.build_id)
            if record.outcome is not None:
                return record
            rows = fit_task(_whole(record), folder, ray_address)
            done: TrainRecord = export_task(_whole(record), folder, _whole(rows))
            return done
    except CancelledOnPageError as said:
        return Cancelled(message=str(said))


def _taken(out: str) -> TrainingError:
    """Two trainings in one folder would write each other's checkpoints."""
    return TrainingError(f"another training is at work in {Path(out)}; wait for it, or choose another --out")


def _whole(value: Any) -> Any:
    """Hand a value to a task as it is: Prefect would look through all of it for futures."""
    return quote(value)
