"""One build from the command line: its server, what earlier builds left there, its progress, and how it ends."""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from flows.cli_common import FAILED, INTERRUPTED, fail, print_json, server_lost, tell
from flows.preflight import preflight
from flows.profile_config import shipped_profiles
from flows.progress import TerminalProgress
from flows.result import BuildResult
from flows.server import Server, point_prefect_at_server
from infra.builds import BuildCommand
from infra.ray_folder import sweep_lost_folders
from infra.source_rows import check_source


def run_build(
    source: Path, root: Path | None, lake: str, profile: str, limit: int | None, ray: str | None, as_json: bool
) -> None:
    """Build, and print what came of it; a build that was cancelled or lost its server ends the process."""
    preflight(str(source), str(root) if root else None, lake, profile)
    has_page = point_prefect_at_server()
    from httpx import HTTPError, TransportError
    from prefect import tags
    from prefect.exceptions import CancelledRun

    from flows.build import build, watched_by
    from flows.leftovers import end_lost_runs, other_builds, process_tag, wait_until_told
    from flows.run_watch import ServerLostError

    logging.raiseExceptions = False  # that a log line did not reach a server that is gone is no news
    console = Console(stderr=True, quiet=as_json)
    if ignored := check_source(source, root):
        console.print(f"columns that nobody reads: {', '.join(ignored)}", highlight=False, markup=False)
    sweep_lost_folders()
    if num_lost := end_lost_runs():
        console.print(f"runs of killed builds that now count as ended: {num_lost}", highlight=False)
    for other in other_builds(lake):
        console.print(other.describe(), highlight=False, soft_wrap=True)
    if has_page:
        console.print(f"watch it: {os.environ['PREFECT_API_URL'].removesuffix('/api')}/runs", highlight=False)
    lake = lake if "://" in lake else str(Path(lake).absolute())  # as others see it on the run's page
    asked = command_of(source, root, profile, limit, ray)
    try:
        with tags(process_tag()), TerminalProgress(console) as terminal, watched_by(terminal):
            result = build(asked.source, lake, asked.root, asked.profile, asked.limit, asked.ray)
    except CancelledRun as said:
        fail(str(said), INTERRUPTED)
    except (ServerLostError, TransportError) as error:
        _leave(server_lost(error))
    finally:
        if not has_page:
            with suppress(HTTPError):
                wait_until_told()
    assert isinstance(result, BuildResult)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
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
    os.environ.setdefault("PREFECT_API_URL", server.api_url)
    from httpx import HTTPError

    from flows.leftovers import end_lost_runs

    with suppress(HTTPError):
        end_lost_runs()


def _leave(message: str) -> NoReturn:
    """Fail without the interpreter's own end, in which Prefect would try for minutes to tell its server the last."""
    tell(message)
    sys.stderr.flush()
    os._exit(FAILED)
