"""What an ImageNet classifier has to say about a noun: a soft vote over label embeddings.

In the manner of ConSE (Norouzi et al., ICLR 2014): label probabilities weigh the nearness of each label's words to
the noun. Here cosines are summed rather than vectors averaged, since the mean of unlike labels is near to nothing.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from agents.base import ImageClassifier, TextEmbedder
from schemas.record import Record

ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")


FIRST_THING = "abacus"
"""ImageNet's 1000 labels are ordered: the 398 before this one are animals, and all after it are not."""


class Vote(Record):
    """How near the classifier's labels are to the claimed words, and to the nearest rival class.

    `animal_share` is the probability of all animal labels where an animal is claimed and the labels are ImageNet's,
    else None.
    """

    own: float
    rival: float
    rival_class: str
    animal_share: float | None
    top_label: str
    top_probability: float


class ClassVote:
    """Votes on nouns against the rivals in `classes`."""

    def __init__(self, classifier: ImageClassifier, embedder: TextEmbedder, classes: Sequence[str]) -> None:
        self._embedder, self._classes, self._labels = embedder, tuple(classes), classifier.labels
        synonyms = [label.split(", ") for label in classifier.labels]
        vectors = embedder.embed([word for words in synonyms for word in words])
        ends = np.cumsum([len(words) for words in synonyms])
        self._words = np.split(vectors, ends[:-1])
        self._num_animals = self._labels.index(FIRST_THING) if FIRST_THING in self._labels else 0
        self._to_classes = self._nearness(embedder.embed(self._classes))

    def vote(self, probabilities: npt.NDArray[np.float32], claimed: Sequence[str]) -> Vote:
        """The vote of (labels,) probabilities on an object that is called by any of the `claimed` words.

        ImageNet knows no people: their crops give labels of what they wear, hold and ride. A person's rivals are
        therefore the animals alone.
        """
        own = float((probabilities @ self._nearness(self._embedder.embed(claimed))).max())
        scores = probabilities @ self._to_classes
        if "person" in claimed:
            scores = np.where([name in ANIMALS for name in self._classes], scores, -1.0)
        best, top = int(scores.argmax()), int(probabilities.argmax())
        animals = float(probabilities[: self._num_animals].sum())
        return Vote(
            own=own,
            animal_share=animals if self._num_animals and set(claimed) & set(ANIMALS) else None,
            rival=float(scores[best]),
            rival_class=self._classes[best],
            top_label=self._labels[top],
            top_probability=min(1.0, float(probabilities[top])),
        )

    def _nearness(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(labels, len(vectors)): cosine of each label's nearest synonym."""
        return np.stack([(words @ vectors.T).max(axis=0) for words in self._words])
