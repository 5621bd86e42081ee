"""`videorefer pipeline`: build, train, bench and gate in one run."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmark.gate import GateRule
from flows.cli_common import (
    BAD_USAGE,
    JsonOption,
    LakeOption,
    LimitOption,
    ProfileOption,
    RayOption,
    RootOption,
    fail,
    one_line_errors,
    print_json,
)
from flows.run_build import command_of
from flows.train_profile import shipped_train_profiles

RULE = GateRule()

TrainProfileOption = Annotated[
    str, typer.Option("--train-profile", help=f"One of {', '.join(shipped_train_profiles())}, or a TOML file.")
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", min=1, help="So many optimiser steps, in place of the profile's length.")
]
ModeOption = Annotated[
    Literal["single", "multi"], typer.Option("--mode", help="Masks shown: of the item's one frame, or of all.")
]
ScorerOption = Annotated[
    Literal["letter", "likelihood"], typer.Option("--scorer", help="How an option is chosen, as in `bench q`.")
]
MinItemsOption = Annotated[int, typer.Option("--min-items", min=1, help="On fewer items nothing is decided.")]
AlphaOption = Annotated[
    float, typer.Option("--alpha", help="McNemar's p below this is a win, where the new model is right more often.")
]
MarginOption = Annotated[
    float | None, typer.Option("--margin", help="So large a gain, a share of the items, is a win whatever p is.")
]


def pipeline(
    source: Annotated[Path, typer.Option("--source", help="Videos with captions, as `videorefer build` takes them.")],
    lake: LakeOption,
    out: Annotated[Path, typer.Option("--out", help="The folder for frozen items, models, reports and latest.json.")],
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
    as_json: JsonOption = False,
) -> None:
    """Build, train, bench, and let the new model be `latest` only if it beats the last one on the same items.

    The first must beat its untrained self. The items are drawn once, from held-out clips of the first build, and stay.
    A rejected model is kept. The same command again finishes what was interrupted, and does nothing that is done.
    """
    with one_line_errors():
        from flows.run_pipeline import asked_of, print_pipeline, run_pipeline

        if out.exists() and not out.is_dir():
            fail(f"--out {out} is a file; name a folder, which is made if it is not there", BAD_USAGE)
        build = command_of(source, root, profile, limit, ray)
        asked = asked_of(build, lake, out, train_profile, num_steps, **judged(mode, scorer, min_items, alpha, margin))
        result = run_pipeline(asked, as_json)
        if as_json:
            print_json(result.model_dump(mode="json"))
        else:
            print_pipeline(result)


def judged(mode: str, scorer: str, min_items: int, alpha: float, margin: float | None) -> dict[str, Any]:
    """The options about bench and gate as a pipeline is asked; raises pydantic's ValidationError for an odd rule."""
    rule = GateRule(min_items=min_items, alpha=alpha, margin=margin)
    return {"mode": mode, "scorer": "letters" if scorer == "letter" else scorer, "rule": rule}
