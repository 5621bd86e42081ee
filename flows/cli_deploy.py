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
from flows.cli_pipeline import (
    RULE,
    AlphaOption,
    MarginOption,
    MinItemsOption,
    ModeOption,
    ScorerOption,
    StepsOption,
    TrainProfileOption,
    judged,
)
from flows.run_build import command_of
from flows.run_pipeline import asked_of, check_asked
from flows.server import lasting_api

DEFAULT_NAME = "scheduled"


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
    mode: ModeOption = "multi",
    scorer: ScorerOption = "likelihood",
    min_items: MinItemsOption = RULE.min_items,
    alpha: AlphaOption = RULE.alpha,
    margin: MarginOption = None,
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
        api_url = lasting_api()
        if is_removed:
            _remove(api_url, name)
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
        how = judged(mode, scorer, min_items, alpha, margin)
        asked = asked_of(build, lake, out, train_profile, num_steps, **how)
        check_asked(asked)
        from flows.deploy import deploy, next_start, why_nothing_starts
        from flows.pipeline import pipeline

        deployed = deploy(api_url, pipeline, name, asked.model_dump(), schedule, Path.cwd())
        start = next_start(schedule)
        if as_json:
            print_json(deployed.model_dump() | {"next_start": start.isoformat()})
            return
        typer.echo(f"{deployed.name} is deployed; it runs next at {start:%Y-%m-%d %H:%M %Z}")
        command = shlex.join(("prefect", "deployment", "run", deployed.name))
        typer.echo(f"run it now: PREFECT_API_URL={api_url} {command}")
        typer.echo(f"see it:     {deployed.page}")
        if reason := why_nothing_starts(api_url):
            typer.echo(f"nothing starts: {reason}")


def _remove(api_url: str, name: str) -> None:
    from flows.deploy import remove

    if not remove(api_url, "pipeline", name):
        fail(f"there is no deployment pipeline/{name}", FAILED)
    typer.echo(f"pipeline/{name} is taken off; a run that has begun goes on")
