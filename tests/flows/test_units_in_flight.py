"""As many units overlap as a profile may ask for, through Prefect's own task runner: what waits takes no place."""

import threading
from pathlib import Path
from typing import Any, cast

import pytest
from prefect import flow

from flows import build as build_module
from flows.build import build
from flows.chain import Chain
from flows.plan import Plan
from flows.pools import Pools
from flows.profile_config import MAX_UNITS_IN_FLIGHT, ROLES, Role
from flows.progress import BuildProgress
from flows.step import BuildRun, StepResult
from infra.lake import Lake

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.timeout(120)]
HELD_S = 30.0


def test_while_the_second_agent_is_held_the_first_takes_every_unit_in_flight(
    server: None, by_hand: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, all_begun, in_time = set[int](), threading.Event(), list[bool]()

    def held(role: Role, unit: int, clips: object, run: object, log: object) -> StepResult:
        if role == "analyzer":
            begun.add(unit)
            if len(begun) == MAX_UNITS_IN_FLIGHT:
                all_begun.set()
        elif role == "segmenter":
            in_time.append(all_begun.wait(HELD_S))
            all_begun.set()  # one wait for nothing is enough
        return StepResult(cached=0, failed_before=0, done=0, failed=0, skipped=0, busy_s=0.0)

    monkeypatch.setattr(build_module, "run_step", held)
    run = BuildRun(
        chain=Chain(Lake(tmp_path / "lake"), by_hand.labels(), "tracks"),
        pools=cast("Pools", None),
        progress=BuildProgress(0, dict.fromkeys(ROLES, 1), ()),
    )
    plan = Plan(videos_root=tmp_path, num_rows=0, clips=(), rejected=(), units=((),) * (MAX_UNITS_IN_FLIGHT + 1))

    @flow(task_runner=build.task_runner)
    def units() -> None:
        build_module._run_units(plan, run, MAX_UNITS_IN_FLIGHT, [])

    units()
    assert in_time == [True] * len(plan.units)
    assert begun == set(range(len(plan.units)))
