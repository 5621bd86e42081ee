"""Temporal token merge: neighbouring frames in which an object looks alike share one token (paper section 3.2).

An object with k tokens keeps u: of the k - 1 cosine similarities between neighbours the k - u largest join their pair,
and each run of joined tokens becomes the mean of its members. The official code joins every pair that reaches the
(k - u)-th largest similarity, so that equal similarities leave fewer than u tokens; `ties_join` keeps that.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor

from model.inputs import offsets


class Merged(NamedTuple):
    """T merged tokens of all objects, object after object, each in the order of its rows.

    `tokens` (T, D) in the dtype of the rows; `num_tokens` (objects,) long; `group_sizes` (T,) long, how many
    neighbouring rows each token is the mean of.
    """

    tokens: Tensor
    num_tokens: Tensor
    group_sizes: Tensor


def group_ids(similarities: Tensor, lengths: Tensor, num_tokens: int, ties_join: bool) -> Tensor:
    """Which group each token of each object belongs to, counted from 0 in order.

    `similarities` (O, K - 1): entry i of an object compares its tokens i and i + 1, entries from its length - 1 on are
    ignored; `lengths` (O,) long, tokens per object, at most K; `num_tokens` u, at least 1. Returns (O, K) long, -1 past
    an object's length. An object with at most u tokens keeps them all; a longer one gets exactly u groups, the earliest
    of equal similarities being joined first. With `ties_join` all pairs equal to the last one joined are joined too.
    """
    if num_tokens < 1:
        raise ValueError(f"got num_tokens {num_tokens}; an object is allowed 1 token or more")
    places = torch.arange(similarities.shape[1] + 1, device=similarities.device)
    is_pair = places[1:] < lengths[:, None]
    num_joins = (lengths - num_tokens).clamp(min=0)[:, None]
    falling, order = torch.where(is_pair, similarities, -torch.inf).sort(dim=-1, descending=True, stable=True)
    if ties_join and falling.shape[1]:
        threshold = falling.gather(1, (num_joins - 1).clamp(min=0))
        joins = (similarities >= threshold) & (num_joins > 0) & is_pair
    else:
        joins = torch.zeros_like(is_pair).scatter(1, order, places[:-1] < num_joins)
    starts = F.pad(~joins, (1, 0), value=True)
    return torch.where(places < lengths[:, None], starts.cumsum(1) - 1, -1)


def merge(rows: Tensor, lengths: Tensor, num_tokens: int, ties_join: bool) -> Merged:
    """Merge the tokens of every object to at most `num_tokens`, exactly that many where an object has more.

    `rows` (M, D), object after object, `lengths` (O,) long of them each; M may be 0. Similarities and means are taken
    in float32; a row of zeros has similarity 0 with its neighbours. No gradient flows through the choice of groups.
    """
    places = torch.arange(int(lengths.max()) if len(lengths) else 0, device=rows.device)
    inside = places < lengths[:, None]
    similarities = rows.new_zeros(len(lengths), max(len(places) - 1, 0), dtype=torch.float32)
    similarities[inside[:, 1:]] = _neighbour_similarities(rows.detach(), lengths)
    groups = group_ids(similarities, lengths, num_tokens, ties_join) if len(places) else inside.long()
    counts = groups.amax(1) + 1 if len(places) else torch.zeros_like(lengths)
    token_of_row = (groups + offsets(counts)[:, None])[inside]
    sizes = torch.bincount(token_of_row, minlength=int(counts.sum()))
    sums = rows.new_zeros(len(sizes), rows.shape[1], dtype=torch.float32).index_add(0, token_of_row, rows.float())
    return Merged((sums / sizes[:, None]).to(rows.dtype), counts, sizes)


def _neighbour_similarities(rows: Tensor, lengths: Tensor) -> Tensor:
    """Cosine similarity of each row to the next within its object, (M - objects that have rows,) float32."""
    unit = F.normalize(rows.float(), dim=1)
    same_object = torch.repeat_interleave(torch.arange(len(lengths), device=rows.device), lengths)
    return (unit[:-1] * unit[1:]).sum(1)[same_object[:-1] == same_object[1:]]
