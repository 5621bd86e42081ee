"""A source becomes clips and units, and no video is cut twice."""

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import cv2
import numpy as np
import pytest

from flows import cut_rows as cut_rows_module
from flows.plan import Plan, plan_build
from flows.profile_config import load_profile
from infra.cutting import CutJob, Cutter, RowCut
from infra.lake import Lake
from infra.sources import SourceError, read_source

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a child cannot import tests


class NoCutting(Cutter):
    """To it cutting a row is an error."""

    def process(self, jobs: Sequence[CutJob]) -> list[RowCut]:
        raise AssertionError("a video was read")


class Crashing(Cutter):
    """Crashes in C at one row, as a decoder does at a file that was made to do that."""

    def process(self, jobs: Sequence[CutJob]) -> list[RowCut]:
        if any(job.row.source_id == "row-a" for job in jobs):
            ctypes.string_at(0)
        return super().process(jobs)


def planned(source: Path, lake: Path, limit: int | None = None, **changes: Any) -> Plan:
    profile = load_profile("embedded").model_copy(update=changes)
    return plan_build(source, None, Lake(lake), profile, limit, lambda line: None)


def manifest_of(video: Path, num_rows: int) -> Path:
    """A manifest in which one video stands under many captions: many clips at the price of one file."""
    manifest = video.parent / "rows.csv"
    lines = [f"r{number},{video.name},A cat number {number}." for number in range(num_rows)]
    manifest.write_text("\n".join(["id,video,caption", *lines]))
    return manifest


@pytest.fixture
def no_cutting(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on cutting a row is an error, which costs the row."""
    monkeypatch.setattr(cut_rows_module, "Cutter", NoCutting)


def test_cutting_is_timed_where_rows_are_cut(two_videos: Path, tmp_path: Path) -> None:
    first, again = planned(two_videos, tmp_path / "lake"), planned(two_videos, tmp_path / "lake")
    assert first.cutting is not None
    assert (first.cutting.agent, first.cutting.clips, first.cutting.cost) == ("cutting", len(first.clips), None)
    assert first.cutting.busy_s > 0
    assert again.cutting is None


def test_rows_become_clips_in_the_order_of_the_source(two_videos: Path, tmp_path: Path) -> None:
    plan = planned(two_videos, tmp_path / "lake")
    assert [clip.source_id for clip in plan.clips] == ["row-a", "row-b"]
    assert [clip.num_frames for clip in plan.clips] == [40, 45]
    assert (plan.num_rows, plan.videos_root) == (3, two_videos)
    assert [(entry.stage, entry.reason) for entry in plan.rejected] == [("source", "no_caption")]


@pytest.mark.parametrize(
    ("clips_per_unit", "max_units", "sizes"),
    [(8, 200, [7]), (3, 200, [3, 3, 1]), (1, 200, [1] * 7), (1, 3, [3, 3, 1]), (2, 2, [4, 3]), (1, 1, [7])],
)
def test_units_hold_the_wished_number_of_clips_unless_they_would_become_too_many(
    make_video: Any, tmp_path: Path, clips_per_unit: int, max_units: int, sizes: list[int]
) -> None:
    source = manifest_of(make_video(), 7)
    plan = planned(source, tmp_path / "lake", clips_per_unit=clips_per_unit, max_units=max_units)
    assert [len(unit) for unit in plan.units] == sizes
    assert tuple(clip for unit in plan.units for clip in unit) == plan.clips


def test_a_second_plan_reads_no_video(two_videos: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    first = planned(two_videos, tmp_path / "lake")
    request.getfixturevalue("no_cutting")
    assert first.cutting
    assert planned(two_videos, tmp_path / "lake") == replace(first, cutting=None)


def test_a_changed_file_is_cut_again(two_videos: Path, tmp_path: Path, make_video: Any) -> None:
    first = planned(two_videos, tmp_path / "lake")
    make_video("source/b.mp4", num_frames=30)
    second = planned(two_videos, tmp_path / "lake")
    assert second.clips[0] == first.clips[0]
    assert (second.clips[1].num_frames, second.clips[1].source_id) == (30, "row-b")
    assert second.clips[1].video_sha256 != first.clips[1].video_sha256


def test_a_touched_file_gives_the_same_clips(two_videos: Path, tmp_path: Path) -> None:
    first = planned(two_videos, tmp_path / "lake")
    os.utime(two_videos / "a.mp4", (1, 1))
    assert planned(two_videos, tmp_path / "lake").clips == first.clips


def test_a_missing_video_is_quarantined_until_it_is_there(two_videos: Path, tmp_path: Path, make_video: Any) -> None:
    manifest = two_videos / "rows.csv"
    manifest.write_text("video,caption\nlate.mp4,A cat.")
    assert [entry.reason for entry in planned(manifest, tmp_path / "lake").rejected] == ["missing_file"]
    make_video("source/late.mp4")
    late = planned(manifest, tmp_path / "lake")
    assert ([clip.video for clip in late.clips], late.rejected) == (["late.mp4"], ())


def test_other_cutting_rules_cut_again(two_videos: Path, tmp_path: Path) -> None:
    planned(two_videos, tmp_path / "lake")
    rules = load_profile("embedded").clips.model_copy(update={"min_shot_s": 1.7})
    strict = planned(two_videos, tmp_path / "lake", clips=rules)
    assert [clip.source_id for clip in strict.clips] == ["row-b"]
    assert [entry.reason for entry in strict.rejected] == ["shot_too_short", "no_caption"]


def test_a_limit_takes_the_first_rows_and_reads_no_other_video(
    two_videos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = planned(two_videos, tmp_path / "lake", limit=1)
    assert ([clip.source_id for clip in first.clips], first.num_rows) == (["row-a"], 1)
    request.getfixturevalue("no_cutting")
    assert planned(two_videos, tmp_path / "lake", limit=1) == replace(first, cutting=None)
    (entry,) = planned(two_videos, tmp_path / "lake", limit=2).rejected
    assert (entry.source_id, entry.evidence) == ("row-b", "b.mp4: AssertionError: a video was read")


def test_a_video_that_crashes_its_decoder_costs_its_row_only_and_is_tried_again(
    two_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cut_rows_module, "Cutter", Crashing)
        plan = planned(two_videos, tmp_path / "lake")
    assert [clip.source_id for clip in plan.clips] == ["row-b"]
    assert [(entry.source_id, entry.reason) for entry in plan.rejected[:1]] == [("row-a", "unreadable_video")]
    assert plan.rejected[0].evidence.startswith("a.mp4: its process died of SIGSEGV")
    assert [clip.source_id for clip in planned(two_videos, tmp_path / "lake").clips] == ["row-a", "row-b"]


def test_a_source_without_clips_is_a_plan_without_units(make_video: Any, tmp_path: Path) -> None:
    make_video("silent/a.mp4")
    plan = planned(tmp_path / "silent", tmp_path / "lake")
    assert (plan.clips, plan.units, len(plan.rejected)) == ((), (), 1)


def test_a_source_that_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is empty"):
        planned(tmp_path, tmp_path / "lake")


def test_a_video_that_leads_out_of_the_root_is_refused_even_where_its_cuts_are_in_the_lake(
    make_video: Any, tmp_path: Path
) -> None:
    video = make_video("source/a.mp4")
    source = manifest_of(video, 1)
    assert len(planned(source, tmp_path / "lake").clips) == 1
    outside = tmp_path / "outside.mp4"
    video.rename(outside)
    video.symlink_to(outside)
    again = planned(source, tmp_path / "lake")
    assert ([entry.reason for entry in again.rejected], again.clips) == (["outside_root"], ())
    video.unlink()
    outside.rename(video)
    assert len(planned(source, tmp_path / "lake").clips) == 1


def test_columns_that_nobody_reads_are_said_once(make_video: Any, tmp_path: Path) -> None:
    manifest = make_video().with_name("rows.csv")
    manifest.write_text("video,caption,licence,x\na.mp4,A cat.,CC0,1\na.mp4,A dog.,CC0,2\n")
    lines: list[str] = []
    plan = plan_build(manifest, None, Lake(tmp_path / "lake"), load_profile("embedded"), None, lines.append)
    assert len(plan.clips) == 2
    assert [line for line in lines if "nobody reads" in line] == [
        "columns that nobody reads: licence (is it license?), x"
    ]


def test_a_changed_image_of_a_frame_folder_is_cut_again(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "walk"
    folder.mkdir(parents=True)
    for number in range(24):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((64, 96, 3), 100 + number, np.uint8))
    folder.with_suffix(".txt").write_text("A cat.")
    (first,) = planned(folder.parent, tmp_path / "lake").clips
    cv2.imwrite(str(folder / "3.png"), np.full((64, 96, 3), 3, np.uint8))
    (second, *_) = planned(folder.parent, tmp_path / "lake").clips
    assert second.video_sha256 != first.video_sha256


def test_a_lake_inside_its_source_is_no_part_of_it(lake_by_hand: Any, tmp_path: Path) -> None:
    lake_by_hand.publish()
    assert Path(lake_by_hand.lake.root).is_relative_to(tmp_path)
    _, listing = read_source(tmp_path, None)
    assert [row.video for row in listing.rows] == ["source/a.mp4", "source/b.mp4", "source/silent.mp4"]
    assert listing.rejected == ()
