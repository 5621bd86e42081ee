"""`videorefer plan`: what a build of many clips will take, from a few that are built and measured."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_common import (
    BAD_USAGE,
    JsonOption,
    LakeOption,
    ProfileOption,
    RayOption,
    RootOption,
    fail,
    one_line_errors,
    print_json,
    say,
)
from flows.forecast import ForecastUsageError, forecast_text, foresee, measured_build
from flows.preflight import preflight
from flows.profile_config import ROLES, Profile, Role
from flows.run_build import run_build
from flows.wiring import agent_labels
from infra.builds import latest_build, read_manifest, set_latest
from infra.forecasts import put_forecast
from infra.lake import Lake


def plan(
    source: Annotated[Path, typer.Option("--source", help="As for `build`.")],
    lake: LakeOption,
    clips: Annotated[int, typer.Option("--clips", min=1, help="How many clips are to be built.")],
    root: RootOption = None,
    profile: ProfileOption = "embedded",
    sample: Annotated[int, typer.Option("--sample", min=2, help="How many rows are built to measure.")] = 12,
    workers: Annotated[
        list[str] | None,
        typer.Option("--workers", help="As `segmenter=8`: what if an agent had so many; may be given for several."),
    ] = None,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """How long a build of many clips takes, its GPU-hours, tokens and storage, for each agent.

    The first rows of the source are built into the lake and measured, unless a build of these very agents is there that
    tells as much; what it cannot tell is said. A build by the same agents that follows tells how far off the forecast
    was.
    """
    with one_line_errors():
        if clips <= sample:
            fail(f"--clips {clips} must be more than --sample {sample}: a few clips cannot tell of fewer", BAD_USAGE)
        resolved = preflight(str(source), str(root) if root else None, lake, profile)
        asked = _workers(workers or (), resolved)
        place = Lake(lake)
        manifest = measured_build(place, agent_labels(resolved).values(), sample)
        if manifest is None:
            say(as_json)(f"building the first {sample} rows to measure them")
            before = latest_build(place)
            manifest = read_manifest(place, run_build(source, root, lake, profile, sample, ray, as_json).build_id)
            if before:  # a sample is not what users of the lake want next
                set_latest(place, before)
        try:
            forecast = foresee(manifest, resolved, clips, asked, ray)
        except ForecastUsageError as error:
            fail(str(error), BAD_USAGE)
        put_forecast(place, forecast)
        if as_json:
            print_json(forecast.model_dump(mode="json") | {"wall_s": forecast.clock and forecast.clock.wall_s})
        else:
            typer.echo(forecast_text(forecast))


def _workers(given: list[str] | tuple[()], profile: Profile) -> dict[Role, int]:
    asked: dict[Role, int] = {}
    for item in given:
        name, _, number = item.partition("=")
        role = next((role for role in ROLES if role == name), None)
        if role is None or not number.isdecimal() or int(number) < 1:
            fail(f"--workers {item}: give an agent ({', '.join(ROLES)}) and a number, as segmenter=8", BAD_USAGE)
        if profile.chat(role):
            fail(f"--workers {item}: the {role} is behind a chat server; its speed is the server's", BAD_USAGE)
        asked[role] = int(number)
    return asked
