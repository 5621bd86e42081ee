"""How many bad samples a run may pass over, judged over all ranks and from the run's beginning."""

import collections
import math
from collections.abc import Iterable

import torch.distributed as dist

from model.training.feed import BadItem

_FEWEST_BAD = 10
"""Fewer bad samples never stop a run: one early bad sample is no bad share."""
_CHANCE = 1e-3


def too_many_bad(num_bad: int, num_samples: int, max_share: float) -> bool:
    """Whether more of the samples drawn so far are bad than chance gives where `max_share` of the data are.

    At least 10 must be bad, and so many or more must have a probability under 1 in 1,000 if each sample is bad with
    probability `max_share` (the binomial distribution's upper tail, exact). Data well under the share are never
    stopped for a cluster of bad samples, data well over it soon. It may be asked at every step; data right at the share
    are then stopped sooner or later.
    """
    if num_bad < _FEWEST_BAD or num_bad <= max_share * num_samples:
        return False
    return max_share == 0 or _upper_tail(num_bad, num_samples, max_share) < _CHANCE


def _upper_tail(least: int, tries: int, share: float) -> float:
    """P(X >= least) of the binomial distribution, for `least` above its mean and 0 < share < 1."""
    ways = math.lgamma(tries + 1) - math.lgamma(least + 1) - math.lgamma(tries - least + 1)
    term = math.exp(ways + least * math.log(share) + (tries - least) * math.log1p(-share))
    total = 0.0
    for count in range(least, tries + 1):  # terms fall from the first on
        total += term
        if term <= total * 1e-12:
            break
        term *= (tries - count) / (count + 1) * share / (1 - share)
    return total


class BadTally:
    """Bad samples of one rank since it was started, by reason, with the first one of each."""

    def __init__(self) -> None:
        self._by_reason: collections.Counter[str] = collections.Counter()
        self._first: dict[str, BadItem] = {}

    def add(self, bad: Iterable[BadItem]) -> None:
        """Counts some."""
        for one in bad:
            self._by_reason[one.reason] += 1
            self._first.setdefault(one.reason, one)

    def commonest(self) -> str:
        """The commonest reason over all ranks with one example, as part of a sentence; empty where none was named.

        All ranks of the process group must ask together, and all are told the same.
        """
        tallies: list[BadTally | None] = [None] * dist.get_world_size()
        dist.all_gather_object(tallies, self)
        there = [tally for tally in tallies if tally is not None]
        total = sum((tally._by_reason for tally in there), collections.Counter[str]())
        if not total:
            return ""
        ((reason, count),) = total.most_common(1)
        first = next(tally._first[reason] for tally in there if reason in tally._first)
        example = f"{first.item_id} of {first.source}: {first.said}"
        return f", most often {reason} ({count} since the last start), such as {example}"
