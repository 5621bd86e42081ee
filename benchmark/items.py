"""Items of Bench-Q and Bench-D as the official files have them: a JSON array, or one JSON object a line.

Masks and frames stay in the raw rows, which an item names by its `row`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from benchmark.letters import option_letters, reference_letter
from schemas.record import Record


class BenchFileError(ValueError):
    """A file of items or predictions that cannot be used; one line says where, what was got, and what is allowed."""


class QuestionItem(Record):
    """A question with two or more options; texts are as in the file, `row` is the place there, counted from 0.

    `qtype` is one of the five official types or any other text. The letter of `answer` is that of one option.
    """

    item_id: str
    video: str
    question: str
    qtype: str
    options: tuple[str, ...] = Field(min_length=2)
    answer: str
    row: int = Field(ge=0)

    @model_validator(mode="after")
    def _the_answer_is_an_option(self) -> Self:
        if self.letter not in self.letters:
            raise ValueError(f"the answer {self.answer[:80]!r} is none of the options {', '.join(self.letters)}")
        return self

    @property
    def letters(self) -> tuple[str, ...]:
        """The options' letters, in order."""
        return option_letters(self.options)

    @property
    def letter(self) -> str:
        """The right option's letter."""
        return reference_letter(self.answer)

    @property
    def reference(self) -> str:
        """The text by which prediction files without ids name the item."""
        return self.answer


class DescriptionItem(Record):
    """An object to describe and the reference `caption`; `row` is the place in the file, counted from 0."""

    item_id: str
    video: str
    caption: str
    row: int = Field(ge=0)

    @property
    def reference(self) -> str:
        """The text by which prediction files without ids name the item."""
        return self.caption


ItemT = TypeVar("ItemT", QuestionItem, DescriptionItem)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON array, or of a file with one JSON object a line; raises BenchFileError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchFileError(f"{path} cannot be read: {error}") from error
    rows: list[Any]
    if text.lstrip().startswith("["):
        rows = _parsed(text, f"{path} is no JSON array")
    else:
        # not splitlines: JSON strings may hold the other characters that it takes for line ends
        lines = [line for line in text.split("\n") if line.strip()]
        rows = [_parsed(line, f"{place(path, row)}: no JSON object on one line") for row, line in enumerate(lines)]
    for row, value in enumerate(rows):
        if not isinstance(value, dict):
            raise BenchFileError(f"{place(path, row)}: got {type(value).__name__}; allowed is a JSON object")
    return rows


def question_items(path: Path) -> tuple[QuestionItem, ...]:
    """The items of a Bench-Q file, in its order; raises BenchFileError for the first row that is none.

    Rows without `id` have their place as their id.
    """

    def item(values: Mapping[str, Any], row: int) -> QuestionItem:
        return QuestionItem(
            item_id=id_text(values.get("id", row)),
            video=_text(values, "video"),
            question=_text(values, "Question"),
            qtype=_text(values, "type"),
            options=_texts(values, "options"),
            answer=_text(values, "Answer"),
            row=row,
        )

    return _items(path, item)


def description_items(path: Path) -> tuple[DescriptionItem, ...]:
    """The items of a Bench-D file; otherwise as `question_items`."""

    def item(values: Mapping[str, Any], row: int) -> DescriptionItem:
        return DescriptionItem(
            item_id=id_text(values.get("id", row)),
            video=_text(values, "video"),
            caption=_text(values, "caption"),
            row=row,
        )

    return _items(path, item)


def place(path: Path, row: int) -> str:
    """Where a row stands, for messages."""
    return f"{path}, row {row} (counted from 0)"


def id_text(value: object) -> str:
    """An id as text, so that 7 and "7" are one; raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(f"id is {_shown(value)}; allowed is a whole number or a text")
    return _whole(str(value), "id")


def _items(path: Path, item_of: Callable[[Mapping[str, Any], int], ItemT]) -> tuple[ItemT, ...]:
    """An item of each row; BenchFileError names the first row that is none."""
    items: list[ItemT] = []
    for row, values in enumerate(_rows_of_items(path)):
        try:
            items.append(item_of(values, row))
        except ValueError as error:
            raise BenchFileError(f"{place(path, row)}: {_told(error)}") from error
    _refuse_same_ids(path, items)
    return tuple(items)


def _rows_of_items(path: Path) -> list[dict[str, Any]]:
    rows = read_rows(path)
    if not rows:
        raise BenchFileError(f"{path} has no items; it needs one or more")
    return rows


def _refuse_same_ids(path: Path, items: Sequence[ItemT]) -> None:
    first: dict[str, int] = {}
    for item in items:
        if item.item_id in first:
            raise BenchFileError(
                f"{place(path, item.row)}: id {item.item_id} is that of row {first[item.item_id]} too; "
                "each item needs its own"
            )
        first[item.item_id] = item.row


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value.strip():
        got = _shown(value) if key in values else f"absent (the row has {', '.join(values) or 'nothing'})"
        raise ValueError(f"{key} is {got}; allowed is a text")
    return _whole(value, key)


def _texts(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = values.get(key)
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{key} is {_shown(value)}; allowed is a list of two or more texts")
    return tuple(_whole(text, key) for text in value)


def _whole(text: str, key: str) -> str:
    """The text; raises ValueError for half a surrogate pair, which JSON can escape and no file hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key} is {_shown(text)}, which has half a surrogate pair; allowed is a text") from None
    return text


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _told(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(str(item["msg"]).removeprefix("Value error, ") for item in error.errors())
    return str(error)


def _parsed(text: str, trouble: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise BenchFileError(f"{trouble}: nested too deeply") from None
    except ValueError as error:
        raise BenchFileError(f"{trouble}: {error}; fetch or write it anew") from error
