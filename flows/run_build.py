"""One build from the command line: its server, what earlier builds left there, its progress, and how it ends."""

from contextlib import suppress
from pathlib import Path

from rich.console import Console

from flows.preflight import preflight
from flows.profile_config import shipped_profiles
from flows.progress import TerminalProgress
from flows.result import BuildResult
from flows.run_flow import flow_on_page
from flows.started import Server
from infra.builds import BuildCommand
from infra.source_rows import check_source


def run_build(
    source: Path, root: Path | None, lake: str, profile: str, limit: int | None, ray: str | None, as_json: bool
) -> BuildResult:
    """Build; one that was cancelled or lost its server ends the process."""
    preflight(str(source), str(root) if root else None, lake, profile)
    console = Console(stderr=True, quiet=as_json)
    if ignored := check_source(source, root):
        console.print(f"columns that nobody reads: {', '.join(ignored)}", highlight=False, markup=False)
    asked = command_of(source, root, profile, limit, ray)
    with flow_on_page(console):
        from flows.build import WATCHERS, build
        from flows.leftovers import other_builds

        for other in other_builds(lake):
            console.print(other.describe(), highlight=False, soft_wrap=True)
        lake = lake if "://" in lake else str(Path(lake).absolute())  # as others see it on the run's page
        with TerminalProgress(console) as terminal, WATCHERS.watched_by(terminal):
            result = build(asked.source, lake, asked.root, asked.profile, asked.limit, asked.ray)
    assert isinstance(result, BuildResult)
    return result


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
