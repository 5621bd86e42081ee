"""The command line: `videorefer`. Every command says what it does, what it wrote and where to look."""

import json
import os
import signal
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.demo_source import MANIFEST, write_demo_source
from flows.doctor import examine, fetch_weights
from flows.preflight import preflight
from flows.profile_config import ProfileError, load_profile, shipped_profiles
from flows.progress import TerminalProgress
from flows.result import BuildResult
from flows.server import point_prefect_at_server, running_server, start_server, stop_server
from infra.builds import latest_build, list_builds
from infra.lake import Lake
from infra.settings import Settings
from infra.sources import SourceError
from infra.synthetic import write_clips

FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130

DEMO_SYNTHETIC_CLIPS = 10
DEMO_SEED = 7

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help=(
        "Turns captioned videos into an object-level instruction dataset: five agents under Prefect and Ray.\n\n"
        "Try it: `videorefer demo`. Your own videos: `videorefer build --source videos/ --lake lake/`, where a video "
        "`a.mp4` has its caption in `a.txt`. Watch it: `videorefer up`, then build, then open the address it prints."
    ),
)

err = Console(stderr=True)

LakeOption = Annotated[str, typer.Option("--lake", help="The folder (or s3:// prefix) that holds outputs and builds.")]
ProfileOption = Annotated[
    str, typer.Option("--profile", help=f"One of {', '.join(shipped_profiles())}, or a TOML file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
PortOption = Annotated[int, typer.Option("--port", help="Where the Prefect server listens, on loopback.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where sources, lake and report go.")] = Path("demo"),
    as_json: JsonOption = False,
) -> None:
    """The whole graph on sample clips: eight real, ten synthetic, embedded profile, on a CPU."""
    with _one_line_errors():
        fetch_weights("embedded", say=_say(as_json))
        manifest = out / "source" / MANIFEST
        if not manifest.exists():
            synthetic = write_clips(out / "source" / "synthetic", DEMO_SYNTHETIC_CLIPS, DEMO_SEED)
            write_demo_source(out / "source", synthetic)
        _run_build(manifest, None, str(out / "lake"), "embedded", None, None, as_json)


@app.command()
def build(
    source: Annotated[
        Path,
        typer.Option(
            "--source",
            help="A folder of videos with sidecar captions (`a.mp4` with `a.txt` or `a.json`), or a CSV, JSONL or "
            "Parquet manifest with `video, caption` and optional `id, start_s, end_s, license`.",
        ),
    ],
    lake: LakeOption,
    root: Annotated[
        Path | None, typer.Option("--root", help="What `video` is relative to; the manifest's folder if not given.")
    ] = None,
    profile: ProfileOption = "embedded",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first N readable rows of the source.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Address of a Ray cluster to join; a local one if not given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build a dataset. The same command again finishes what was interrupted, and does nothing that is done."""
    with _one_line_errors():
        _run_build(source, root, lake, profile, limit, ray, as_json)


@app.command()
def status(
    lake: Annotated[str | None, typer.Option("--lake", help="Also list the builds of this lake.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What runs here (the Prefect server), and which builds a lake holds."""
    with _one_line_errors():
        server = running_server()
        builds = () if lake is None else list_builds(Lake(lake))
        latest = None if lake is None else latest_build(Lake(lake))
        if as_json:
            _print_json(
                {
                    "server": None if server is None else server.url,
                    "latest": latest,
                    "builds": [manifest.model_dump(mode="json") for manifest in builds],
                }
            )
            return
        console = Console()
        console.print(f"Prefect server: {server.url}" if server else "Prefect server: not running (videorefer up)")
        if lake is None:
            return
        table = Table("build", "created", "profile", "samples", "quarantined", "", box=None, header_style="dim")
        for manifest in builds:
            mark = "latest" if manifest.build_id == latest else ""
            result = BuildResult.of(manifest, "", is_new=False, num_failed=0)
            table.add_row(
                manifest.build_id,
                manifest.created_at,
                manifest.profile_name,
                str(result.num_samples),
                str(result.num_quarantined),
                mark,
            )
        console.print(table if builds else f"No build in {lake} yet: videorefer build --source ... --lake {lake}")


@app.command()
def show(
    lake: LakeOption,
    what: Annotated[
        str, typer.Argument(help="A sample, clip or source id, or a kind (short_caption, detailed_caption, qa).")
    ] = "",
    build_id: Annotated[str | None, typer.Option("--build", help="A build; the latest if not given.")] = None,
    num: Annotated[int, typer.Option("-n", min=1, help="At most so many rows.")] = 5,
    browser: Annotated[bool, typer.Option("--open", help="Open the build's report in a browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at samples and at what was quarantined, and why."""
    from flows.show import find_rows, print_rows

    with _one_line_errors():
        rows = find_rows(Lake(lake), build_id, what, num)
        if as_json:
            _print_json(rows.model_dump(mode="json"))
            return
        print_rows(rows, Console())
        if browser:
            webbrowser.open(rows.report_uri)


@app.command()
def doctor(
    profile: ProfileOption = "embedded",
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch the weights and sample clips that are missing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What is missing for a profile, what it costs, and what to do."""
    with _one_line_errors():
        if fetch:
            fetch_weights(profile, say=_say(as_json))
        findings = examine(load_profile(profile))
        if as_json:
            _print_json({"ok": all(finding.ok for finding in findings), "findings": [f.model_dump() for f in findings]})
        else:
            console = Console()
            for finding in findings:
                console.print(
                    f"{'[green]ok  [/]' if finding.ok else '[red]miss[/]'} {finding.what}: {finding.detail}",
                    highlight=False,
                )
                if finding.mend:
                    console.print(f"     -> {finding.mend}", highlight=False)
        if not all(finding.ok for finding in findings):
            raise typer.Exit(FAILED)


@app.command()
def up(port: PortOption = 4200) -> None:
    """Start the Prefect server with its page, on loopback; builds then report to it."""
    with _one_line_errors():
        server, new = start_server(port)
        typer.echo(f"Prefect {'is up' if new else 'was up already'}: {server.url}/runs")


@app.command()
def down() -> None:
    """Stop what `up` started."""
    with _one_line_errors():
        server = stop_server()
        typer.echo(f"stopped {server.url}" if server else "nothing was running")


def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, _interrupt)
    app()


def _run_build(
    source: Path, root: Path | None, lake: str, profile: str, limit: int | None, ray: str | None, as_json: bool
) -> None:
    preflight(str(source), str(root) if root else None, lake, profile)
    point_prefect_at_server()
    from flows.build import build as build_flow
    from flows.build import watched_by

    console = Console(stderr=True, quiet=as_json)
    if api_url := os.environ.get("PREFECT_API_URL"):
        console.print(f"watch it: {api_url.removesuffix('/api')}/runs", highlight=False)
    with TerminalProgress(console) as terminal, watched_by(terminal):
        result = build_flow(str(source), lake, str(root) if root else None, profile, limit, ray)
    if as_json:
        _print_json(result.model_dump(mode="json"))
    else:
        Console().print(result.summary(), highlight=False, soft_wrap=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (ProfileError, SourceError) as error:
        _fail(str(error), BAD_USAGE)
    except ValidationError as error:
        first = error.errors()[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
        _fail(said, BAD_USAGE if error.title == Settings.__name__ else FAILED)
    except (OSError, ValueError, RuntimeError) as error:  # of the lake, weights, server, Ray, pools, and disks
        _fail(str(error), FAILED)
    except Exception as error:
        # imported only with Prefect, so told by their name
        if type(error).__module__.split(".")[0] not in ("httpx", "prefect"):
            raise
        _fail(f"the Prefect server does not answer ({error}); the same command goes on from here", FAILED)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from here", INTERRUPTED)


def _interrupt(*_: object) -> NoReturn:
    signal.alarm(0)  # Ray's own handler arms an alarm that would abort the process while it still tidies up
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    err.print(f"[red]error:[/] {escape(message)}", highlight=False, emoji=False, soft_wrap=True)
    raise SystemExit(code)


def _say(as_json: bool) -> Any:
    return (lambda _line: None) if as_json else (lambda line: err.print(line, highlight=False))


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + os.linesep)
