"""The gate on scripted pairs of answers: better, worse, equal, too few items, first model, other items."""

from math import comb

import pytest

from benchmark.gate import GateRule, Rival, decide
from benchmark.items import BenchFileError, QuestionItem

OPTIONS = ("(A) a", "(B) b", "(C) c", "(D) d")


def items(num: int) -> list[QuestionItem]:
    return [
        QuestionItem(
            item_id=str(n), video="a.mp4", question="?", qtype="Basic Questions", options=OPTIONS, answer="(A) a", row=n
        )
        for n in range(num)
    ]


def right(*numbers: int, of: int) -> dict[str, str | None]:
    """Letters that are right of the named items alone."""
    return {str(n): "A" if n in numbers else "B" for n in range(of)}


@pytest.mark.parametrize("rival", ["latest", "untrained"])
def test_a_model_that_is_better_beyond_luck_is_accepted(rival: Rival) -> None:
    asked = items(60)
    found = decide(asked, right(*range(30), of=60), right(*range(20), of=60), rival, GateRule())
    assert (found.verdict, found.rival) == ("accepted", rival)
    assert found.p_value == pytest.approx(2 / 2**10)
    assert (found.accuracy, found.rival_accuracy) == (0.5, pytest.approx(1 / 3))
    assert found.reason.startswith("better (+16.7 points, p below 0.05): 30 of 60 right")
    assert f"{rival} 20" in found.reason


def test_a_model_that_is_worse_or_equal_is_rejected() -> None:
    asked, few, many = items(60), right(*range(20), of=60), right(*range(30), of=60)
    other = right(*range(10, 40), of=60)
    for new, old in ((few, many), (many, many), (many, other)):
        assert decide(asked, new, old, "latest", GateRule(margin=0.01)).verdict == "rejected"
    assert decide(asked, many, other, "latest", GateRule()).p_value == 1


def test_luck_is_not_enough_but_a_stated_margin_is() -> None:
    asked = items(60)
    new, old = right(*range(24), of=60), right(*range(20), of=60)
    plain = decide(asked, new, old, "latest", GateRule())
    assert plain.verdict == "rejected"
    assert plain.p_value == pytest.approx(2 * comb(4, 0) / 2**4)
    assert "not shown to be better (+6.7 points, p is not below 0.05)" in plain.reason
    assert decide(asked, new, old, "latest", GateRule(margin=0.05)).verdict == "accepted"
    assert decide(asked, new, old, "latest", GateRule(margin=0.1)).verdict == "rejected"


def test_too_few_items_decide_nothing_however_clear() -> None:
    found = decide(items(59), right(*range(59), of=59), right(of=59), "untrained", GateRule())
    assert found.verdict == "undecided"
    assert found.reason.startswith("59 items are too few, 60 are needed")


def test_what_has_no_answer_is_wrong_for_either() -> None:
    asked = items(4)
    found = decide(asked, {"0": "A", "1": None}, {"1": "A", "2": "A", "3": "A"}, "latest", GateRule(min_items=1))
    assert (found.accuracy, found.rival_accuracy, found.num_items) == (0.25, 0.75, 4)
    assert (found.num_only_new, found.num_only_rival) == (1, 3)


def test_answers_to_other_items_are_refused() -> None:
    with pytest.raises(BenchFileError, match="different items"):
        decide(items(2), {"7": "A"}, {"0": "A"}, "latest", GateRule())
