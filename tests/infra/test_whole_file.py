import os
from pathlib import Path

import pytest

from infra.whole_file import write_whole


def test_a_file_is_made_with_its_folder_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    for data in (b"one", b"", b"three"):
        write_whole(path, data)
        assert path.read_bytes() == data
    assert [left.name for left in path.parent.iterdir()] == ["file.json"]


def test_a_tidier_that_takes_the_unfinished_file_away_is_outlived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, taken = os.fsync, 0

    def tidy(descriptor: int) -> None:
        nonlocal taken
        for stray in tmp_path.glob("*.tmp"):
            if taken < 2:
                stray.unlink()
                taken += 1
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", tidy)
    write_whole(tmp_path / "file", b"data")
    assert (taken, (tmp_path / "file").read_bytes()) == (2, b"data")
    taken = -1
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "file", b"more")
    assert (tmp_path / "file").read_bytes() == b"data"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", b"data")
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="file"):
        write_whole(tmp_path / "file" / "below", b"data")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(left.name for left in tmp_path.iterdir()) == ["file", "folder"]
