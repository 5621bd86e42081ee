"""What the commands share: options, one line for an error, one JSON object where it is asked for."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from benchmark.gate import GateRule
from flows.profile_config import shipped_profiles
from flows.profile_files import ProfileError
from infra.settings import Settings
from infra.sources import SourceError

FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130

err = Console(stderr=True)

LakeOption = Annotated[str, typer.Option("--lake", help="The folder (or s3:// prefix) that holds outputs and builds.")]
ProfileOption = Annotated[
    str, typer.Option("--profile", help=f"One of {', '.join(shipped_profiles())}, or a TOML file.")
]
RootOption = Annotated[
    Path | None, typer.Option("--root", help="What `video` is relative to; the manifest's folder if not given.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first N readable rows of the source.")
]
RayOption = Annotated[
    str | None,
    typer.Option("--ray", help="A Ray cluster to join: host:port, or auto for one here; else `up`'s, or its own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Say in one line, and by the exit code, what went wrong that users or machines can cause."""
    try:
        yield
    except typer.Exit:
        raise
    except (ProfileError, SourceError) as error:
        fail(str(error), BAD_USAGE)
    except ValidationError as error:
        first = error.errors()[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
        fail(said, BAD_USAGE if error.title in (Settings.__name__, GateRule.__name__) else FAILED)
    except (OSError, ValueError, RuntimeError) as error:  # of the lake, weights, server, Ray, pools, and disks
        fail(str(error), FAILED)
    except Exception as error:
        # imported only with Prefect, so told by their name
        if type(error).__module__.split(".")[0] not in ("httpx", "prefect"):
            raise
        fail(server_lost(error), FAILED)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from here", INTERRUPTED)


def server_lost(error: Exception) -> str:
    """What is said of a Prefect server that is gone."""
    return f"the Prefect server does not answer ({error}); the same command goes on from here"


def fail(message: str, code: int) -> NoReturn:
    """End with one line on stderr."""
    tell(message)
    raise SystemExit(code)


def tell(message: str) -> None:
    """Say an error in one line on stderr."""
    err.print(f"[red]error:[/] {escape(message)}", highlight=False, emoji=False, soft_wrap=True)


def say(as_json: bool) -> Callable[[str], None]:
    """Who takes lines meant for the eye: stderr, or nobody where JSON was asked for."""
    return (lambda _line: None) if as_json else (lambda line: err.print(line, highlight=False))


def print_json(value: object) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + os.linesep)
