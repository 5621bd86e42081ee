"""The build flow: sources to a committed build, one Prefect task run per (unit, agent).

    sources -> clips -> [unit] -> analyzer -> segmenter -> annotator -> reviewer -> refiner -> shards -> manifest

Prefect is the control plane: states, retries, what is seen on the page. Ray is the data plane: pools of actors that
hold the engines. The lake is the only cache: a step whose clips are all there returns the state `Cached`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows.artifacts import ArtifactProgress, decoration
from flows.chain import Chain
from flows.plan import Plan, plan_build
from flows.pools import Pools
from flows.preflight import preflight
from flows.profile_config import ROLES, Profile, Role
from flows.progress import BuildProgress, ProgressSink
from flows.publish import publish_build
from flows.result import BuildResult
from flows.step import BuildRun, run_step
from flows.wiring import Site, agent_labels, annotator_needs
from infra.lake import Lake
from infra.settings import settings
from schemas.clip import Clip

_sinks: list[ProgressSink] = []
"""Whoever in this process wants to see progress besides the run's page; Prefect's parameters must be plain values."""


@contextmanager
def watched_by(sink: ProgressSink) -> Iterator[None]:
    """Show the progress of builds in this process to `sink` too, meanwhile."""
    _sinks.append(sink)
    try:
        yield
    finally:
        _sinks.remove(sink)


@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE)
def plan_task(source: str, root: str | None, lake: Lake, profile: Profile, limit: int | None) -> Plan:
    """Sources to clips and units."""
    plan = plan_build(Path(source), Path(root) if root else None, lake, profile, limit, get_run_logger().info)
    get_run_logger().info(
        "%d rows, %d clips in %d units, %d rows or shots quarantined",
        plan.num_rows,
        len(plan.clips),
        len(plan.units),
        len(plan.rejected),
    )
    return plan


@task(name="agent", task_run_name="{role} unit {unit:03d}", cache_policy=NO_CACHE)
def agent_task(role: Role, unit: int, clips: Sequence[Clip], run: BuildRun) -> State[Any]:
    """One unit through one agent; failures are retried clip by clip in the pool, not here."""
    logger = get_run_logger()
    result = run_step(role, unit, clips, run, logger.log)
    logger.info(result.describe())
    name = "Cached" if result.cached and not (result.done or result.failed) else "Completed"
    return Completed(name=name, message=result.describe(), data=None)


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE)
def publish_task(plan: Plan, run: BuildRun, source: str, lake: Lake, profile: Profile, site: Site) -> BuildResult:
    """Shards, tracks, quarantine, card, report, and the manifest last."""
    result = publish_build(plan, run.chain, tuple(run.failed.values()), source, lake, profile, site)
    with decoration():
        create_markdown_artifact(result.markdown(), key="build-counts", description=f"build {result.build_id}")
        about = f"report of build {result.build_id}"
        create_link_artifact(result.report_uri, link_text="report.html", key="build-report", description=about)
    get_run_logger().info(result.summary())
    return result


def _run_name() -> str:
    source = Path(flow_run.parameters["source"])
    return "build " + "/".join(source.parts[-2:])


@flow(
    name="build",
    flow_run_name=_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=64),  # type: ignore[arg-type]
    persist_result=False,
)
def build(
    source: str,
    lake: str,
    root: str | None = None,
    profile: str = "embedded",
    limit: int | None = None,
    ray_address: str | None = None,
) -> BuildResult:
    """Build a dataset from captioned videos.

    Args:
        source: a folder of videos with sidecar captions, or a CSV, JSONL or Parquet manifest.
        lake: the folder or object-store prefix that holds agent outputs and builds.
        root: what the manifest's `video` column is relative to; the manifest's folder if not given.
        profile: the name of a shipped profile, or the path of a TOML file.
        limit: only the first rows of the source.
        ray_address: a Ray cluster to join; a local one is started if not given, and only if there is work.
    """
    resolved = preflight(source, root, lake, profile)
    labels = agent_labels(resolved)
    store = Lake(lake)
    plan = plan_task(source, root, _whole(store), _whole(resolved), limit)
    site = Site(videos_root=str(plan.videos_root.resolve()), frames_dir=str(settings().cache_dir / "frames"))
    progress = BuildProgress(len(plan.clips), (ArtifactProgress(), *_sinks))
    with Pools(resolved, site, ray_address) as pools:
        run = BuildRun(chain=Chain(store, labels, annotator_needs(resolved)), pools=pools, progress=progress)
        _run_units(plan, run, resolved.units_in_flight)
        ray_started = pools.started
    result: BuildResult = publish_task(_whole(plan), _whole(run), source, _whole(store), _whole(resolved), _whole(site))
    return result.model_copy(update={"ray_started": ray_started})


def _run_units(plan: Plan, run: BuildRun, units_in_flight: int) -> None:
    """Submit unit by unit, agent by agent; a bounded number of units overlap.

    Results are asked for in the order of the agents, so that what is raised is the first error, not its consequence.
    """
    units: list[list[PrefectFuture[Any]]] = []
    for unit, clips in enumerate(plan.units):
        if unit >= units_in_flight:
            _finish(units[unit - units_in_flight])
        futures: dict[Role, PrefectFuture[Any]] = {}
        for role in ROLES:
            before = [futures[other] for other in run.chain.waits_for(role)]
            futures[role] = agent_task.submit(
                role, unit, _whole(clips), _whole(run), wait_for=before, return_state=False
            )
        units.append(list(futures.values()))
    for unit_futures in units:
        _finish(unit_futures)


def _finish(futures: Sequence[PrefectFuture[Any]]) -> None:
    for future in futures:
        future.result()


def _whole(value: Any) -> Any:
    """Hand a value to a task as it is: Prefect would look through all of it for futures."""
    return quote(value)
