"""Sources and clips: every row ends in a clip or in an entry with its reason."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import raw_rows
from infra.source_rows import check_source
from infra.sources import ClipConfig, SourceError, SourceRow, clips_of, read_source
from infra.video import probe, video_sha256

MakeVideo = Callable[..., Path]
CONFIG = ClipConfig()
ROWS = [
    {"video": "a.mp4", "caption": "A dog  runs\nacross the grass.", "id": "one", "start_s": 0.5, "end_s": 2, "x": 1},
    {"video": "b/b.mp4", "caption": "A cat, asleep.", "id": None, "start_s": None, "end_s": None, "license": "CC0"},
]


def row_of(video: str, caption: str = "A red square moves to the right.", **values: object) -> SourceRow:
    return SourceRow(
        **{"source_id": "s", "start_s": None, "end_s": None, "license": ""} | values, video=video, caption=caption
    )


def written(folder: Path, kind: str, rows: list[dict[str, object]]) -> Path:
    manifest = folder / f"clips.{kind}"
    if kind == "csv":
        with manifest.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        manifest.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist([{"license": None, **row} for row in rows]), manifest)
    return manifest


def reason_of(row: SourceRow, root: Path, config: ClipConfig = CONFIG) -> str:
    clip_set = clips_of(row, root, config)
    assert clip_set.clips == ()
    (entry,) = clip_set.rejected
    assert (entry.source_id, entry.stage, entry.retryable) == (row.source_id, "source", False)
    assert entry.evidence
    return entry.reason


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_manifests_of_all_kinds_give_the_same_rows(tmp_path: Path, kind: str) -> None:
    root, listing = read_source(written(tmp_path, kind, ROWS), None)
    assert root == tmp_path
    assert listing.rejected == ()
    assert listing.ignored_columns == ("x",)
    first, second = listing.rows
    assert first == SourceRow(
        source_id="one", video="a.mp4", caption="A dog runs across the grass.", start_s=0.5, end_s=2.0, license=""
    )
    assert (second.video, second.start_s, second.license) == ("b/b.mp4", None, "CC0")
    jsonl_rows = read_source(written(tmp_path, "jsonl", ROWS), None)[1].rows
    assert second.source_id == jsonl_rows[1].source_id


def test_a_folder_gives_its_videos_with_their_captions_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.mp4", "a.MOV", "sub/c.webm", ".hidden.mp4", "no_caption.avi", "notes.pdf"):
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text(" A dog\nruns. \n")
    (tmp_path / "a.json").write_text(json.dumps({"caption": "A cat.", "id": "cat", "end_s": 3, "fps": "30000/1001"}))
    (tmp_path / "a.txt").write_text("not this one")
    (tmp_path / "sub/c.json").write_text("[1]")
    root, listing = read_source(tmp_path, None)
    assert root == tmp_path
    assert [(row.video, row.caption) for row in listing.rows] == [
        ("a.MOV", "A cat."),
        ("b.mp4", "A dog runs."),
        ("no_caption.avi", ""),
    ]
    assert (listing.rows[0].source_id, listing.rows[0].end_s) == ("cat", 3.0)
    (entry,) = listing.rejected
    assert entry.reason == "bad_row"
    assert "sub/c.webm" in entry.evidence


def test_sidecars_in_capitals_belong_to_their_videos(tmp_path: Path) -> None:
    (tmp_path / "A.MP4").touch()
    (tmp_path / "A.TXT").write_text("A cat.")
    _, listing = read_source(tmp_path, None)
    assert [(row.video, row.caption) for row in listing.rows] == [("A.MP4", "A cat.")]


def test_a_captioned_folder_of_images_is_one_video(tmp_path: Path) -> None:
    for folder in ("walk.v2", "uncaptioned", "day"):
        (tmp_path / folder).mkdir()
    for name in ("walk.v2/0.jpg", "walk.v2/1.jpg", "uncaptioned/0.jpg", "day/a.mp4", "day/thumb.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "walk.v2.json").write_text(json.dumps({"caption": "A man walks.", "fps": "12"}))
    (tmp_path / "day.txt").write_text("notes on that day")
    _, listing = read_source(tmp_path, None)
    assert [(row.video, row.caption, row.fps) for row in listing.rows] == [
        ("walk.v2", "A man walks.", 12.0),
        ("day/a.mp4", "", None),
    ]
    assert listing.rejected == ()


def test_strange_names_are_read_as_they_are_or_told_in_one_line(tmp_path: Path) -> None:
    names = [" lead.mp4", "-dash.mp4", "100%.mp4", "a:b.mp4", "file:x.mp4", "день 犬 👍.mp4"]
    for name in (*names, "new\nline.mp4", os.fsdecode(b"caf\xe9.mp4")):
        (tmp_path / name).touch()
    _, listing = read_source(tmp_path, None)
    assert [row.video for row in listing.rows] == sorted(names)
    assert {reason_of(row.model_copy(update={"caption": "A cat."}), tmp_path) for row in listing.rows} == {"empty_file"}
    assert [entry.reason for entry in listing.rejected] == ["bad_row"] * 2
    for entry, name in zip(listing.rejected, (r"caf\udce9.mp4", r"new\nline.mp4"), strict=True):
        assert entry.evidence.isprintable()
        assert name in entry.evidence


def test_a_file_of_another_kind_is_told_where_it_has_a_caption_of_its_own(tmp_path: Path) -> None:
    files = ("a.mp4", "a.srt", "a.txt", "b.mp4.part", "b.mp4.txt", "c.xyz", "c.json", "d", "d.txt", "e.pdf", "f.txt")
    for name in (*files, "still.JPG", "still.txt"):
        (tmp_path / name).write_text("A cat.")
    _, listing = read_source(tmp_path, None)
    assert [row.video for row in listing.rows] == ["a.mp4", "still.JPG"]
    told = {entry.subject_id.rpartition(":")[2]: entry.evidence for entry in listing.rejected}
    assert {entry.reason for entry in listing.rejected} == {"bad_row"}
    assert "a caption without a video beside it" in told.pop("f.txt")
    assert set(told) == {"b.mp4.part", "c.xyz", "d"}
    assert "'.xyz'" in told["c.xyz"]
    assert all(".mkv" in evidence for evidence in told.values())


def test_columns_that_nobody_reads_are_told_with_the_name_that_was_meant(tmp_path: Path) -> None:
    rows = [{"video": "a.mp4", "caption": "A dog.", "licence": "CC0", "colour": "red"}]
    for kind in ("csv", "jsonl"):
        listing = read_source(written(tmp_path, kind, rows), None)[1]
        assert listing.ignored_columns == ("colour", "licence (is it license?)")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").touch()
    (tmp_path / "videos/a.json").write_text(json.dumps({"caption": "A dog.", "start": 3}))
    assert read_source(tmp_path / "videos", None)[1].ignored_columns == ("start (is it start_s?)",)


def test_only_the_first_row_is_read_to_check_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = written(tmp_path, "jsonl", [{"video": "a.mp4", "caption": "A dog."}] * 50)
    read: list[str] = []
    whole = raw_rows._object
    monkeypatch.setattr(raw_rows, "_object", lambda text: read.append(text) or whole(text))
    check_source(manifest, None)
    assert len(read) == 1
    assert len(read_source(manifest, None)[1].rejected) == 49


def test_rows_before_all_columns_were_seen_are_not_lost(tmp_path: Path) -> None:
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text('{"caption": "A cat."}\n{broken\n{"video": "a.mp4"}\n{"video": "b.mp4", "caption": "A dog."}')
    listing = read_source(manifest, None)[1]
    assert [(row.video, row.caption) for row in listing.rows] == [("a.mp4", ""), ("b.mp4", "A dog.")]
    assert len(listing.rejected) == 2


def test_paths_are_relative_to_a_given_root(tmp_path: Path) -> None:
    (tmp_path / "videos/day").mkdir(parents=True)
    (tmp_path / "videos/day/a.mp4").touch()
    root, listing = read_source(tmp_path / "videos/day", tmp_path / "videos")
    assert (root, listing.rows[0].video) == (tmp_path / "videos", "day/a.mp4")
    root, listing = read_source(written(tmp_path, "csv", ROWS), tmp_path / "videos")
    assert (root, listing.rows[0].video) == (tmp_path / "videos", "a.mp4")


def test_a_bad_row_costs_itself_only(tmp_path: Path) -> None:
    manifest = tmp_path / "clips.jsonl"
    good = {"video": "a.mp4", "caption": "A dog."}
    lines = [
        json.dumps(good | {"id": "1"}),
        "{broken",
        "[]",
        json.dumps({"caption": "no video"}),
        json.dumps(good | {"start_s": "soon"}),
        json.dumps(good | {"end_s": float("nan")}),
        json.dumps(good | {"caption": ["a", "list"]}),
        json.dumps(good | {"video": "a\0.mp4"}),
        json.dumps(good | {"caption": "half a pair \ud800"}),
        json.dumps(good | {"id": 1}),
        json.dumps(good | {"id": "2"}),
    ]
    manifest.write_bytes("\n".join(lines).encode() + b'\n{"video": "a.mp4", "caption": "caf\xe9"}\n')
    listing = read_source(manifest, None)[1]
    assert [row.source_id for row in listing.rows] == ["1", "2"]
    assert {entry.reason for entry in listing.rejected} == {"bad_row"}
    assert len(listing.rejected) == len(lines) - 1
    assert "came before" in next(entry.evidence for entry in listing.rejected if entry.subject_id == "1")


def test_bad_csv_rows_cost_themselves_only(tmp_path: Path) -> None:
    manifest = tmp_path / "clips.csv"
    long_field = "x" * 200_000
    manifest.write_bytes(
        f"video,caption\na.mp4,A dog.\na.mp4,one,two\n{long_field},A cat.\n\nb.mp4\n".encode() + b"c.mp4,caf\xe9\n"
    )
    listing = read_source(manifest, None)[1]
    assert [(row.video, row.caption) for row in listing.rows] == [("a.mp4", "A dog."), ("b.mp4", "")]
    assert [entry.reason for entry in listing.rejected] == ["bad_row"] * 3


def test_sources_that_cannot_be_read_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "lacking.csv").write_text("path,caption\na.mp4,A dog.\n")
    (tmp_path / "lacking.jsonl").write_text('{"video": "a.mp4"}\n')
    (tmp_path / "other.csv").write_text("videos,Captions\na.mp4,A dog.\n")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "header.csv").write_text("video,caption\n")
    (tmp_path / "broken.parquet").write_text("not parquet")
    (tmp_path / "clips.xlsx").touch()
    expected = {
        "absent": "does not exist",
        "empty": "holds no video file",
        "lacking.csv": "lacks video",
        "lacking.jsonl": "lacks caption",
        "other.csv": r"lacks video \(is it videos\?\) and caption \(is it Captions\?\)",
        "empty.csv": "lacks video and caption",
        "empty.jsonl": "holds no row",
        "header.csv": "holds no row",
        "broken.parquet": "cannot be read",
        "clips.xlsx": "must be one of .csv, .jsonl, .parquet",
    }
    for name, message in expected.items():
        for read in (read_source, check_source):
            with pytest.raises(SourceError, match=message) as caught:
                read(tmp_path / name, None)
            assert "\n" not in str(caught.value)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(SourceError, match="does not lie in"):
        read_source(tmp_path / "empty", tmp_path / "elsewhere")


def test_a_row_gives_one_clip_a_shot_and_names_those_too_short(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video("v/a.mp4", num_frames=100, cuts=(40, 50), options={"bf": "2"})
    row = row_of("v/a.mp4", license="CC0")
    clip_set = clips_of(row, tmp_path, CONFIG)
    assert [(clip.start_frame, clip.end_frame) for clip in clip_set.clips] == [(0, 40), (50, 100)]
    second = clip_set.clips[1]
    assert (second.start_s, second.end_s, second.fps) == pytest.approx((2.0, 4.0, 25.0))
    assert (second.height_px, second.width_px) == (64, 96)
    assert (second.video, second.video_sha256, second.license) == ("v/a.mp4", video_sha256(path), "CC0")
    (entry,) = clip_set.rejected
    assert entry.reason == "shot_too_short"
    assert entry.clip_id == entry.subject_id
    assert len({clip.clip_id for clip in clip_set.clips} | {entry.clip_id}) == 3
    assert clips_of(row, tmp_path, CONFIG) == clip_set


def test_a_span_takes_the_frames_that_appear_within_it(make_video: MakeVideo, tmp_path: Path) -> None:
    make_video(num_frames=100)
    (clip,) = clips_of(row_of("a.mp4", start_s=1.0, end_s=2.0), tmp_path, CONFIG).clips
    assert (clip.start_frame, clip.end_frame) == (25, 50)
    assert (clip.start_s, clip.end_s) == pytest.approx((1.0, 2.0))
    (clip,) = clips_of(row_of("a.mp4", start_s=1.01, end_s=4.4), tmp_path, CONFIG).clips
    assert (clip.start_frame, clip.end_frame) == (26, 100)


@pytest.mark.parametrize(
    ("start_s", "end_s"), [(-1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (5.0, None), (0.0, 9.0), (1.01, 1.02)]
)
def test_spans_without_frames_are_rejected(
    make_video: MakeVideo, tmp_path: Path, start_s: float, end_s: float | None
) -> None:
    make_video(num_frames=100)
    assert reason_of(row_of("a.mp4", start_s=start_s, end_s=end_s), tmp_path) == "bad_span"


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("", "no_caption"),
        ("1234 ... !", "no_caption"),
        ("a dog " * 2000, "caption_too_long"),
        ("Собака бежит по траве", "unsupported_language"),
        ("一只狗在草地上奔跑 dog", "unsupported_language"),
    ],
)
def test_captions_that_agents_cannot_read_are_rejected(tmp_path: Path, caption: str, reason: str) -> None:
    assert reason_of(row_of("a.mp4", caption), tmp_path) == reason


def test_accented_latin_captions_pass(make_video: MakeVideo, tmp_path: Path) -> None:
    make_video()
    assert clips_of(row_of("a.mp4", "Un café où naît l'été, 東京"), tmp_path, CONFIG).clips


def test_no_path_leads_out_of_the_root(make_video: MakeVideo, tmp_path: Path) -> None:
    outside = make_video("outside.mp4")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.mp4").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    for video in ("../outside.mp4", "link.mp4", "folder/outside.mp4", str(outside)):
        assert reason_of(row_of(video), root) == "outside_root"
    (root / "inside.mp4").write_bytes(outside.read_bytes())
    (root / "inner_link.mp4").symlink_to(root / "inside.mp4")
    assert clips_of(row_of("inner_link.mp4"), root, CONFIG).clips


def test_videos_that_cannot_be_used_are_rejected_with_their_reason(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("words")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    make_video("one.mp4", num_frames=1)
    make_video("short.mp4", num_frames=10)
    make_video("large.mp4")
    assert reason_of(row_of("absent.mp4"), tmp_path) == "missing_file"
    assert reason_of(row_of("x" * 300 + ".mp4"), tmp_path) == "missing_file"
    assert reason_of(row_of("loop.mp4"), tmp_path) == "missing_file"
    assert reason_of(row_of("folder"), tmp_path) == "missing_file"
    assert reason_of(row_of("empty.mp4"), tmp_path) == "empty_file"
    assert reason_of(row_of("text.mp4"), tmp_path) == "unreadable_video"
    assert reason_of(row_of("one.mp4"), tmp_path) == "still_image"
    assert reason_of(row_of("short.mp4"), tmp_path) == "shot_too_short"
    assert reason_of(row_of("large.mp4"), tmp_path, ClipConfig(max_frame_px=64 * 96 - 1)) == "too_large"


def test_of_a_cut_off_file_what_decodes_is_used_and_said(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video("a.mkv", num_frames=200, options={"g": "12"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    left = probe(path)
    assert 50 < left.num_frames < 150
    for end_s in (None, 8.0):
        clip_set = clips_of(row_of("a.mkv", end_s=end_s), tmp_path, CONFIG)
        assert [(clip.start_frame, clip.end_frame) for clip in clip_set.clips] == [(0, left.num_frames)]
        (entry,) = clip_set.rejected
        assert (entry.reason, entry.subject_id, entry.clip_id) == ("truncated", "s", "")
        assert f"{left.num_frames} frames, {left.duration_s:.3f} s of the 8.000 s" in entry.evidence
    assert reason_of(row_of("a.mkv", start_s=7.0, end_s=8.0), tmp_path) == "truncated"
    assert reason_of(row_of("a.mkv", start_s=2.0, end_s=1.0), tmp_path) == "bad_span"


def test_the_rate_of_a_folder_of_images_is_the_rows_else_the_profiles(tmp_path: Path) -> None:
    (tmp_path / "walk").mkdir()
    for number in range(30):
        cv2.imwrite(str(tmp_path / "walk" / f"{number}.png"), np.full((32, 48, 3), number, np.uint8))
    (clip,) = clips_of(row_of("walk"), tmp_path, CONFIG).clips
    assert (clip.fps, clip.end_frame, clip.end_s) == (24.0, 30, 30 / 24)
    (clip,) = clips_of(row_of("walk", fps=10.0), tmp_path, ClipConfig(frame_folder_fps=5.0)).clips
    assert (clip.fps, clip.end_s) == (10.0, 3.0)
    (clip,) = clips_of(row_of("walk", start_s=2.0), tmp_path, ClipConfig(frame_folder_fps=5.0)).clips
    assert (clip.fps, clip.start_frame) == (5.0, 10)
