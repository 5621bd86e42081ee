"""The clock adds up what comes one after another, and what agents that share something do in turns."""

from typing import Any

import pytest

from flows.forecast_clock import clock_of, gpus_held, gpus_of_servers, sharing_of, unit_share
from flows.profile_config import ROLES, Profile, load_profile
from infra.forecasts import Sharing
from infra.work import WorkCost

URL, OTHER = "http://127.0.0.1:8000/v1", "http://127.0.0.1:9000/v1"
WALLS = dict(zip(ROLES, (10.0, 80.0, 30.0, 40.0, 20.0), strict=True))


def served(**sections: Any) -> Profile:
    """Analyzer, reviewer and refiner behind one server, the annotator and the reviewer's captioner behind another."""
    chat, seer = {"base_url": URL, "model": "a"}, {"base_url": OTHER, "model": "b"}
    whole = load_profile("painted").model_dump() | {
        "analyzer": {"engine": "chat", "chat": chat},
        "annotator": {"engine": "chat", "chat": seer},
        "reviewer": {"engine": "chat", "chat": chat, "captioner": seer},
        "refiner": {"engine": "chat", "chat": chat},
    }
    return Profile.model_validate(whole | sections)


def costs(begins_s: tuple[float, ...], elapsed_s: tuple[float, ...], load_s: float) -> dict[Any, WorkCost]:
    pairs = zip(ROLES, begins_s, elapsed_s, strict=True)
    return {
        role: WorkCost(elapsed_s=took, begin_s=begin, load_s=load_s, error_s_per_clip=None, stored_bytes=0, tokens=None)
        for role, begin, took in pairs
    }


ONE_AFTER_ANOTHER = costs((0.0, 12.0, 94.0, 126.0, 168.0), (12.0, 82.0, 32.0, 42.0, 22.0), 2.0)
SIDE_BY_SIDE = costs((0.0, 1.0, 2.0, 3.0, 4.0), (40.0, 88.0, 80.0, 95.0, 96.0), 2.0)


def test_agents_share_their_servers_and_on_one_machine_the_processors() -> None:
    alone = {found.name: found.agents for found in sharing_of(ONE_AFTER_ANOTHER, WALLS, served(), None)}
    assert alone == {URL: ("analyzer", "reviewer", "refiner"), OTHER: ("annotator", "reviewer")}
    painted = load_profile("painted")
    (found,) = sharing_of(ONE_AFTER_ANOTHER, WALLS, painted, None)
    assert (found.name, found.agents) == ("processors", ROLES)
    assert sharing_of(ONE_AFTER_ANOTHER, WALLS, painted, "head:6379") == ()
    whole = painted.model_dump()
    whole["segmenter"]["resources"] |= {"gpus": 0.5}
    (found,) = sharing_of(ONE_AFTER_ANOTHER, WALLS, Profile.model_validate(whole), None)
    assert found.agents == ("analyzer", "annotator", "reviewer", "refiner")


def test_turns_are_the_part_of_their_times_that_went_by_on_the_clock() -> None:
    painted = load_profile("painted")
    (serial,) = sharing_of(ONE_AFTER_ANOTHER, WALLS, painted, None)
    assert serial.turns == pytest.approx(1.0)
    (beside,) = sharing_of(SIDE_BY_SIDE, WALLS, painted, None)
    assert beside.turns == pytest.approx((100.0 - 5 * 2.0) / 180.0)
    idle = costs((0.0,) * 5, (9000.0,) * 5, 2.0)  # they waited for something else
    assert sharing_of(idle, WALLS, painted, None)[0].turns == 1.0
    quick = costs((0.0,) * 5, (1.0,) * 5, 0.0)  # the slowest bounds it
    assert sharing_of(quick, WALLS, painted, None)[0].turns == pytest.approx(80.0 / 180.0)


def test_those_who_take_turns_may_bound_what_the_slowest_alone_does_not() -> None:
    parts = {"loading_s": 7.0, "unit_share": 0.1, "cutting_s": 5.0}
    alone = clock_of(WALLS, (), **parts)
    assert (alone.bound_by, alone.bound_s) == (("segmenter",), 80.0)
    assert (alone.filling_s, alone.run_s, alone.wall_s) == pytest.approx((10.0, 97.0, 102.0))
    three = ("analyzer", "annotator", "reviewer")
    shared = Sharing(name=URL, agents=three, turns=1.0)
    assert clock_of(WALLS, (shared,), **parts).bound_by == ("segmenter",)
    four = Sharing(name=URL, agents=(*three, "refiner"), turns=0.9)
    found = clock_of(WALLS, (four,), **parts)
    assert (found.bound_by, found.bound_s, found.filling_s) == (four.agents, pytest.approx(90.0), 8.0)
    some = clock_of({"annotator": 3.0, "reviewer": 4.0}, (four,), loading_s=0.0, unit_share=1.0, cutting_s=None)
    assert (some.bound_by, some.wall_s) == (("annotator", "reviewer"), pytest.approx(6.3))


def test_agents_behind_one_server_are_added_and_the_clock_is_theirs() -> None:
    """Side by side the segmenter's 45 s would bound it."""
    walls = WALLS | {"segmenter": 45.0}
    sharing = sharing_of(ONE_AFTER_ANOTHER, walls, served(), None)
    found = clock_of(walls, sharing, loading_s=0.0, unit_share=0.0, cutting_s=None)
    assert (found.bound_by, found.bound_s) == (("analyzer", "reviewer", "refiner"), pytest.approx(70.0))


def test_units_and_gpus_are_those_of_the_profile() -> None:
    painted = load_profile("painted")
    assert (unit_share(painted, 160), unit_share(painted, 8), unit_share(painted, 320_000)) == (0.1, 1.0, 1 / 200)
    whole = painted.model_dump()
    whole["segmenter"]["resources"] |= {"gpus": 0.5}
    whole["vllm"] = [{"name": "words", "model": "small", "replicas": 3, "gpus": 2}]
    profile = Profile.model_validate(whole)
    assert [gpus_held(role, profile, 8) for role in ROLES] == [0.0, 4.0, 0.0, 0.0, 0.0]
    assert gpus_held("refiner", served(), 1) == 0.0
    assert (gpus_of_servers(profile), gpus_of_servers(painted)) == (6, 0)
