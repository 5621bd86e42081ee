"""Answers of chat servers on disk, one file each, named by the SHA-256 of the question's payload.

A file appears whole or not at all, so a run killed at any moment leaves only answers that count, and runs may share a
folder. A file that cannot be read counts as no answer and is replaced. No address is part of a payload: the same model
elsewhere has the same answers.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue, ValidationError

from infra.chat import Completion
from infra.whole_file import write_whole
from schemas.record import Record


class _Answer(Record):
    payload: dict[str, JsonValue]
    completion: Completion


class AnswerCache:
    """Answers by question. The folder is made; to ask everything again, name another or delete it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, payload: Mapping[str, JsonValue]) -> Completion | None:
        """The answer to exactly this payload, if there is one."""
        try:
            return _Answer.model_validate_json(self._path(payload).read_bytes()).completion
        except (FileNotFoundError, ValidationError):
            return None

    def put(self, payload: Mapping[str, JsonValue], completion: Completion) -> None:
        """Keep an answer; it is on the disk when this returns. Raises OSError."""
        answer = _Answer(payload=dict(payload), completion=completion)
        write_whole(self._path(payload), answer.model_dump_json(indent=1).encode())

    def _path(self, payload: Mapping[str, JsonValue]) -> Path:
        return self._folder / f"{payload_hash(payload)}.json"


def payload_hash(payload: Mapping[str, JsonValue]) -> str:
    """SHA-256 (hex) of the payload's canonical JSON."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
