"""Blind baselines: how often question and options alone give the answer away.

The strongest is a conditional logit (McFadden 1974) over hashed words and word pairs of option and question, trained
on half of the videos and asked about the other half, both ways round. Beside it stand what needs no training: the
longest and the shortest option, and the value that was most often right in the training half.
"""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from benchmark.choices import NUM_OPTIONS, ChoiceItem, choice_items, without_nouns
from schemas.record import Record
from schemas.sample import Sample

NUM_FEATURES = 1 << 12
STEPS = 150
RATE = 0.1
DECAY = 0.02
CHANCE = 1 / NUM_OPTIONS


class BlindFigure(Record):
    """The best blind baseline on one slice: its name, its share of right answers, and the standard error of that."""

    n: int
    baseline: str
    accuracy: float
    standard_error: float

    @property
    def over_chance(self) -> float:
        """Share of right answers above one in four."""
        return self.accuracy - CHANCE


def blind_figures(samples: Sequence[Sample], seed: int) -> dict[str, BlindFigure]:
    """The best baseline over all items (`all`) and for each type; raises ValueError with too few videos to halve.

    The best of several is above any one of them by luck alone, so the figures are on the high side.
    """
    items, right = blind_answers(samples, seed)
    slices = {"all": np.ones(len(items), np.bool_)}
    slices |= {kind: np.array([item.qa_type == kind for item in items]) for kind in sorted({i.qa_type for i in items})}
    return {name: _best({rule: hits[chosen] for rule, hits in right.items()}) for name, chosen in slices.items()}


def blind_answers(samples: Sequence[Sample], seed: int) -> tuple[list[ChoiceItem], dict[str, npt.NDArray[np.bool_]]]:
    """The items of two halves of the videos, and whether each baseline answers each of them.

    Each half's distractors are its own answers: those of the other half would tell that they are right elsewhere.
    """
    videos = sorted({sample.video_sha256 for sample in samples})
    if len(videos) < 2:
        raise ValueError(f"a blind baseline learns from one half of the videos; got {len(videos)} video, needs 2")
    first = set(np.random.default_rng(seed).permutation(videos)[: len(videos) // 2].tolist())
    halves = [
        choice_items([sample for sample in samples if (sample.video_sha256 in first) == inside], seed).items
        for inside in (True, False)
    ]
    if not all(halves):
        raise ValueError(
            f"{len(samples)} samples of {len(videos)} videos give one half no item; more videos are needed"
        )
    tried = [_guesses(learnt, asked) for asked, learnt in (halves, halves[::-1])]
    return [*halves[0], *halves[1]], {name: np.concatenate([half[name] for half in tried]) for name in tried[0]}


def _guesses(learnt: Sequence[ChoiceItem], asked: Sequence[ChoiceItem]) -> dict[str, npt.NDArray[np.bool_]]:
    """Whether each baseline answers each asked item, after training on the learnt ones."""
    weights = _fit(_features(learnt), np.array([item.answer for item in learnt], dtype=np.int64))
    known = Counter((_form(item), _plain(item, item.answer)) for item in learnt)
    counts = np.array([[known[_form(item), _plain(item, i)] for i in range(NUM_OPTIONS)] for item in asked])
    lengths = np.array([[len(option) for option in item.options] for item in asked])
    guesses = {
        "logit": (_features(asked) @ weights).argmax(axis=1),
        "most frequent answer": counts.argmax(axis=1),
        "longest option": lengths.argmax(axis=1),
        "shortest option": lengths.argmin(axis=1),
    }
    answers = np.array([item.answer for item in asked])
    return {name: guess == answers for name, guess in guesses.items()}


def _best(right: Mapping[str, npt.NDArray[np.bool_]]) -> BlindFigure:
    name = max(right, key=lambda rule: float(right[rule].mean()))
    accuracy, n = float(right[name].mean()), len(right[name])
    error = float(np.sqrt(accuracy * (1 - accuracy) / n))
    return BlindFigure(n=n, baseline=name, accuracy=accuracy, standard_error=error)


def _form(item: ChoiceItem) -> str:
    return f"{item.qa_type} {item.question}"


def _plain(item: ChoiceItem, place: int) -> str:
    """An option without the nouns of the objects: what is said, not of what."""
    return without_nouns(item.options[place], item.nouns)


def _features(items: Sequence[ChoiceItem]) -> npt.NDArray[np.float32]:
    """(items, options, features): hashed words and word pairs of each option, alone and with the question."""
    table = np.zeros((len(items), NUM_OPTIONS, NUM_FEATURES), np.float32)
    for row, item in enumerate(items):
        for place in range(NUM_OPTIONS):
            words = _plain(item, place).lower().split()
            for gram in (*words, *map(" ".join, pairwise(words)), f"length {len(words)}"):
                table[row, place, zlib.crc32(gram.encode()) % NUM_FEATURES] += 1
                table[row, place, zlib.crc32(f"{_form(item)}|{gram}".encode()) % NUM_FEATURES] += 1
    # what all options share tells nothing
    return np.asarray(table - table.mean(axis=1, keepdims=True), dtype=np.float32)


def _fit(features: npt.NDArray[np.float32], answers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Weights that make the right options likeliest, by Adam on all items at once, with weight decay."""
    weights = np.zeros(NUM_FEATURES, np.float32)
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    truth = np.eye(NUM_OPTIONS, dtype=np.float32)[answers]
    flat = features.reshape(-1, NUM_FEATURES)
    for step in range(1, STEPS + 1):
        scores = (flat @ weights).reshape(-1, NUM_OPTIONS)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        gap = odds / odds.sum(axis=1, keepdims=True) - truth
        slope = flat.T @ gap.reshape(-1) / len(answers) + DECAY * weights
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        weights -= RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return np.asarray(weights, dtype=np.float32)
