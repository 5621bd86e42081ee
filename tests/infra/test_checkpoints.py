"""Model folders are found on this disk alone and named by what is in them."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra import checkpoints
from infra.checkpoints import CheckpointError, check_mark, checkpoint_folder, checkpoint_label, checkpoint_mark
from infra.weights import WeightError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as `save_pretrained` writes it, of a few bytes."""
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "some"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty hub cache and nothing to ask, so that a name alone leads nowhere."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_label_is_the_folders_name_and_the_start_of_a_hash(model: Path) -> None:
    name, _, digest = checkpoint_label(str(model)).partition("@")
    assert name == "some-model"
    assert len(digest) == 12
    assert set(digest) <= set("0123456789abcdef")
    assert checkpoint_label(f"{model}/") == checkpoint_label(str(model))


def test_a_copy_elsewhere_has_the_same_label(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "some-model"
    shutil.copytree(model, copy)
    (copy / "README.md").write_text("a card")
    (copy / ".gitattributes").write_text("")
    (copy / "pytorch_model.bin").write_bytes(b"a pickle that nobody reads")
    assert checkpoint_label(str(copy)) == checkpoint_label(str(model))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "merges.txt"])
def test_a_change_of_any_file_that_is_read_changes_the_label(model: Path, name: str) -> None:
    before = checkpoint_label(str(model))
    path = model / name
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")
    os.utime(path, ns=(stamp, stamp))  # size alone must tell
    assert checkpoint_label(str(model)) != before


def test_a_change_that_keeps_the_size_is_seen_by_its_time(model: Path) -> None:
    before = checkpoint_label(str(model))
    (model / "model.safetensors").write_bytes(b"wEIGHTS")
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert checkpoint_label(str(model)) != before


def test_a_large_file_is_read_once_on_a_machine_and_again_where_it_changed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoints, "_KEPT_FROM_BYTES", 5)
    weights = model / "model.safetensors"
    read: list[str] = []
    digest_of = hashlib.file_digest

    def noted(file: Any, kind: str) -> Any:
        read.append(file.name)
        return digest_of(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", noted)

    def label_in_a_new_process() -> str:
        checkpoints._sha256.cache_clear()
        return checkpoint_label(str(model))

    before = label_in_a_new_process()
    assert read.count(str(weights)) == 1
    assert label_in_a_new_process() == before
    assert read.count(str(weights)) == 1
    stamp = weights.stat().st_mtime_ns
    weights.write_bytes(b"wEIGHTS")
    os.utime(weights, ns=(stamp, stamp))  # as `cp -p` leaves it
    assert label_in_a_new_process() != before


def test_a_missing_model_is_said_in_one_line_with_what_to_do(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), "some-org/some-model", "a/b/c"):
        can_be_fetched = name.count("/") == 1
        with pytest.raises(CheckpointError) as raised:
            checkpoint_folder(name)
        said = str(raised.value)
        assert name in said
        assert f"hf download {name if can_be_fetched else f'NAME --local-dir {name}'}" in said
        assert "\n" not in said
        assert isinstance(raised.value, WeightError)
        with pytest.raises(CheckpointError):
            checkpoint_label(name)


@pytest.mark.parametrize(
    ("gone", "said"), [("config.json", "no config.json"), ("model.safetensors", r"no \*\.safetensors")]
)
def test_a_folder_that_is_no_model_is_refused(model: Path, gone: str, said: str) -> None:
    (model / gone).unlink()
    (model / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(CheckpointError, match=said):
        checkpoint_folder(str(model))


def test_a_hub_name_stands_for_what_the_hubs_cache_holds(model: Path, tmp_path: Path) -> None:
    revision = "0" * 40
    repository = tmp_path / "hub" / "models--some-org--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(model, repository / "snapshots" / revision)
    assert checkpoint_folder("some-org/some-model") == repository / "snapshots" / revision
    assert checkpoint_label("some-org/some-model") == checkpoint_label(str(model))


def test_a_mark_is_the_same_wherever_the_folder_lies_and_for_no_other_content(model: Path, tmp_path: Path) -> None:
    mark = checkpoint_mark(str(model))
    copy = shutil.copytree(model, tmp_path / "elsewhere" / "some-model")
    (copy / "README.md").write_text("a card")
    check_mark(str(copy), mark)
    for name, content in (("model.safetensors", b"wEIGHTS"), ("config.json", b"{}"), ("merges.txt", b"")):
        before = (copy / name).read_bytes() if (copy / name).exists() else None
        (copy / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"elsewhere/some-model on .* is not the model") as raised:
            check_mark(str(copy), mark)
        assert "\n" not in str(raised.value)
        (copy / name).unlink() if before is None else (copy / name).write_bytes(before)
    check_mark(str(copy), mark)


def test_a_mark_tells_large_files_apart_by_samples_of_both_ends_and_between(model: Path) -> None:
    weights = model / "model.safetensors"
    size = 40 * 2**20
    with weights.open("wb") as file:
        file.truncate(size)
    mark = checkpoint_mark(str(model))
    for place, is_seen in ((0, True), (size - 1, True), (size // 30, False)):
        with weights.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        assert (checkpoint_mark(str(model)) != mark) == is_seen
        with weights.open("r+b") as file:
            file.seek(place)
            file.write(b"\0")
    weights.write_bytes(bytes(range(1, 256)) * (size // 255) + bytes(size % 255))  # as if tuned: all of it is another
    assert weights.stat().st_size == size
    assert checkpoint_mark(str(model)) != mark


def test_a_missing_model_has_no_mark(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no model folder"):
        check_mark(str(tmp_path / "nowhere" / "at" / "all"), "")
