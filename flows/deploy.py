"""Deployments: a flow with parameters and a schedule on the server; the worker of `videorefer up` starts its runs."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.server.schemas.schedules import CronSchedule as ServerCronSchedule
from prefect.utilities.callables import parameter_schema

from flows.started import Server
from flows.work_pool import POOL
from schemas.record import Record

_STEP = "prefect.deployments.steps.set_working_directory"


class CronError(ValueError):
    """A schedule that cannot be, in one line."""


class Deployed(Record):
    """A deployment; `name` is what `prefect deployment run` takes."""

    deployment_id: str
    name: str
    page: str
    next_start: datetime


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
    server: Server, flow: Flow[..., Any], name: str, parameters: dict[str, Any], schedule: CronSchedule, folder: Path
) -> Deployed:
    """Make a deployment of a flow in our packages on the worker's pool, or bring it up to date.

    Its runs begin in `folder`, and are one at a time by the limit of the pool. Raises httpx.HTTPError where the server
    does not answer.
    """
    with SyncPrefectClient(server.api_url) as client:
        deployment_id = client.create_deployment(
            flow_id=client.create_flow(flow),
            name=name,
            entrypoint=f"{flow.fn.__module__}:{flow.fn.__name__}",
            work_pool_name=POOL,
            parameters=parameters,
            parameter_openapi_schema=parameter_schema(flow).model_dump(),
            enforce_parameter_schema=True,
            pull_steps=[{_STEP: {"directory": str(folder)}}],
            schedules=[DeploymentScheduleCreate(schedule=schedule)],
            description=flow.description,
        )
    return Deployed(
        deployment_id=str(deployment_id),
        name=f"{flow.name}/{name}",
        page=f"{server.url}/deployments/deployment/{deployment_id}",
        next_start=next_start(schedule),
    )


def remove(server: Server, flow_name: str, name: str) -> bool:
    """Take a deployment off, with its schedule and the runs that have not begun; False where there is none."""
    with SyncPrefectClient(server.api_url) as client:
        try:
            found = client.read_deployment_by_name(f"{flow_name}/{name}")
        except ObjectNotFound:
            return False
        client.delete_deployment(found.id)
    return True
