"""Accuracy on Bench-Q: for each type, and over all items at once (micro), as the official scorer averages.

It takes the letters that were chosen, whatever chose them: an answer's text or the likelihoods of the options. Unlike
in the official scorer, an item without a prediction is in the denominator: it is wrong, and counted as missing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from benchmark.items import QuestionItem
from benchmark.letters import official_letter
from benchmark.predictions import Prediction
from schemas.record import Record, Share


class QuestionFigure(Record):
    """Accuracy over `n` items, and the standard error sqrt(p (1 - p) / n) of that share, which is 0 at p = 0 and 1.

    The error takes items for independent; where answers on one video go together, it is too small.
    Wrong are, among others, `num_no_option` answers that name a letter or character which is none of the options',
    `num_unparsed` in which nothing can be read, and `num_missing` that are not there.
    """

    n: int
    num_right: int
    accuracy: Share
    standard_error: float
    num_no_option: int
    num_unparsed: int
    num_missing: int


class QuestionScore(Record):
    """Figures of each type, in the order in which types first occur, and over all items."""

    by_type: dict[str, QuestionFigure]
    micro: QuestionFigure


def official_letters(predictions: Iterable[Prediction]) -> dict[str, str | None]:
    """The letter of each predicted item's answer by the official rule, None where it is unparsed."""
    return {prediction.item_id: official_letter(prediction.pred) for prediction in predictions}


def question_score(items: Sequence[QuestionItem], letters: Mapping[str, str | None]) -> QuestionScore:
    """The score of chosen capital letters by item id, None for an unparsed answer; items not in it are missing.

    Raises ValueError without items, and for letters of other items.
    """
    if not items:
        raise ValueError("got no items to score; one or more are needed")
    unknown = letters.keys() - {item.item_id for item in items}
    if unknown:
        raise ValueError(f"got a letter for item {min(unknown)}, which is none of the {len(items)} items")
    types = dict.fromkeys(item.qtype for item in items)
    return QuestionScore(
        by_type={qtype: _figure([item for item in items if item.qtype == qtype], letters) for qtype in types},
        micro=_figure(items, letters),
    )


def _figure(items: Sequence[QuestionItem], letters: Mapping[str, str | None]) -> QuestionFigure:
    n = len(items)
    given = [(item, letters[item.item_id]) for item in items if item.item_id in letters]
    num_right = sum(letter == item.letter for item, letter in given)
    accuracy = num_right / n
    return QuestionFigure(
        n=n,
        num_right=num_right,
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / n),
        num_no_option=sum(letter is not None and letter not in item.letters for item, letter in given),
        num_unparsed=sum(letter is None for _, letter in given),
        num_missing=n - len(given),
    )
