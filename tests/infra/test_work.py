"""The spread of seconds a clip from sums over micro-batches is that from the micro-batches themselves."""

import math
import random

import pytest

from infra.work import BatchSums


def spread(batches: list[tuple[int, float]]) -> float:
    """The standard error of a ratio of means, from every micro-batch."""
    rate = sum(busy for _, busy in batches) / sum(clips for clips, _ in batches)
    residuals = [busy - rate * clips for clips, busy in batches]
    mean_clips = sum(clips for clips, _ in batches) / len(batches)
    variance = sum(residual**2 for residual in residuals) / (len(batches) - 1)
    return math.sqrt(variance / len(batches)) / mean_clips


def sums(batches: list[tuple[int, float]]) -> BatchSums:
    found = BatchSums()
    for clips, busy_s in batches:
        found = found.plus(clips, busy_s)
    return found


def test_the_spread_is_that_of_a_ratio_over_all_micro_batches() -> None:
    drawn = random.Random(3)
    batches = [(clips, clips * drawn.uniform(0.5, 2.0)) for clips in drawn.choices([1, 2, 3, 4], k=40)]
    found = sums(batches)
    assert (found.num, found.clips) == (40, sum(clips for clips, _ in batches))
    assert found.error_s_per_clip == pytest.approx(spread(batches))


def test_the_spread_tells_how_far_a_sample_is_off() -> None:
    """Of many samples of one population, about two in three lie within one spread of its rate."""
    drawn = random.Random(4)
    population = [(4, 4 * drawn.uniform(0.5, 2.0)) for _ in range(2000)]
    rate = sum(busy for _, busy in population) / 8000
    within = 0
    for _ in range(400):
        found = sums(drawn.sample(population, 20))
        within += abs(found.busy_s / found.clips - rate) < (found.error_s_per_clip or 0.0)
    assert 0.58 < within / 400 < 0.76


def test_alike_micro_batches_have_no_spread_and_one_has_none_that_is_known() -> None:
    assert sums([(4, 2.0), (4, 2.0), (2, 1.0)]).error_s_per_clip == pytest.approx(0.0, abs=1e-7)
    assert sums([(4, 2.0)]).error_s_per_clip is None
