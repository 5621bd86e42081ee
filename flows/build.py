"""The build flow: sources to a committed build, one Prefect task run per (unit, agent).

    sources -> clips -> [unit] -> analyzer -> segmenter -> annotator -> reviewer -> refiner -> shards -> manifest

Prefect is the control plane: states, retries, what is seen on the page. Ray is the data plane: pools of actors that
hold the engines. The lake is the only cache: a step whose clips are all there returns the state `Cached`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TagsContext
from prefect.events import emit_event
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import allow_failure, quote

from flows.artifacts import ArtifactProgress, decoration
from flows.chain import Chain
from flows.metrics import AgentMetrics
from flows.plan import Plan, plan_build
from flows.pools import Pools
from flows.preflight import preflight
from flows.profile_config import MAX_UNITS_IN_FLIGHT, ROLES, Profile, Role
from flows.progress import BuildProgress, ProgressSink
from flows.publish import publish_build
from flows.result import BuildResult
from flows.run_tags import last_name, tag_run
from flows.run_watch import CancelledOnPageError, watched_run
from flows.step import BuildRun, run_step
from flows.watchers import Watchers
from flows.wiring import Site, agent_labels, annotator_needs, identify
from infra.builds import BuildCommand
from infra.lake import Lake
from infra.settings import settings
from schemas.clip import Clip

END_S = 60.0
"""How long to wait, once the pools are closed, until every task run has said how it ended."""

COMMITTED = "videorefer.build.committed"
"""The Prefect event of a build that was not there before."""

WATCHERS: Watchers[ProgressSink] = Watchers()
"""Of builds."""


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
    if run.errors:
        # Prefect lets nothing follow a cancelled task run, a failed one it does
        return Failed(name="NotBegun", message="the build was stopped, or another step failed")
    logger = get_run_logger()
    try:
        result = run_step(role, unit, clips, run, logger.log)
    except Exception as error:
        run.errors.append(error)
        raise
    logger.info(result.describe())
    name = "Cached" if result.cached and not (result.done or result.failed) else "Completed"
    return Completed(name=name, message=result.describe(), data=None)


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE)
def publish_task(
    plan: Plan, run: BuildRun, command: BuildCommand, lake: Lake, profile: Profile, site: Site
) -> BuildResult:
    """Shards, tracks, quarantine, card, report, and the manifest last."""
    failed = tuple(run.failed.values())
    result = publish_build(plan, run.chain, failed, command, lake, profile, site, run.work)
    with decoration():
        create_markdown_artifact(result.markdown(), key="build-counts", description=f"build {result.build_id}")
        about = f"report of build {result.build_id}"
        create_link_artifact(result.report_uri, link_text="report.html", key="build-report", description=about)
    if result.is_new:
        _tell_others(result)
    get_run_logger().info(result.summary())
    return result


def _tell_others(result: BuildResult) -> None:
    """Emit the event that other teams' automations follow; without a server that takes it, the build is no worse."""
    with decoration():
        emit_event(
            COMMITTED,
            {"prefect.resource.id": f"videorefer.build.{result.build_id}", "prefect.resource.name": result.build_id},
            payload={
                "build_id": result.build_id,
                "lake": result.lake,
                "report": result.report_uri,
                "counts": [entry.model_dump(mode="json") for entry in result.counts],
            },
        )


def _run_name() -> str:
    source = Path(flow_run.parameters["source"])
    return "build " + "/".join(source.parts[-2:])


@flow(
    name="build",
    flow_run_name=_run_name,
    # a step that waits for another holds a thread too
    task_runner=ThreadPoolTaskRunner(max_workers=MAX_UNITS_IN_FLIGHT * len(ROLES)),  # type: ignore[arg-type]
    persist_result=False,
)
def build(
    source: str,
    lake: str,
    root: str | None = None,
    profile: str = "embedded",
    limit: int | None = None,
    ray_address: str | None = None,
) -> BuildResult | State[None]:
    """Build a dataset from captioned videos.

    A run that is cancelled on its page returns the state Cancelled. Raises ServerLostError, besides what the parts of
    a build raise.

    Args:
        source: a folder of videos with sidecar captions, or a CSV, JSONL or Parquet manifest.
        lake: the folder or object-store prefix that holds agent outputs and builds.
        root: what the manifest's `video` column is relative to; the manifest's folder if not given.
        profile: the name of a shipped profile, or the path of a TOML file.
        limit: only the first rows of the source.
        ray_address: a Ray cluster to join; if not given, that of `videorefer up`, or a small one for this run alone.
    """
    try:
        # the run's tags are not for its task runs: Prefect would ask the server about limits of each tag
        with watched_run(UUID(str(flow_run.id))), TagsContext(current_tags=set()):
            return _build(source, lake, root, profile, limit, ray_address)
    except CancelledOnPageError as said:
        return Cancelled(message=str(said))


def _build(
    source: str, lake: str, root: str | None, profile: str, limit: int | None, ray_address: str | None
) -> BuildResult:
    tag_run(profile=last_name(profile), lake=last_name(lake))
    resolved = preflight(source, root, lake, profile)
    labels = agent_labels(resolved)
    store = Lake(lake)
    with decoration():
        create_link_artifact(store.uri(), link_text="lake", key="lake", description="agents' outputs and builds")
    plan = plan_task(source, root, _whole(store), _whole(resolved), limit)
    site = Site(
        videos_root=str(plan.videos_root.resolve()),
        frames_dir=str(settings().cache_dir / "frames"),
        identity=identify(resolved, labels),
    )
    steps: list[PrefectFuture[Any]] = []
    try:
        with (
            Pools(resolved, site, ray_address, get_run_logger().log) as pools,
            AgentMetrics(store.address, resolved.name, pools.losses) as metrics,
        ):
            workers = {role: resolved.workers(role) for role in ROLES}
            progress = BuildProgress(len(plan.clips), workers, (ArtifactProgress(), metrics, *WATCHERS.sinks()))
            run = BuildRun(chain=Chain(store, labels, annotator_needs(resolved)), pools=pools, progress=progress)
            _run_units(plan, run, resolved.units_in_flight, steps)
            ray_started = pools.started
    finally:
        end_s = time.monotonic() + END_S
        for step in steps:  # without pools they end at once; left to Prefect, some would stay without a final state
            step.wait(max(0.0, end_s - time.monotonic()))
    command = BuildCommand(source=source, root=root, profile=profile, limit=limit, ray=ray_address)
    result: BuildResult = publish_task(
        _whole(plan), _whole(run), _whole(command), _whole(store), _whole(resolved), _whole(site)
    )
    tag_run(build=result.build_id)
    return result.model_copy(update={"ray_started": ray_started})


def _run_units(plan: Plan, run: BuildRun, units_in_flight: int, steps: list[PrefectFuture[Any]]) -> None:
    """Submit unit by unit, agent by agent, into `steps`, and wait for them; a bounded number of units overlap.

    Where a step raises, no other begins, and its error is raised.
    """
    try:
        for unit, clips in enumerate(plan.units):
            if unit >= units_in_flight:
                first = (unit - units_in_flight) * len(ROLES)
                _finish(steps[first : first + len(ROLES)], run)
            _submit(unit, clips, run, steps)
        _finish(steps, run)
    except BaseException as stop:
        run.errors.append(stop)
        raise


def _submit(unit: int, clips: Sequence[Clip], run: BuildRun, steps: list[PrefectFuture[Any]]) -> None:
    of_unit: dict[Role, PrefectFuture[Any]] = {}
    for role in ROLES:
        # after a failure the next ones run too, and end in a state that says so; else they would wait for ever
        before = [allow_failure(of_unit[other]) for other in run.chain.waits_for(role)]
        of_unit[role] = agent_task.submit(role, unit, _whole(clips), _whole(run), wait_for=before, return_state=False)
        steps.append(of_unit[role])


def _finish(steps: Sequence[PrefectFuture[Any]], run: BuildRun) -> None:
    for step in steps:
        step.wait()
        if run.errors:
            raise run.errors[0]
        step.result()


def _whole(value: Any) -> Any:
    """Hand a value to a task as it is: Prefect would look through all of it for futures."""
    return quote(value)
