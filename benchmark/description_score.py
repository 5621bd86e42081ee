"""Bench-D's figures: a mean for each of the four dimensions and their mean, with how sure they are and of how many.

The official script takes each mean over the items that happen to have the score and does not say how many. Here every
mean stands beside `n_scored` of `n_items` and beside the mean it would be with each unscored item a 0.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from benchmark.judge_reply import DIMENSIONS, Dimension, Reason
from benchmark.judging import Judgement, JudgeRun
from schemas.record import Record

NUM_RESAMPLES = 10_000
_BATCH = 500
_INTERVAL = (2.5, 97.5)

_Table = npt.NDArray[np.float64]


class Spread(Record):
    """How sure a mean is: its standard error and its bootstrap 95 % interval, over items.

    Both take items for independent, also those few that share a video.
    """

    standard_error: float
    low: float
    high: float


class ScoreMean(Record):
    """A mean of scores from 0 to 5 over the items that have one.

    `mean` is None with no item scored, `spread` with fewer than two. `unscored` counts the others by reason.
    `mean_unscored_as_0` is over all items: what the mean cannot fall below.
    """

    mean: float | None
    spread: Spread | None
    n_scored: int
    n_items: int
    unscored: dict[Reason, int]
    mean_unscored_as_0: float

    @model_validator(mode="after")
    def _accounts_for_every_item(self) -> "ScoreMean":
        if self.n_scored + sum(self.unscored.values()) != self.n_items:
            raise ValueError(f"{self.n_scored} scored and {self.unscored} unscored are not {self.n_items} items")
        return self


class UnscoredItem(Record):
    """An item that lacks a score, and why."""

    item_id: str
    unscored: dict[Dimension, Reason]
    detail: str


class DescriptionScore(Record):
    """Bench-D's result with who judged it.

    `total` is the mean of the four means, as in the official script; its `n_scored` counts items with all four scores,
    and an item that lacks several counts once there, under its first reason. `n_fractional` counts scores that are no
    whole numbers, which the rubric does not ask for but the means hold.
    """

    judge: JudgeRun
    dimensions: dict[Dimension, ScoreMean]
    total: ScoreMean
    unscored_items: tuple[UnscoredItem, ...]
    n_fractional: int
    seed: int
    num_resamples: int


def description_score(judgements: Sequence[Judgement], judge: JudgeRun, seed: int) -> DescriptionScore:
    """The figures of all items, for the same judgements in the same order and seed the same to the last digit.

    Items are resampled whole, so the four scores of one stay together. An item that lacks some scores counts for the
    means of the others. Raises ValueError for no items or an item judged twice.
    """
    counts = Counter(judgement.item_id for judgement in judgements)
    twice = [item_id for item_id, count in counts.items() if count > 1]
    if not judgements or twice:
        raise ValueError(f"item {twice[0]!r} is judged twice" if twice else "there is no item to score")
    table = np.array([[judgement.scores.get(key, np.nan) for key in DIMENSIONS] for judgement in judgements])
    resampled = _resampled_means(table, seed)
    errors = _influences(table)
    dimensions: dict[Dimension, ScoreMean] = {}
    for place, key in enumerate(DIMENSIONS):
        reasons = [judgement.unscored[key] for judgement in judgements if key in judgement.unscored]
        dimensions[key] = _score_mean(table[:, [place]], resampled[:, [place]], errors[:, place], reasons)
    firsts = [next(iter(judgement.unscored.values())) for judgement in judgements if judgement.unscored]
    return DescriptionScore(
        judge=judge,
        dimensions=dimensions,
        total=_score_mean(table, resampled, errors.mean(axis=1), firsts),
        unscored_items=tuple(_unscored(judgement) for judgement in judgements if judgement.unscored),
        n_fractional=int((np.modf(table[~np.isnan(table)])[0] != 0).sum()),
        seed=seed,
        num_resamples=NUM_RESAMPLES,
    )


def _score_mean(table: _Table, resampled: _Table, errors: _Table, reasons: Iterable[Reason]) -> ScoreMean:
    """The mean of the columns' means, from scores, resampled means, and each item's part in the error."""
    unscored = Counter(reasons)
    n_scored = int((~np.isnan(table)).all(axis=1).sum())
    has_mean = not np.isnan(table).all(axis=0).any()
    return ScoreMean(
        mean=float(np.nanmean(table, axis=0).mean()) if has_mean else None,
        spread=_spread(resampled.mean(axis=1), errors) if has_mean and n_scored > 1 else None,
        n_scored=n_scored,
        n_items=len(table),
        unscored=dict(unscored),
        mean_unscored_as_0=float(np.nan_to_num(table).mean()),
    )


def _spread(resampled: _Table, errors: _Table) -> Spread:
    low, high = np.nanpercentile(resampled, _INTERVAL)
    return Spread(standard_error=float(np.sqrt((errors**2).sum())), low=float(low), high=float(high))


def _influences(table: _Table) -> _Table:
    """(items, dimensions): how far each item moves each mean; the root of the sum of squares is the standard error.

    For one dimension that is the sample deviation over the root of n; for a mean of means, the linearised form, which
    is the same of the items' own means where none lacks a score.
    """
    here = ~np.isnan(table)
    n = here.sum(axis=0)
    means = np.where(here, table, 0).sum(axis=0) / np.maximum(n, 1)
    influences: _Table = np.where(here, table - means, 0) / np.sqrt(np.maximum(n * (n - 1), 1))
    return influences


def _resampled_means(table: _Table, seed: int) -> _Table:
    """(resamples, dimensions): means over items drawn with replacement; NaN where none drawn has the score."""
    rng = np.random.default_rng(seed)
    here = ~np.isnan(table)
    filled = np.where(here, table, 0)
    means: list[_Table] = []
    for _ in range(NUM_RESAMPLES // _BATCH):
        times = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=_BATCH).astype(np.float64)
        n = times @ here
        means.append(np.divide(times @ filled, n, out=np.full(n.shape, np.nan), where=n > 0))
    return np.concatenate(means)


def _unscored(judgement: Judgement) -> UnscoredItem:
    return UnscoredItem(item_id=judgement.item_id, unscored=judgement.unscored, detail=judgement.detail)
