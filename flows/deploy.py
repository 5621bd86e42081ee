"""Deployments: a flow with parameters and a schedule on the server; the worker of `videorefer up` starts its runs."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import WorkerStatus
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.server.schemas.schedules import CronSchedule as ServerCronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema
from prefect.utilities.urls import url_for

from flows.server import running_server
from flows.work_pool import POOL, prepare_pool, watch_over_runs
from flows.worker import running_worker
from schemas.record import Record

SUBMITTED = "submitted"
"""The deployment of runs that are asked for one by one."""
_STEP = "prefect.deployments.steps.set_working_directory"


class CronError(ValueError):
    """A schedule that cannot be, in one line."""


class Deployed(Record):
    """A deployment; `name` is what `prefect deployment run` takes."""

    deployment_id: str
    name: str
    page: str


class Submitted(Record):
    """A run that waits for the worker; `name` is what the page calls it."""

    run_id: str
    name: str
    page: str


def cron_schedule(cron: str, timezone: str) -> CronSchedule:
    """The schedule. Raises CronError for what is no cron line, never comes, or is in no time zone."""
    try:
        schedule = CronSchedule(cron=cron, timezone=timezone)
        next_start(schedule)
    except ValueError as error:  # pydantic's and croniter's errors are ValueErrors
        raise CronError(
            f"no schedule: {cron!r} in time zone {timezone!r}; wanted are five fields, minute, hour, day, month and "
            "weekday, as in --cron '30 2 * * 1-5' (half past two on working days) --timezone Europe/Vienna"
        ) from error
    return schedule


def next_start(schedule: CronSchedule) -> datetime:
    """When the server will start the next run. Raises ValueError where that never comes."""
    of_server = ServerCronSchedule.model_validate(schedule.model_dump())
    for date in asyncio.run(of_server.get_dates(n=1)):
        return date
    raise ValueError("never")


def deploy(
    api_url: str,
    flow: Flow[..., Any],
    name: str,
    parameters: dict[str, Any],
    schedule: CronSchedule | None,
    folder: Path,
) -> Deployed:
    """Make a deployment of a flow in our packages on the server's pool, or bring it up to date.

    The pool, and the automations that watch over its runs, are made where they are missing. Runs begin in `folder`,
    and are one at a time by the limit of the pool. Raises httpx.HTTPError where the server does not answer.
    """
    with _client(api_url) as client:
        watch_over_runs(client, prepare_pool(client))
        deployment_id = client.create_deployment(
            flow_id=client.create_flow(flow),
            name=name,
            entrypoint=f"{flow.fn.__module__}:{flow.fn.__name__}",
            work_pool_name=POOL,
            parameters=parameters,
            parameter_openapi_schema=parameter_schema(flow).model_dump(),
            enforce_parameter_schema=True,
            pull_steps=[{_STEP: {"directory": str(folder)}}],
            schedules=[] if schedule is None else [DeploymentScheduleCreate(schedule=schedule)],
            description=flow.description,
        )
        return Deployed(
            deployment_id=str(deployment_id), name=f"{flow.name}/{name}", page=_page("deployment", deployment_id)
        )


def submit(api_url: str, flow: Flow[..., Any], run_name: str, parameters: dict[str, Any], folder: Path) -> Submitted:
    """Have the pool's worker run a flow in `folder`, after the runs that wait already.

    All that is submitted of a flow are runs of one deployment. Raises httpx.HTTPError where the server does not answer.
    """
    # the deployment is shared, and so is its folder: that of each run is where the worker starts it
    deployed = deploy(api_url, flow, SUBMITTED, {}, None, Path())
    with _client(api_url) as client:
        run = client.create_flow_run_from_deployment(
            UUID(deployed.deployment_id),
            name=run_name,
            parameters=parameters,
            job_variables={"working_dir": str(folder)},
        )
        return Submitted(run_id=str(run.id), name=run.name, page=_page("flow-run", run.id))


def why_nothing_starts(api_url: str) -> str | None:
    """Why runs of the pool wait, as far as is known here, and what to do about it; None where a worker runs."""
    server, worker = running_server(), running_worker()
    if server is not None and server.api_url == api_url:
        is_ours = worker is not None and worker.api_url == api_url
        return None if is_ours else "its worker does not run: videorefer up"
    with _client(api_url) as client:
        workers = client.read_workers_for_work_pool(POOL)
    if any(found.status == WorkerStatus.ONLINE for found in workers):
        return None
    return f"no worker of its pool reports: prefect worker start --pool {POOL}"


def remove(api_url: str, flow_name: str, name: str) -> bool:
    """Take a deployment off, with its schedule and the runs that have not begun; False where there is none."""
    with _client(api_url) as client:
        try:
            found = client.read_deployment_by_name(f"{flow_name}/{name}")
        except ObjectNotFound:
            return False
        client.delete_deployment(found.id)
    return True


@contextmanager
def _client(api_url: str) -> Iterator[SyncPrefectClient]:
    """A client of that server, with the key or password that the user's settings have for it."""
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        yield client


def _page(kind: str, found: UUID) -> str:
    return url_for(kind, found) or ""
