"""What a sample cannot tell is said, and nothing where it can tell all."""

from typing import Any

import pytest

from flows.forecast_doubts import doubts
from flows.profile_config import ROLES, Profile, load_profile
from infra.builds import BuildCommand, Manifest
from infra.work import AgentWork, WorkCost
from schemas.sample import SCHEMA_VERSION

CHAT = {"base_url": "http://127.0.0.1:8000/v1", "model": "a", "concurrency": 512}


def profile_with(**sections: Any) -> Profile:
    return Profile.model_validate(load_profile("painted").model_dump() | sections)


def agents(clips: int, load_s: float | None = 1.0) -> dict[str, AgentWork]:
    cost = WorkCost(elapsed_s=9.0, begin_s=0.0, load_s=load_s, error_s_per_clip=None, stored_bytes=0, tokens=None)
    return {role: AgentWork(agent=role, engine="", clips=clips, busy_s=1.0, cost=cost) for role in ROLES}


def sample_of(profile: Profile, measured: dict[str, AgentWork], **changes: Any) -> Manifest:
    cut = AgentWork(agent="cutting", engine="", clips=9, busy_s=1.0)
    made = Manifest(
        build_id="b1", schema_version=SCHEMA_VERSION, created_at="2026-01-01T00:00:00+00:00", source="rows",
        videos_root="/", profile_name="tiny", profile_json=profile.model_dump_json(), labels=(), counts=(),
        work=(cut, *measured.values()), command=BuildCommand(source="rows", profile="tiny"),
    )  # fmt: skip
    return made.model_copy(update=changes)


def test_a_sample_that_tells_all_leaves_no_doubt() -> None:
    profile, measured = profile_with(), agents(200)
    assert list(doubts(sample_of(profile, measured), measured, profile, 200, None)) == []


@pytest.mark.parametrize(("clips", "is_doubted"), [(200, True), (1023, True), (1024, False)])
def test_a_window_that_the_sample_never_filled_is_said(clips: int, is_doubted: bool) -> None:
    profile, measured = profile_with(refiner={"engine": "chat", "chat": CHAT}), agents(clips)
    said = list(doubts(sample_of(profile, measured), measured, profile, clips, None))
    expected = (
        f"refiner: {clips} clips never filled the window of 512, and a full one makes replies slower: --sample 1024 "
        "would tell"
    )
    assert said == [expected] * is_doubted


def test_one_unit_cuts_of_an_earlier_run_and_loads_that_were_not_kept_are_said() -> None:
    profile, measured = profile_with(), agents(16, load_s=None)
    said = list(doubts(sample_of(profile, measured, work=tuple(measured.values())), measured, profile, 16, None))
    assert [line.split(",")[0] for line in said] == [
        "the sample is one unit",
        "the lake held the cut rows of the sample",
        "the sample is of a version that did not measure loading",
    ]
    assert "--sample 48 would tell" in said[0]


def test_another_place_and_other_resources_than_the_samples_are_said() -> None:
    small = profile_with(refiner={"engine": "chat", "chat": CHAT | {"concurrency": 4}})
    whole = profile_with(refiner={"engine": "chat", "chat": CHAT}).model_dump()
    whole["segmenter"]["resources"] |= {"workers": 64, "gpus": 0.5, "timeout_s": 7.0}
    whole["description"] = "Changes nothing."
    measured = agents(2000)
    said = list(doubts(sample_of(small, measured), measured, Profile.model_validate(whole), 2000, "head:6379"))
    assert said == [
        "the sample was built on a Ray of its own machine, and this is for the Ray at head:6379",
        "the sample was built with other resources: segmenter.resources.workers was 1, not 64, "
        "segmenter.resources.gpus was 0.0, not 0.5, refiner.chat.concurrency was 4, not 512",
    ]
    unknown = sample_of(small, measured, profile_json="{}")
    assert list(doubts(unknown, measured, Profile.model_validate(whole), 2000, None)) == []
