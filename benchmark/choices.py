"""Four-option items from question-answer samples: the right answer and three that are right of other objects.

Distractors are answers to the same question in the same words, so that no option is odd by its form; the nouns in them
are exchanged for those of the objects asked about, so that none is odd by its subject. No option is another with more
said, which could be right beside it. Where each value of an answer comes from the same pool as the right ones, only the
video tells them apart.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from schemas.record import Record
from schemas.sample import QaType, Sample

NUM_OPTIONS = 4
CLEARLY_APART = 1.25
"""Ratio from which two numbers in answers that differ in nothing else are two answers."""
_PRONOUN = re.compile(r"\b(he|she|it|him|her|its|his)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WORD = re.compile(r"[\w.]*\w")
_JOINING = ("is", "are", "at", "on", "in", "the")
_DENIALS = re.compile(r"\b(?:no|not|never|nothing|nowhere|hardly|without)\b", re.IGNORECASE)


class ChoiceItem(Record):
    """One question with four options; `answer` is the place of the right one.

    `nouns` are those of the objects asked about, in order; the right answer may name them, and so may the others.
    """

    item_id: str
    video_sha256: str
    qa_type: QaType
    question: str
    options: tuple[str, str, str, str]
    answer: Annotated[int, Field(ge=0, lt=NUM_OPTIONS)]
    nouns: tuple[str, ...]


class ChoiceSet(Record):
    """Items in the order of their samples, and the samples whose question has too few other answers."""

    items: tuple[ChoiceItem, ...]
    skipped: tuple[str, ...]


def question_of(sample: Sample) -> str:
    """The question as asked, without the video's tag."""
    return sample.conversations[0].value.removeprefix("<video>").strip()


def choice_items(samples: Iterable[Sample], seed: int, topic_of: Callable[[Sample], str] = question_of) -> ChoiceSet:
    """Items of all `qa` samples, letters balanced; the same for the same samples and seed, in any order of samples.

    Samples of one `topic_of` lend one another answers: those asked in the same words, or for the same fact.
    """
    asked = sorted((sample for sample in samples if sample.kind == "qa"), key=lambda sample: sample.sample_id)
    rng = np.random.default_rng(seed)
    pools: dict[tuple[object, ...], list[Sample]] = defaultdict(list)
    for sample in asked:
        pools[_form(sample, topic_of(sample))].append(sample)
    letters: Counter[int] = Counter()
    items, skipped = [], []
    for sample in asked:
        wrong = _distractors(sample, pools[_form(sample, topic_of(sample))], rng)
        if len(wrong) < NUM_OPTIONS - 1:
            skipped.append(sample.sample_id)
            continue
        fewest = min(letters[place] for place in range(NUM_OPTIONS))
        place = int(rng.choice([place for place in range(NUM_OPTIONS) if letters[place] == fewest]))
        letters[place] += 1
        options = [*wrong[:place], _answer(sample), *wrong[place:]]
        items.append(_item(sample, options, place))
    return ChoiceSet(items=tuple(items), skipped=tuple(skipped))


def _item(sample: Sample, options: Sequence[str], place: int) -> ChoiceItem:
    return ChoiceItem(
        item_id=sample.sample_id,
        video_sha256=sample.video_sha256,
        qa_type=sample.qa_type,
        question=question_of(sample),
        options=(options[0], options[1], options[2], options[3]),
        answer=place,
        nouns=tuple(item.noun for item in sample.objects),
    )


def _distractors(sample: Sample, pool: Sequence[Sample], rng: np.random.Generator) -> list[str]:
    """Three different answers of the pool in random order, or fewer where it has not as many.

    Drawn answer by answer, so that frequent ones come as often as they are right. Where all answers say the same of
    different nouns, the nouns are what is asked for and stay.
    """
    nouns = [item.noun for item in sample.objects]
    filled = [(_value(other), _value(other).format(*nouns)) for other in pool]
    if len({value for value, _ in filled}) == 1:
        filled = [(_answer(other), _answer(other)) for other in pool]
    right = _answer(sample)
    chosen: list[str] = []
    for index in rng.permutation(len(filled)):
        text = filled[index][1]
        if all(_clearly_other(text, other) for other in (right, *chosen)):
            chosen.append(text)
        if len(chosen) == NUM_OPTIONS - 1:
            break
    return chosen


def _clearly_other(a: str, b: str) -> bool:
    """Whether at most one of two answers is right: they differ in words, and neither is the other with more said; or
    in a number by more than a reader would pass over.
    """
    if _NUMBER.sub("#", a) != _NUMBER.sub("#", b):
        return not _says_more(a, b) and not _says_more(b, a)
    pairs = zip(map(float, _NUMBER.findall(a)), map(float, _NUMBER.findall(b)), strict=True)
    return any(max(one, two) > CLEARLY_APART * min(one, two) + 0.1 for one, two in pairs)


def _says_more(longer: str, shorter: str) -> bool:
    """Whether all words of the shorter answer are in the longer, in that order and denied alike: "gray" is right too of
    what is "gray, with some brown", and "at the top" of what is "at the top left".
    """
    words, rest = _plain(shorter), iter(_plain(longer))
    return _DENIALS.findall(longer) == _DENIALS.findall(shorter) and all(word in rest for word in words)


def _plain(text: str) -> list[str]:
    """The words that tell one answer from another: in lower case, without what joins them and what tells of number."""
    return [word.removesuffix("s") for word in _WORD.findall(text.lower()) if word not in _JOINING]


def _form(sample: Sample, topic: str) -> tuple[object, ...]:
    """What two samples must share to lend one another answers: type, topic, number of objects, and style."""
    answer = _answer(sample)
    pronouns = tuple(sorted({word.lower() for word in _PRONOUN.findall(answer)}))
    return (sample.qa_type, topic, len(sample.objects), pronouns, "clothing included" in answer)


def _answer(sample: Sample) -> str:
    return sample.conversations[1].value


def _value(sample: Sample) -> str:
    return without_nouns(_answer(sample), [item.noun for item in sample.objects])


def without_nouns(text: str, nouns: Sequence[str]) -> str:
    """The text with objects' nouns as `{0}`, `{1}`, ...: equal ones say the same of different objects."""
    text = text.replace("{", "{{").replace("}", "}}")
    for number, noun in enumerate(nouns):
        text = re.sub(rf"(?<=[Tt]he ){re.escape(noun)}\b", f"{{{number}}}", text)
    return text
