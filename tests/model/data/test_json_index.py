import json
import os
from pathlib import Path
from typing import Any

import pytest

from model.data import json_index
from model.data.json_index import DataFileError, JsonIndex

ROWS: list[Any] = [
    {"id": 1, "text": 'a "quoted" ] } brace \\', "deep": [[{"a": [1, 2, {"b": []}]}], {}]},
    {"counts": "\\]1[0`0}{", "end": "\\\\"},
    {},
    [],
    {"ü": "日本 \u2028", "null": None, "n": -1.5e3},
    "a, text",
    7,
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_each_element_of_an_array_is_what_json_load_gives(tmp_path: Path, indent: int | None, ascii_only: bool) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    lazy = JsonIndex(path)
    assert [lazy.value(at) for at in (3, 0, 6, 1)] == [ROWS[at] for at in (3, 0, 6, 1)]
    assert len(lazy) == len(ROWS)
    assert [JsonIndex(path).value(at) for at in range(len(ROWS))] == json.loads(path.read_text("utf-8"))


def test_lines_are_elements_of_a_file_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}\r\n\n  {"a": "x]"}\n{"a": 3}')
    index = JsonIndex(path)
    assert (len(index), index.value(1), index.value(2)) == (3, {"a": "x]"}, {"a": 3})
    with pytest.raises(IndexError):
        index.value(3)


@pytest.mark.parametrize("text", ["[]", " [ ]\n", "", "\n"])
def test_a_file_may_hold_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert len(JsonIndex(path)) == 0


def test_the_first_element_is_there_before_a_broken_end_is_met(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"a": 1}, {"b": [2]}])[:-3])
    index = JsonIndex(path)
    assert index.value(0) == {"a": 1}
    with pytest.raises(DataFileError, match="after 1 elements, at byte"):
        len(index)


@pytest.mark.parametrize("text", ['[{"a": 1} {"a": 2}]', '[{"a": 1},]', '[{"a": 1}] x', "[1", "[,1]", "[" * 99])
def test_what_is_no_array_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataFileError, match="breaks off or is no JSON array"):
        len(JsonIndex(path))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("video,caption\n")
    with pytest.raises(DataFileError, match="neither a JSON array nor JSON objects"):
        JsonIndex(tmp_path / "a.csv")
    with pytest.raises(DataFileError, match="cannot be read"):
        JsonIndex(tmp_path / "absent.json")


def test_a_finished_index_is_kept_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS))
    assert len(JsonIndex(path)) == len(ROWS)
    path_scans: list[int] = []
    monkeypatch.setattr(json_index.JsonIndex, "_scan", lambda self, count: path_scans.append(1))
    again = JsonIndex(path)
    assert (again.value(1), len(again), path_scans) == (ROWS[1], len(ROWS), [])
    os.utime(path, ns=(1, 1))
    with pytest.raises(IndexError):
        JsonIndex(path).value(1)
    assert path_scans == [1]


def test_a_torn_index_is_made_anew(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS))
    len(JsonIndex(path))
    (kept,) = (cache / "json-index").iterdir()
    kept.write_bytes(kept.read_bytes()[:70])
    assert len(JsonIndex(path)) == len(ROWS)
