"""Which videos a bench file names, and which of a source they are."""

import json

import pytest

from benchmark.bench_videos import bench_video_ids, video_ids, videos_of
from benchmark.items import BenchFileError

NAMES = [
    "rLlzmcp3J6s_0:01:09.633_0:01:14.333.mp4",
    "-a_b-c_d_ef_0-01-09.633_0-01-14.333.webm",
    "DAVIS/JPEGImages/480p/aerobatics",
    "mevis/valid_u/JPEGImages/3b6d.c1",
]


@pytest.fixture
def ids(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps([{"video": name} for name in [*NAMES, NAMES[0]]]))
    return bench_video_ids(path)


def test_ids_are_those_of_youtube_or_the_name(ids):
    assert ids == {"rLlzmcp3J6s", "-a_b-c_d_ef", "aerobatics", "3b6d.c1"}


@pytest.mark.parametrize(
    ("video", "is_kept_out"),
    [
        *((name, True) for name in NAMES),
        ("panda/rLlzmcp3J6s.mp4", True),
        ("rLlzmcp3J6s_0:00:00.000_0:00:04.000.mp4", True),
        ("rLlzmcp3J6s_00012.MKV", True),
        ("a\\b\\aerobatics.mp4", True),
        ("2017/aerobatics", True),
        ("rLlzmcp3J6sx.mp4", False),
        ("rllzmcp3j6s.mp4", False),
        ("aerobatics_2.mp4", False),
        ("aerobatics/clip.mp4", False),
        ("3b6d.mp4", False),
    ],
)
def test_other_spans_folders_and_suffixes_are_the_same_video(ids, video, is_kept_out):
    assert (not ids.isdisjoint(video_ids(video))) == is_kept_out


@pytest.mark.parametrize("row", [{}, {"video": ""}, {"video": 3}])
def test_a_row_without_a_video_is_named(tmp_path, row):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps([{"video": "a"}, row]))
    with pytest.raises(BenchFileError, match="row 1"):
        bench_video_ids(path)


def test_a_file_without_items_is_refused(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text("[]")
    with pytest.raises(BenchFileError, match="has no items"):
        bench_video_ids(path)


def test_the_videos_of_a_folder_are_its_files_and_folders_of_images(tmp_path):
    kept = ["b.mp4", "deep/er/a.WEBM", "480p/bear/0.jpg", "480p/bear/1.jpg"]
    passed_over = [".hidden/c.mp4", ".d.mp4", "deep/er/poster.jpg", "deep/er/poster2.jpg", "one/0.jpg", "notes/a.txt"]
    for name in [*kept, *passed_over]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert videos_of(tmp_path) == ("480p/bear", "b.mp4", "deep/er/a.WEBM")
    assert videos_of(tmp_path / "480p" / "bear") == (".",)


def test_a_folder_without_videos_is_refused(tmp_path):
    for folder, said in ((tmp_path, "holds no video"), (tmp_path / "absent", "is no folder")):
        with pytest.raises(BenchFileError, match=said):
            videos_of(folder)
