"""Predictions to scores: letters, a judge's marks, or the heuristic."""

import asyncio
import re
from pathlib import Path

from agents.engines.coco_classes import COCO_CLASSES
from agents.engines.minilm import MiniLm
from agents.vocabulary import STAND_INS, UNKNOWN
from benchmark.answer_cache import AnswerCache
from benchmark.description_score import DescriptionScore, description_score
from benchmark.facts import FactReader
from benchmark.heuristic import HeuristicScore, heuristic_score
from benchmark.items import DescriptionItem, QuestionItem
from benchmark.judging import JudgeCase, Judging, judge_cases
from benchmark.predictions import Prediction
from benchmark.question_score import official_letters, question_score
from flows.bench_plan import chat_settings, rubric_of
from flows.bench_progress import BenchSink, StageCount
from flows.bench_record import JUDGE_FOLDER, REPLIES, BenchError, Heuristic, Judged, Questions, Score
from infra.chat import ChatClient, ChatError
from infra.weights import fetch

SEED = 0
"""Of the bootstrap over items."""
MIN_JUDGE_PARAMETERS = 7e9
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([MB])(?![A-Za-z0-9])", re.IGNORECASE)
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


def judge_remarks(judge_model: str) -> tuple[str, ...]:
    """What is to be said before a judge's figures: that it is too small to mean anything, where its name tells."""
    size = _SIZE.search(judge_model.replace("-", " ").replace("_", " "))
    if size is None or float(size[1]) * {"M": 1e6, "B": 1e9}[size[2].upper()] >= MIN_JUDGE_PARAMETERS:
        return ()
    return (
        f"**These scores mean nothing.** By its name the judge has {size[1]}{size[2].upper()} parameters; one so small "
        "cannot mark descriptions, and its figures show only that the way from items to scores works.",
    )


def _by_heuristic(items: list[DescriptionItem], predictions: tuple[Prediction, ...]) -> HeuristicScore:
    fetch((_EMBEDDER_WEIGHT,), lambda _line: None)
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
        judging = asyncio.run(_judge(cases, judged, AnswerCache(out / JUDGE_FOLDER), sinks))
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
            lambda judgement: count.add(done=1, failed=bool(judgement.unscored)),
        )
