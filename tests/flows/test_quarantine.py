"""A failure stays until it is taken out, a verdict until its input changes; both are told in full."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.profile_config import ROLES
from flows.quarantine import Choice, QuarantineError, Retry, list_quarantine, retry, tell
from flows.result import BuildResult
from infra.builds import read_manifest, read_quarantine, verify_build
from infra.lake import Lake, LakeError
from schemas.clip import Clip

pytestmark = pytest.mark.weights

SILENT = {"id": "silent", "video": "clips/silent.mp4", "caption": ""}


@dataclass(frozen=True)
class Story:
    """A build in which the segmenter fails on the first clip, the same again, the failure taken out, the same again."""

    made: Any
    clip: Clip
    undisturbed: BuildResult
    broken: BuildResult
    again: BuildResult
    seen_again: dict[str, list[str]]
    retried: Retry
    mended: BuildResult
    seen_mended: dict[str, list[str]]


@pytest.fixture(scope="module")
def story(small_builds: Any, tmp_path_factory: pytest.TempPathFactory) -> Story:
    made = small_builds
    made.write([*made.rows, SILENT])
    undisturbed = made.build()
    made.lake = Lake(tmp_path_factory.mktemp("broken") / "lake")
    clip = made.clip_of(0)
    broken = made.build(fails={"segmenter": [clip.clip_id]})
    again, seen_again = made.build(), made.seen
    retried = retry(made.lake, None, Choice(reasons=["agent_error"]))
    mended, seen_mended = made.build(), made.seen
    return Story(made, clip, undisturbed, broken, again, seen_again, retried, mended, seen_mended)


def invoke(*args: object) -> Any:
    return CliRunner().invoke(app, ["quarantine", *map(str, args)], env={"COLUMNS": "300"})


def test_a_failed_clip_is_not_tried_again_and_the_build_stays_the_same(story: Story) -> None:
    assert (story.broken.num_failed, story.broken.failed_reasons) == (1, ("agent_error",))
    assert story.seen_again == {}
    assert (story.again.build_id, story.again.is_new) == (story.broken.build_id, False)
    assert story.again.num_failed == 1
    assert verify_build(story.made.lake, story.broken.build_id) == []


def test_the_build_says_where_its_failures_are(story: Story) -> None:
    assert story.broken.summary().splitlines()[-1] == (
        f"1 clips failed: videorefer quarantine list --lake {story.made.lake.address} --reason agent_error; "
        "quarantine retry tries them again"
    )


def test_a_failure_taken_out_is_tried_again_alone_and_leaves_no_trace(story: Story) -> None:
    assert [entry.clip_id for entry in story.retried.taken] == [story.clip.clip_id]
    assert story.seen_mended == {role: [story.clip.clip_id] for role in ROLES[1:]}
    assert story.mended.num_failed == 0
    assert story.mended.build_id == story.undisturbed.build_id
    clean = Lake(story.made.source.parent / "lake")
    assert read_manifest(clean, story.undisturbed.build_id).shards == (
        read_manifest(story.made.lake, story.mended.build_id).shards
    )


def test_what_was_taken_out_before_is_said_with_the_command_that_tries_it(story: Story) -> None:
    with pytest.raises(
        QuarantineError, match=r"^1 failures of build \w{16} were taken out before; .*--profile painted"
    ):
        retry(story.made.lake, story.broken.build_id, Choice())


def test_the_command_that_tries_again_is_the_one_that_built(story: Story) -> None:
    lake = story.made.lake.address
    assert story.retried.command.line(lake) == (
        f"videorefer build --source {story.made.source} --lake {lake} --profile painted"
    )


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(reasons=["no_caption"]), "silent is no_caption: only a change of the source helps"),
        (Choice(names=["silent"]), "silent is no_caption: only a change of the source helps"),
        (Choice(reasons=["agent_died"]), "has nothing of that in quarantine"),
        (Choice(names=["nobody"]), "has nothing of that in quarantine"),
    ],
)
def test_what_cannot_be_tried_again_is_refused_with_the_reason(story: Story, choice: Choice, said: str) -> None:
    with pytest.raises(QuarantineError, match=said):
        retry(story.made.lake, story.broken.build_id, choice)


def test_a_misspelt_reason_or_stage_names_the_nearest() -> None:
    with pytest.raises(QuarantineError, match=r"^no reason 'agent_ded'; the nearest is 'agent_died'$"):
        Choice(reasons=["agent_ded"])
    with pytest.raises(QuarantineError, match=r"^no stage 'refine'; the nearest is 'refiner'$"):
        Choice(stages=["refine"])


def test_the_list_counts_every_entry_by_stage_and_reason(story: Story) -> None:
    found = list_quarantine(story.made.lake, story.broken.build_id, Choice(), 0)
    entries = list(read_quarantine(story.made.lake, story.broken.build_id))
    assert (found.total, sum(count.n for count in found.counts), found.entries) == (len(entries), len(entries), ())
    of = {(count.stage, count.reason): count for count in found.counts}
    assert {place: count.n for place, count in of.items()} == {
        place: sum((entry.stage, entry.reason) == place for entry in entries) for place in of
    }
    assert (of["segmenter", "agent_error"].n, of["segmenter", "agent_error"].retryable) == (1, 1)
    assert of["segmenter", "agent_error"].example.subject_id == story.clip.clip_id
    assert of["source", "no_caption"].retryable == 0
    assert found.counts[0].stage == "source"


def test_chosen_entries_are_listed_up_to_the_limit(story: Story) -> None:
    found = list_quarantine(story.made.lake, story.broken.build_id, Choice(stages=["source", "segmenter"]), 1)
    assert (found.total >= 2, [entry.reason for entry in found.entries]) == (True, ["no_caption"])


def test_of_a_failed_clip_everything_is_told(story: Story) -> None:
    (told,) = tell(story.made.lake, story.broken.build_id, story.clip.clip_id, 5)
    entry = next(entry for entry in told.entries if entry.reason == "agent_error")
    assert entry.evidence.startswith("2 tries: RuntimeError: gone at 0x…")
    assert (told.clip, told.caption, told.source_id) == (story.clip, story.clip.caption, story.clip.source_id)
    assert told.video is not None
    assert Path(told.video).is_file()


def test_of_a_dropped_noun_it_is_told_what_became_of_the_others(story: Story) -> None:
    lake, build_id = story.made.lake, story.mended.build_id
    dropped = next(entry for entry in read_quarantine(lake, build_id) if entry.clip_id)
    (told,) = tell(lake, build_id, dropped.subject_id, 5)
    assert [entry.subject_id for entry in told.entries] == [dropped.subject_id]
    assert told.others
    assert dropped.subject_id not in {fate.object_id for fate in told.others}
    kept = [fate for fate in told.others if fate.became.startswith("in ")]
    assert kept
    assert {fate.noun for fate in told.others} - {""}


def test_of_a_row_that_gave_no_clip_the_source_is_asked(story: Story) -> None:
    (told,) = tell(story.made.lake, None, "silent", 5)
    assert (told.clip, told.caption, told.others) == (None, "", ())
    assert told.video == str(story.made.source.parent / str(SILENT["video"]))


def test_a_row_that_is_gone_is_told_from_a_source_that_cannot_be_read(story: Story) -> None:
    source = story.made.source
    at = ("--lake", story.made.lake.address, "silent")
    whole = source.read_text()
    try:
        story.made.write(story.made.rows)
        gone = invoke("show", *at).stdout
        source.unlink()
        unread = invoke("show", *at).stdout
    finally:
        source.write_text(whole)
    assert f"video and caption: not known, the row is gone: {source} has no silent" in gone
    assert f"video and caption: not known, the source cannot be read from here: source {source} does not" in unread


def test_a_name_that_nothing_bears_and_a_lake_without_builds_are_one_clear_error(story: Story, tmp_path: Path) -> None:
    with pytest.raises(QuarantineError, match=r"^build \w{16} has no 'zebra' in quarantine"):
        tell(story.made.lake, None, "zebra", 5)
    with pytest.raises(LakeError, match="holds no build yet"):
        list_quarantine(Lake(tmp_path), None, Choice(), 0)


def test_on_the_command_line_each_says_what_its_function_gives(story: Story) -> None:
    at = ("--lake", story.made.lake.address, "--build", story.broken.build_id)
    table = invoke("list", *at).stdout
    assert "1 of them retryable" in table
    assert any(line.split()[:4] == ["segmenter", "agent_error", "1", "1"] for line in table.splitlines())
    assert (
        f"{story.clip.clip_id} segmenter: agent_error, retryable"
        in invoke("list", *at, "--reason", "agent_error").stdout
    )
    assert json.loads(invoke("list", *at, "--json").stdout)["total"] == story.broken.num_quarantined
    shown = invoke("show", *at, story.clip.clip_id).stdout
    assert f"caption: {story.clip.caption}" in shown
    assert "RuntimeError: gone at 0x…" in shown
    assert json.loads(invoke("show", *at, "silent", "--json").stdout)["stories"][0]["source_id"] == "silent"
    refused = invoke("retry", *at, "silent")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "only a change of the source helps" in refused.stderr


def test_on_the_command_line_a_retry_says_what_to_run(small_builds: Any, story: Story) -> None:
    lake = story.made.lake
    label = next(label for label in read_manifest(lake, story.broken.build_id).labels if label.agent == "segmenter")
    store = lake.failure_store(label)
    other = story.retried.taken[0].model_copy(update={"clip_id": "of another build"})
    store.append([("k", story.retried.taken[0]), ("other", other)])
    at = ("--lake", lake.address, "--build", story.broken.build_id)
    said = invoke("retry", *at, story.clip.clip_id, "silent")
    assert said.exit_code == 0, said.stderr
    assert "1 segmenter agent_error" in said.stdout
    assert "left in: silent is no_caption" in said.stdout
    assert f"try again: {story.retried.command.line(lake.address)}" in said.stdout
    store.append([("k", story.retried.taken[0])])
    told = json.loads(invoke("retry", *at, "--stage", "segmenter", "--json").stdout)
    assert told["command_line"] == story.retried.command.line(lake.address)
    assert lake.failure_store(label).keys() == {"other"}
