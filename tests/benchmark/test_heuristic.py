import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmark.facts import FactReader
from benchmark.heuristic import HeuristicScore, heuristic_score

READER = FactReader({noun: noun for noun in ("dog", "cat", "car", "man")})


class LetterEmbedder:
    """Texts as their counts of letters, scaled to length 1."""

    name = "letters"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def weights(self) -> tuple[str, ...]:
        return ("none@0",)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.asked += texts
        counts = np.array([[text.count(chr(code)) for code in range(97, 123)] for text in texts], np.float32)
        counts = counts.reshape(len(texts), 26)
        return np.asarray(counts / np.linalg.norm(counts, axis=1, keepdims=True), np.float32)


REFERENCES = {
    "a": "A black dog runs quickly to the left.",
    "b": "A red car beside two men.",
    "c": "Nothing known.",
    "d": "A white cat.",
    "e": "A gray cat.",
}
ANSWERS = {
    "a": "A black cat runs to the left.",
    "b": "A red car beside two men.",
    "c": "A blue car.",
    "d": None,
}


@pytest.fixture(scope="module")
def score() -> HeuristicScore:
    return heuristic_score(REFERENCES, ANSWERS, READER, LetterEmbedder())


def test_shared_missed_and_hallucinated_facts_are_told_by_item(score: HeuristicScore) -> None:
    first = score.items[0]
    assert first.shared == ("colour: black", "direction: left")
    assert first.missed == ("object: dog", "speed: fast")
    assert first.hallucinated == ("object: cat",)
    assert first.fact_recall == 2 / 4
    assert first.fact_precision == 2 / 3


def test_a_hallucinated_fact_lowers_precision_and_not_recall() -> None:
    def of(answer: str) -> tuple[float | None, float | None]:
        (item,) = heuristic_score({"a": REFERENCES["a"]}, {"a": answer}, READER, LetterEmbedder()).items
        return item.fact_recall, item.fact_precision

    assert of("A black dog.") == (0.5, 1.0)
    assert of("A black dog with a man.") == (0.5, 2 / 3)
    assert of("A black dog with a red car and a man.") == (0.5, 2 / 5)


def test_means_are_over_the_items_that_have_the_figure(score: HeuristicScore) -> None:
    recalls = [2 / 4, 1.0, 0.0, 0.0]
    precisions = [2 / 3, 1.0, 0.0]
    assert score.fact_recall is not None
    assert score.fact_precision is not None
    for estimate, values in ((score.fact_recall, recalls), (score.fact_precision, precisions)):
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
        assert estimate.n == len(values)
        assert estimate.mean == pytest.approx(mean)
        assert estimate.standard_error == pytest.approx(spread)
    assert (score.num_items, score.missing, score.embedder) == (5, 2, "letters none@0")


def test_missing_answers_are_similar_to_nothing_and_counted(score: HeuristicScore) -> None:
    similar = [item.embedding_similarity for item in score.items]
    assert similar[1] == pytest.approx(1.0)
    assert similar[3:] == [0.0, 0.0]
    assert score.embedding_similarity.n == 5
    assert score.embedding_similarity.mean == pytest.approx(sum(similar) / 5)


def test_similarity_is_the_cosine_of_the_embeddings(score: HeuristicScore) -> None:
    def counts(text: str) -> list[int]:
        return [text.count(chr(code)) for code in range(97, 123)]

    one, other = counts(REFERENCES["a"]), counts(str(ANSWERS["a"]))
    cosine = sum(x * y for x, y in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)
    assert score.items[0].embedding_similarity == pytest.approx(cosine, abs=1e-6)


@pytest.mark.parametrize("answers", [{}, {"a": ""}, {"a": " \n"}, {"a": None}])
def test_an_item_alone_without_an_answer_is_scored(answers: dict[str, str | None]) -> None:
    embedder = LetterEmbedder()
    score = heuristic_score({"a": "A dog."}, answers, READER, embedder)
    assert score.missing == 1
    assert score.fact_recall is not None
    assert (score.fact_recall.mean, score.fact_recall.standard_error) == (0.0, None)
    assert score.fact_precision is None
    assert embedder.asked == []


def test_answers_to_no_item_and_no_items_are_refused() -> None:
    with pytest.raises(ValueError, match="'z' first"):
        heuristic_score(REFERENCES, {"z": "A dog."}, READER, LetterEmbedder())
    with pytest.raises(ValueError, match="got no references"):
        heuristic_score({}, {}, READER, LetterEmbedder())


def test_no_figure_is_named_like_one_of_the_benchmark(score: HeuristicScore) -> None:
    def names(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {name for part in value.values() for name in names(part)}
        return {name for part in value for name in names(part)} if isinstance(value, list | tuple) else set()

    assert not names(score.model_dump()) & {"SC", "AD", "TD", "HD", "sc", "ad", "td", "hd"}
