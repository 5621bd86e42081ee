"""`videorefer deploy`: the pipeline on a schedule."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.cli_common import (
    BAD_USAGE,
    FAILED,
    JsonOption,
    LimitOption,
    ProfileOption,
    RayOption,
    RootOption,
    fail,
    one_line_errors,
    print_json,
)
from flows.cli_pipeline import StepsOption, TrainProfileOption
from flows.run_build import command_of
from flows.run_pipeline import asked_of, check_asked
from flows.server import quieten_prefect, running_server
from flows.started import Server
from flows.worker import running_worker

DEFAULT_NAME = "scheduled"
_AS_THE_FLOW_HAS = {"mode", "scorer", "rule"}
"""What deployed runs take from the flow's own defaults."""


def deploy(
    source: Annotated[
        Path | None, typer.Option("--source", help="Videos with captions, as `videorefer build` takes them.")
    ] = None,
    lake: Annotated[
        str | None, typer.Option("--lake", help="The folder (or s3:// prefix) that holds outputs and builds.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder for models, as in `videorefer pipeline`.")
    ] = None,
    cron: Annotated[
        str, typer.Option("--cron", help="When: minute, hour, day, month, weekday; '30 2 * * *' is daily at 2:30.")
    ] = "",
    timezone: Annotated[str, typer.Option("--timezone", help="Of --cron, as Europe/Vienna.")] = "UTC",
    name: Annotated[str, typer.Option("--name", help="Of the deployment; the same name is brought up to date.")] = (
        DEFAULT_NAME
    ),
    root: RootOption = None,
    profile: ProfileOption = "embedded",
    train_profile: TrainProfileOption = "embedded",
    limit: LimitOption = None,
    num_steps: StepsOption = None,
    ray: RayOption = None,
    is_removed: Annotated[
        bool, typer.Option("--remove", help="Take the deployment off; nothing else is asked.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the pipeline (build, train, bench, gate) on a schedule, on the server and worker of `videorefer up`.

    Runs come one at a time. One that has nothing new to do does no agent work and says so; one that crashes starts
    again, twice at most, and goes on from where it was.
    """
    with one_line_errors():
        server = _server()
        quieten_prefect()
        if is_removed:
            _remove(server, name)
            return
        if source is None or lake is None or out is None or not cron:
            fail("--source, --lake, --out and --cron are needed, or --remove", BAD_USAGE)
        if out.exists() and not out.is_dir():
            fail(f"--out {out} is a file; name a folder, which is made if it is not there", BAD_USAGE)
        from flows.deploy import CronError, cron_schedule

        try:
            schedule = cron_schedule(cron, timezone)
        except CronError as error:
            fail(str(error), BAD_USAGE)
        build = command_of(source, root, profile, limit, ray)
        asked = asked_of(build, lake, out, train_profile, num_steps)
        check_asked(asked)
        from flows.deploy import deploy
        from flows.pipeline import pipeline

        deployed = deploy(server, pipeline, name, asked.model_dump(exclude=_AS_THE_FLOW_HAS), schedule, Path.cwd())
        if as_json:
            print_json(deployed.model_dump(mode="json"))
            return
        typer.echo(f"{deployed.name} is deployed; it runs next at {deployed.next_start:%Y-%m-%d %H:%M %Z}")
        command = shlex.join(("prefect", "deployment", "run", deployed.name))
        typer.echo(f"run it now: PREFECT_API_URL={server.api_url} {command}")
        typer.echo(f"see it:     {deployed.page}")
        if running_worker() is None:
            typer.echo("its worker does not run, so that nothing starts: videorefer up")


def _server() -> Server:
    server = running_server()
    if server is None:
        fail("no server runs here: first videorefer up", FAILED)
    return server


def _remove(server: Server, name: str) -> None:
    from flows.deploy import remove

    if not remove(server, "pipeline", name):
        fail(f"there is no deployment pipeline/{name}", FAILED)
    typer.echo(f"pipeline/{name} is taken off; a run that has begun goes on")
