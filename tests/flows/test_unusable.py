"""What cannot work stops the command before any work: one line, its exit status, and nothing written."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.profile_config import load_profile
from flows.wiring import agent_labels, required_weights
from infra.weights import CATALOGUE, FETCH_COMMAND

FAILED, BAD_USAGE = 1, 2
SHIPPED = Path(__file__).parents[2] / "flows" / "profiles" / "painted.toml"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that seems to hold every weight: what is refused here is refused before one is loaded."""
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")
    for weight in required_weights(agent_labels(load_profile("embedded"))):
        CATALOGUE[weight].path.parent.mkdir(parents=True, exist_ok=True)
        CATALOGUE[weight].path.touch()


@pytest.fixture
def source(make_video: Any) -> Path:
    """A folder of one captioned video."""
    video: Path = make_video("source/a.mp4")
    video.with_suffix(".txt").write_text("A cat.")
    return video.parent


def refused(tmp_path: Path, code: int, *args: object) -> str:
    """The one line that a command says before it stops; no file may come or go by it."""
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "lake").exists()
    return line


def refused_build(tmp_path: Path, code: int, source: Path, *args: object) -> str:
    return refused(tmp_path, code, "build", "--source", source, "--lake", tmp_path / "lake", *args)


def test_a_source_without_anything_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/readme.txt").write_text("nothing yet")
    (tmp_path / "rows.csv").write_text("video,caption\n")
    (tmp_path / "rows.xlsx").touch()
    assert "is empty: it holds no video file" in refused_build(tmp_path, BAD_USAGE, tmp_path / "empty")
    assert "is empty: it holds no row" in refused_build(tmp_path, BAD_USAGE, tmp_path / "rows.csv")
    assert "does not exist" in refused_build(tmp_path, BAD_USAGE, tmp_path / "nowhere")
    assert "must be one of .csv, .jsonl, .parquet" in refused_build(tmp_path, BAD_USAGE, tmp_path / "rows.xlsx")


def test_a_manifest_without_the_needed_columns_names_those_that_may_be_meant(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("video_file,captions\na.mp4,A cat.\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"video": "a.mp4", "Caption": "A cat."}))
    said = refused_build(tmp_path, BAD_USAGE, tmp_path / "rows.csv")
    assert "lacks video (is it video_file?) and caption (is it captions?)" in said
    assert "lacks caption (is it Caption?)" in refused_build(tmp_path, BAD_USAGE, tmp_path / "rows.jsonl")


def test_a_videos_root_that_is_none(tmp_path: Path, source: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    said = refused_build(tmp_path, BAD_USAGE, source, "--root", tmp_path / "nowhere")
    assert "is not a folder" in said
    said = refused_build(tmp_path, BAD_USAGE, source, "--root", tmp_path / "elsewhere")
    assert "does not lie in the videos root" in said


def test_an_unknown_profile_names_the_nearest(tmp_path: Path, source: Path) -> None:
    said = refused_build(tmp_path, BAD_USAGE, source, "--profile", "embeded")
    assert "no profile 'embeded'; the nearest is 'embedded'" in said
    said = refused_build(tmp_path, BAD_USAGE, source, "--profile", tmp_path / "paint.toml")
    assert "the nearest is 'painted'" in said
    said = refused_build(tmp_path, BAD_USAGE, source, "--profile", "nosuch")
    assert "no profile 'nosuch': give one of " in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("clips_per_unit", "clip_per_unit", "unknown key 'clip_per_unit'; the nearest valid one is 'clips_per_unit'"),
        ("[refiner]", "[clips]\nmax_frames_px = 9\n[refiner]", "the nearest valid one is 'clips.max_frame_px'"),
        ('engine = "template"', 'engine = "gpt-4o"', "refiner.engine: must be one of 'template'"),
        ("[refiner]", "[refiner", "not TOML"),
    ],
)
def test_a_profile_with_a_slip_says_where(tmp_path: Path, source: Path, old: str, new: str, said: str) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text(SHIPPED.read_text().replace(old, new))
    assert said in refused_build(tmp_path, BAD_USAGE, source, "--profile", profile)


@pytest.mark.parametrize("offline", ["", "1"])
def test_a_missing_weight_is_said_with_the_command_that_mends_it(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, offline: str
) -> None:
    CATALOGUE["ssd-mobilenet-v2"].path.unlink()
    if offline:
        monkeypatch.setenv("VIDEOREFER_OFFLINE", offline)
    said = refused_build(tmp_path, FAILED, source)
    assert "ssd-mobilenet-v2 is missing" in said
    assert said.endswith(f"fetch it with: {FETCH_COMMAND}")
    assert ("unset VIDEOREFER_OFFLINE" in said) == bool(offline)
    if offline:
        assert "VIDEOREFER_OFFLINE forbids fetching" in refused(tmp_path, FAILED, "doctor", "--fetch")


@pytest.mark.parametrize("lake", ["/dev/null/lake", "/proc/lake", "file", "s4://bucket/lake"])
def test_a_lake_that_cannot_be_written(tmp_path: Path, source: Path, lake: str) -> None:
    (tmp_path / "file").touch()
    where = tmp_path / lake if lake == "file" else lake
    assert str(where) in refused(tmp_path, FAILED, "build", "--source", source, "--lake", where)
