"""`videorefer train`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_common import BAD_USAGE, JsonOption, LakeOption, RayOption, fail, one_line_errors, print_json
from flows.run_train import print_training, run_train
from flows.train_profile import shipped_train_profiles
from flows.train_record import MODEL_FOLDER


def train(
    lake: LakeOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Where checkpoints, metrics and the model go; on a cluster, a folder all nodes see."
        ),
    ],
    build_id: Annotated[
        str | None, typer.Option("--build", help="A build; what --out was begun with, or the latest, if not given.")
    ] = None,
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Where the build's videos lie, if no longer where it found them.")
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", help=f"One of {', '.join(shipped_train_profiles())}, or a TOML file.")
    ] = "embedded",
    init: Annotated[
        Path | None,
        typer.Option("--init", help="A model folder to begin with: saved here, or an official VideoRefer checkpoint."),
    ] = None,
    ray: RayOption = None,
    num_steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=0,
            help="So many optimiser steps, in place of the profile's length; 0 writes the model as training begins "
            "with it, for comparison.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model on a build. The same command again goes on where it was stopped, and does nothing that is done."""
    with one_line_errors():
        if out.exists() and not out.is_dir():
            fail(f"--out {out} is a file; name a folder, which is made if it is not there", BAD_USAGE)
        record = run_train(lake, build_id, videos, out, profile, init, ray, num_steps, as_json)
        if as_json:
            print_json(record.model_dump(mode="json") | {"model": str(out.absolute() / MODEL_FOLDER)})
        else:
            print_training(record, out)
