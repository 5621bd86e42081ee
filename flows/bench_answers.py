"""A model's answers to the items of a bench, in batches; each is on disk before it counts."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from benchmark.predictions import Prediction
from benchmark.published import Mode, Scorer
from flows.bench_plan import Bench, Item
from flows.bench_progress import BenchSink, StageCount
from flows.bench_record import BenchError, MissingItem, ModelAnswers, kept_in
from schemas.record import Record


class Answer(Record):
    """A line of the log; `num_off_frame` counts the objects shown on another frame than single mode's."""

    item_id: str
    pred: str
    num_off_frame: int


class Answered(NamedTuple):
    """The predictions of a folder, in the items' order; `asked` of them were asked for now, the others before."""

    predictions: tuple[Prediction, ...]
    missing: tuple[MissingItem, ...]
    asked: int
    num_off_frame: int


class AnswerLog:
    """A file of one answer a line, which a process killed at any moment leaves usable: a torn last line is cut off."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Answer]:
        """The answers so far by item. Raises BenchError for a whole line that is none."""
        try:
            whole, end, torn = self._path.read_bytes().rpartition(b"\n")
        except FileNotFoundError:
            return {}
        if torn:
            os.truncate(self._path, len(whole + end))
        try:
            found = [Answer.model_validate_json(line) for line in whole.splitlines()]
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise BenchError(f"{self._path} holds a line that is no answer ({said}); choose another --out") from error
        return {answer.item_id: answer for answer in found}

    def append(self, answers: Sequence[Answer]) -> None:
        """Add answers; they are on the disk when this returns. Raises BenchError where it does not take them."""
        with kept_in(self._path.parent), self._path.open("ab") as file:
            file.write(b"".join(answer.model_dump_json().encode() + b"\n" for answer in answers))
            file.flush()
            os.fsync(file.fileno())


def answer_items(
    bench: Bench, answers: ModelAnswers, mode: Mode, scorer: Scorer, log: AnswerLog, sinks: tuple[BenchSink, ...]
) -> Answered:
    """Ask the model for all items that have no answer in the log, which is told of each batch.

    An item that cannot be shown to the model is left out and named; the next run tries it again. Raises BenchError
    where that is so of all items, TrainingError, and what the model raises.
    """
    known = log.read()
    todo = [item for item in bench.items if item.item_id not in known]
    missing: dict[str, MissingItem] = {}
    if todo:
        from flows.bench_model import BenchModel  # loads torch

        count = StageCount("predict", len(bench.items), len(known), sinks)
        model = BenchModel(answers, mode, scorer)
        count.begin()
        for batch in _batches(todo, answers.batch_size):
            done, bad = model.answers([(item, bench.rows[item.row]) for item in batch])
            if done:
                log.append(done)
            known |= {answer.item_id: answer for answer in done}
            missing |= {item.item_id: item for item in bad}
            count.add(done=len(batch), failed=len(bad))
    if not known:
        first = next(iter(missing.values()))
        raise BenchError(
            f"none of the {len(bench.items)} items can be shown to the model; item {first.item_id}: {first.said}. "
            "Is --videos the folder that the items' `video` counts from?"
        )
    found = [known[item.item_id] for item in bench.items if item.item_id in known]
    return Answered(
        predictions=tuple(Prediction(item_id=answer.item_id, pred=answer.pred) for answer in found),
        missing=tuple(missing[item.item_id] for item in bench.items if item.item_id in missing),
        asked=len(todo) - len(missing),
        num_off_frame=sum(answer.num_off_frame for answer in found),
    )


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
