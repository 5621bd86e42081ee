"""Predictions to scores: letters, a judge's marks, or the heuristic."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from agents.engines.coco_classes import COCO_CLASSES
from agents.engines.minilm import MiniLm
from agents.vocabulary import STAND_INS, UNKNOWN
from benchmark.description_score import DescriptionScore, description_score
from benchmark.facts import FactReader
from benchmark.heuristic import HeuristicScore, heuristic_score
from benchmark.items import DescriptionItem, QuestionItem
from benchmark.judging import JudgeCase, Judging, judge_cases
from benchmark.predictions import Prediction
from benchmark.question_score import official_letters, question_score
from flows.bench_plan import chat_settings, rubric_of
from flows.bench_progress import BenchSink, StageCount
from flows.bench_record import (
    JUDGE_FOLDER,
    JUDGE_KEY,
    REPLIES,
    BenchError,
    Heuristic,
    Judged,
    Questions,
    Score,
    kept_in,
)
from infra.answer_cache import AnswerCache
from infra.chat import ChatError, ChatRefusedError
from infra.chat_client import ChatClient
from infra.sigterm import run_until_sigterm
from infra.weights import fetch

SEED = 0
"""Of the bootstrap over items."""
_EMBEDDER_WEIGHT = "minilm-int8"


def score_predictions(
    items: tuple[QuestionItem, ...] | tuple[DescriptionItem, ...],
    predictions: tuple[Prediction, ...],
    scoring: Questions | Heuristic | Judged,
    out: Path,
    sinks: tuple[BenchSink, ...],
) -> Score:
    """The score over all items; those without a prediction are in it as missing.

    A judge's answers are kept under `out` and not asked for again. Raises BenchError where the judge cannot be asked,
    WeightError where the heuristic's embedder cannot be fetched.
    """
    questions = [item for item in items if isinstance(item, QuestionItem)]
    descriptions = [item for item in items if isinstance(item, DescriptionItem)]
    match scoring:
        case Questions():
            return question_score(questions, official_letters(predictions))
        case Heuristic():
            return _by_heuristic(descriptions, predictions)
        case Judged():
            return _by_judge(descriptions, predictions, scoring, out, sinks)


def fetch_embedder(say: Callable[[str], None]) -> None:
    """Fetch what the heuristic needs, if it is missing, of which `say` is told; raises WeightError."""
    fetch((_EMBEDDER_WEIGHT,), say)


def _by_heuristic(items: list[DescriptionItem], predictions: tuple[Prediction, ...]) -> HeuristicScore:
    fetch_embedder(logging.getLogger(__name__).info)
    embedder = MiniLm()
    embedder.setup()
    references = {item.item_id: item.caption for item in items}
    answers = {prediction.item_id: prediction.pred for prediction in predictions}
    return heuristic_score(references, answers, fact_reader(), embedder)


def fact_reader() -> FactReader:
    """Knows the objects that the embedded engines know: detectors' classes, common words for them, other things."""
    classes = {name: name for name in COCO_CLASSES.values()}
    stand_ins = {word: name for name, words in STAND_INS.items() for word in words}
    return FactReader({word: word for word in UNKNOWN} | stand_ins | classes)


def _by_judge(
    items: list[DescriptionItem],
    predictions: tuple[Prediction, ...],
    judged: Judged,
    out: Path,
    sinks: tuple[BenchSink, ...],
) -> DescriptionScore:
    answers = {prediction.item_id: prediction.pred for prediction in predictions}
    cases = [
        JudgeCase(item_id=item.item_id, reference=item.caption, prediction=answers.get(item.item_id)) for item in items
    ]
    try:
        with kept_in(out):
            judging = run_until_sigterm(_judge(cases, judged, AnswerCache(out / JUDGE_FOLDER), sinks))
    except ChatRefusedError as error:
        keyless = "" if os.environ.get(JUDGE_KEY) else f"; no key was sent, as {JUDGE_KEY} is not set"
        raise BenchError(f"{error}{keyless}") from error
    except ChatError as error:
        raise BenchError(str(error)) from error
    return description_score(judging.judgements, judging.judge, SEED)


async def _judge(cases: list[JudgeCase], judged: Judged, cache: AnswerCache, sinks: tuple[BenchSink, ...]) -> Judging:
    count = StageCount("judge", len(cases), 0, sinks)
    async with ChatClient(chat_settings(judged)) as client:
        return await judge_cases(
            client,
            cache,
            rubric_of(judged),
            REPLIES[judged.replies],
            cases,
            lambda judgement, is_kept: count.add(done=1, kept=is_kept, failed=bool(judgement.unscored)),
        )
