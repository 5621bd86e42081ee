"""What can be said of descriptions with no judge at hand: facts in common with the references, and similar sentences.

Fact recall is the share of the reference's facts that the answer states, fact precision the share of the answer's facts
that the reference states, so that a hallucinated fact lowers it. Both see only words that `benchmark.facts` knows, and
a true fact that the reference leaves out counts as hallucinated. None of this is SC, AD, TD or HD of the benchmark, nor
can it stand for them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from benchmark.facts import Fact, FactReader
from schemas.record import Record, Share


class Embedder(Protocol):
    """Sentences to unit vectors."""

    name: str

    def weights(self) -> tuple[str, ...]:
        """One `name@sha256-prefix` for each weight file."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(len(texts), dim), each row of length 1."""


class HeuristicItem(Record):
    """One description against its reference: facts in common, only in the reference, and only in the answer.

    Facts are written as "kind: value". `embedding_similarity` is a cosine, -1 to 1; 0 for an item without an answer.
    """

    item_id: str
    missing: bool
    shared: tuple[str, ...]
    missed: tuple[str, ...]
    hallucinated: tuple[str, ...]
    embedding_similarity: float = Field(ge=-1, le=1)

    @property
    def fact_recall(self) -> Share | None:
        """None where the reference states no fact."""
        return _share(self.shared, self.missed)

    @property
    def fact_precision(self) -> Share | None:
        """None where the answer states no fact: it claims nothing that could be wrong."""
        return _share(self.shared, self.hallucinated)


class Estimate(Record):
    """A mean over `n` items and its standard error, which one item alone does not have."""

    n: int = Field(gt=0)
    mean: float
    standard_error: float | None


class HeuristicScore(Record):
    """The heuristic over all items; `embedder` names the model of the similarity and its weights.

    Each mean is over the items that have the figure, and its `n` says how many; None where none has. Items without an
    answer recall nothing, are similar to nothing, and are counted in `missing`.
    """

    embedder: str
    num_items: int
    missing: int
    fact_recall: Estimate | None
    fact_precision: Estimate | None
    embedding_similarity: Estimate
    items: tuple[HeuristicItem, ...]


def heuristic_score(
    references: Mapping[str, str], answers: Mapping[str, str | None], reader: FactReader, embedder: Embedder
) -> HeuristicScore:
    """Score answers against reference texts, both by item id, in the order of the references.

    An answer that is absent, None or blank is missing. Raises ValueError without references, and for answers to items
    that there are not.
    """
    if not references:
        raise ValueError("got no references; a heuristic score needs at least one item")
    if unknown := sorted(set(answers) - set(references)):
        raise ValueError(f"got answers to {len(unknown)} items that are not among the references, {unknown[0]!r} first")
    given = {item_id: (answers.get(item_id) or "").strip() for item_id in references}
    similarity = _similarities(references, given, embedder)
    items = [
        _item(item_id, reader.facts(text), reader.facts(given[item_id]), not given[item_id], similarity[item_id])
        for item_id, text in references.items()
    ]
    return HeuristicScore(
        embedder=" ".join([embedder.name, *embedder.weights()]),
        num_items=len(items),
        missing=sum(item.missing for item in items),
        fact_recall=_estimate([item.fact_recall for item in items if item.fact_recall is not None]),
        fact_precision=_estimate([item.fact_precision for item in items if item.fact_precision is not None]),
        embedding_similarity=_mean([item.embedding_similarity for item in items]),
        items=tuple(items),
    )


def _item(
    item_id: str, wanted: frozenset[Fact], stated: frozenset[Fact], missing: bool, similarity: float
) -> HeuristicItem:
    return HeuristicItem(
        item_id=item_id,
        missing=missing,
        shared=_told(wanted & stated),
        missed=_told(wanted - stated),
        hallucinated=_told(stated - wanted),
        embedding_similarity=similarity,
    )


def _told(facts: frozenset[Fact]) -> tuple[str, ...]:
    return tuple(f"{fact.kind}: {fact.value}" for fact in sorted(facts))


def _similarities(references: Mapping[str, str], given: Mapping[str, str], embedder: Embedder) -> dict[str, float]:
    answered = [item_id for item_id in references if given[item_id]]
    vectors = embedder.embed([references[item_id] for item_id in answered] + [given[item_id] for item_id in answered])
    cosines = (vectors[: len(answered)] * vectors[len(answered) :]).sum(axis=1)
    # rounding takes equal unit vectors a little beyond 1
    found = dict(zip(answered, np.clip(cosines, -1, 1).tolist(), strict=True))
    return {item_id: found.get(item_id, 0.0) for item_id in references}


def _share(inside: Sequence[str], outside: Sequence[str]) -> float | None:
    whole = len(inside) + len(outside)
    return len(inside) / whole if whole else None


def _estimate(values: Sequence[float]) -> Estimate | None:
    return _mean(values) if values else None


def _mean(values: Sequence[float]) -> Estimate:
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return Estimate(n=n, mean=float(np.mean(values)), standard_error=error)
