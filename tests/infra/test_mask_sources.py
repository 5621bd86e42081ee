"""Folders in the layouts of data sets with masks become rows, told by what lies in them."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.raw_rows import SourceError
from infra.source_rows import SourceRow, check_source, read_source
from schemas.given import MaskRef


def rows_of(source: Path, root: Path | None = None) -> dict[str, SourceRow]:
    _, listing = read_source(source, root)
    assert listing.rejected == ()
    return {row.source_id: row for row in listing.rows}


def test_a_mevis_split_gives_a_row_for_each_expression(layouts: Any, tmp_path: Path) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small(), "v2": layouts.small(num_frames=6)})
    rows = rows_of(split)
    assert list(rows) == ["v1/0", "v1/1", "v2/0", "v2/1"]
    row = rows["v2/1"]
    assert (row.video, row.caption, row.fps) == ("JPEGImages/v2", "two dogs", 6.0)
    frames = tuple(f"{i:05d}" for i in range(6))
    assert row.masks == MaskRef(path="mask_dict.json", objects=("100", "101"), frames=frames)


def test_a_davis_root_gives_a_row_for_each_line_of_its_texts(layouts: Any, tmp_path: Path) -> None:
    video = layouts.small(expressions=[("a café dog", ("1",)), ("the other dog", ("2",))])
    rows = rows_of(layouts.davis(tmp_path / "DAVIS", {"bear": video}))
    row = rows["bear/Davis17_annot2/1"]
    assert (row.video, row.caption, row.fps) == ("JPEGImages/480p/bear", "a café dog", 24.0)
    assert row.masks == MaskRef(path="Annotations/480p/bear", objects=("1",), frames=())
    assert [row.caption for row in rows.values()] == ["a café dog", "the other dog"]


def test_texts_beside_the_davis_root_are_found_too(layouts: Any, tmp_path: Path) -> None:
    root = layouts.davis(tmp_path / "DAVIS", {"bear": layouts.small(expressions=[("a dog", ("1",))])})
    (root / "davis_text_annotations").rename(tmp_path / "davis_text_annotations")
    assert [row.caption for row in rows_of(root).values()] == ["a dog"]


def test_a_youtube_split_finds_its_expressions_beside_it(layouts: Any, tmp_path: Path) -> None:
    split = layouts.youtube(tmp_path, {"a0b1": layouts.small(num_frames=11)})
    row = rows_of(split)["a0b1/0"]
    assert (row.video, row.fps) == ("JPEGImages/a0b1", 30.0)
    assert row.masks == MaskRef(path="Annotations/a0b1", objects=("1",), frames=("00000", "00005", "00010"))
    for file in (split / "JPEGImages" / "a0b1").iterdir():
        if int(file.stem) % 5:
            file.unlink()
    assert rows_of(split)["a0b1/0"].fps == 6.0


def test_paths_are_relative_to_the_given_root(layouts: Any, tmp_path: Path) -> None:
    split = layouts.mevis(tmp_path / "mevis" / "train", {"v1": layouts.small()})
    row = rows_of(split, tmp_path)["v1/0"]
    assert row.video == "mevis/train/JPEGImages/v1"
    assert row.masks is not None
    assert row.masks.path == "mevis/train/mask_dict.json"
    with pytest.raises(SourceError, match="does not lie in the videos root"):
        rows_of(split, split / "JPEGImages")


def test_a_split_without_masks_gives_captions_like_any_other(layouts: Any, tmp_path: Path) -> None:
    split = layouts.mevis(tmp_path / "valid", {"v1": layouts.small()})
    (split / "mask_dict.json").unlink()
    assert {row.masks for row in rows_of(split).values()} == {None}


def test_a_bad_entry_costs_itself_only(layouts: Any, tmp_path: Path) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small(), "v2": layouts.small(), "v3": layouts.small()})
    meta = json.loads((split / "meta_expressions.json").read_text())
    meta["videos"]["v1"] = "nothing"
    meta["videos"]["v2"]["frames"] = [1, 2]
    meta["videos"]["v3"]["expressions"]["0"]["exp"] = ["no text"]
    meta["videos"] |= dict.fromkeys(("nul\0", "\ud800"), meta["videos"]["v3"])
    (split / "meta_expressions.json").write_text(json.dumps(meta))
    _, listing = read_source(split, None)
    assert [row.source_id for row in listing.rows] == ["v3/1"]
    assert {entry.reason for entry in listing.rejected} == {"bad_row"}
    assert len(listing.rejected) == 3 + 2 * 2
    assert "train:v1: no entry of meta_expressions.json" in listing.rejected[0].evidence


@pytest.mark.parametrize("text", ["", "[1]", '{"movies": {}}', '{"videos": []}', "[" * 100_000])
def test_expressions_that_cannot_be_read_stop_the_build(layouts: Any, tmp_path: Path, text: str) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small()})
    (split / "meta_expressions.json").write_text(text)
    with pytest.raises(SourceError, match=r"meta_expressions\.json cannot be read"):
        check_source(split, None)


def test_masks_without_expressions_stop_the_build(layouts: Any, tmp_path: Path) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small()})
    (split / "meta_expressions.json").unlink()
    with pytest.raises(SourceError, match="has masks but no expressions"):
        check_source(split, None)


def test_a_folder_of_videos_stays_one(make_video: Any, tmp_path: Path) -> None:
    make_video("JPEGImages/a.mp4").with_suffix(".txt").write_text("A dog.")
    (row,) = rows_of(tmp_path).values()
    assert (row.video, row.masks) == ("JPEGImages/a.mp4", None)
