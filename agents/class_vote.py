"""What an ImageNet classifier has to say about a claimed class: the probability of the labels that its pictures get.

In the manner of mapping one label set onto another (as ImageNet-trained classifiers are scored on other data sets,
Barbu et al., ObjectNet, NeurIPS 2019), by the open table of `agents.imagenet_table`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from agents.imagenet_table import LABELS
from agents.vocabulary import words
from schemas.record import Record

ON_PERSONS = words(
    "tie, backpack, handbag, umbrella, suitcase, skis, snowboard, skateboard, surfboard, kite, sports ball, baseball "
    "bat, tennis racket, scissors, toothbrush, cell phone, hair drier, chair, couch, bench, bed, dining table, book, "
    "bicycle, motorcycle"
)
"""What people wear, hold, sit on and ride: ImageNet knows no people, and names such things instead."""
RIDDEN_ANIMALS = "sorrel, horse cart, oxcart, Arabian camel"
"""Labels of what else people ride; the row of a horse holds other animals too, whose pictures show no person."""


class Vote(Record):
    """Probability of the labels of the claimed class, and of those of the likeliest other class alone.

    `own` is None for a person, whom ImageNet does not know. `rival` counts no label that the claimed class shares, and
    for a person none of what people wear, hold, sit on or ride.
    """

    own: float | None
    rival: float
    rival_class: str
    top_label: str
    top_probability: float


class ClassVote:
    """Votes on classes; `labels` are the classifier's, each a list of synonyms parted by ", "."""

    def __init__(self, labels: Sequence[str], table: Mapping[str, str] = LABELS) -> None:
        self._labels = tuple(labels)
        firsts = {label.split(", ")[0]: i for i, label in reversed(list(enumerate(labels)))}
        self._classes = tuple(table)
        self._members = np.zeros((len(table), len(labels)), np.bool_)
        for row, (name, text) in zip(self._members, table.items(), strict=True):
            row[_indices(text, firsts)] = True
            row[[i for first, i in firsts.items() if first == name]] = True
        worn = self._members[[name in ON_PERSONS for name in self._classes]]
        self._on_persons = np.asarray(worn.any(axis=0), np.bool_)
        self._on_persons[_indices(RIDDEN_ANIMALS, firsts)] = True

    def vote(self, probabilities: npt.NDArray[np.float32], claimed: str) -> Vote | None:
        """The vote of (labels,) probabilities on an object that is said to be of a class; None without a row of it."""
        known = claimed in self._classes
        if not known and claimed != "person":
            return None
        own_labels = self._members[self._classes.index(claimed)] if known else self._on_persons
        rivals = (self._members & ~own_labels) @ probabilities
        best, top = int(rivals.argmax()), int(probabilities.argmax())
        return Vote(
            own=float(probabilities[own_labels].sum()) if known else None,
            rival=float(rivals[best]),
            rival_class=self._classes[best],
            top_label=self._labels[top],
            top_probability=min(1.0, float(probabilities[top])),
        )


def _indices(text: str, firsts: Mapping[str, int]) -> list[int]:
    """The indices of "a, b..c"; names that the classifier does not have are left out."""
    found: list[int] = []
    for part in text.split(", "):
        ends = [firsts.get(name) for name in part.split("..")]
        first, last = ends[0], ends[-1]
        if first is not None and last is not None:
            found += range(first, last + 1)
    return found
