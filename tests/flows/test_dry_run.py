"""A dry run says what the build then does, why, and about how long it takes, and leaves no trace."""

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.dry_run import AgentPlan, Cause, DryRun, dry_run
from flows.plan import plan_build
from flows.profile_config import ROLES, Profile
from flows.progress import duration
from flows.quarantine import Choice, retry
from infra.builds import Manifest, chosen_manifest

pytestmark = pytest.mark.weights


def foresee(made: Any, profile: Profile | None = None, limit: int | None = None) -> DryRun:
    return dry_run(str(made.source), None, made.lake, profile or made.profile(), limit)


def causes(found: DryRun) -> dict[str, dict[str, int]]:
    return {cause.why: dict(cause.clips) for cause in found.causes}


def done(made: Any) -> dict[str, int]:
    """How many clips each agent was handed in the last build."""
    return {role: len(set(ids)) for role, ids in made.seen.items()}


@pytest.fixture(scope="module")
def built(small_builds: Any) -> Any:
    """Three clips, and a row without a caption, built."""
    made = small_builds
    made.rows.append({"id": "silent", "video": "clips/silent.mp4", "caption": ""})
    made.write(made.rows)
    made.build()
    return made


@pytest.fixture
def restored(built: Any) -> Any:
    """`built` with its source and latest build as they were."""
    built.write(built.rows)
    built.build()
    return built


def test_a_dry_run_loads_neither_prefect_nor_ray_and_writes_nothing(built: Any, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom flows.cli import app\n"
        f"sys.argv = ['videorefer', 'build', '--source', {str(built.source)!r}, '--lake', {str(tmp_path / 'lake')!r}, "
        "'--profile', 'painted', '--dry-run', '--json']\n"
        "try:\n    app()\nfinally:\n    print(sorted({'prefect', 'ray'} & set(sys.modules)), file=sys.stderr)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = json.loads(run.stdout)
    assert (told["rows"], told["uncut"], told["clips"], told["left_uncut_s"]) == (4, 4, 0, None)
    assert told["headline"] == "4 of 4 rows are not cut into clips yet, so their work is not known"
    assert run.stderr.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_where_all_is_done_there_is_nothing_to_do(restored: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(restored.lake.root).rglob("*")}
    found = foresee(restored)
    assert (found.causes, found.uncut, found.looked_again, found.clips) == ((), 0, 1, 3)
    assert found.headline() == "nothing to do: all 3 clips are in the lake"
    assert {path: path.stat().st_mtime_ns for path in Path(restored.lake.root).rglob("*")} == before


def test_a_changed_agent_is_named_with_those_after_it_and_the_build_does_just_that(restored: Any) -> None:
    for role, settings, said in (
        (
            "refiner",
            {"basic_per_object": 1},
            "refiner config changed: 3 of 3 clips' refiner, nothing else; less than a minute of work",
        ),
        (
            "annotator",
            {"long_side_px": 300},
            "3 of 3 clips' annotator, reviewer and refiner, nothing else; less than a minute of work",
        ),
    ):
        profile = restored.profile(**{role: settings})
        found = foresee(restored, profile)
        assert causes(found).keys() == {f"{role} config changed"}
        assert said in found.headline()
        restored.build(profile)
        assert causes(found)[f"{role} config changed"] == done(restored)
        assert foresee(restored, profile).causes == ()
        restored.build()


def test_the_estimate_is_the_slowest_agents_measured_work_over_its_workers(restored: Any) -> None:
    profile = restored.profile(annotator={"long_side_px": 301})
    found = foresee(restored, profile)
    work = {entry.agent: entry for entry in chosen_manifest(restored.lake, None).work}
    assert work.keys() == {"cutting", *ROLES}
    expected = {role: work[role].busy_s / work[role].clips * 3 for role in ("annotator", "reviewer", "refiner")}
    assert {a.agent: a.busy_s for a in found.agents if a.clips} == pytest.approx(expected)
    assert found.left_s == pytest.approx(max(expected.values()))
    wide = profile.model_dump()
    wide["annotator"]["resources"]["workers"] = wide["reviewer"]["resources"]["workers"] = 2
    twice = foresee(restored, Profile.model_validate(wide))
    assert twice.left_s == pytest.approx(max(expected["annotator"] / 2, expected["reviewer"] / 2, expected["refiner"]))


def test_rows_that_are_not_cut_yet_are_told_apart_from_those_that_gave_none_before(restored: Any) -> None:
    newcomer = restored.rows[0] | {"id": "newcomer"}
    restored.write([*restored.rows, newcomer])
    found = foresee(restored)
    assert (found.rows, found.uncut, found.looked_again, found.clips) == (5, 1, 1, 3)
    assert re.fullmatch(
        r"1 of 5 rows are not cut into clips yet; less than a minute of work if each gives one clip",
        found.headline(),
    )
    assert foresee(restored, limit=3).headline() == "nothing to do: all 3 clips are in the lake"


def test_rows_that_are_cut_are_told_as_new_or_changed(restored: Any) -> None:
    one, *rest = restored.rows
    restored.write([one | {"caption": f"Look: {one['caption']}"}, *rest, one | {"id": "second newcomer"}])
    plan_build(restored.source, None, restored.lake, restored.profile(), None, lambda line: None)
    found = foresee(restored)
    assert causes(found) == {"changed rows": dict.fromkeys(ROLES, 1), "new rows": dict.fromkeys(ROLES, 1)}
    assert found.headline().startswith(
        "changed rows: 1 of 4 clips' five agents; new rows: 1 of 4 clips' five agents; less than a minute of work"
    )
    fewer = foresee(restored, restored.profile(refiner={"max_pairs": 1}))
    assert causes(fewer) == causes(found) | {"refiner config changed": {"refiner": 2}}
    restored.build()
    assert done(restored) == dict.fromkeys(ROLES, 2)


def test_a_failure_counts_as_done_until_it_is_taken_out(restored: Any) -> None:
    profile = restored.profile(annotator={"long_side_px": 302})
    clip = restored.clip_of(0)
    restored.build(profile, fails={"annotator": [clip.clip_id]})
    found = foresee(restored, profile)
    assert (found.failed, found.causes) == (1, ())
    retry(restored.lake, None, Choice())
    again = foresee(restored, profile)
    assert again.failed == 0
    assert causes(again) == {"failures taken out of quarantine": dict.fromkeys(ROLES[2:], 1)}
    restored.build(profile)
    assert done(restored) == dict.fromkeys(ROLES[2:], 1)


def test_without_measured_work_there_is_no_estimate(restored: Any) -> None:
    latest = chosen_manifest(restored.lake, None)
    name = f"builds/{latest.build_id}/manifest.json"
    whole = restored.lake.get(name)
    old = {key: value for key, value in json.loads(whole).items() if key not in ("work", "command")}
    restored.lake.put(name, json.dumps(old).encode())
    found = foresee(restored, restored.profile(refiner={"reasoning_per_object": 0}))
    restored.lake.put(name, whole)
    assert found.left_s is None
    assert found.headline() == "refiner config changed: 3 of 3 clips' refiner, nothing else"


def test_work_that_a_build_did_not_do_is_carried_over(restored: Any) -> None:
    work = {entry.agent: entry for entry in chosen_manifest(restored.lake, None).work}
    restored.build(restored.profile(refiner={"future_per_object": 0}))
    after: Manifest = chosen_manifest(restored.lake, None)
    now = {entry.agent: entry for entry in after.work}
    assert {role: now[role] for role in ROLES[:4]} == {role: work[role] for role in ROLES[:4]}
    assert (now["refiner"].clips, now["refiner"] != work["refiner"]) == (3, True)


def test_on_the_command_line_the_plan_is_a_table_and_one_object(restored: Any, tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    shipped = (files("flows") / "profiles" / "painted.toml").read_text()
    profile.write_text(shipped + "config = { basic_per_object = 1, reasoning_per_object = 0 }\n")
    args = ["build", "--source", str(restored.source), "--lake", restored.lake.address, "--profile", str(profile)]
    said = CliRunner().invoke(app, [*args, "--dry-run"], env={"COLUMNS": "200"}).stdout
    assert said.startswith("refiner config changed: 3 of 3 clips' refiner, nothing else; less than a minute of work")
    assert [line.split()[:2] for line in said.splitlines() if line.split()[:1] == ["refiner"]][-1] == ["refiner", "3"]
    assert "1 rows gave no clip in the latest build and are looked at again" in said
    told = json.loads(CliRunner().invoke(app, [*args, "--dry-run", "--json"]).stdout)
    assert told["headline"] == said.splitlines()[0]


def a_plan(role: Any, clips: int) -> AgentPlan:
    return AgentPlan(agent=role, clips=clips, workers=1, s_per_clip=0.9, busy_s=0.9 * clips)


def test_the_headline_reads_as_a_sentence() -> None:
    found = DryRun(
        rows=9000, uncut=0, looked_again=0, bench_videos=0, near_duplicates=0, clips=9310, failed=0, left_s=371.0,
        left_uncut_s=371.0, causes=(Cause(why="refiner prompt changed", clips={"refiner": 412}),),
        agents=(a_plan("refiner", 412),),
    )  # fmt: skip
    assert found.headline() == "refiner prompt changed: 412 of 9,310 clips' refiner, nothing else; about 6 min"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (48.4, "48 s"), (119.0, "119 s"), (121.0, "2 min"), (371.0, "6 min"), (7199.0, "2 h 0 min"),
     (7805.0, "2 h 10 min"), (200_000.0, "55 h 33 min")],
)  # fmt: skip
def test_a_time_to_wait_is_as_exact_as_one_cares(seconds: float, said: str) -> None:
    assert duration(seconds) == said
