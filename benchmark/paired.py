"""Two sets of answers to the same questions: what changed, and whether one is right more often than by luck."""

import math
from collections.abc import Mapping, Sequence

from benchmark.items import BenchFileError, QuestionItem
from schemas.record import Record, Share


class ChangedAnswer(Record):
    """An item to which the two gave different letters (None is unparsed), and the right one."""

    item_id: str
    right: str
    first: str | None
    second: str | None


class PairedScore(Record):
    """How often which of the two was right over the `n` of `num_items` items that both answer, and every item whose
    letter changed.

    `p_value` is that of McNemar's exact two-sided test (1947): were both equally good, the items that only one has
    right would fall to either side by a fair coin, one coin an item, also where several are of one video.
    """

    num_items: int
    n: int
    num_both_right: int
    num_only_first: int
    num_only_second: int
    num_both_wrong: int
    p_value: Share
    changed: tuple[ChangedAnswer, ...]


def paired_score(
    items: Sequence[QuestionItem], first: Mapping[str, str | None], second: Mapping[str, str | None]
) -> PairedScore:
    """Compare chosen letters by item id over the items that both answer, in the items' order.

    Raises BenchFileError where they answer different items, or none of those given.
    """
    _refuse_other_items(items, first, second)
    asked = [item for item in items if item.item_id in first]
    outcomes = [(first[item.item_id] == item.letter, second[item.item_id] == item.letter) for item in asked]
    num_only_first, num_only_second = outcomes.count((True, False)), outcomes.count((False, True))
    return PairedScore(
        num_items=len(items),
        n=len(asked),
        num_both_right=outcomes.count((True, True)),
        num_only_first=num_only_first,
        num_only_second=num_only_second,
        num_both_wrong=outcomes.count((False, False)),
        p_value=mcnemar_p_value(num_only_first, num_only_second),
        changed=tuple(
            ChangedAnswer(item_id=item.item_id, right=item.letter, first=one, second=two)
            for item in asked
            if (one := first[item.item_id]) != (two := second[item.item_id])
        ),
    )


def mcnemar_p_value(num_only_first: int, num_only_second: int) -> float:
    """The exact two-sided p-value: twice the binomial tail of the smaller count at 1/2, 1 where both are equal."""
    n, fewer = num_only_first + num_only_second, min(num_only_first, num_only_second)
    # whole numbers to the end, so that no n is too large
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / (1 << n))


def _refuse_other_items(
    items: Sequence[QuestionItem], first: Mapping[str, str | None], second: Mapping[str, str | None]
) -> None:
    only_first, only_second = sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())
    if only_first or only_second:
        raise BenchFileError(
            f"the two answer different items: {len(only_first)} only the first ({', '.join(only_first[:3]) or 'none'}),"
            f" {len(only_second)} only the second ({', '.join(only_second[:3]) or 'none'}); both must answer the same"
        )
    unknown = first.keys() - {item.item_id for item in items}
    if unknown or not first:
        got = f"item {min(unknown)}, which is none" if unknown else "none"
        raise BenchFileError(f"the two answer {got} of the {len(items)} items given")
