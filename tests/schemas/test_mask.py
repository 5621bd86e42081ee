"""The mask codec writes what pycocotools writes, and what the format says."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from schemas.mask import area_px, box_xyxy_px, centroid_xy_px, check_size, decode, encode, rle_iou, run_lengths

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))
quick = settings(max_examples=80, deadline=None)


def reference_runs(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, background first (zero where the first pixel is on the object)."""
    runs, current, length = [], False, 0
    height, width = mask.shape
    for x in range(width):
        for y in range(height):
            if bool(mask[y, x]) != current:
                runs.append(length)
                current, length = not current, 0
            length += 1
    return [*runs, length]


def reference_string(runs: list[int]) -> str:
    """Signed groups of five bits, low first; from the fourth run on the difference to the run before last."""
    text = ""
    for position, run in enumerate(runs):
        value = run - runs[position - 2] if position > 2 else run
        while True:
            group = value & 31
            value >>= 5
            done = value == (-1 if group & 16 else 0)
            text += chr(48 + (group if done else group | 32))
            if done:
                break
    return text


def reference_runs_of(text: str) -> list[int]:
    """The runs behind a string, character by character."""
    runs: list[int] = []
    value = shift = 0
    for char in text:
        code = ord(char) - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code >> 4) << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs


@quick
@given(masks)
def test_counts_are_those_of_pycocotools_and_of_the_format(mask: np.ndarray) -> None:
    runs = reference_runs(mask)
    counts = encode(mask)
    assert counts == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert counts == reference_string(runs)
    assert run_lengths(counts) == runs
    assert np.array_equal(decode(counts, *mask.shape), mask)


@quick
@given(masks)
def test_area_box_and_centroid_are_those_of_the_pixels(mask: np.ndarray) -> None:
    counts = encode(mask)
    ys, xs = np.nonzero(mask)
    box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0)
    assert area_px(counts) == mask.sum()
    assert box_xyxy_px(counts, *mask.shape) == box
    if len(xs):
        assert centroid_xy_px(counts, *mask.shape) == (xs.mean(), ys.mean())
    else:
        with pytest.raises(ValueError, match="empty mask"):
            centroid_xy_px(counts, *mask.shape)


def test_long_runs_need_several_characters() -> None:
    mask = np.zeros((700, 900), np.bool_)
    mask[600, 800] = True
    counts = encode(mask)
    assert run_lengths(counts) == [800 * 700 + 600, 1, 700 * 900 - 800 * 700 - 601]
    assert np.array_equal(decode(counts, 700, 900), mask)


def test_any_non_zero_dtype_is_the_object() -> None:
    mask = np.eye(4)
    assert encode(mask.astype(np.uint8)) == encode(mask.astype(np.bool_)) == encode(np.asfortranarray(mask))


@pytest.mark.parametrize("size", [(3, 5), (4, 3), (1, 1), (400, 400)])
def test_counts_of_another_size_are_refused(size: tuple[int, int]) -> None:
    counts = encode(np.ones((4, 4), np.bool_))
    with pytest.raises(ValueError, match="RLE covers 16 pixels"):
        decode(counts, *size)


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param("", id="empty"),
        pytest.param("0 4", id="space"),
        pytest.param("P", id="ends in the middle of a run"),
        pytest.param("é", id="not ascii"),
        pytest.param("\x00", id="control character"),
        pytest.param("O5", id="negative run"),
        pytest.param("44", id="too short"),
    ],
)
def test_malformed_counts_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match=r"RLE covers|COCO counts"):
        decode(counts, 2, 2)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_any_string_is_decoded_or_refused(counts: str) -> None:
    try:
        mask = decode(counts, 3, 4)
    except ValueError:
        return
    assert mask.shape == (3, 4)
    assert mask.sum() == area_px(counts)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=9))
def test_runs_of_any_length_up_to_32_bits_are_read(runs: list[int]) -> None:
    text = reference_string(runs)
    assert reference_runs_of(text) == runs
    assert run_lengths(text) == runs
    assert area_px(text) == sum(runs[1::2])


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30).filter(lambda text: text[-1:] < "P"))
def test_strings_that_nobody_wrote_give_the_runs_of_the_format_or_are_refused(text: str) -> None:
    expected = reference_runs_of(text)
    try:
        got = run_lengths(text)
    except ValueError:
        longest = max(len(run) for run in re.findall("[P-o]*[0-O]", text))
        assert longest > 7 or not all(0 <= run < 2**32 for run in expected)
    else:
        assert got == expected


def test_runs_whose_sum_would_wrap_to_the_frames_size_are_refused() -> None:
    """In 64 bits these add up to 16 pixels, and pycocotools would write them all."""
    for runs in ([2**62, 2**62, 2**62, 2**62 + 16], [2**32 - 1] * 3 + [2**63]):
        with pytest.raises(ValueError, match="COCO counts"):
            check_size(reference_string(runs), 4, 4)


@quick
@given(
    st.lists(st.tuples(hnp.arrays(np.bool_, (7, 5)), hnp.arrays(np.bool_, (7, 5)), st.sampled_from("xab")), max_size=5)
)
def test_overlap_in_time_is_the_mean_iou_over_the_frames_that_show_both(
    frames: list[tuple[np.ndarray, np.ndarray, str]],
) -> None:
    one = [None if shown == "b" else encode(mask) for mask, _, shown in frames]
    other = [None if shown == "a" else encode(mask) for _, mask, shown in frames]
    both = [(a, b) for a, b, shown in frames if shown == "x"]
    ious = [(a & b).sum() / (a | b).sum() if (a | b).any() else 0.0 for a, b in both]
    assert rle_iou(one, other, (7, 5)) == pytest.approx(np.mean(ious) if ious else 0.0, abs=1e-12)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 1)])
def test_only_two_dimensions_make_a_mask(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 dimensions"):
        encode(np.zeros(shape, np.bool_))
