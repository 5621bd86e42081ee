"""A forecast from a few clips is their rate times the clips, and the build that follows tells how far off it was."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.forecast import (
    ForecastUsageError,
    error_table,
    forecast_error,
    forecast_table,
    forecast_text,
    foresee,
    measured_build,
)
from flows.grid import Grid, size
from flows.profile_config import ROLES, Profile, load_profile
from flows.result import BuildResult
from flows.wiring import agent_labels
from infra.builds import BuildCommand, CountEntry, Manifest, ShardEntry, chosen_manifest, read_manifest
from infra.forecasts import Clock, ForecastError, find_forecast, put_forecast
from infra.lake import Lake, LakeError
from infra.synthetic import write_clips
from infra.token_count import TokenCount
from infra.work import AgentWork, WorkCost
from schemas.label import AgentLabel
from schemas.sample import SCHEMA_VERSION

CLUSTER = "head:6379"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BUSY_S = dict(zip(ROLES, (1.0, 20.0, 4.0, 8.0, 6.0), strict=True))


def label(role: str, config: str = "{}") -> AgentLabel:
    return AgentLabel(agent=role, engine=f"{role} engine", revision=1, config_json=config, weights=(), prompt_hash="")


def work(role: str, clips: int, busy_s: float, tokens: TokenCount | None = None, begin_s: float = 0.0) -> AgentWork:
    cost = WorkCost(
        elapsed_s=2 * busy_s, begin_s=begin_s, load_s=3.0, error_s_per_clip=0.05, stored_bytes=100 * clips,
        tokens=tokens,
    )  # fmt: skip
    return AgentWork(agent=role, engine=f"{role} engine", clips=clips, busy_s=busy_s, cost=cost)


def cutting(clips: int, busy_s: float) -> AgentWork:
    return AgentWork(agent="cutting", engine="", clips=clips, busy_s=busy_s)


ASKED = TokenCount(requests=20, cached=1, reasks=3, prompt_tokens=9000, completion_tokens=600)


def manifest(**changes: Any) -> Manifest:
    """A build of ten clips on a cluster, of which the refiner asked a chat server."""
    made = Manifest(
        build_id="b1", schema_version=SCHEMA_VERSION, created_at="2026-01-01T00:00:00+00:00", source="rows",
        videos_root="/", profile_name="tiny", profile_json="{}", labels=tuple(map(label, ROLES)),
        counts=(CountEntry(group="stages", name="source: clips", n=10),),
        work=(
            cutting(10, 0.5), *(work(role, 10, BUSY_S[role], ASKED if role == "refiner" else None) for role in ROLES)
        ),
        command=BuildCommand(source="rows", profile="tiny", ray=CLUSTER),
        shards=(ShardEntry(content="qa", path="a", rows=4, sha256="", bytes=700),
                ShardEntry(content="tracks", path="b", rows=4, sha256="", bytes=300)),
    )  # fmt: skip
    return made.model_copy(update=changes)


@pytest.fixture(scope="module")
def profile() -> Profile:
    """The segmenter has four workers of half a GPU each."""
    whole = load_profile("painted").model_dump()
    whole["segmenter"]["resources"] |= {"workers": 4, "gpus": 0.5}
    return Profile.model_validate(whole)


def test_a_forecast_is_the_rate_of_the_sample_times_the_clips(profile: Profile) -> None:
    found = foresee(manifest(), profile, 1000, {}, now=NOW)
    agents = {agent.agent: agent for agent in found.agents}
    assert {role: agent.busy_s for role, agent in agents.items()} == {role: 100 * BUSY_S[role] for role in ROLES}
    segmenter, refiner = agents["segmenter"], agents["refiner"]
    assert (segmenter.wall_s, segmenter.load_s, segmenter.error_s) == (500.0, 3.0, 50.0)
    assert [agent.gpu_h for role, agent in agents.items() if role != "segmenter"] == [0.0] * 4
    assert refiner.tokens == TokenCount(
        requests=2000, cached=100, reasks=300, prompt_tokens=900_000, completion_tokens=60_000
    )
    assert [agent.tokens for role, agent in agents.items() if role != "refiner"] == [None] * 4
    assert (found.build_bytes, found.stored_bytes) == (100_000, 100_000 + 5 * 100_000)
    assert found.frames_bytes == profile.decode_cache_mib * 2**20


def test_cutting_loading_the_first_unit_and_the_slowest_agent_say_when_it_is_done(profile: Profile) -> None:
    found = foresee(manifest(), profile, 1000, {}, CLUSTER, NOW)
    assert found.clock == Clock(
        cutting_s=50.0,
        loading_s=15.0,
        filling_s=0.016 * (100 + 500 + 400 + 600),
        bound_by=("reviewer",),
        bound_s=800.0,
    )
    assert found.clock.wall_s == pytest.approx(890.6)
    assert (found.done_at, found.measured_at) == ("2026-01-02T03:18:55+00:00", manifest().created_at)
    more = foresee(manifest(), profile, 1000, {"reviewer": 8, "annotator": 2}, CLUSTER, NOW)
    assert more.clock
    assert (more.clock.bound_by, more.clock.bound_s) == (("refiner",), 600.0)
    assert [agent.busy_s for agent in more.agents] == [agent.busy_s for agent in found.agents]


def test_gpu_hours_are_those_of_gpus_that_are_held(profile: Profile) -> None:
    section = {"name": "words", "model": "small", "replicas": 3, "gpus": 2}
    served = Profile.model_validate(profile.model_dump() | {"vllm": [section]})
    found = foresee(manifest(), served, 1000, {"segmenter": 8}, CLUSTER, NOW)
    assert found.clock
    run_h = (found.clock.wall_s - 50.0) / 3600  # while rows are cut nobody holds any
    assert [agent.gpu_h for agent in found.agents] == [0.0, pytest.approx(run_h * 8 * 0.5), 0.0, 0.0, 0.0]
    assert found.servers_gpu_h == pytest.approx(run_h * 6)


def test_answers_that_were_kept_tell_nothing_of_asking(profile: Profile, tmp_path: Path) -> None:
    kept = TokenCount(requests=4, cached=16)
    some = manifest(work=tuple(work(role, 10, 1.0, kept if role == "refiner" else None) for role in ROLES))
    with pytest.raises(ForecastUsageError, match=r"does not tell what refiner take: .* VIDEOREFER_CACHE"):
        foresee(some, profile, 99, {})
    lake = Lake(tmp_path)
    lake.put(f"builds/{some.build_id}/manifest.json", some.model_dump_json().encode())
    assert measured_build(lake, some.labels, 10) is None


def test_fewer_clips_than_an_earlier_build_held_can_be_foreseen(profile: Profile) -> None:
    assert [agent.busy_s for agent in foresee(manifest(), profile, 5, {}).agents] == [0.5 * s for s in BUSY_S.values()]


def test_the_table_has_a_column_for_what_there_is(profile: Profile) -> None:
    made = foresee(manifest(), profile, 1000, {}, CLUSTER, NOW)
    table = forecast_table(made)
    assert table.titles == (
        "agent", "clips", "busy", "spread", "workers", "by the clock", "GPU-hours", "tokens", "in the lake"
    )  # fmt: skip
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["segmenter"] == ("1,000", "33 min", "± 2 %", "4", "8 min", "0.47", "", "100.0 kB")
    assert rows["cutting"] == ("1,000", "", "", "", "50 s", "", "", "")
    assert rows["loading"] == ("", "", "", "", "15 s", "", "", "")
    assert rows["refiner"][6] == "900,000 + 60,000"
    assert rows["shards"] == ("1,000", "", "", "", "", "", "", "100.0 kB")
    bare = manifest(work=tuple(work(role, 10, 1.0) for role in ROLES))
    plain = forecast_table(foresee(bare, load_profile("painted"), 1000, {}, now=NOW))
    assert not {"tokens", "GPU-hours"} & set(plain.titles)
    said = forecast_text(made.model_copy(update={"doubts": ("too few", "too old")}))
    assert "of build b1, at 2026-01-01 00:00:" in said
    assert "about 15 min, bound by reviewer: begun now" in said
    assert said.endswith("\ndoubt: too few\ndoubt: too old")


def test_what_tells_too_little_is_refused(profile: Profile) -> None:
    done = {role: work(role, 10, 1.0) for role in ROLES}
    some = manifest(work=(done["analyzer"], done["segmenter"], done["reviewer"]))
    with pytest.raises(ForecastUsageError, match=r"build b1 does not tell what annotator, refiner take"):
        foresee(some, profile, 99, {})
    done["reviewer"] = done["reviewer"].model_copy(update={"cost": None})
    with pytest.raises(ForecastUsageError, match=r"does not tell what reviewer take"):
        foresee(manifest(work=tuple(done.values())), profile, 99, {})


def test_the_newest_build_of_these_very_agents_that_measured_enough_is_taken(tmp_path: Path) -> None:
    lake, labels = Lake(tmp_path), tuple(map(label, ROLES))
    changed = (*labels[:4], label("refiner", '{"a": 1}'))
    for day, changes in enumerate((
        {"build_id": "old"}, {"build_id": "enough"},
        {"build_id": "few", "work": tuple(work(role, 3 if role == "refiner" else 10, 1.0) for role in ROLES)},
        {"build_id": "other", "labels": changed},
    )):  # fmt: skip
        made = manifest(created_at=f"2026-01-0{day + 1}T00:00:00+00:00", **changes)
        lake.put(f"builds/{made.build_id}/manifest.json", made.model_dump_json().encode())

    def found(wanted: tuple[AgentLabel, ...], clips: int) -> str | None:
        build = measured_build(lake, wanted, clips)
        return build and build.build_id

    assert (found(labels, 10), found(labels, 3), found(changed, 10)) == ("enough", "few", "other")
    assert found(labels, 11) is None


def test_a_forecast_is_for_its_own_agents_and_a_larger_build_alone(tmp_path: Path, profile: Profile) -> None:
    lake, labels = Lake(tmp_path), tuple(map(label, ROLES))
    done = [cutting(20, 2.0), work("segmenter", 40, 100.0), work("refiner", 40, 12.0, ASKED, begin_s=190.0)]
    assert forecast_error(lake, labels, profile, 50, done, 1) is None
    what_if = {"refiner": 9}  # by the clock the build's own workers count
    put_forecast(lake, foresee(manifest(), profile, 1000, what_if, CLUSTER, NOW))
    others = (*labels[:4], label("refiner", '{"a": 1}'))
    assert find_forecast(lake, others) is None
    assert forecast_error(lake, others, profile, 50, done, 1) is None
    assert forecast_error(lake, labels, profile, 10, done, 1) is None
    assert forecast_error(lake, labels, profile, 50, [], 1) is None
    error = forecast_error(lake, labels, profile, 50, done, 4000)
    assert error is not None
    segmenter, refiner = error.agents
    assert (segmenter.clips, segmenter.predicted_s, segmenter.measured_s) == (40, 80.0, 100.0)
    assert (segmenter.predicted_bytes, segmenter.measured_bytes, segmenter.predicted_tokens) == (4000, 4000, None)
    assert (refiner.predicted_tokens, refiner.measured_tokens) == (4 * 9600, 9600)
    # cut, loaded, the segmenter's first unit, the refiner's one worker; the refiner is the last to end
    predicted_run_s, run_s = 2 * 3.0 + 16 / 40 * 20.0 + 24.0, 190.0 + 2 * 12.0
    assert (error.predicted_wall_s, error.measured_wall_s) == (1.0 + predicted_run_s, 2.0 + run_s)
    held = 4 * 0.5 / 3600
    assert (error.predicted_gpu_h, error.measured_gpu_h) == pytest.approx((predicted_run_s * held, run_s * held))
    assert (error.predicted_build_bytes, error.measured_build_bytes) == (5000, 4000)
    rows = {row[0]: row[1:] for row in error_table(error).rows}
    assert rows["segmenter"] == ("40", "80 s", "100 s", "-20 %", "", "", "", "4.0 kB", "4.0 kB", "+0 %")
    assert rows["refiner"][4:7] == ("38,400", "9,600", "+300 %")
    assert rows["GPU-hours"][1:4] == ("0.02", "0.12", "-82 %")
    assert rows["shards"][-3:] == ("5.0 kB", "4.0 kB", "+25 %")


def test_forecasts_and_builds_of_earlier_versions_are_read(tmp_path: Path, profile: Profile) -> None:
    """They lack what came later, and what is there still counts."""
    lake = Lake(tmp_path)
    whole = json.loads(foresee(manifest(), profile, 1000, {}, CLUSTER, NOW).model_dump_json())
    for name in ("measured_at", "sharing", "clock", "doubts"):
        del whole[name]
    for agent in whole["agents"]:
        del agent["load_s"]
    put_forecast(lake, foresee(manifest(), profile, 1000, {}, CLUSTER, NOW))
    (name,) = lake.names("forecasts")
    lake.put(f"forecasts/{name}", json.dumps(whole).encode())
    error = forecast_error(lake, manifest().labels, profile, 50, [cutting(20, 2.0), work("segmenter", 40, 100.0)], 1)
    assert error is not None
    assert (error.predicted_wall_s, error.measured_wall_s) == (20.0, 200.0)  # cutting was not forecast
    old = error.model_dump(exclude={"predicted_gpu_h", "measured_gpu_h"})
    assert "GPU-hours" not in {row[0] for row in error_table(ForecastError.model_validate(old)).rows}

    build = manifest().model_dump()
    build["work"] = [entry for entry in build["work"] if entry["agent"] != "cutting"]
    for entry in build["work"]:
        del entry["cost"]["begin_s"], entry["cost"]["load_s"]
    found = foresee(Manifest.model_validate(build), profile, 1000, {}, CLUSTER, NOW)
    assert found.clock
    assert (found.clock.cutting_s, found.clock.loading_s, found.clock.bound_s) == (None, 0.0, 800.0)
    assert {"cutting is left out" in line or "did not measure loading" in line for line in found.doubts} == {
        True,
        False,
    }


def test_a_torn_forecast_is_said_and_costs_no_build(tmp_path: Path, profile: Profile) -> None:
    lake, labels = Lake(tmp_path), tuple(map(label, ROLES))
    put_forecast(lake, foresee(manifest(), profile, 1000, {}, now=NOW))
    (name,) = lake.names("forecasts")
    lake.put(f"forecasts/{name}", b"{}")
    with pytest.raises(LakeError, match=r"is no forecast: .*; delete it"):
        find_forecast(lake, labels)
    assert forecast_error(lake, labels, profile, 50, [work("segmenter", 40, 1.0)], 1) is None


def test_a_grid_reads_alike_on_a_terminal_and_on_a_page() -> None:
    grid = Grid(titles=("agent", "clips"), rows=(("a", "1,000"), ("longer", "")))
    assert grid.text() == "agent   clips\na       1,000\nlonger"
    assert grid.markdown() == "| agent | clips |\n| --- | ---: |\n| a | 1,000 |\n| longer |  |"
    assert [size(n) for n in (0, 999, 1500, 2.5e6, 7e14)] == ["0 B", "999 B", "1.5 kB", "2.5 MB", "700.0 TB"]


def plan(source: Path, lake: Path, *more: str) -> Any:
    args = ["plan", "--source", str(source), "--lake", str(lake), "--profile", "painted", *more]
    return CliRunner().invoke(app, args, env={"COLUMNS": "300"})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--clips", "12"), "--clips 12 must be more than --sample 12"),
        (("--clips", "50", "--workers", "painter=2"), "--workers painter=2: give an agent (analyzer, segmenter"),
        (("--clips", "50", "--workers", "refiner=0"), "--workers refiner=0: give an agent"),
    ],
)
def test_what_cannot_be_planned_is_one_line(two_videos: Path, tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    result = plan(two_videos, tmp_path / "lake", *more)
    assert (result.exit_code, result.stderr.startswith(f"error: {said}")) == (2, True), result.stderr
    assert result.stderr.count("\n") == 1


def test_a_source_without_rows_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    result = plan(tmp_path / "rows.jsonl", tmp_path / "lake", "--clips", "50")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr


@pytest.mark.slow
@pytest.mark.weights
def test_the_build_that_follows_records_the_error_of_the_forecast(small_builds: Any, tmp_path: Path) -> None:
    """Six clips, then twenty-four, by the real agents on painted clips."""
    made = type(small_builds)(tmp_path, write_clips(tmp_path / "clips", 24, 11))
    profile = made.profile()
    made.write(made.rows[:6])
    made.build()
    sample = measured_build(made.lake, agent_labels(profile).values(), 6)
    assert sample is not None
    put_forecast(made.lake, foresee(sample, profile, 24, {}))
    assert sample.forecast is None  # nothing was forecast when it was built
    other = made.build(made.profile(refiner={"basic_per_object": 1}))
    assert read_manifest(made.lake, other.build_id).forecast is None

    made.write(made.rows)
    result: BuildResult = made.build()
    after: Manifest = chosen_manifest(made.lake, None)
    assert after.forecast is not None
    before = {entry.agent: entry for entry in sample.work}
    now = {entry.agent: entry for entry in after.work}
    assert [agent.agent for agent in after.forecast.agents] == list(ROLES)
    for agent in after.forecast.agents:
        rate = before[agent.agent].busy_s / before[agent.agent].clips
        assert agent.clips == now[agent.agent].clips == 18
        assert agent.predicted_s == pytest.approx(18 * rate)
        assert agent.measured_s == now[agent.agent].busy_s
        assert agent.measured_bytes == now[agent.agent].cost.stored_bytes
        stored = sum(path.stat().st_size for path in Path(made.lake.root, "agents", agent.agent).rglob("part-*"))
        assert agent.measured_bytes + before[agent.agent].cost.stored_bytes <= stored
    assert after.forecast.measured_build_bytes == sum(shard.bytes for shard in after.shards)
    assert now["cutting"].clips == 18
    costs = [entry.cost for entry in after.work if entry.cost]
    end_s = max(cost.begin_s + cost.elapsed_s for cost in costs)
    assert after.forecast.measured_wall_s == pytest.approx(now["cutting"].busy_s + end_s)
    assert [cost.begin_s for cost in costs] == sorted(cost.begin_s for cost in costs)
    assert all(0 < cost.load_s < cost.elapsed_s for cost in costs)

    table = error_table(after.forecast)
    assert table.text() in result.summary()
    assert table.markdown() in result.markdown()
    page = made.lake.get(f"builds/{result.build_id}/report.html").decode()
    assert "What was forecast" in page
    assert all(f">{cell}<" in page for row in table.rows for cell in row if cell)
    assert "What it took" in made.lake.get(f"builds/{other.build_id}/report.html").decode()
    assert "What was forecast" not in made.lake.get(f"builds/{other.build_id}/report.html").decode()
    card = made.lake.get(f"builds/{result.build_id}/README.md").decode()
    assert "What each agent took" not in card
    assert "What was forecast" not in card


@pytest.mark.slow
@pytest.mark.weights
def test_on_the_command_line_the_sample_is_built_once_and_the_forecast_kept(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, lake = tmp_path / "rows.jsonl", tmp_path / "lake"
    source.write_text("\n".join(map(json.dumps, write_clips(tmp_path / "clips", 3, 7))))
    first = plan(source, lake, "--clips", "900", "--sample", "3", "--workers", "reviewer=3", "--json")
    assert first.exit_code == 0, first.stderr
    told = json.loads(first.stdout)
    kept = find_forecast(Lake(lake), agent_labels(load_profile("painted")).values())
    assert kept is not None
    assert {key: value for key, value in told.items() if key != "wall_s"} == kept.model_dump(mode="json")
    assert kept.clock
    assert (told["clips"], told["sample_clips"], told["wall_s"]) == (900, 3, kept.clock.wall_s)
    assert kept.clock.cutting_s
    assert kept.clock.loading_s > 0
    assert [line.partition(",")[0] for line in kept.doubts] == ["the sample is one unit"]
    again = plan(source, lake, "--clips", "900", "--sample", "3")
    assert "building" not in again.stderr
    assert again.stdout.startswith("900 clips with profile painted, measured on 3 clips of build ")
