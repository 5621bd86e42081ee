"""The command line: `videorefer`. Every command says what it does, what it wrote and where to look."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli_ask import ObjectsInOrder, ask
from flows.cli_bench import bench_app
from flows.cli_common import (
    BAD_USAGE,
    FAILED,
    JsonOption,
    LakeOption,
    LimitOption,
    ProfileOption,
    RayOption,
    RootOption,
    fail,
    one_line_errors,
    print_json,
    say,
)
from flows.cli_deploy import deploy
from flows.cli_pipeline import pipeline
from flows.cli_plan import plan
from flows.cli_profiles import profiles
from flows.cli_quarantine import quarantine_app
from flows.cli_train import train
from flows.cli_up import down, status, up
from flows.demo_source import MANIFEST, write_demo_source
from flows.doctor import examine, fetch_weights
from flows.dry_run import dry_run, print_dry_run
from flows.finding import print_findings
from flows.pipeline_record import MODELS_FOLDER
from flows.profile_config import load_profile
from flows.run_build import command_of, print_build, run_build, submit_build
from flows.run_pipeline import asked_of, print_pipeline, run_pipeline
from flows.run_train import ask_sample
from infra.lake import Lake
from infra.synthetic import put_in_split, write_clips

DEMO_SYNTHETIC_CLIPS, DEMO_HELD_OUT = 10, 8
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

app.add_typer(quarantine_app, name="quarantine")
app.add_typer(bench_app, name="bench")
app.command()(train)
app.command()(pipeline)
app.command()(deploy)
app.command()(plan)
app.command()(profiles)
app.command(cls=ObjectsInOrder)(ask)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where sources, lake and report go.")] = Path("demo"),
    as_json: JsonOption = False,
) -> None:
    """The whole graph on sample clips, eight real and ten synthetic: build, smoke training, bench and gate.

    So few items decide nothing: the gate says `undecided`.
    """
    with one_line_errors():
        fetch_weights("embedded", say=say(as_json))
        manifest = out / "source" / MANIFEST
        if not manifest.exists():
            folder = out / "source" / "synthetic"
            synthetic = write_clips(folder, DEMO_SYNTHETIC_CLIPS, DEMO_SEED)
            for number in range(DEMO_SYNTHETIC_CLIPS):
                video = out / "source" / str(synthetic[number]["video"])
                put_in_split(video, "held_out" if number < DEMO_HELD_OUT else "train")
            write_demo_source(out / "source", synthetic)
        build = command_of(manifest, None, "embedded", None, None)
        result = run_pipeline(asked_of(build, str(out / "lake"), out / "pipeline", "smoke", None), as_json)
        asked = ask_sample(result.train, Path(result.folder) / MODELS_FOLDER / result.gate.model)
        if as_json:
            print_json(result.model_dump(mode="json") | {"asked": asked.model_dump(mode="json")})
        else:
            print_pipeline(result)
            typer.echo(asked.describe())


@app.command()
def build(
    source: Annotated[
        Path,
        typer.Option(
            "--source",
            help="A folder of videos, GIFs or folders of images with captions beside them (`a.mp4` with `a.txt` or "
            "`a.json`), or a CSV, JSONL or Parquet manifest with `video, caption` and optional `id, start_s, end_s, "
            "license, fps` (`fps` is for folders of images).",
        ),
    ],
    lake: LakeOption,
    root: RootOption = None,
    profile: ProfileOption = "embedded",
    limit: LimitOption = None,
    ray: RayOption = None,
    only_say: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, why, and about how long it takes; do nothing.")
    ] = False,
    is_submitted: Annotated[
        bool, typer.Option("--submit", help="Have the worker of `videorefer up` build, after the runs that wait.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a dataset. The same command again finishes what was interrupted, and does nothing that is done.

    A clip that an agent could not finish is quarantined and left alone until `videorefer quarantine retry`.
    """
    with one_line_errors():
        if only_say and is_submitted:
            fail("--dry-run does nothing and --submit has it done: give one of them", BAD_USAGE)
        if is_submitted:
            submit_build(source, root, lake, profile, limit, ray, as_json)
            return
        if only_say:
            found = dry_run(str(source), str(root) if root else None, Lake(lake), load_profile(profile), limit)
            if as_json:
                print_json(found.model_dump(mode="json") | {"headline": found.headline()})
            else:
                print_dry_run(found, Console())
            return
        result = run_build(source, root, lake, profile, limit, ray, as_json)
        if as_json:
            print_json(result.model_dump(mode="json"))
        else:
            print_build(result)


app.command()(status)


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

    with one_line_errors():
        rows = find_rows(Lake(lake), build_id, what, num)
        if as_json:
            print_json(rows.model_dump(mode="json"))
            return
        print_rows(rows, Console())
        if browser:
            webbrowser.open(rows.report_uri)


@app.command()
def diff(
    lake: LakeOption,
    old: Annotated[str | None, typer.Argument(help="A build; the one made before the other if not given.")] = None,
    new: Annotated[str | None, typer.Argument(help="Another build; the latest if not given.")] = None,
    num: Annotated[int, typer.Option("-n", min=0, help="At most so many examples, with the old and new text.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Compare two builds: samples added, changed and dropped, and which change of source or agents did it.

    A sample is followed by its place (row, kind, nouns) and text, as ids change with what they are made of. Texts are
    compared, masks are not.
    """
    from flows.diff import compare, print_diff, two_builds

    with one_line_errors():
        place = Lake(lake)
        found = compare(place, *two_builds(place, old, new), num)
        if as_json:
            print_json(found.model_dump(mode="json"))
        else:
            print_diff(found, Console())


@app.command()
def doctor(
    profile: ProfileOption = "embedded",
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch the weights and sample clips that are missing.")
    ] = False,
    trial: Annotated[
        bool,
        typer.Option("--trial", help="Take a synthetic clip through each engine, loaded here, and its vLLM servers."),
    ] = False,
    lake: Annotated[str | None, typer.Option("--lake", help="Also write to this lake.")] = None,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """What is missing for a profile, what it costs, and what to do.

    Weights, versions, GPUs, disk, the servers and ports that runs use, and with `--trial` each engine at work.
    """
    with one_line_errors():
        if fetch:
            fetch_weights(profile, say=say(as_json))
        resolved = load_profile(profile)
        findings = examine(resolved, lake, ray)
        if not as_json:
            print_findings(findings)
        if trial:
            from flows.doctor_trial import try_engines  # brings Ray with it

            for finding in try_engines(resolved, profile, say(as_json), ray):
                findings.append(finding)
                if not as_json:
                    print_findings([finding])
        if as_json:
            print_json({"ok": all(finding.ok for finding in findings), "findings": [f.model_dump() for f in findings]})
        if not all(finding.ok for finding in findings):
            raise typer.Exit(FAILED)


app.command()(up)
app.command()(down)


def main() -> None:
    """Entry point of the console script."""
    app()
