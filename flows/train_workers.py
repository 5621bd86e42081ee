"""Ranks of a training on Ray Train: started, watched, started again after one died, ended with their driver.

`TorchTrainer.fit` blocks, answers Ctrl-C in its own way and ends the process where Ray goes away under it. So it runs
in a Ray task, and the driver waits for that task in small steps: it stays free to show progress, to notice that Ray
died, and to leave at any moment, which takes the ranks with it.
"""

import concurrent.futures
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flows.ray_of_run import link_dashboard, use_ray
from flows.train_profile import WorkerResources
from flows.train_record import TrainingError
from infra.raw_rows import one_line
from infra.ray_health import RayHealth
from schemas.record import Record

STOP_FILE = "stop"
"""What ranks look for before each step: where it lies in the training's folder, they write a checkpoint and leave."""
LEAVE_S = 30.0
"""How long they have for that when somebody stops the training; GPUs must be free within a minute."""
LOOK_EVERY_S = 0.5
_POLL_EVERY_S = "0.5"
"""How often Ray Train asks its workers how they are; its own 2 s are a fifth of a short training."""

RankFunction = Callable[[dict[str, Any]], None]
"""What each rank runs, with plain values as its argument; imports what it needs itself."""


class RankFailure(Record):
    """How one rank ended; "died" is for what may pass when it is tried again, "raised" for what our own code said."""

    rank: int
    how: Literal["died", "raised"]
    said: str


def run_ranks(
    function: RankFunction,
    config: Mapping[str, Any],
    workers: WorkerResources,
    out: Path,
    ray_address: str | None,
    look: Callable[[], None],
    log: Callable[[str], None],
) -> None:
    """Run `function(config)` as every rank until all have returned; `look` is called twice a second meanwhile.

    After a death all ranks are started again, at most `max_failures` times; what they do then is up to `function`,
    which finds its checkpoints. Raises TrainingError where a rank raised an error of ours, where they died too often,
    or where Ray itself died.
    """
    with use_ray(ray_address, math.ceil(workers.num * workers.cpus)) as handle:
        link_dashboard(handle)
        _check_room(workers)
        for num_failures in range(workers.max_failures + 1):
            failures = _run_once(function, config, workers, out, look)
            if not failures:
                return
            for failure in failures:
                if failure.how == "raised":
                    raise TrainingError(failure.said)
            log(f"rank {failures[0].rank} died ({failures[0].said}); death {num_failures + 1}")
        raise TrainingError(
            f"rank {failures[0].rank} died {workers.max_failures + 1} times, the last time so: {failures[0].said}; the "
            "same command goes on from the last checkpoint"
        )


def _check_room(workers: WorkerResources) -> None:
    """Ray would wait for ever for what the cluster does not have."""
    has = ray.cluster_resources()
    for name, of_one in (("CPU", workers.cpus), ("GPU", workers.gpus)):
        if workers.num * of_one > has.get(name, 0.0):
            raise TrainingError(
                f"{workers.num} workers of {of_one:g} {name} each do not fit: Ray has {has.get(name, 0.0):g} {name}; "
                "change [workers] in the profile, or join a larger cluster with --ray"
            )


def _run_once(
    function: RankFunction,
    config: Mapping[str, Any],
    workers: WorkerResources,
    out: Path,
    look: Callable[[], None],
) -> tuple[RankFailure, ...]:
    health = RayHealth()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    (out / STOP_FILE).unlink(missing_ok=True)
    started = ray.remote(_fit).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
    # waited for outside Ray, which answers a signal's exception with a SystemError of its own
    run = started.remote(function, dict(config), workers, str(out / "ray")).future()
    try:
        while not concurrent.futures.wait((run,), LOOK_EVERY_S).done:
            look()
            if trouble := health.trouble():
                raise TrainingError(trouble)
    except BaseException as stop:
        if not isinstance(stop, TrainingError):  # Ctrl-C, SIGTERM, Cancel: Ray lives
            (out / STOP_FILE).touch()
            concurrent.futures.wait((run,), LEAVE_S)
        raise
    look()
    try:
        failures: tuple[RankFailure, ...] = run.result()
    except RayError as error:
        return (RankFailure(rank=0, how="died", said=f"Ray Train's own process: {_first_line(error)}"),)
    return failures


def _fit(
    function: RankFunction, config: dict[str, Any], workers: WorkerResources, storage: str
) -> tuple[RankFailure, ...]:
    """Run Ray Train in this process until all ranks ended."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_EVERY_S)
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    trainer = TorchTrainer(
        function,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers.num, use_gpu=workers.gpus > 0, resources_per_worker=resources),
        # Ray would start again what raised an error too, which would only raise it again
        run_config=RunConfig(name="train", storage_path=storage, failure_config=FailureConfig(max_failures=0)),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        return tuple(
            _failure(rank, error.worker_failures[rank], workers.num == 1) for rank in sorted(error.worker_failures)
        )
    except TrainingFailedError as error:
        return (RankFailure(rank=0, how="died", said=_first_line(error)),)
    return ()


def _failure(rank: int, error: Exception, is_alone: bool) -> RankFailure:
    may_pass = type(error).__module__.startswith("ray.") or (not is_alone and _lost_another(error))
    return RankFailure(
        rank=rank,
        how="died" if may_pass else "raised",
        said=_first_line(error) if may_pass else one_line(error) or type(error).__name__,
    )


def _lost_another(error: Exception) -> bool:
    """Whether a rank lost another in the middle of a collective.

    NCCL's and the store's errors have classes of their own; Gloo says it in a plain RuntimeError.
    """
    from torch.distributed import DistError

    said = str(error)
    return isinstance(error, DistError) or (type(error) is RuntimeError and any(sign in said for sign in _LOST))


_LOST = ("Connection closed by peer", "Connection reset", "Broken pipe", "Socket", "NCCL", "Timed out waiting")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
