"""`videorefer train`: what is refused is refused in one line, and what is finished is told without work."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.cli_common import BAD_USAGE, FAILED


def one_error(code: int, *args: object) -> str:
    result = CliRunner().invoke(app, ["train", *map(str, args)])
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a model: nothing is read of it before ranks start."""
    monkeypatch.setenv("COLUMNS", "400")
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "videorefer"}))
    (folder / "model.safetensors").write_bytes(b"1")
    return folder


def test_a_lake_without_the_build_is_one_line(base: Path, tmp_path: Path, lake_by_hand: Any) -> None:
    asked = ("--lake", lake_by_hand.lake.root, "--out", tmp_path / "out", "--profile", "stage2", "--init", base)
    assert "holds no build yet" in one_error(FAILED, *asked)
    lake_by_hand.publish()
    assert "has no build nope" in one_error(FAILED, *asked, "--build", "nope")
    assert "say where they are with --videos" in one_error(FAILED, *asked, "--videos", tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_a_build_with_nothing_to_train_on_is_one_line(base: Path, tmp_path: Path, lake_by_hand: Any) -> None:
    lake_by_hand.publish()
    asked = ("--lake", lake_by_hand.lake.root, "--out", tmp_path / "out", "--init", base)
    said = one_error(FAILED, *asked, "--profile", "stage1")
    assert "no sample of split train" in said
    assert "data.extra" in said


def test_a_profile_without_a_base_asks_for_one(tmp_path: Path) -> None:
    said = one_error(BAD_USAGE, "--lake", tmp_path, "--out", tmp_path / "out", "--profile", "stage3")
    assert "--init MODEL_DIR" in said


def test_an_unknown_profile_names_the_nearest(tmp_path: Path) -> None:
    said = one_error(BAD_USAGE, "--lake", tmp_path, "--out", tmp_path / "out", "--profile", "stage2.6")
    assert "the nearest is 'stage2" in said


def test_a_folder_without_a_model_is_no_base(tmp_path: Path, lake_by_hand: Any) -> None:
    lake_by_hand.publish()
    asked = ("--lake", lake_by_hand.lake.root, "--out", tmp_path / "out", "--profile", "stage3")
    assert "holds no model" in one_error(FAILED, *asked, "--init", tmp_path)


def test_another_architecture_is_no_base(base: Path, tmp_path: Path, lake_by_hand: Any) -> None:
    (base / "config.json").write_text(json.dumps({"model_type": "llava"}))
    asked = ("--lake", lake_by_hand.lake.root, "--out", tmp_path / "out", "--profile", "stage2")
    said = one_error(BAD_USAGE, *asked, "--init", base)
    assert "of type 'llava'; allowed as a whole model are 'videorefer'" in said
    assert not (tmp_path / "out").exists()


def test_out_may_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    said = one_error(BAD_USAGE, "--lake", tmp_path, "--out", tmp_path / "out")
    assert "is a file; name a folder" in said
