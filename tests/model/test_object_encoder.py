import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from model.inputs import MaskBatch
from model.mask_grid import box_xyxy, coverage_weights, official_weights
from model.object_encoder import SpatialTemporalObjectEncoder, in_time_order, pool
from model.object_position import NUM_OCTAVES, ObjectPosition, fourier_features, position_features
from model.token_merge import Merged

CHANNELS, HIDDEN, NUM_TOKENS = 6, 5, 3
GRID = (4, 3)


class Seen(NamedTuple):
    """One mask of an object: (H, W) bool on a frame of the batch."""

    frame: int
    mask: Tensor


def make_batch(objects: Sequence[Sequence[Seen]], paper_exact: bool, grid: tuple[int, int] = GRID) -> MaskBatch:
    """What the processor makes of masks; frames follow one another at equal times."""
    weigh = official_weights if paper_exact else coverage_weights
    seen = [one for of_object in objects for one in of_object]
    frames = torch.tensor([one.frame for one in seen], dtype=torch.long)
    return MaskBatch(
        torch.cat([torch.zeros(0, *grid), *(weigh(one.mask[None], grid) for one in seen)]),
        frames,
        torch.tensor([i for i, of_object in enumerate(objects) for _ in of_object], dtype=torch.long),
        torch.cat([torch.zeros(0, 4), *(box_xyxy(one.mask[None]) for one in seen)]),
        frames / 100,
    )


def make_encoder(paper_exact: bool, object_position: bool = False) -> SpatialTemporalObjectEncoder:
    torch.manual_seed(0)
    encoder = SpatialTemporalObjectEncoder(CHANNELS, HIDDEN, NUM_TOKENS, object_position, paper_exact)
    if encoder.position is not None:
        torch.nn.init.normal_(encoder.position.mlp[2].weight)
    return encoder


def slow_rows(features: Tensor, of_object: Sequence[Seen], paper_exact: bool) -> Tensor:
    """One mask after the other, by the formulas: official mean over set cells, or mean weighted by covered share."""
    rows = []
    for one in of_object if paper_exact else sorted(of_object, key=lambda one: one.frame):
        if paper_exact:
            sampled = functional.interpolate(
                one.mask[None, None].float(), features.shape[1:3], mode="bilinear", align_corners=False
            )[0, 0]
            weights, floor = (sampled > 0).float(), 1e-8
        else:
            weights, floor = coverage_weights(one.mask[None], (features.shape[1], features.shape[2]))[0], 0.0
            if not weights.any():
                continue
        rows.append(sum(weights[i, j] * features[one.frame, i, j] for i, j in cells(weights)) / (weights.sum() + floor))
    return torch.stack(rows)


def cells(weights: Tensor) -> Iterator[tuple[int, int]]:
    return itertools.product(range(weights.shape[0]), range(weights.shape[1]))


def slow_merge(rows: Tensor, paper_exact: bool) -> Tensor:
    """Join pairs at or above the threshold, or the likest until enough are joined; mean of each run's members."""
    alike = [float(functional.cosine_similarity(a, b, dim=0)) for a, b in itertools.pairwise(rows)]
    num_joins = len(rows) - NUM_TOKENS
    if num_joins <= 0:
        return rows
    likest = sorted(range(len(alike)), key=lambda i: (-alike[i], i))[:num_joins]
    joined = {i for i, s in enumerate(alike) if s >= alike[likest[-1]]} if paper_exact else set(likest)
    runs = [[rows[0]]]
    for i, row in enumerate(rows[1:]):
        if i in joined:
            runs[-1].append(row)
        else:
            runs.append([row])
    return torch.stack([torch.stack(run).mean(0) for run in runs])


def random_mask(seed: int, density: float) -> Tensor:
    return torch.rand(11, 14, generator=torch.Generator().manual_seed(seed)) < density


def scenes(seed: int, num_frames: int, lengths: Sequence[int]) -> tuple[Tensor, list[list[Seen]]]:
    """Features and objects on frames drawn at random, in no order, several on one frame or none."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(num_frames, *GRID, CHANNELS, generator=random)
    objects = [
        [
            Seen(frame, random_mask(seed + 97 * number + frame, 0.2))
            for frame in torch.randperm(num_frames, generator=random)[:length].tolist()
        ]
        for number, length in enumerate(lengths)
    ]
    return features, objects


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 9), st.lists(st.integers(1, 9), max_size=4), st.booleans())
def test_tokens_are_those_of_the_formulas(seed: int, num_frames: int, lengths: list[int], paper_exact: bool) -> None:
    features, objects = scenes(seed, num_frames, lengths)
    encoder = make_encoder(paper_exact)
    encoded = encoder(features, make_batch(objects, paper_exact))
    merged = [slow_merge(slow_rows(features, of_object, paper_exact), paper_exact) for of_object in objects]
    assert encoded.num_tokens.tolist() == [len(tokens) for tokens in merged]
    expected = encoder.mlp(torch.cat([torch.zeros(0, CHANNELS), *merged]))
    assert torch.allclose(encoded.tokens, expected, atol=1e-5)


@pytest.mark.parametrize("paper_exact", [False, True])
@pytest.mark.parametrize("density", [0.003, 0.05, 0.6, 1.0])
def test_pooled_features_are_the_formulas_at_the_towers_size(paper_exact: bool, density: float) -> None:
    features = torch.randn(3, 27, 27, 64, generator=torch.Generator().manual_seed(0)) * 10
    draw = torch.Generator().manual_seed(1)
    seen = [Seen(i % 3, torch.rand(90, 160, generator=draw) < density) for i in range(5)]
    batch = make_batch([seen], paper_exact, (27, 27))
    rows = pool(features, batch.weights, batch.frame_index)
    weights = batch.weights.double()
    expected = [
        (w[..., None] * features[f].double()).sum((0, 1)) for f, w in zip([0, 1, 2, 0, 1], weights, strict=True)
    ]
    assert torch.allclose(rows, (torch.stack(expected) / weights.sum((1, 2))[:, None]).float(), rtol=0, atol=1e-5)


def test_an_empty_mask_pools_to_zeros() -> None:
    assert not pool(torch.randn(2, *GRID, CHANNELS), torch.zeros(3, *GRID), torch.tensor([1, 1, 0])).any()


def test_weights_on_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="grid of the vision tower"):
        pool(torch.randn(2, *GRID, CHANNELS), torch.zeros(1, *GRID[::-1]), torch.tensor([0]))


@pytest.mark.parametrize("frame", [-1, 2])
def test_a_frame_that_is_not_there_is_refused(frame: int) -> None:
    with pytest.raises(ValueError, match="features of 2 frames"):
        pool(torch.randn(2, *GRID, CHANNELS), torch.ones(2, *GRID), torch.tensor([0, frame]))


def test_objects_do_not_depend_on_those_beside_them() -> None:
    features, objects = scenes(5, 12, [1, 9, 4, 2])
    encoder = make_encoder(paper_exact=False, object_position=True)
    together = encoder(features, make_batch(objects, paper_exact=False))
    alone = [encoder(features, make_batch([of_object], paper_exact=False)) for of_object in objects]
    assert together.num_tokens.tolist() == [int(one.num_tokens) for one in alone]
    assert torch.allclose(together.tokens, torch.cat([one.tokens for one in alone]), atol=1e-5)


def test_absent_frames_are_left_out_and_order_given_does_not_matter() -> None:
    features, (seen,) = scenes(8, 9, [6])
    encoder = make_encoder(paper_exact=False, object_position=True)
    hidden = Seen(8, torch.zeros(11, 14, dtype=torch.bool))
    expected = encoder(features, make_batch([sorted(seen)], paper_exact=False))
    for mixed in ([hidden, *seen], [*seen[::-1], hidden, hidden]):
        encoded = encoder(features, make_batch([mixed], paper_exact=False))
        assert torch.equal(encoded.num_tokens, expected.num_tokens)
        assert torch.allclose(encoded.tokens, expected.tokens, atol=1e-6)


def test_paper_exact_counts_an_absent_frame_as_zeros() -> None:
    features, (seen,) = scenes(8, 9, [2])
    encoder = make_encoder(paper_exact=True)
    encoded = encoder(features, make_batch([[seen[0], Seen(8, torch.zeros(11, 14, dtype=torch.bool)), seen[1]]], True))
    assert encoded.num_tokens.tolist() == [3]
    assert torch.allclose(encoded.tokens[1], encoder.mlp(torch.zeros(CHANNELS)), atol=1e-6)


def test_an_object_never_visible_gets_no_token_but_keeps_its_place() -> None:
    features, (first, last) = scenes(3, 5, [2, 5])
    hidden = [Seen(1, torch.zeros(11, 14, dtype=torch.bool))]
    encoder = make_encoder(paper_exact=False, object_position=True)
    encoded = encoder(features, make_batch([first, hidden, last, hidden], paper_exact=False))
    assert encoded.num_tokens.tolist() == [2, 0, 3, 0]
    assert torch.allclose(encoded.tokens, encoder(features, make_batch([first, last], False)).tokens, atol=1e-5)


@pytest.mark.parametrize(("paper_exact", "object_position"), [(False, True), (False, False), (True, False)])
@pytest.mark.parametrize("num_objects", [0, 2])
def test_every_parameter_takes_part_with_and_without_objects(
    num_objects: int, paper_exact: bool, object_position: bool
) -> None:
    features, objects = scenes(1, 4, [3, 4])
    encoder = make_encoder(paper_exact, object_position)
    encoded = encoder(features, make_batch(objects[:num_objects], paper_exact))
    assert encoded.tokens.shape == (3 * num_objects, HIDDEN)
    assert len(encoded.num_tokens) == num_objects
    encoded.tokens.square().sum().backward()
    grads = [parameter.grad for parameter in encoder.parameters()]
    assert all(grad is not None and bool(grad.any()) == (num_objects > 0) for grad in grads)


@pytest.mark.parametrize("side_px", [1, 2, 3, 5, 8, 12, 16, 20, 24])
def test_no_small_square_is_lost_by_default(side_px: int) -> None:
    places = list(itertools.product([*range(0, 360 - side_px, 67), 360 - side_px], range(0, 640 - side_px, 97)))
    squares = torch.zeros(len(places), 360, 640, dtype=torch.bool)
    for square, (top, left) in zip(squares, places, strict=True):
        square[top : top + side_px, left : left + side_px] = True
    ones = torch.ones(1, 27, 27, CHANNELS)
    encoder = make_encoder(paper_exact=False)
    batch = make_batch([[Seen(0, square)] for square in squares], False, (27, 27))
    assert torch.allclose(pool(ones, batch.weights, batch.frame_index), torch.ones(len(places), CHANNELS))
    encoded = encoder(ones, batch)
    assert encoded.num_tokens.tolist() == [1] * len(places)
    assert torch.allclose(encoded.tokens, encoder.mlp(torch.ones(CHANNELS)).expand(len(places), -1), atol=1e-5)


def test_gradients_reach_just_the_cells_under_the_masks() -> None:
    features = torch.randn(4, *GRID, CHANNELS, requires_grad=True)
    mask = torch.zeros(11, 14, dtype=torch.bool)
    mask[:2, :3] = True
    objects = [[Seen(0, mask), Seen(2, mask)], [Seen(2, mask)]]
    make_encoder(paper_exact=False)(features, make_batch(objects, False)).tokens.square().sum().backward()
    assert features.grad is not None
    touched = features.grad.abs().sum(-1) > 0
    assert touched.nonzero().tolist() == [[0, 0, 0], [2, 0, 0]]


def test_bfloat16_is_close_to_float32() -> None:
    features, objects = scenes(2, 6, [2, 1, 3])
    encoder = make_encoder(paper_exact=False, object_position=True)
    batch = make_batch(objects, paper_exact=False)
    expected = encoder(features, batch)
    encoded = encoder.bfloat16()(features.bfloat16(), batch)
    assert encoded.tokens.dtype == torch.bfloat16
    assert torch.equal(encoded.num_tokens, expected.num_tokens)
    assert torch.allclose(encoded.tokens.float(), expected.tokens, rtol=0.05, atol=0.3)


@pytest.mark.parametrize("paper_exact", [True, False])
@pytest.mark.parametrize("seed", [0, 3, 4, 5])
def test_bfloat16_features_merge_as_the_formulas_in_float32_say(seed: int, paper_exact: bool) -> None:
    features, objects = scenes(seed, 16, [16, 14, 9])
    features = (features / 10 + 4).bfloat16()
    batch = make_batch(objects, paper_exact)
    if not paper_exact:
        batch = in_time_order(batch)
    rows = [slow_rows(features.float(), of_object, paper_exact) for of_object in objects]
    pooled = pool(features, batch.weights, batch.frame_index)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, torch.cat(rows), rtol=1e-6, atol=1e-5)
    expected = [slow_merge(of_object, paper_exact) for of_object in rows]
    rounded_first = [slow_merge(of_object.bfloat16().float(), paper_exact) for of_object in rows]
    step = 2**-5  # of bfloat16 from 4 to 8: what differs by more was merged from other frames
    pairs = list(zip(expected, rounded_first, strict=True))
    assert any(a.shape != b.shape or bool(((a - b).abs() > step).any()) for a, b in pairs)
    encoder = make_encoder(paper_exact)
    encoded = encoder(features, batch)
    assert encoded.num_tokens.tolist() == [len(tokens) for tokens in expected]
    torch.testing.assert_close(encoded.tokens, encoder.mlp(torch.cat(expected)), rtol=1e-5, atol=1e-5)
    rounded = encoder.bfloat16()(features, batch).tokens
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, encoder.mlp(torch.cat(expected).bfloat16()), rtol=0.02, atol=0.02)


def test_position_tells_apart_what_features_do_not() -> None:
    features = torch.ones(2, *GRID, CHANNELS)
    masks = torch.zeros(2, 11, 14, dtype=torch.bool)
    masks[0, :4, :4] = masks[1, :4, 6:10] = True
    objects = [[Seen(0, masks[0]), Seen(1, masks[1])], [Seen(0, masks[1]), Seen(1, masks[0])]]
    for object_position in (True, False):
        encoded = make_encoder(False, object_position)(features, make_batch(objects, False))
        assert torch.allclose(encoded.tokens[:2], encoded.tokens[2:], atol=1e-4) != object_position


def merged_to(num_tokens: list[int], group_sizes: list[int]) -> Merged:
    return Merged(torch.empty(0), torch.tensor(num_tokens), torch.tensor(group_sizes))


def test_position_starts_as_no_change_and_learns_from_the_first_step() -> None:
    position = ObjectPosition(HIDDEN)
    added = position(torch.rand(7, 4), torch.rand(7), merged_to([2, 0, 2], [3, 1, 2, 1]))
    assert added.shape == (4, HIDDEN)
    assert not added.any()
    (added - 1).square().sum().backward()
    grad = position.mlp[2].weight.grad
    assert grad is not None
    assert grad.any()


def test_position_reads_the_ends_of_each_group_and_of_each_object() -> None:
    boxes, times = torch.rand(9, 4), torch.rand(9)
    merged = merged_to([2, 1], [4, 2, 3])

    def changed_by(row: int) -> list[bool]:
        moved = boxes.clone()
        moved[row] += 0.1
        before = position_features(boxes, times, merged)
        return (position_features(moved, times, merged) != before).any(1).tolist()

    of_row = [changed_by(row) for row in range(9)]
    ends, inside = [True, True, False], [False, False, False]
    assert of_row[:6] == [ends, inside, inside, [True, False, False], [False, True, False], ends]
    assert of_row[6:] == [[False, False, True], inside, [False, False, True]]
    values = position_features(boxes, times, merged).reshape(3, -1)[:, :20]
    seen = torch.cat([boxes, times[:, None]], 1)
    for token, (first, last, start, end) in enumerate([(0, 3, 0, 5), (4, 5, 0, 5), (6, 8, 6, 8)]):
        parts = (seen[first], seen[last], seen[last] - seen[first], seen[end] - seen[start])
        assert torch.equal(values[token], torch.cat(parts))


def test_fourier_features_keep_the_value_and_double_in_speed() -> None:
    features = fourier_features(torch.tensor([[0.25]]))
    half = 2**-0.5
    assert features.shape == (1, 1 + 2 * NUM_OCTAVES)
    assert torch.allclose(features[0, :4], torch.tensor([0.25, half, 1.0, 0.0]), atol=1e-6)
    assert torch.allclose(features[0, 7:10], torch.tensor([half, 0.0, -1.0]), atol=1e-6)


def test_paper_exact_with_position_is_refused() -> None:
    with pytest.raises(ValueError, match="switch off one"):
        SpatialTemporalObjectEncoder(CHANNELS, HIDDEN, NUM_TOKENS, object_position=True, paper_exact=True)


def test_an_encoder_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed 1 token or more"):
        SpatialTemporalObjectEncoder(CHANNELS, HIDDEN, 0, object_position=True, paper_exact=False)
