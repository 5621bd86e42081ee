"""What a bench run will be, from what was asked for: its items, and the record that its folder is held against."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from benchmark.items import BenchFileError, DescriptionItem, QuestionItem, description_items, question_items, read_rows
from benchmark.predictions import prediction_files, read_predictions
from benchmark.rubric import Rubric, RubricError, own_rubric, rubric_from
from flows.ask import model_folder
from flows.ask_objects import AskError
from flows.bench_record import (
    JUDGE_KEY,
    REPLIES,
    BenchAsked,
    BenchRun,
    BenchUsageError,
    GivenAnswers,
    Heuristic,
    Judged,
    Questions,
)
from flows.train_base import base_labels
from flows.train_profile import FolderBase
from infra.chat import ChatSettings
from infra.video_index import file_sha256

Item = QuestionItem | DescriptionItem

FROM_FILE = "predictions from a file"
_DIGITS = 12


class Bench(NamedTuple):
    """The items with the rows they came from, by their place in the file, and the record of the run."""

    items: tuple[QuestionItem, ...] | tuple[DescriptionItem, ...]
    rows: tuple[Mapping[str, Any], ...]
    run: BenchRun


def plan_bench(asked: BenchAsked) -> Bench:
    """Read the items and find what answers and scores them; nothing heavy is loaded.

    Raises BenchUsageError for files, folders and a rubric that cannot be used.
    """
    path = Path(asked.items)
    try:
        items = question_items(path) if isinstance(asked.scoring, Questions) else description_items(path)
        rows = tuple(read_rows(path))
        answered_by, label, max_new_tokens, packages = _answers(asked, items)
        scored_by = _scored_by(asked.scoring)
    except (BenchFileError, AskError, RubricError) as error:
        raise BenchUsageError(" ".join(str(error).split())) from error
    made = [row for row in rows if row.get("made_by") == "machine"]
    run = BenchRun(
        bench=asked.scoring.bench,
        items_file=path.name,
        items_sha256=file_sha256(path),
        num_items=len(items),
        num_machine_made=len(made),
        num_checked=sum(row.get("checked") is True for row in made),
        answered_by=answered_by,
        label=label,
        mode=asked.mode,
        max_new_tokens=max_new_tokens,
        scored_by=scored_by,
        versions=tuple(f"{name} {version(name)}" for name in ("videorefer", *packages)),
    )
    return Bench(items, rows, run)


def rubric_of(judged: Judged) -> Rubric:
    """The text of the user's file, or our own; raises RubricError."""
    return rubric_from(Path(judged.prompt_file)) if judged.prompt_file else own_rubric()


def chat_settings(judged: Judged) -> ChatSettings:
    """How the judge's server is asked; raises BenchUsageError for an address that is none."""
    try:
        return ChatSettings(
            base_url=judged.base_url,
            model=judged.model,
            api_key_env=JUDGE_KEY if os.environ.get(JUDGE_KEY) else "",
            max_tokens=judged.max_tokens,
            concurrency=judged.concurrency,
            timeout_s=judged.timeout_s,
        )
    except ValidationError as error:
        raise BenchUsageError(f"--judge: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _answers(asked: BenchAsked, items: Sequence[Item]) -> tuple[str, str, int, tuple[str, ...]]:
    """Who answers, with what label, in how many tokens, and the packages that this depends on."""
    answers = asked.answers
    if isinstance(answers, GivenAnswers):
        path = Path(answers.predictions)
        read_predictions(path, items)  # what cannot be used is refused here
        digests = [hashlib.sha256(file.read_bytes()).digest() for file in prediction_files(path)]
        return f"{path.name}@{hashlib.sha256(b''.join(digests)).hexdigest()[:_DIGITS]}", FROM_FILE, 0, ()
    if not Path(answers.videos).is_dir():
        raise BenchUsageError(f"there is no folder {answers.videos}; give --videos what the items' `video` counts from")
    folder, label = model_folder(Path(answers.model))
    generates = not isinstance(asked.scoring, Questions) or asked.scoring.scorer == "letters"
    (weights,) = base_labels(FolderBase(kind="model", path=str(folder)))
    return weights.weights, label, answers.max_new_tokens if generates else 0, ("torch", "transformers")


def _scored_by(scoring: Questions | Heuristic | Judged) -> str:
    match scoring:
        case Questions(scorer=scorer):
            return scorer
        case Heuristic():
            return "heuristic, no judge"
        case Judged():
            chat_settings(scoring)
            settings = REPLIES[scoring.replies]
            rubric = rubric_of(scoring)
            prompt = rubric.prompt_hash(settings.reply_format, explained=settings.explained)
            return (
                f"judge {scoring.model}, rubric {rubric.name}, prompt hash {prompt[:_DIGITS]}, temperature 0, "
                f"max_tokens {scoring.max_tokens}, replies {scoring.replies}"
            )
