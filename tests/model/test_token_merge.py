import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.token_merge import group_ids, merge

NUM_TOKENS = 4

# few values, so that ties are the rule; exact in binary
objects = st.lists(
    st.integers(0, 12).flatmap(lambda n: st.lists(st.integers(-4, 4), min_size=n, max_size=n)), max_size=5
)


def padded(similarities: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """One list per object, one shorter than its tokens; what is past it is larger than any similarity."""
    width = max(map(len, similarities), default=0)
    rows = [[*of_object, *[9.0] * (width - len(of_object))] for of_object in similarities]
    return torch.tensor(rows).reshape(len(rows), width), torch.tensor([len(s) + 1 for s in similarities]).long()


def slow_groups(similarities: list[float], num_tokens: int, ties_join: bool) -> list[int]:
    """Left to right: the threshold rule as published, or one join after the other, the likest and earliest first."""
    num_joins = len(similarities) + 1 - num_tokens
    if num_joins <= 0:
        joined = set()
    elif ties_join:
        threshold = sorted(similarities)[-num_joins]
        joined = {i for i, similarity in enumerate(similarities) if similarity >= threshold}
    else:
        joined = set(sorted(range(len(similarities)), key=lambda i: (-similarities[i], i))[:num_joins])
    groups = [0]
    for i in range(len(similarities)):
        groups.append(groups[-1] + (i not in joined))
    return groups


def fast_groups(similarities: list[list[float]], num_tokens: int, ties_join: bool) -> list[list[int]]:
    rows, lengths = padded(similarities)
    groups = group_ids(rows, lengths, num_tokens, ties_join)
    assert groups.shape == (len(similarities), rows.shape[1] + 1)
    for row, length in zip(groups.tolist(), lengths.tolist(), strict=True):
        assert row[length:] == [-1] * (len(row) - length)
    return [row[:length] for row, length in zip(groups.tolist(), lengths.tolist(), strict=True)]


def slow_merge(rows: torch.Tensor, num_tokens: int, ties_join: bool) -> torch.Tensor:
    """One object, in double precision: cosine of neighbours, groups, mean of each group's original members."""
    vectors = rows.double().tolist()

    def cosine(a: list[float], b: list[float]) -> float:
        length = math.hypot(*a) * math.hypot(*b)
        return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0

    groups = slow_groups([cosine(a, b) for a, b in itertools.pairwise(vectors)], num_tokens, ties_join)
    members = [[v for v, g in zip(vectors, groups, strict=True) if g == group] for group in range(groups[-1] + 1)]
    return torch.tensor([[sum(column) / len(group) for column in zip(*group, strict=True)] for group in members])


@settings(max_examples=150, deadline=None)
@given(objects, st.integers(1, 6), st.booleans())
def test_groups_are_those_of_the_rule_ties_included(
    similarities: list[list[int]], num_tokens: int, ties_join: bool
) -> None:
    quarters = [[value / 4 for value in of_object] for of_object in similarities]
    expected = [slow_groups(of_object, num_tokens, ties_join) for of_object in quarters]
    assert fast_groups(quarters, num_tokens, ties_join) == expected


@settings(max_examples=100, deadline=None)
@given(objects, st.integers(1, 6))
def test_a_long_object_gets_exactly_as_many_groups_as_allowed(similarities: list[list[int]], num_tokens: int) -> None:
    groups = fast_groups([list(map(float, of_object)) for of_object in similarities], num_tokens, ties_join=False)
    assert [of_object[-1] + 1 for of_object in groups] == [min(len(s) + 1, num_tokens) for s in similarities]


def test_of_equal_pairs_the_earliest_join() -> None:
    assert fast_groups([[0.5] * 5], 3, ties_join=False) == [[0, 0, 0, 0, 1, 2]]
    assert fast_groups([[0.2, 0.5, 0.5, 0.9]], 3, ties_join=False) == [[0, 1, 1, 2, 2]]


def test_ties_all_join_under_the_official_rule() -> None:
    assert fast_groups([[1.0] * 31], NUM_TOKENS, ties_join=True) == [[0] * 32]
    assert fast_groups([[0.2, 0.5, 0.5, 0.9]], 3, ties_join=True) == [[0, 1, 1, 1, 1]]


def test_an_object_of_few_tokens_is_left_alone_beside_a_long_one() -> None:
    for ties_join in (False, True):
        groups = fast_groups([[1.0, 1.0, 1.0], [1.0] * 9, []], NUM_TOKENS, ties_join)
        assert groups[0] == [0, 1, 2, 3]
        assert groups[2] == [0]


def test_no_tokens_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed 1 token or more"):
        group_ids(torch.zeros(1, 3), torch.tensor([4]), 0, ties_join=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=5), st.integers(1, 5), st.booleans(), st.integers(0, 2**32))
def test_tokens_are_the_means_of_their_groups(lengths: list[int], num_tokens: int, ties_join: bool, seed: int) -> None:
    rows = torch.randn(sum(lengths), 6, generator=torch.Generator().manual_seed(seed))
    merged = merge(rows, torch.tensor(lengths, dtype=torch.long), num_tokens, ties_join)
    expected = [slow_merge(part, num_tokens, ties_join) for part in rows.split(lengths)] if lengths else []
    assert merged.num_tokens.tolist() == [len(tokens) for tokens in expected]
    assert int(merged.group_sizes.sum()) == len(rows)
    assert torch.allclose(merged.tokens, torch.cat([rows.new_zeros(0, 6), *expected]), atol=1e-6)


def test_absent_frames_dilute_the_official_merge_to_one_token() -> None:
    rows = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    rows[1::2] = 0  # each similarity is then 0, and so is the threshold
    merged = merge(rows, torch.tensor([12]), NUM_TOKENS, ties_join=True)
    assert torch.allclose(merged.tokens, rows.mean(0, keepdim=True), atol=1e-6)


def test_an_object_without_rows_between_others_gets_no_token() -> None:
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    merged = merge(rows, torch.tensor([2, 0, 5, 0]), 3, ties_join=False)
    assert merged.num_tokens.tolist() == [2, 0, 3, 0]
    assert torch.equal(merged.tokens[:2], rows[:2])
    assert torch.allclose(merged.tokens[2:], slow_merge(rows[2:], 3, ties_join=False), atol=1e-6)


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_nothing_to_merge_gives_nothing(lengths: list[int]) -> None:
    merged = merge(torch.zeros(0, 5), torch.tensor(lengths, dtype=torch.long), NUM_TOKENS, ties_join=False)
    assert merged.tokens.shape == (0, 5)
    assert merged.num_tokens.tolist() == lengths


def test_many_rows_are_averaged_in_full_precision() -> None:
    rows = torch.full((300, 2), 1.0, dtype=torch.bfloat16)
    rows[-1] = 2.0
    merged = merge(rows, torch.tensor([300]), 1, ties_join=False)
    assert merged.tokens.dtype == torch.bfloat16
    assert merged.tokens.tolist() == [[1.0, 1.0]]  # a sum of ones stalls at 256 in bfloat16


def test_gradients_are_shared_among_a_groups_members() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]], requires_grad=True)
    merge(rows, torch.tensor([3]), 2, ties_join=False).tokens.sum().backward()
    assert torch.equal(rows.grad, torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 1.0]]))
