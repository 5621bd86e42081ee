import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.masks import boundary, boundary_accuracy, region_similarity, track_score
from schemas.mask import encode
from schemas.track import ObjectMasks

SHAPE = (40, 60)


def square(top, left, side=12, shape=SHAPE):
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def slow_boundary(mask):
    height, width = mask.shape
    edge = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            y2, x2 = min(y + 1, height - 1), min(x + 1, width - 1)
            edge[y, x] = mask[y, x] != mask[y, x2] or mask[y, x] != mask[y2, x] or mask[y, x] != mask[y2, x2]
    return edge


def slow_f(pred, truth, radius):
    a, b = np.argwhere(slow_boundary(pred)), np.argwhere(slow_boundary(truth))
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    near = ((a[:, None] - b[None]) ** 2).sum(-1) <= radius**2
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


blobs = (
    st.integers(0, 2**32 - 1)
    .map(lambda seed: np.random.default_rng(seed))
    .map(lambda rng: np.kron(rng.random((5, 6)) < rng.random(), np.ones((8, 10))).astype(bool))
)


@settings(max_examples=30, deadline=None)
@given(blobs, blobs)
def test_boundary_accuracy_equals_the_distance_of_every_pair_of_boundary_pixels(pred, truth):
    radius = int(np.ceil(0.008 * np.hypot(*pred.shape)))
    assert np.array_equal(boundary(pred), slow_boundary(pred))
    assert boundary_accuracy(pred, truth) == pytest.approx(slow_f(pred, truth, radius))


def test_identical_masks_score_one_and_disjoint_ones_zero():
    assert region_similarity(square(5, 5), square(5, 5)) == 1.0
    assert boundary_accuracy(square(5, 5), square(5, 5)) == 1.0
    assert region_similarity(square(2, 2), square(25, 40)) == 0.0
    assert boundary_accuracy(square(2, 2), square(25, 40)) == 0.0


def test_two_empty_masks_agree_and_one_empty_mask_does_not():
    empty = np.zeros(SHAPE, dtype=bool)
    assert (region_similarity(empty, empty), boundary_accuracy(empty, empty)) == (1.0, 1.0)
    assert (region_similarity(square(5, 5), empty), boundary_accuracy(square(5, 5), empty)) == (0.0, 0.0)


def test_a_shift_within_the_tolerance_costs_region_but_not_boundary():
    assert region_similarity(square(5, 5), square(5, 6)) == pytest.approx(11 / 13)
    assert boundary_accuracy(square(5, 5), square(5, 6)) == 1.0


def masks_of(frames, shape=SHAPE):
    return ObjectMasks(
        detector_class="cat",
        frame_idx=tuple(frames),
        frame_time_s=tuple(i / 10 for i in frames),
        rle=tuple(None if mask is None else encode(mask) for mask in frames.values()),
        height_px=shape[0],
        width_px=shape[1],
        score=1.0,
    )


def test_a_track_is_scored_over_common_frames_and_absence_counts_as_an_empty_mask():
    truth = masks_of({0: square(5, 5), 2: square(5, 8), 4: None})
    pred = masks_of({0: square(5, 5), 1: square(0, 0), 2: None, 4: None})
    score = track_score(pred, truth)
    assert (score.num_frames, score.j, score.f) == (3, pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_tracks_without_a_common_frame_or_of_another_size_are_refused():
    with pytest.raises(ValueError, match="no frame in common"):
        track_score(masks_of({0: square(5, 5)}), masks_of({1: square(5, 5)}))
    small = np.ones((4, 4), dtype=bool)
    with pytest.raises(ValueError, match="40 x 60"):
        track_score(masks_of({0: square(5, 5)}), masks_of({0: small}, (4, 4)))
