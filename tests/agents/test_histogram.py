import colorsys

import numpy as np
import pytest

from agents.histogram import hsv_histogram, intersection


def test_pixels_count_in_the_bins_of_their_hue_saturation_and_value():
    pixels = np.random.default_rng(4).integers(0, 256, (500, 3), np.uint8)
    pixels = pixels[pixels.max(axis=1) > pixels.min(axis=1)]
    expected = np.zeros((16, 4, 4))
    for pixel in pixels:
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected[int(hue * 16), min(3, int(saturation * 4)), min(3, int(value * 4))] += 1
    # pixels on the border of two bins may fall on either side by rounding
    assert intersection(hsv_histogram(pixels), expected.ravel() / expected.sum()) > 0.95


def test_a_picture_has_the_histogram_of_its_pixels():
    image = np.random.default_rng(5).integers(0, 256, (12, 20, 3), np.uint8)
    np.testing.assert_array_equal(hsv_histogram(image), hsv_histogram(image.reshape(-1, 3)))
    assert hsv_histogram(image).sum() == pytest.approx(1)


def test_without_pixels_all_bins_are_empty():
    empty = hsv_histogram(np.zeros((0, 3), np.uint8))
    assert (empty.shape, empty.sum()) == ((256,), 0)
    assert intersection(empty, hsv_histogram(np.zeros((4, 3), np.uint8))) == 0
