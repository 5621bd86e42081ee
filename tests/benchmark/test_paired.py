"""Two sets of answers to the same questions."""

import itertools
import random
from fractions import Fraction

import pytest

from benchmark.items import BenchFileError, QuestionItem
from benchmark.paired import ChangedAnswer, mcnemar_p_value, paired_score

OPTIONS = ("(A) x", "(B) y", "(C) z")


def items(rights):
    return [
        QuestionItem(item_id=f"i{n}", video="v", question="?", qtype="t", options=OPTIONS, answer=f"({right})", row=n)
        for n, right in enumerate(rights)
    ]


def slow_p_value(only_first, only_second):
    """The share of all outcomes of as many fair coins that are no likelier than the one seen."""
    tosses = only_first + only_second
    gap = abs(only_first - only_second)
    outcomes = [abs(2 * sum(coins) - tosses) >= gap for coins in itertools.product((0, 1), repeat=tosses)]
    return float(Fraction(sum(outcomes), len(outcomes)))


def test_the_p_value_is_that_of_all_outcomes_counted():
    for only_first, only_second in itertools.product(range(7), repeat=2):
        assert mcnemar_p_value(only_first, only_second) == pytest.approx(
            slow_p_value(only_first, only_second), rel=1e-12
        )


def test_known_p_values_and_many_items():
    # 2 * (1 + 10 + 45) / 1024
    assert mcnemar_p_value(2, 8) == pytest.approx(0.109375)
    assert mcnemar_p_value(0, 0) == 1
    assert mcnemar_p_value(5000, 5000) == 1
    assert mcnemar_p_value(0, 5000) == 0
    # the normal approximation with continuity correction: z = (|450 - 550| - 1) / sqrt(1000) = 3.1307
    assert mcnemar_p_value(450, 550) == pytest.approx(0.001744, rel=0.02)


def test_counts_and_changed_items():
    asked = items("AABBC")
    first = {"i0": "A", "i1": "A", "i2": "A", "i3": None, "i4": "C"}
    second = {"i0": "A", "i1": "B", "i2": "B", "i3": "C", "i4": "C"}
    score = paired_score(asked, first, second)
    assert (score.n, score.num_both_right, score.num_only_first) == (5, 2, 1)
    assert (score.num_only_second, score.num_both_wrong, score.p_value) == (1, 1, 1)
    assert score.changed == (
        ChangedAnswer(item_id="i1", right="A", first="A", second="B"),
        ChangedAnswer(item_id="i2", right="B", first="A", second="B"),
        ChangedAnswer(item_id="i3", right="B", first=None, second="C"),
    )


def test_the_two_can_change_places():
    rng = random.Random(1)
    asked = items("".join(rng.choices("ABC", k=200)))
    first, second = ({item.item_id: rng.choice(["A", "B", "C", None]) for item in asked} for _ in range(2))
    one, other = paired_score(asked, first, second), paired_score(asked, second, first)
    assert one.p_value == other.p_value
    assert (one.num_only_first, one.num_only_second) == (other.num_only_second, other.num_only_first)
    assert one.num_both_right + one.num_only_first + one.num_only_second + one.num_both_wrong == one.n == 200


def test_only_items_that_both_answer_are_compared():
    score = paired_score(items("AAB"), {"i0": "A"}, {"i0": "B"})
    assert (score.n, score.num_items) == (1, 3)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ({"i0": "A"}, {"i1": "A"}, r"1 only the first \(i0\), 1 only the second \(i1\)"),
        ({"i0": "A", "i1": "A"}, {"i0": "A"}, r"1 only the first \(i1\), 0 only the second \(none\)"),
        ({"x": "A"}, {"x": "A"}, "item x, which is none of the 2 items"),
        ({}, {}, "answer none of the 2 items"),
    ],
)
def test_answers_to_different_items_are_refused(first, second, told):
    with pytest.raises(BenchFileError, match=told):
        paired_score(items("AB"), first, second)
