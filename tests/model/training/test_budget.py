"""When bad samples stop a run, asked after every step as the loop does."""

import random
from itertools import accumulate
from math import comb

import pytest

from model.training.budget import too_many_bad


def stopped_after(rate: float, max_share: float, num_samples: int, seed: int) -> int | None:
    """Samples drawn, 16 a step, until a run is stopped."""
    chance, bad = random.Random(seed), 0
    for drawn in range(16, num_samples + 1, 16):
        bad += sum(chance.random() < rate for _ in range(16))
        if too_many_bad(bad, drawn, max_share):
            return drawn
    return None


def test_data_under_the_allowed_share_are_not_stopped() -> None:
    assert [stopped_after(0.005, 0.01, 20_000, seed) for seed in range(100)] == [None] * 100


def test_data_over_the_allowed_share_are_stopped_soon() -> None:
    stops = [stopped_after(0.05, 0.01, 20_000, seed) for seed in range(100)]
    assert max(20_001 if stop is None else stop for stop in stops) <= 1_000


def test_data_of_which_all_are_bad_stop_at_the_tenth_sample() -> None:
    assert [too_many_bad(number, number, 0.01) for number in (1, 9, 10, 11)] == [False, False, True, True]
    assert too_many_bad(10, 10, 0.0)
    assert not too_many_bad(9, 9, 0.0)
    assert not too_many_bad(10_000, 10_000, 1.0)


@pytest.mark.parametrize(("num_samples", "one_in"), [(40, 5), (1000, 100), (3000, 20)])
def test_the_limit_is_where_the_binomial_tail_falls_under_one_in_a_thousand(num_samples: int, one_in: int) -> None:
    ways = [comb(num_samples, good) * (one_in - 1) ** good for good in range(num_samples + 1)]
    tails = dict(zip(range(num_samples, -1, -1), accumulate(ways), strict=True))  # of so many bad or more, exact
    expected = min(bad for bad, tail in tails.items() if 1000 * tail < one_in**num_samples)
    assert expected > 10
    assert too_many_bad(expected, num_samples, 1 / one_in)
    assert not too_many_bad(expected - 1, num_samples, 1 / one_in)


def test_a_long_run_is_judged_too() -> None:
    assert too_many_bad(1_010_000, 100_000_000, 0.01)
    assert not too_many_bad(1_000_100, 100_000_000, 0.01)
