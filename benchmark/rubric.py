"""What a judge is told: the four dimensions of Bench-D in our own words, or the text of a file the user has.

A file is the system message as it stands. A line `<<<user>>>` in it begins the user's message, with the places
`{reference}` and `{prediction}`; without that line, ours is used. For replies in JSON a note on their keys is added to
any rubric; for replies as text only ours gets one, since a user's text says by itself what it wants.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from benchmark.judge_reply import DIMENSIONS
from infra.chat import Message
from schemas.record import Record, content_id

OWN = "own words"

ReplyFormat = Literal["json", "text"]

_SECTION = re.compile(r"^<<<(\w+)>>>[ \t]*\r?\n", re.MULTILINE)
_PLACE = re.compile(r"\{(reference|prediction|keys|error)\}")


class RubricError(ValueError):
    """A rubric's file that cannot be used; the message is one line."""


class Rubric(Record):
    """The texts of a judge's prompt; `name` is `own words` or the file's name."""

    name: str
    system: str
    user: str
    json_note: str
    text_note: str
    again: str

    def messages(self, reference: str, prediction: str, reply_format: ReplyFormat) -> tuple[Message, ...]:
        """The question about one item. Both texts go in as they are, whatever braces they hold."""
        user = _filled(self.user, reference=reference, prediction=prediction)
        return (
            Message(role="system", content=self._system(reply_format)),
            Message(role="user", content=user),
        )

    def ask_again(self, reply: str, error: str) -> tuple[Message, ...]:
        """What is added to a question to show the judge its reply and what is wrong with it."""
        return (
            Message(role="assistant", content=reply),
            Message(role="user", content=_filled(self.again, error=error)),
        )

    def prompt_hash(self, reply_format: ReplyFormat, *, explained: bool) -> str:
        """SHA-256 (hex) over every text a judge may be sent apart from the items, and over the schema."""
        schema = content_id(str(reply_schema(explained=explained)) if reply_format == "json" else "")
        return content_id(self._system(reply_format), self.user, self.again, schema)

    def _system(self, reply_format: ReplyFormat) -> str:
        note = self.json_note if reply_format == "json" else self.text_note
        return f"{self.system.rstrip()}\n\n{note}" if note else self.system


def own_rubric() -> Rubric:
    """The packaged rubric."""
    text = (files("benchmark") / "prompts" / "judge.md").read_text(encoding="utf-8")
    parts = {name: part.strip() for name, part in _sections(text).items()}
    note = _filled(parts["json"], keys=", ".join(_key(name) for name in DIMENSIONS.values()))
    return Rubric(
        name=OWN,
        system=parts["system"],
        user=parts["user"],
        json_note=note,
        text_note=parts["text"],
        again=parts["again"],
    )


def rubric_from(path: Path) -> Rubric:
    """The user's rubric; raises RubricError for a file that is absent, not UTF-8, empty, or lacks a place."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RubricError(f"{path.name}: cannot be read as UTF-8 text ({error})") from error
    parts = _sections(text)
    if unknown := sorted(parts.keys() - {"system", "user"}):
        raise RubricError(f"{path.name}: got the section <<<{unknown[0]}>>>; only <<<user>>> is allowed")
    if not parts["system"].strip():
        raise RubricError(f"{path.name}: no text for the judge; the file should hold its instructions")
    own = own_rubric()
    user = parts.get("user", own.user)
    if lacking := [place for place in ("{reference}", "{prediction}") if place not in user]:
        raise RubricError(f"{path.name}: the part after <<<user>>> lacks {' and '.join(lacking)}")
    return own.model_copy(update={"name": path.name, "system": parts["system"], "user": user, "text_note": ""})


def reply_schema(*, explained: bool) -> dict[str, JsonValue]:
    """The JSON schema of a reply: a score of 0 to 5 for each dimension, its explanation before it or none at all.

    Only what all servers with strict schemas know: bounds as an enum, every key required, no lengths.
    """
    score: dict[str, JsonValue] = {"type": "integer", "enum": [0, 1, 2, 3, 4, 5]}
    one = _object({"explanation": {"type": "string"}, "score": score}) if explained else score
    return _object({_key(name): one for name in DIMENSIONS.values()})


def _object(properties: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _key(name: str) -> str:
    return name.lower().replace(" ", "_")


def _sections(text: str) -> dict[str, str]:
    """The text before the first `<<<name>>>` line as `system`, and the text after each such line."""
    first, *rest = _SECTION.split(text)
    return {"system": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


def _filled(template: str, **texts: str) -> str:
    """The template with its places filled in one pass; places not given stay."""
    return _PLACE.sub(lambda match: texts.get(match[1], match[0]), template)
