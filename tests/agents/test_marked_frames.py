"""Objects ringed in pictures: all of them, small and thin ones too, with nothing of them covered."""

import base64
import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from agents.marked_frames import marked_picture, mask_on
from schemas.mask import encode
from schemas.track import ObjectMasks

HEIGHT, WIDTH = 360, 640
Mask = npt.NDArray[np.bool_]


def block(top: int, bottom: int, left: int, right: int) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def near(mask: Mask, reach_px: int) -> Mask:
    """Pixels within `reach_px` of the mask in both directions, by shifting it there, step by step."""
    grown = mask.copy()
    for _ in range(reach_px):
        wide = grown.copy()
        wide[:, 1:] |= grown[:, :-1]
        wide[:, :-1] |= grown[:, 1:]
        grown = wide.copy()
        grown[1:] |= wide[:-1]
        grown[:-1] |= wide[1:]
    return grown


def ring() -> Mask:
    return block(100, 260, 200, 360) & ~block(150, 210, 250, 310)


SHAPES: dict[str, Callable[[], Mask]] = {
    "a block": lambda: block(100, 200, 50, 300),
    "a speck": lambda: block(100, 102, 50, 52),
    "a wire": lambda: block(180, 181, 40, 600),
    "two parts": lambda: block(20, 80, 20, 80) | block(200, 300, 400, 600),
    "with a hole": ring,
    "at the rim": lambda: block(0, 90, 0, 70),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_ring_goes_around_and_leaves_the_object_and_all_beyond_as_they_were(name: str) -> None:
    mask = SHAPES[name]()
    grey = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    data = base64.b64decode(marked_picture(grey, mask).data_uri.split(",")[1])
    picture = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert (grey == 128).all()
    red = (picture[..., 0] > 170) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
    changed = np.abs(picture - 128).max(axis=2) > 40
    assert red.any()
    assert not (changed & mask).any()
    assert not (changed & ~near(mask, 8)).any()
    # from every pixel of the object's edge, red is near
    edge = mask & near(~mask, 1)
    assert not (edge & ~near(red, 6)).any()


@pytest.mark.parametrize("name", SHAPES)
def test_no_object_vanishes_as_its_frame_shrinks(name: str) -> None:
    mask = SHAPES[name]()
    masks = ObjectMasks(
        detector_class="dog", frame_idx=(7,), frame_time_s=(0.7,), rle=(encode(mask),), height_px=HEIGHT,
        width_px=WIDTH, score=0.9,
    )  # fmt: skip
    small = mask_on(np.zeros((90, 160, 3), np.uint8), masks, 0)
    assert np.array_equal(small, mask.reshape(90, 4, 160, 4).any(axis=(1, 3)))
