"""Answers of chat servers on disk, one file each with its question, named by the SHA-256 of the question's payload.

A file appears whole or not at all, so a run killed at any moment leaves only answers that count, and runs may share a
folder, on a disk of several machines too. A power cut may tear the latest: a file that cannot be read counts as no
answer and is replaced. The question is kept for who wants to know what was asked. No address is part of a payload: the
same model elsewhere has the same answers.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue, ValidationError

from infra.chat import Completion
from infra.whole_file import write_whole
from schemas.record import Record

_LOG = logging.getLogger("chat")
_FOLDER_CHARS = 2
"""Hexadecimal digits of the hash that name the sub-folder, as in git: 256 of them keep each at thousands of files."""


class _Answer(Record):
    payload: dict[str, JsonValue]
    completion: Completion


class AnswerCache:
    """Answers by question. The folder is made; to ask everything again, name another or delete it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_warned = False
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, payload: Mapping[str, JsonValue]) -> Completion | None:
        """The answer to exactly this payload, if there is one. A disk that fails is told once in the log."""
        try:
            return _Answer.model_validate_json(self._path(payload).read_bytes()).completion
        except (FileNotFoundError, ValidationError):
            return None
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                _LOG.warning("kept answers cannot be read, and what they answer is asked again: %s", error)
            return None

    def put(self, payload: Mapping[str, JsonValue], completion: Completion) -> None:
        """Keep an answer; it outlives this process, however that ends. Raises OSError."""
        answer = _Answer(payload=dict(payload), completion=completion)
        write_whole(self._path(payload), answer.model_dump_json().encode(), synced=False)

    def _path(self, payload: Mapping[str, JsonValue]) -> Path:
        name = payload_hash(payload)
        return self._folder / name[:_FOLDER_CHARS] / f"{name}.json"


def payload_hash(payload: Mapping[str, JsonValue]) -> str:
    """SHA-256 (hex) of the payload's canonical JSON."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
