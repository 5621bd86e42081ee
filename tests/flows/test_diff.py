"""Two builds compared: every sample once, with the change that did it, and a plain comparison in memory agrees."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.diff import Diff, compare, two_builds
from flows.diff_causes import AgentChange, label_changes
from flows.diff_rows import TextRow, paired, side_by_side
from flows.quarantine import Choice, retry
from infra.builds import KINDS, read_manifest, read_samples
from infra.lake import Lake, LakeError
from infra.truth import truth_path

ALL = 10_000


@dataclass(frozen=True)
class Story:
    """Builds by name, one after the other, each with one more change than the one before."""

    lake: Lake
    ids: dict[str, str]

    def diff(self, old: str, new: str, num_examples: int = ALL) -> Diff:
        builds = (read_manifest(self.lake, self.ids[name]) for name in (old, new))
        return compare(self.lake, *builds, num_examples)

    def samples(self, name: str) -> dict[str, Any]:
        return {s.sample_id: s for kind in KINDS for s in read_samples(self.lake, self.ids[name], kind)}


@pytest.fixture(scope="module")
def story(small_builds: Any) -> Story:
    made, ids = small_builds, {}
    ids["first"] = made.build().build_id
    fewer = made.profile(refiner={"basic_per_object": 1})
    ids["fewer questions"] = made.build(fewer).build_id

    told = Counter(s.source_id for kind in KINDS for s in read_samples(made.lake, ids["first"], kind))
    one, two, three = sorted(made.rows, key=lambda row: -told[str(row["id"])])
    copies, video = made.source.parent / "copies", made.source.parent / str(one["video"])
    copies.mkdir()
    for path in (video, truth_path(video)):
        shutil.copy(path, copies)
    rows = [
        one,
        two | {"caption": f"Look: {two['caption']}"},
        three | {"video": f"copies/{video.name}", "caption": one["caption"]},
        one | {"id": "newcomer"},
    ]
    made.write(rows)
    ids["other rows"] = made.build(fewer).build_id
    made.write([*rows[:2], rows[3], {"id": rows[2]["id"], "video": "clips/nowhere.mp4", "caption": "A man."}])
    ids["file gone"] = made.build(fewer).build_id

    whole = made.profile(refiner={"basic_per_object": 3})
    clip_id = next(read_samples(made.lake, ids["file gone"], "qa")).clip_id
    ids["failed"] = made.build(whole, fails={"refiner": [clip_id]}).build_id
    retry(made.lake, None, Choice(names=[clip_id]))
    ids["retried"] = made.build(whole).build_id
    first, *others = json_rows(made.lake)
    made.write([first | {"end_s": 2.0}, *others])
    ids["shorter"] = made.build(whole).build_id
    return Story(made.lake, ids)


def totals(diff: Diff) -> Counter[str]:
    num: Counter[str] = Counter()
    for count in diff.counts:
        num[count.change] += count.n
    return num


@pytest.mark.weights
@pytest.mark.parametrize(
    ("old", "new"), [("first", "fewer questions"), ("fewer questions", "other rows"), ("first", "retried")]
)
def test_every_sample_of_both_is_counted_once(story: Story, old: str, new: str) -> None:
    diff, before, after = story.diff(old, new), story.samples(old), story.samples(new)
    num = totals(diff)
    assert num["dropped"] + num["changed"] + diff.unchanged == len(before)
    assert num["added"] + num["changed"] + diff.unchanged == len(after)
    assert len(diff.examples) == num.total()
    assert {e.old_id for e in diff.examples if e.old_id} <= before.keys()
    assert len({e.old_id for e in diff.examples if e.old_id}) == num["dropped"] + num["changed"]


@pytest.mark.weights
def test_a_build_compared_with_itself_is_unchanged(story: Story) -> None:
    diff = story.diff("first", "first")
    assert (diff.unchanged, diff.counts, diff.rows, diff.agents) == (len(story.samples("first")), (), (), ())
    assert diff.summary()[0] == "agents:  the same"


@pytest.mark.weights
def test_a_changed_refiner_is_named_and_ids_agree_with_a_comparison_in_memory(story: Story) -> None:
    diff, before, after = (
        story.diff("first", "fewer questions"), story.samples("first"), story.samples("fewer questions"),
    )  # fmt: skip
    assert diff.agents == (AgentChange(agent="refiner", fields=("config",)),)
    assert {count.cause for count in diff.counts} == {"refiner config"}
    assert {e.old_id for e in diff.examples if e.change == "dropped"} == before.keys() - after.keys()
    assert {count.kind for count in diff.counts} == {"qa"}
    assert diff.rows == ()


@pytest.mark.weights
def test_examples_hold_the_text_of_their_build(story: Story) -> None:
    before = story.samples("first")
    examples = story.diff("first", "fewer questions", 3).examples
    assert len(examples) == 3
    for example in examples:
        turns = before[str(example.old_id)].conversations
        assert example.old == (turns[0].value, turns[1].value)
        assert example.new is None


@pytest.mark.weights
def test_each_change_of_the_source_is_told_from_the_others(story: Story) -> None:
    diff = story.diff("fewer questions", "other rows")
    assert diff.summary()[1] == "source:  caption 1, caption and video 1, row added 1"
    assert {count.change: count.n for count in diff.rows} == {"row added": 1, "caption": 1, "caption and video": 1}
    ids = {row["id"]: row for row in json_rows(story.lake)}
    causes = {example.source_id: example.cause for example in diff.examples}
    assert causes.keys() <= ids.keys()
    assert causes["newcomer"] == "source row added"
    assert set(causes.values()) == {"source row added", "source caption", "source caption and video"}
    assert {e.change for e in diff.examples if e.source_id == "newcomer"} == {"added"}
    gone = story.diff("other rows", "file gone")
    assert [(count.change, count.n) for count in gone.rows] == [("row now missing_file", 1)]
    assert {(count.change, count.cause) for count in gone.counts} == {("dropped", "source row now missing_file")}
    cut = story.diff("retried", "shorter")
    assert [(count.change, count.n) for count in cut.rows] == [("span", 1)]
    back = story.diff("file gone", "other rows")
    assert {(count.change, count.cause) for count in back.counts} == {("added", "source row no longer missing_file")}


def json_rows(lake: Lake) -> list[dict[str, Any]]:
    rows = Path(lake.root).parent / "rows.jsonl"
    return [json.loads(line) for line in rows.read_text().splitlines()]


@pytest.mark.weights
def test_a_caption_that_changed_keeps_its_objects_samples_apart_from_new_ones(story: Story) -> None:
    diff = story.diff("fewer questions", "other rows")
    changed = [e for e in diff.examples if e.cause == "source caption" and e.kind == "short_caption"]
    assert [(e.change, e.old is not None and e.new is not None) for e in changed] == [("changed", True)] * len(changed)
    assert changed
    assert all(e.new and e.new[1].startswith("Look: ") for e in changed)


@pytest.mark.weights
def test_a_failure_and_its_retry_are_named_before_the_label_that_changed(story: Story) -> None:
    failed = story.diff("file gone", "failed")
    assert failed.agents == (AgentChange(agent="refiner", fields=("config",)),)
    assert {count.cause for count in failed.counts} == {"refiner config", "failure: refiner agent_error"}
    lost = {e.source_id for e in failed.examples if e.cause.startswith("failure")}
    assert len(lost) == 1
    back = story.diff("failed", "retried")
    assert {(count.change, count.cause) for count in back.counts} == {("added", "retry after refiner agent_error")}
    assert {e.source_id for e in back.examples} == lost


@pytest.mark.weights
def test_on_the_command_line_the_latest_is_compared_with_the_one_before(story: Story) -> None:
    def invoke(*args: str) -> Any:
        return CliRunner().invoke(app, ["diff", "--lake", story.lake.address, *args], env={"COLUMNS": "200"})

    told = json.loads(invoke("--json", story.ids["first"], story.ids["fewer questions"]).stdout)
    assert told == story.diff("first", "fewer questions", 5).model_dump(mode="json")
    said = invoke(story.ids["first"], story.ids["fewer questions"], "-n", "1").stdout
    assert "agents:  refiner config" in said
    assert said.count("\ndropped qa") + said.count("\nchanged qa") == 1
    assert said.count("  - ") == 2
    old, new = two_builds(story.lake, None, None)
    assert new.build_id == story.ids["shorter"]
    assert old.created_at <= new.created_at
    assert invoke().exit_code == 0


def test_with_less_than_two_builds_there_is_nothing_to_compare(lake_by_hand: Any, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="holds no build yet"):
        two_builds(Lake(tmp_path / "empty"), None, None)
    result = lake_by_hand.publish()
    with pytest.raises(LakeError, match=f"has no build from before {result.build_id}"):
        two_builds(lake_by_hand.lake, None, None)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("engine", "other", "reviewer engine"),
        ("weights", ("w@2",), "reviewer weights"),
        ("config_json", '{"a":1}', "reviewer config"),
        ("prompt_hash", "00", "reviewer prompt"),
        ("revision", 2, "reviewer revision"),
    ],
)
def test_what_of_a_label_changed_is_named(by_hand: Any, name: str, value: object, said: str) -> None:
    labels = by_hand.labels()
    other = labels | {"reviewer": labels["reviewer"].model_copy(update={name: value})}
    (change,) = label_changes(tuple(labels.values()), tuple(other.values()))
    assert change.describe() == said


def row(sample_id: str, question: int = 1, answer: int = 1, **changes: Any) -> TextRow:
    whole = {
        "sample_id": sample_id, "clip_id": "c", "source_id": "s", "kind": "qa", "qa_type": "basic", "nouns": ("dog",),
        "start_s": 0.0, "facts": 0, "question": question, "answer": answer,
    }  # fmt: skip
    return TextRow(**(whole | changes))


def ids_of(old: list[TextRow], new: list[TextRow]) -> set[tuple[str | None, str | None]]:
    return {(p.old and p.old.sample_id, p.new and p.new.sample_id) for p in paired(old, new)}


def test_samples_are_followed_by_id_then_text_then_question_then_answer() -> None:
    old = [row("a", 1, 1), row("b", 2, 2), row("c", 3, 3), row("d", 4, 4), row("e", 5, 5)]
    new = [row("v", 4, 40), row("w", 50, 5), row("x", 3, 3), row("y", 60, 60), row("a", 9, 9)]
    assert ids_of(old, new) == {("a", "a"), ("c", "x"), ("d", "v"), ("e", "w"), ("b", None), (None, "y")}


def test_another_noun_kind_or_row_is_another_sample() -> None:
    for changes in ({"nouns": ("cat",)}, {"kind": "detailed_caption"}, {"source_id": "t"}, {"qa_type": "future"}):
        assert ids_of([row("a")], [row("b", **changes)]) == {("a", None), (None, "b")}


def test_captions_of_one_noun_are_followed_in_the_order_of_time() -> None:
    def caption(sample_id: str, start_s: float, text: int) -> TextRow:
        return row(sample_id, text, text, kind="detailed_caption", qa_type="none", start_s=start_s)

    old = [caption("a", 5.0, 1), caption("b", 0.0, 2)]
    new = [caption("x", 0.0, 3), caption("y", 5.0, 4), caption("z", 9.0, 5)]
    assert ids_of(old, new) == {("b", "x"), ("a", "y"), (None, "z")}


def test_two_builds_are_walked_clip_by_clip() -> None:
    def of(clip_id: str, sample_id: str) -> TextRow:
        return row(sample_id, clip_id=clip_id)

    walk = side_by_side([of("a", "1"), of("b", "2"), of("b", "3")], [of("b", "4"), of("c", "5")])
    told = [(clip, [r.sample_id for r in old], [r.sample_id for r in new]) for clip, old, new in walk]
    assert told == [("a", ["1"], []), ("b", ["2", "3"], ["4"]), ("c", [], ["5"])]
