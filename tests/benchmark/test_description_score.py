import math
import random
import statistics

import pytest

from benchmark.description_score import NUM_RESAMPLES, description_score
from benchmark.judge_reply import DIMENSIONS
from benchmark.judging import Judgement, JudgeRun

JUDGE = JudgeRun(
    model_asked="m",
    models_answered=(),
    server_versions=(),
    system_fingerprints=(),
    rubric="own words",
    prompt_hash="0",
    temperature=0,
    max_tokens=1,
    reply_format="json",
    explained=True,
    max_reasks=0,
)


def item(number: int, *scores: float | str) -> Judgement:
    """Numbers are scores, texts are reasons."""
    pairs = list(zip(DIMENSIONS, scores, strict=True))
    return Judgement(
        item_id=f"i{number}",
        scores={key: value for key, value in pairs if not isinstance(value, str)},
        unscored={key: value for key, value in pairs if isinstance(value, str)},
        detail="",
        reply="",
        asks=1,
    )


def drawn(n: int, seed: int, holes: float = 0.0) -> list[Judgement]:
    draw = random.Random(seed)

    def score() -> float | str:
        return "missing" if draw.random() < holes else draw.choice([0, 1, 2, 3, 3, 4, 4, 5, 5, 3.5])

    return [item(number, *(score() for _ in DIMENSIONS)) for number in range(n)]


@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_means_and_standard_errors_equal_a_slow_reference(holes: float) -> None:
    judgements = drawn(60, 1, holes)
    result = description_score(judgements, JUDGE, seed=0)
    means = []
    for key in DIMENSIONS:
        scores = [judgement.scores[key] for judgement in judgements if key in judgement.scores]
        got = result.dimensions[key]
        means.append(statistics.mean(scores))
        assert got.mean == pytest.approx(means[-1])
        assert got.spread.standard_error == pytest.approx(statistics.stdev(scores) / math.sqrt(len(scores)))
        assert (got.n_scored, got.n_items) == (len(scores), 60)
        assert got.unscored == ({"missing": 60 - len(scores)} if len(scores) < 60 else {})
        assert got.mean_unscored_as_0 == pytest.approx(sum(scores) / 60)
    assert result.total.mean == pytest.approx(statistics.mean(means))
    assert result.total.n_scored == sum(not judgement.unscored for judgement in judgements)
    if not holes:
        per_item = [statistics.mean(judgement.scores.values()) for judgement in judgements]
        assert result.total.spread.standard_error == pytest.approx(statistics.stdev(per_item) / math.sqrt(60))
    assert result.n_fractional == sum(s == 3.5 for j in judgements for s in j.scores.values()) > 0


def test_intervals_equal_a_slow_bootstrap_and_hold_the_mean() -> None:
    judgements = drawn(40, 2, holes=0.15)
    result = description_score(judgements, JUDGE, seed=7)
    draw = random.Random(0)
    totals: list[float] = []
    firsts: list[float] = []
    for _ in range(4000):
        sample = draw.choices(judgements, k=40)
        means = [statistics.fmean([j.scores[key] for j in sample if key in j.scores]) for key in DIMENSIONS]
        totals.append(statistics.fmean(means))
        firsts.append(means[0])
    for got, slow in [(result.total, totals), (result.dimensions["SC"], firsts)]:
        slow.sort()
        assert got.spread.low == pytest.approx(slow[100], abs=0.04)
        assert got.spread.high == pytest.approx(slow[3899], abs=0.04)
        assert got.spread.low < got.mean < got.spread.high
        assert got.spread.standard_error == pytest.approx(statistics.stdev(slow), rel=0.1)


def test_the_same_seed_gives_the_same_bytes_and_another_other_ones() -> None:
    judgements = drawn(50, 3)
    once, twice, other = (description_score(judgements, JUDGE, seed=seed) for seed in (1, 1, 2))
    assert once.model_dump_json() == twice.model_dump_json()
    assert once.total.spread != other.total.spread
    assert (once.seed, once.num_resamples, once.judge) == (1, NUM_RESAMPLES, JUDGE)


def test_unscored_items_are_counted_by_reason_listed_and_never_averaged_away() -> None:
    judgements = [
        item(0, 5, 5, 5, 5),
        item(1, *["truncated"] * 4),
        item(2, *["no_prediction"] * 4),
        item(3, 3, "out_of_range", "missing", 3),
        item(4, *["truncated"] * 4),
    ]
    result = description_score(judgements, JUDGE, seed=0)
    assert result.dimensions["SC"].unscored == {"truncated": 2, "no_prediction": 1}
    assert (result.dimensions["SC"].mean, result.dimensions["SC"].n_scored) == (4, 2)
    assert result.dimensions["AD"].unscored == {"truncated": 2, "no_prediction": 1, "out_of_range": 1}
    assert result.total.unscored == {"truncated": 2, "no_prediction": 1, "out_of_range": 1}
    assert (result.total.n_scored, result.total.n_items) == (1, 5)
    assert result.total.mean == (4 + 5 + 5 + 4) / 4
    assert result.total.mean_unscored_as_0 == (20 + 6) / 20
    assert [missing.item_id for missing in result.unscored_items] == ["i1", "i2", "i3", "i4"]
    assert result.unscored_items[2].unscored == {"AD": "out_of_range", "TD": "missing"}


def test_with_nothing_scored_there_is_no_mean_and_with_one_no_spread() -> None:
    none = description_score([item(0, *["empty"] * 4), item(1, *["empty"] * 4)], JUDGE, seed=0)
    assert (none.total.mean, none.total.spread, none.total.unscored) == (None, None, {"empty": 2})
    assert none.total.mean_unscored_as_0 == 0
    one = description_score([item(0, 1, 2, 3, 4), item(1, *["empty"] * 4)], JUDGE, seed=0)
    assert (one.total.mean, one.total.spread, one.dimensions["HD"].mean) == (2.5, None, 4)


def test_equal_scores_have_an_interval_of_no_width() -> None:
    result = description_score([item(number, 4, 4, 4, 4) for number in range(5)], JUDGE, seed=0)
    assert (result.total.spread.standard_error, result.total.spread.low, result.total.spread.high) == (0, 4, 4)


def test_no_items_and_an_item_judged_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="no item"):
        description_score([], JUDGE, seed=0)
    with pytest.raises(ValueError, match="'i1' is judged twice"):
        description_score([item(1, 1, 1, 1, 1), item(1, 2, 2, 2, 2)], JUDGE, seed=0)
