"""The whole flow through a real Prefect server and a real local Ray, on three tiny clips with painted truth.

One story of five runs, told once; each test looks at one side of it.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
import pytest
import ray
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, LogFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL
from prometheus_client.parser import text_string_to_metric_families

from flows.build import build
from flows.plan import Plan, plan_build
from flows.profile_config import ROLES, load_profile
from flows.quarantine import Choice, retry
from flows.result import BuildResult
from infra.builds import KINDS, list_builds, read_manifest, read_quarantine, read_samples, verify_build
from infra.lake import Lake
from infra.ray_cluster import RayStartError, start_ray
from infra.synthetic import write_clips
from infra.truth import truth_path

pytestmark = [pytest.mark.weights, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SEED = 7
PROFILE = """
name = "tiny"
description = "For a test."
clips_per_unit = 2
[analyzer]
engine = "spacy-chunks+minilm"
[segmenter]
engine = "painted-truth"
[annotator]
engine = "measured-facts"
[reviewer]
engine = "second-look+efficientnet-lite3+minilm"
[refiner]
engine = "template"
"""


@dataclass(frozen=True)
class Run:
    """What one run ended with, what the lake held after it, and the state of every agent's task run."""

    id: UUID
    result: BuildResult
    keys: dict[str, list[str]]
    states: dict[str, str]


@dataclass(frozen=True)
class Story:
    """The runs: from nothing, again, with one caption changed, with a refiner changed, and back to the first."""

    lake: Path
    plan: Plan
    first: Run
    again: Run
    recaptioned: Run
    refined: Run
    back: Run


def keys_of(lake: Path) -> dict[str, list[str]]:
    """Every key of every agent, as often as it was written."""
    return {
        role: sorted(
            key
            for part in lake.glob(f"agents/{role}/*/part-*.parquet")
            for key in pq.read_table(part, columns=["key"])["key"].to_pylist()
        )
        for role in ROLES
    }


def states_of(flow_run_id: Any, within_s: float = 20.0) -> dict[str, str]:
    """Name and state of every task run of a flow run, once the server has taken in that all have ended."""
    deadline_s = time.monotonic() + within_s
    states: dict[str, str] = {}
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline_s:
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [flow_run_id]}))
            states = {run.name: run.state_name or "" for run in runs}
            if len(runs) >= 2 + len(ROLES) and all(run.state and run.state.is_final() for run in runs):
                break
            time.sleep(0.3)
    return states


def of_run(run_id: UUID) -> FlowRunFilter:
    return FlowRunFilter.model_validate({"id": {"any_": [run_id]}})


def artifacts_of(run: Run) -> dict[str, str]:
    """What stands on the run's page, by key: the data of links, and the text below bars and tables."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(flow_run_filter=of_run(run.id))
    return {artifact.key or "": f"{artifact.data} {artifact.description}" for artifact in found}


def logs_of(run: Run, text: str, num: int, within_s: float = 20.0) -> list[tuple[str, str]]:
    """The lines with some text on the run's page, with the name of the task run that they are of, once there are so
    many: lines reach the server every few seconds.
    """
    deadline_s = time.monotonic() + within_s
    of_this = LogFilter.model_validate({"flow_run_id": {"any_": [run.id]}})
    with get_client(sync_client=True) as client:
        names = {task.id: task.name for task in client.read_task_runs(flow_run_filter=of_run(run.id))}
        while True:
            logs = [log for log in client.read_logs(of_this) if log.task_run_id and text in log.message]
            if len(logs) >= num:
                return [(names[log.task_run_id], log.message) for log in logs if log.task_run_id]
            assert time.monotonic() < deadline_s, logs
            time.sleep(0.3)


def run_once(source: Path, lake: Path, profile: Path) -> Run:
    state = build(str(source), str(lake), profile=str(profile), return_state=True)
    result = state.result()
    run_id = state.state_details.flow_run_id
    return Run(run_id, result, keys_of(lake), states_of(run_id))


def run_by_command(source: Path, lake: Path, profile: Path) -> Run:
    """The same as users run it, in a process of its own, on the server of the fixture."""
    asked = ("build", "--source", str(source), "--lake", str(lake), "--profile", str(profile), "--json")
    line = (sys.executable, "-c", "from flows.names import main; main()", *asked)
    env = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with get_client(sync_client=True) as client:
        newest = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
    return Run(newest.id, BuildResult.model_validate_json(done.stdout), keys_of(lake), states_of(newest.id))


@pytest.fixture(scope="module")
def story(server: None, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    lake, source, profile = folder / "lake", folder / "rows.jsonl", folder / "tiny.toml"
    rows = write_clips(folder / "clips", 3, SEED)
    source.write_text("\n".join(map(json.dumps, rows)))
    profile.write_text(PROFILE)
    first, again = run_once(source, lake, profile), run_by_command(source, lake, profile)
    plan = plan_build(source, None, Lake(lake), load_profile(str(profile)), None, lambda line: None)

    other = folder / "other.jsonl"
    other.write_text("\n".join(map(json.dumps, [*rows[:2], rows[2] | {"caption": f"Look: {rows[2]['caption']}"}])))
    recaptioned = run_once(other, lake, profile)

    fewer = folder / "fewer.toml"
    fewer.write_text(PROFILE + "config = { basic_per_object = 1 }\n")
    refined = run_once(source, lake, fewer)
    back = run_once(source, lake, profile)
    return Story(lake, plan, first, again, recaptioned, refined, back)


def gained(before: Run, after: Run) -> dict[str, int]:
    """How many keys each agent's store gained; none may go or change."""
    for role in ROLES:
        assert set(before.keys[role]) <= set(after.keys[role])
    return {role: len(after.keys[role]) - len(before.keys[role]) for role in ROLES}


def test_the_build_is_sound_and_every_clip_went_through_every_agent(story: Story) -> None:
    assert story.first.result.is_new
    assert story.first.result.ray_started
    assert story.first.result.num_samples > 0
    assert verify_build(Lake(story.lake), story.first.result.build_id) == []
    assert {role: len(keys) for role, keys in story.first.keys.items()} == dict.fromkeys(ROLES, 3)


def test_every_clip_and_mention_is_in_a_sample_or_in_quarantine(story: Story) -> None:
    lake, build_id = Lake(story.lake), story.first.result.build_id
    samples = [sample for kind in KINDS for sample in read_samples(lake, build_id, kind)]
    entries = list(read_quarantine(lake, build_id))
    assert {row.clip_id for row in (*samples, *entries)} == {clip.clip_id for clip in story.plan.clips}
    counts = {(entry.group, entry.name): entry.n for entry in story.first.result.counts}
    mentions, tracks = counts["stages", "analyzer: mentions"], counts["stages", "segmenter: tracks"]
    lost_by_segmenter = sum(entry.stage == "segmenter" for entry in entries)
    assert 0 < mentions <= tracks + lost_by_segmenter
    seen = {item.object_id for sample in samples for item in sample.objects}
    assert len(seen) + sum(entry.stage in ("annotator", "reviewer") for entry in entries) >= tracks
    assert len(samples) == story.first.result.num_samples
    assert len(entries) == story.first.result.num_quarantined


def test_each_unit_is_a_task_run_per_agent(story: Story) -> None:
    names = {f"{role} unit {unit:03d}" for role in ROLES for unit in (0, 1)}
    assert [len(unit) for unit in story.plan.units] == [2, 1]
    assert set(story.first.states) == names | {"plan", "publish"}
    assert set(story.first.states.values()) == {"Completed"}


def test_a_run_is_found_by_its_tags_and_its_task_runs_need_none(story: Story) -> None:
    with get_client(sync_client=True) as client:
        first, again = (client.read_flow_run(run.id).tags for run in (story.first, story.again))
        tasks = client.read_task_runs(flow_run_filter=of_run(story.again.id))
    named = {"profile=tiny", "lake=lake", f"build={story.first.result.build_id}"}
    assert set(first) == named
    assert {tag.partition("=")[0] for tag in again} == {"process", "profile", "lake", "build"}
    assert named < set(again)
    assert {tag for task in tasks for tag in task.tags} == set()


def test_the_runs_page_links_to_the_lake_and_the_report_and_says_how_busy_agents_were(story: Story) -> None:
    page = artifacts_of(story.first)
    assert f"]({story.lake.as_uri()})" in page["lake"]
    assert f"]({story.first.result.report_uri})" in page["build-report"]
    for role in ROLES:
        share = re.search(r"done 3 of 3 clips .* busy (\d+) %", page[f"progress-{role}"])
        assert share
        assert 0 <= int(share[1]) <= 100
    assert "all 3 clips are in the lake" in artifacts_of(story.again)["progress-analyzer"]


def test_each_task_runs_log_tells_which_worker_did_which_clips(story: Story) -> None:
    calls = logs_of(story.first, " worker: clips ", 2 * len(ROLES))
    told = {name: re.fullmatch(r"[0-9a-f]{8}:\d+ worker: clips (.+) in \d+\.\d+ s", line) for name, line in calls}
    assert {name: match and set(match[1].split()) for name, match in told.items()} == {
        f"{role} unit {unit:03d}": {clip.clip_id for clip in clips}
        for role in ROLES
        for unit, clips in enumerate(story.plan.units)
    }


def test_the_same_command_again_does_nothing_and_says_so(story: Story) -> None:
    again = story.again.result
    assert (again.ray_started, again.is_new) == (False, False)
    assert again.build_id == story.first.result.build_id
    assert again.counts == story.first.result.counts
    assert story.again.keys == story.first.keys
    assert {name: state for name, state in story.again.states.items() if "unit" in name} == {
        name: "Cached" for name in story.first.states if "unit" in name
    }


def test_a_changed_caption_redoes_its_clip_only(story: Story) -> None:
    assert gained(story.again, story.recaptioned) == dict.fromkeys(ROLES, 1)
    assert story.recaptioned.result.is_new
    assert story.recaptioned.result.ray_started
    agents = {name: state for name, state in story.recaptioned.states.items() if "unit" in name}
    assert {name for name, state in agents.items() if state == "Cached"} == {f"{role} unit 000" for role in ROLES}


def test_a_changed_refiner_runs_the_refiner_only(story: Story) -> None:
    assert gained(story.recaptioned, story.refined) == dict.fromkeys(ROLES, 0) | {"refiner": 3}
    assert story.refined.result.num_samples < story.first.result.num_samples
    worked = {name.split()[0] for name, state in story.refined.states.items() if state == "Completed"}
    assert worked == {"plan", "publish", "refiner"}


def test_all_builds_stay_and_going_back_costs_nothing(story: Story) -> None:
    assert gained(story.refined, story.back) == dict.fromkeys(ROLES, 0)
    assert (story.back.result.build_id, story.back.result.ray_started) == (story.first.result.build_id, False)
    builds = list_builds(Lake(story.lake))
    assert {manifest.build_id for manifest in builds} == {
        run.result.build_id for run in (story.first, story.recaptioned, story.refined)
    }
    for manifest in builds:
        assert verify_build(Lake(story.lake), manifest.build_id) == []


@pytest.mark.slow
def test_what_agents_did_stays_on_the_metrics_page_of_a_ray_that_outlives_the_build(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, profile = (story.lake.with_name(name) for name in ("rows.jsonl", "tiny.toml"))
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    with start_ray(num_cpus=4):
        run_once(source, tmp_path / "lake", profile)
        (node,) = ray.nodes()
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        time.sleep(4.0)  # four of Ray's reports
        with urllib.request.urlopen(url, timeout=5.0) as page:
            metrics = {metric.name: metric for metric in text_string_to_metric_families(page.read().decode())}
    of_clips = metrics["ray_videorefer_clips_worked"].samples
    assert {
        (sample.labels["agent"], sample.labels["outcome"], sample.value)
        for sample in of_clips
        if sample.labels["lake"] == str(tmp_path / "lake") and sample.labels["profile"] == "tiny"
    } == {(role, "done", 3.0) for role in ROLES}


@pytest.mark.slow
def test_a_clip_that_an_agent_cannot_finish_is_quarantined_until_it_is_taken_out(story: Story) -> None:
    source, lake, profile = (story.lake.with_name(name) for name in ("rows.jsonl", "broken-lake", "tiny.toml"))
    clip = story.plan.clips[0]
    truth = truth_path(source.parent / clip.video)
    whole = truth.read_text()
    truth.unlink()
    broken = run_once(source, lake, profile)
    truth.write_text(whole)
    assert broken.result.num_failed == 1
    assert len(logs_of(broken, f"clip {clip.clip_id} failed in segmenter after 2 tries", 1)) == 1
    entries = [e for e in read_quarantine(Lake(lake), broken.result.build_id) if e.subject_id == clip.clip_id]
    assert [(e.stage, e.reason, e.retryable) for e in entries] == [("segmenter", "agent_error", True)]
    assert truth.name in entries[0].evidence
    again = run_once(source, lake, profile)
    assert (again.result.build_id, again.result.ray_started) == (broken.result.build_id, False)
    assert {state for name, state in again.states.items() if "unit" in name} == {"Cached"}
    assert gained(broken, again) == dict.fromkeys(ROLES, 0)
    done = retry(Lake(lake), None, Choice())
    assert done.command.line("L") == f"videorefer build --source {source} --lake L --profile {profile}"
    assert {s.clip_id for s in read_samples(Lake(lake), broken.result.build_id, "qa")} != {clip.clip_id}

    mended = run_once(source, lake, profile)
    assert gained(broken, mended) == dict.fromkeys(ROLES, 1) | {"analyzer": 0}
    assert mended.result.num_failed == 0
    assert mended.result.build_id == story.first.result.build_id
    shards = [read_manifest(Lake(each), mended.result.build_id).shards for each in (lake, story.lake)]
    assert shards[0] == shards[1]  # after all the very bytes of a build in which nothing failed


def test_a_cluster_that_does_not_answer_is_what_the_run_fails_with(story: Story, tmp_path: Path) -> None:
    source, profile = story.lake.parent / "rows.jsonl", story.lake.parent / "tiny.toml"
    state = build(
        str(source), str(tmp_path / "lake"), profile=str(profile), ray_address="127.0.0.1:1", return_state=True
    )
    with pytest.raises(RayStartError, match=re.escape("cannot join the Ray cluster at 127.0.0.1:1")):
        state.result()
