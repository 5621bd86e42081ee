"""Whether a new model takes another's place, by their answers to the same frozen Bench-Q items."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from benchmark.items import QuestionItem
from benchmark.paired import paired_score
from schemas.record import Record, Share

Rival = Literal["latest", "untrained"]
"""The model that holds the place, or, where none does, the new one as its training began with it."""
Verdict = Literal["accepted", "rejected", "undecided"]
"""Only an accepted model takes the place."""


class GateRule(Record):
    """What a new model must show on at least `min_items` items.

    It must be right more often, and that either with McNemar's exact two-sided p below `alpha` or, where a `margin` is
    given, by that share of the items: whichever it reaches.
    """

    min_items: int = Field(default=60, ge=1)
    alpha: float = Field(default=0.05, gt=0, lt=1)
    margin: float | None = Field(default=None, gt=0, le=1)


class GateDecision(Record):
    """What was decided on `num_items` items, and why in one line; accuracies count missing answers as wrong."""

    verdict: Verdict
    rival: Rival
    reason: str
    num_items: int
    accuracy: Share
    rival_accuracy: Share
    num_only_new: int
    num_only_rival: int
    p_value: Share


def decide(
    items: Sequence[QuestionItem],
    new: Mapping[str, str | None],
    other: Mapping[str, str | None],
    rival: Rival,
    rule: GateRule,
) -> GateDecision:
    """Hold the new model's letters against the other's, by item id; what is missing or None is wrong.

    Raises BenchFileError where letters are given for no item of `items`, and where there are no items.
    """
    missing: dict[str, str | None] = {item.item_id: None for item in items}
    paired = paired_score(items, missing | dict(new), missing | dict(other))
    num_new = paired.num_both_right + paired.num_only_first
    num_other = paired.num_both_right + paired.num_only_second
    gain = (num_new - num_other) / paired.n
    told = (
        f"{num_new} of {paired.n} right, {rival} {num_other}; {paired.num_only_first} right by the new alone, "
        f"{paired.num_only_second} by the {rival} alone, p {paired.p_value:.3g}"
    )
    verdict, why = _verdict(paired.n, gain, paired.p_value, rule)
    return GateDecision(
        verdict=verdict,
        rival=rival,
        reason=f"{why}: {told}",
        num_items=paired.n,
        accuracy=num_new / paired.n,
        rival_accuracy=num_other / paired.n,
        num_only_new=paired.num_only_first,
        num_only_rival=paired.num_only_second,
        p_value=paired.p_value,
    )


def _verdict(num_items: int, gain: float, p_value: float, rule: GateRule) -> tuple[Verdict, str]:
    points = f"{100 * gain:+.1f} points"
    if num_items < rule.min_items:
        return "undecided", f"{num_items} items are too few, {rule.min_items} are needed"
    if gain <= 0:
        return "rejected", f"not better ({points})"
    if p_value < rule.alpha:
        return "accepted", f"better ({points}, p below {rule.alpha:g})"
    if rule.margin is not None and gain >= rule.margin:
        return "accepted", f"better by the margin ({points}, at least {100 * rule.margin:g} were asked for)"
    wanted = f"p is not below {rule.alpha:g}"
    if rule.margin is not None:
        wanted += f", nor is that {100 * rule.margin:g} points"
    return "rejected", f"not shown to be better ({points}, {wanted})"
