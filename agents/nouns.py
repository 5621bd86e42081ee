"""From free nouns to a detector's classes, by the nearest known word in a sentence embedding.

Cosine to the class names alone does not do it with MiniLM: "man" is at 0.41 from "person", "rabbit" at 0.57 from
"bird". So each class is also stood for by a few of its common words, and words for what a detector does not know stand
beside them; a noun goes where its nearest word goes, and to no class below the threshold. Measured with the 80 COCO
classes and the int8 MiniLM on words that are in no table: see `tests/agents/test_analyzer.py`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from agents.base import TextEmbedder
from agents.vocabulary import SCENERY, STAND_INS, UNKNOWN
from schemas.record import Record

Kind = Literal["class", "scenery", "unknown"]


class NounMatch(Record):
    """Where one noun goes: its detector class, the cosine to that class's name, and the known word that decided.

    For kinds other than `class`, `detector_class` is the nearest class by name, for evidence.
    """

    kind: Kind
    detector_class: str
    class_similarity: float
    nearest_word: str
    nearest_similarity: float


class NounMap:
    """Maps nouns to one of `classes`, to scenery, or to nothing."""

    def __init__(self, embedder: TextEmbedder, classes: Sequence[str]) -> None:
        self._embedder, self._classes = embedder, tuple(classes)
        entries: list[tuple[str, Kind, str]] = [(name, "class", name) for name in classes]
        for name in classes:
            entries += [(word, "class", name) for word in STAND_INS.get(name, ())]
        taken = {word for word, _, _ in entries}
        entries += [(word, "scenery", "") for word in SCENERY if word not in taken]
        entries += [(word, "unknown", "") for word in UNKNOWN if word not in taken]
        self._entries = entries
        self._index = {word: i for i, (word, _, _) in enumerate(entries)}
        self._vectors = embedder.embed([word for word, _, _ in entries])

    def match(self, noun: str, threshold: float) -> NounMatch:
        """Where a noun goes; `threshold` is the least cosine to its nearest word, of a class or of scenery."""
        cosines = self._vectors @ self._embedder.embed([noun])[0]
        # a word that is listed is itself, whatever rounds to 1 beside it
        nearest = self._index.get(noun, int(cosines.argmax()))
        word, kind, detector_class = self._entries[nearest]
        similarity = float(cosines[nearest])
        if similarity < threshold:
            kind = "unknown"
        by_name = cosines[: len(self._classes)]
        position = self._classes.index(detector_class) if kind == "class" else int(np.argmax(by_name))
        return NounMatch(
            kind=kind,
            detector_class=self._classes[position],
            class_similarity=float(by_name[position]),
            nearest_word=word,
            nearest_similarity=similarity,
        )
