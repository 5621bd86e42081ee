"""Rows of a build are found by what stands in its report, and shown as they are."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.show import Rows, find_rows, print_rows
from infra.lake import Lake, LakeError


@pytest.fixture
def built(lake_by_hand: Any) -> Any:
    """The lake made by hand, published."""
    made = lake_by_hand
    made.publish()
    return made


def printed(rows: Rows) -> str:
    text = io.StringIO()
    print_rows(rows, Console(file=text, width=200))
    return text.getvalue()


def test_without_a_name_the_first_rows_of_the_latest_build_come(built: Any) -> None:
    rows = find_rows(built.lake, None, "", 2)
    assert (len(rows.samples), len(rows.quarantine)) == (2, 2)
    assert len(find_rows(built.lake, rows.build_id, "", 100).samples) == 12


def test_rows_are_found_by_every_kind_of_id(built: Any) -> None:
    clip = built.plan.clips[1]
    sample_id = f"{clip.clip_id}-qa-2"
    assert [sample.sample_id for sample in find_rows(built.lake, None, sample_id, 9).samples] == [sample_id]
    for name in (clip.clip_id, clip.source_id):
        rows = find_rows(built.lake, None, name, 99)
        assert {row.clip_id for row in (*rows.samples, *rows.quarantine)} == {clip.clip_id}
        assert (len(rows.samples), len(rows.quarantine)) == (6, 2)
    assert len(find_rows(built.lake, None, f"{clip.clip_id}-t1", 99).samples) == 6
    assert [e.noun for e in find_rows(built.lake, None, f"{clip.clip_id}-dog", 9).quarantine] == ["dog"]


def test_rows_are_found_by_kind_question_reason_and_stage(built: Any) -> None:
    assert {sample.kind for sample in find_rows(built.lake, None, "short_caption", 99).samples} == {"short_caption"}
    assert {sample.qa_type for sample in find_rows(built.lake, None, "basic", 99).samples} == {"basic"}
    for name, found in (("not_found", 2), ("segmenter", 2), ("no_caption", 1)):
        rows = find_rows(built.lake, None, name, 99)
        assert (len(rows.quarantine), rows.samples) == (found, ())


def test_a_name_that_nothing_bears_is_one_clear_error(built: Any) -> None:
    with pytest.raises(LakeError, match=r"^build \w{16} has nothing by the name 'zebra'.*$"):
        find_rows(built.lake, None, "zebra", 5)


def test_no_build_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match=r"^the lake \S+ holds no build yet$"):
        find_rows(Lake(tmp_path / "empty"), None, "", 5)


def test_a_build_that_is_not_there_is_one_clear_error(built: Any) -> None:
    with pytest.raises(LakeError, match=r"^.*nosuchbuild.*$"):
        find_rows(built.lake, "nosuchbuild", "", 5)


def test_conversations_and_reasons_are_printed_word_for_word(built: Any) -> None:
    clip = built.plan.clips[0]
    rows = find_rows(built.lake, None, clip.clip_id, 99)
    said = printed(rows)
    assert "human: <video>\n" in said
    assert "A red cat [sic]." in said  # brackets are no markup
    assert f"{clip.clip_id}-t1 cat: 1 masks in 1 frames" in said
    assert f"{clip.clip_id}-dog dog dropped by segmenter: not_found" in said
    assert rows.report_uri in said


def test_ids_of_the_users_own_are_printed_word_for_word(built: Any) -> None:
    rows = find_rows(built.lake, None, "no_caption", 1)
    entry = rows.quarantine[0].model_copy(update={"subject_id": "[/b] row [1]", "noun": "[x] :cat:"})
    changed = rows.model_copy(update={"quarantine": (entry,), "report_uri": "file:///a[/b]/report.html"})
    said = printed(changed)
    assert "[/b] row [1] [x] :cat: dropped by source" in said
    assert "file:///a[/b]/report.html" in said
