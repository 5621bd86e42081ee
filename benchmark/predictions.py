"""Prediction files: those of the official v1 and VideoLLaMA3 scripts read, and files written that both scorers take.

| from | form |
|---|---|
| v1 | one JSONL file: `video`, `Answer` (questions) or `caption` (descriptions), `pred`, of questions `type` |
| v1 `_raw` | one JSON array: the items without masks, and the prediction as `answer` |
| VideoLLaMA3 | shards `NAME_*.json`, named together as `NAME.json`: `video`, `Answer`, `pred`, of questions `type` |
| ours | JSONL with the keys of both, and `id` |
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmark.items import BenchFileError, DescriptionItem, QuestionItem, id_text, place, read_rows
from benchmark.letters import official_letter
from infra.whole_file import write_whole
from schemas.record import Record

Item: TypeAlias = QuestionItem | DescriptionItem

AS_GIVEN = "pred_as_given"
"""The prediction itself where `pred` is a stand-in for what the official scorers cannot read."""


class Prediction(Record):
    """What was answered to an item; `pred` is None where the file has null or anything but a text."""

    item_id: str
    pred: str | None


def read_predictions(path: Path, items: Sequence[Item]) -> tuple[Prediction, ...]:
    """The predictions of a file or of its shards, in the items' order; items without one are left out.

    A row is joined to its item by `id`, else by video, reference text and, where it has one, type; several items alike
    in these are taken in order, so in a file that lacks some of them answers may change places among them. Raises
    BenchFileError for a row without a prediction, of no item, of another item than its id says, or one too many.
    """
    rows = [(place(file, row), values) for file in prediction_files(path) for row, values in enumerate(read_rows(file))]
    join = _Join(items)
    found: dict[str, Prediction] = {}
    for where, values in sorted(rows, key=lambda row: row[1].get("id") is None):
        try:
            item_id = join.take(values).item_id
            found[item_id] = Prediction(item_id=item_id, pred=_pred(values))
        except ValueError as error:
            raise BenchFileError(f"{where}: {error}") from error
    return tuple(found[item.item_id] for item in items if item.item_id in found)


def prediction_files(path: Path) -> list[Path]:
    """The file itself, or for an absent `NAME.json` its shards `NAME_*.json` by number; raises BenchFileError.

    Shards with `gpt` after `NAME_` are a judge's replies and passed over. The official scripts pass over every path
    that has `gpt` anywhere, be it the user's name.
    """
    if path.is_file():
        return [path]
    start = f"{path.stem}_"
    beside = path.parent.glob("*.json") if path.suffix == ".json" else ()
    shards = [file for file in beside if file.name.startswith(start) and "gpt" not in file.name.removeprefix(start)]
    if not shards:
        raise BenchFileError(f"there is no file {path}, nor shards {path.with_suffix('')}_*.json of one")
    return sorted(shards, key=_by_number)


def write_predictions(path: Path, items: Sequence[Item], predictions: Iterable[Prediction]) -> None:
    """Write predictions as JSONL in the items' order, whole or not at all; raises BenchFileError.

    Both official scorers take the file; the VideoLLaMA3 ones want it named `NAME_0.json`, without `gpt` in the path,
    and are given `NAME.json`. For descriptions, they need two rows or more. They stop at a question's answer that names
    no letter, which is therefore written as a blank (wrong to them too), and at null; the prediction then stands under
    `pred_as_given`, from where `read_predictions` takes it.
    """
    preds: dict[str, str | None] = {}
    for prediction in predictions:
        if prediction.item_id in preds:
            raise BenchFileError(f"two predictions for item {prediction.item_id}; each item has one")
        preds[prediction.item_id] = prediction.pred
    unknown = preds.keys() - {item.item_id for item in items}
    if unknown:
        raise BenchFileError(f"a prediction for item {min(unknown)}, which is none of the {len(items)} items")
    # without ensure_ascii=False: the official scorers read in the machine's encoding
    lines = [json.dumps(_row(item, preds[item.item_id])) for item in items if item.item_id in preds]
    try:
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise BenchFileError(f"cannot write {path}: {error}") from error


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts `_2` before `_10`: shards are consecutive pieces, and alike rows are told apart by their order."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.findall(r"\d+|\D+", path.name)]


def _row(item: Item, pred: str | None) -> dict[str, str | None]:
    row: dict[str, str | None] = {"id": item.item_id, "video": item.video}
    if isinstance(item, QuestionItem):
        readable = " " if official_letter(pred) is None else pred
        row |= {"Answer": item.answer, "pred": readable, "type": item.qtype}
    else:
        readable = pred or ""
        row |= {"caption": item.caption, "Answer": item.caption, "pred": readable}
    return row if readable == pred else row | {AS_GIVEN: pred}


def _pred(values: Mapping[str, Any]) -> str | None:
    """The prediction of a row; halves of surrogate pairs, which are no text, become U+FFFD."""
    key = next((key for key in (AS_GIVEN, "pred", "answer") if key in values), None)
    if key is None:
        raise ValueError(f"has no pred, only {', '.join(values) or 'nothing'}; is it a file of predictions?")
    pred = values[key]
    if not isinstance(pred, str):
        return None
    return pred.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _Join:
    """The items, and which of them have their prediction."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._by_id = {item.item_id: item for item in items}
        self._by_text: dict[tuple[object, object], list[Item]] = defaultdict(list)
        for item in items:
            self._by_text[item.video, item.reference].append(item)
        self._taken: set[str] = set()

    def take(self, values: Mapping[str, Any]) -> Item:
        """The item of a row; raises ValueError for one of none, or one too many."""
        item = self._of_texts(values) if values.get("id") is None else self._of_id(values)
        self._taken.add(item.item_id)
        return item

    def _of_id(self, values: Mapping[str, Any]) -> Item:
        item_id = id_text(values["id"])
        item = self._by_id.get(item_id)
        if item is None:
            raise ValueError(f"no item has id {item_id}; predictions are of the {len(self._by_id)} items given")
        if item_id in self._taken:
            raise ValueError(f"a second prediction for item {item_id}; each item has one")
        for got, wanted in ((values.get("video"), item.video), (_reference(values), item.reference)):
            if got is not None and got != wanted:
                raise ValueError(f"id {item_id} is with {str(got)[:80]!r}, but the item of that id has {wanted[:80]!r}")
        return item

    def _of_texts(self, values: Mapping[str, Any]) -> Item:
        video, reference = values.get("video"), _reference(values)
        if not isinstance(video, str) or not isinstance(reference, str):
            raise ValueError("has no id, and not both video and Answer (or caption); either is needed to find its item")
        alike = [item for item in self._by_text.get((video, reference), []) if _is_of_type(item, values.get("type"))]
        free = [item for item in alike if item.item_id not in self._taken]
        if free:
            return free[0]
        what = f"video {video[:80]!r} and reference {reference[:80]!r}"
        if alike:
            raise ValueError(f"one prediction too many for {what}; {len(alike)} of the items have these")
        raise ValueError(f"no item has {what}; is it a file of other items, or of another version of them?")


def _reference(values: Mapping[str, Any]) -> Any:
    """The reference text that a row repeats; VideoLLaMA3 calls that of a description `Answer` too."""
    return values.get("caption", values.get("Answer"))


def _is_of_type(item: Item, qtype: object) -> bool:
    return qtype is None or not isinstance(item, QuestionItem) or item.qtype == qtype
