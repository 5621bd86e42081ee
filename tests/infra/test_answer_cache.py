"""Kept answers: found again, with their questions, and never the reason why a clip fails."""

import json
import logging
import os
from pathlib import Path

import pytest

from infra.answer_cache import AnswerCache, payload_hash
from infra.chat import Completion
from infra.whole_file import write_whole

ANSWER = Completion(
    text="hello \N{DOG}", finish_reason="stop", prompt_tokens=11, completion_tokens=None, refusal="", model="m",
    system_fingerprint="", server_version="1.2",
)  # fmt: skip


def payloads(number: int) -> list[dict[str, object]]:
    return [{"question": f"what is {n}?", "schema": {"title": "x" * 3000}} for n in range(number)]


def test_an_answer_is_that_of_its_own_question_in_this_process_and_the_next(tmp_path: Path) -> None:
    asked = payloads(300)
    for number, payload in enumerate(asked):
        AnswerCache(tmp_path).put(payload, ANSWER.model_copy(update={"text": f"it is {number}"}))
    cache = AnswerCache(tmp_path)
    assert [cache.get(payload).text for payload in asked] == [f"it is {number}" for number in range(300)]
    assert cache.get({"question": "another"}) is None
    cache.put(asked[0], ANSWER)
    assert cache.get(asked[0]) == ANSWER


def test_files_hold_the_question_too_and_are_spread_over_folders(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    asked = payloads(300)
    for payload in asked:
        cache.put(payload, ANSWER)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 300
    kept = {path.stem: json.loads(path.read_bytes())["payload"] for path in files}
    assert kept == {payload_hash(payload): payload for payload in asked}
    assert all(path.parent.name == path.stem[:2] for path in files)
    assert len({path.parent for path in files}) > 100


@pytest.mark.parametrize("kept", [b"", b"{", b"\0" * 200, b"[]", b'{"text": "hello"}'])
def test_what_a_power_cut_leaves_is_no_answer_and_is_replaced(tmp_path: Path, kept: bytes) -> None:
    (payload,), cache = payloads(1), AnswerCache(tmp_path)
    cache.put(payload, ANSWER)
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(kept)
    assert cache.get(payload) is None
    cache.put(payload, ANSWER)
    assert cache.get(payload) == ANSWER


def test_no_beginning_of_a_file_is_an_answer(tmp_path: Path) -> None:
    (payload,), cache = payloads(1), AnswerCache(tmp_path)
    cache.put(payload, ANSWER)
    (path,) = tmp_path.rglob("*.json")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert cache.get(payload) is None


def test_a_disk_that_cannot_be_read_is_told_once_and_is_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked, cache = payloads(3), AnswerCache(tmp_path)
    for payload in asked[:2]:
        name = payload_hash(payload)
        (tmp_path / name[:2] / f"{name}.json").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert [cache.get(payload) for payload in asked] == [None] * 3
    (line,) = caplog.messages
    assert "Is a directory" in line


def test_an_answer_waits_for_no_disk_and_other_files_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    AnswerCache(tmp_path).put(payloads(1)[0], ANSWER)
    assert synced == []
    write_whole(tmp_path / "file", json.dumps({}).encode())
    assert len(synced) == 2
