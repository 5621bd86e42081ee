"""One pipeline from the command line: what is refused before anything starts, its progress, and how it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.pipeline_record import PipelineAsked, PipelineResult, read_latest
from flows.preflight import preflight
from flows.run_flow import flow_on_page
from flows.train_profile import load_train_profile, shipped_train_profiles
from infra.builds import BuildCommand
from infra.source_rows import check_source


def run_pipeline(asked: PipelineAsked, as_json: bool) -> PipelineResult:
    """Build, train, bench and gate; one that was cancelled or lost its server ends the process."""
    check_asked(asked)
    read_latest(Path(asked.out))
    console = Console(stderr=True, quiet=as_json)
    with flow_on_page(console):
        from flows.pipeline import WATCHERS, pipeline

        with WATCHERS.watched_by(_Terminals(console)):
            result = pipeline(**dict(asked))
    assert isinstance(result, PipelineResult)
    return result


def check_asked(asked: PipelineAsked) -> None:
    """Refuse source and profiles that a run would refuse; raises as a build and a training do."""
    preflight(asked.source, asked.root, asked.lake, asked.profile)
    check_source(Path(asked.source), Path(asked.root) if asked.root else None)
    load_train_profile(asked.train_profile, None, asked.num_steps)


def print_pipeline(result: PipelineResult) -> None:
    """Say on stdout what came of a pipeline."""
    Console().print(result.summary(), highlight=False, markup=False, soft_wrap=True)


def asked_of(
    build: BuildCommand, lake: str, out: Path, train_profile: str, num_steps: int | None, **how: Any
) -> PipelineAsked:
    """What was asked for in this folder, as it can be asked for in any; `how` is mode, scorer and rule."""
    return PipelineAsked(
        source=build.source,
        lake=lake if "://" in lake else str(Path(lake).absolute()),
        out=str(out.absolute()),
        root=build.root,
        profile=build.profile,
        train_profile=train_profile
        if train_profile in shipped_train_profiles()
        else str(Path(train_profile).absolute()),
        limit=build.limit,
        num_steps=num_steps,
        ray_address=build.ray,
        **how,
    )


class _Terminals:
    """The stages on the terminal, one after the other, each as its own command shows it."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Show a stage."""
        from flows import bench_progress, build, progress, train_progress

        match stage:
            case "build":
                with progress.TerminalProgress(self._console) as agents, build.WATCHERS.watched_by(agents):
                    yield
            case "train":
                with train_progress.TrainTerminal(self._console) as steps, train_progress.WATCHERS.watched_by(steps):
                    yield
            case _:
                with bench_progress.BenchTerminal(self._console) as items, bench_progress.WATCHERS.watched_by(items):
                    yield
