"""One build from the command line: here, with its progress and how it ends, or handed to the worker."""

from contextlib import suppress
from pathlib import Path

import typer
from rich.console import Console

from flows.cli_common import print_json
from flows.preflight import preflight
from flows.profile_config import shipped_profiles
from flows.progress import TerminalProgress
from flows.result import BuildResult
from flows.run_flow import flow_on_page
from flows.server import lasting_api
from flows.started import Server
from infra.builds import BuildCommand
from infra.source_rows import check_source


def run_build(
    source: Path, root: Path | None, lake: str, profile: str, limit: int | None, ray: str | None, as_json: bool
) -> BuildResult:
    """Build; one that was cancelled or lost its server ends the process."""
    console = Console(stderr=True, quiet=as_json)
    _check(source, root, lake, profile, console)
    asked = command_of(source, root, profile, limit, ray)
    with flow_on_page(console):
        from flows.build import WATCHERS, build
        from flows.leftovers import other_builds

        for other in other_builds(lake):
            console.print(other.describe(), highlight=False, soft_wrap=True)
        with TerminalProgress(console) as terminal, WATCHERS.watched_by(terminal):
            result = build(asked.source, _whole(lake), asked.root, asked.profile, asked.limit, asked.ray)
    assert isinstance(result, BuildResult)
    return result


def submit_build(
    source: Path, root: Path | None, lake: str, profile: str, limit: int | None, ray: str | None, as_json: bool
) -> None:
    """Have the worker of `videorefer up` build, refuse here what it would refuse, and say where to look."""
    _check(source, root, lake, profile, Console(stderr=True, quiet=as_json))
    api_url = lasting_api()
    from flows.build import build
    from flows.deploy import submit, why_nothing_starts

    asked = command_of(source, root, profile, limit, ray)
    parameters = asked.model_dump(exclude={"ray"}) | {"lake": _whole(lake), "ray_address": asked.ray}
    name = "build " + "/".join(Path(asked.source).parts[-2:])  # the flow's own, which the run would get once it begins
    submitted = submit(api_url, build, name, parameters, Path.cwd())
    if as_json:
        print_json(submitted.model_dump())
        return
    typer.echo(f"{submitted.name} is submitted: run {submitted.run_id}")
    typer.echo(f"see it: {submitted.page}")
    if reason := why_nothing_starts(api_url):
        typer.echo(f"it waits: {reason}")


def print_build(result: BuildResult) -> None:
    """Say on stdout what came of a build."""
    Console().print(result.summary(), highlight=False, soft_wrap=True)


def command_of(source: Path, root: Path | None, profile: str, limit: int | None, ray: str | None) -> BuildCommand:
    """What was asked for in this folder, as it can be asked for in any; no path enters a key or the build's id."""
    return BuildCommand(
        source=str(source.absolute()),
        root=str(root.absolute()) if root else None,
        profile=profile if profile in shipped_profiles() else str(Path(profile).absolute()),
        limit=limit,
        ray=ray,
    )


def end_lost_builds(server: Server) -> None:
    """End on a server the runs of builds that were killed; where it is too busy now, another command will do it."""
    from httpx import HTTPError
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.leftovers import end_lost_runs

    with suppress(HTTPError), temporary_settings({PREFECT_API_URL: server.api_url}):
        end_lost_runs()


def _check(source: Path, root: Path | None, lake: str, profile: str, console: Console) -> None:
    """Refuse what the flow would refuse, and tell of columns that nobody reads."""
    preflight(str(source), str(root) if root else None, lake, profile)
    if ignored := check_source(source, root):
        console.print(f"columns that nobody reads: {', '.join(ignored)}", highlight=False, markup=False)


def _whole(lake: str) -> str:
    """As others see it on the run's page, and from another folder."""
    return lake if "://" in lake else str(Path(lake).absolute())
