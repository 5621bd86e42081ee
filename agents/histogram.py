"""Colour histograms by which looks of an object are compared, and their overlap."""

import cv2
import numpy as np
import numpy.typing as npt

Histogram = npt.NDArray[np.float32]
"""(256,), summing to 1: hue, saturation and value."""

_BINS = (16, 4, 4)


def hsv_histogram(pixels_rgb: npt.NDArray[np.uint8]) -> Histogram:
    """Hue, saturation and value of RGB pixels, (N, 3) or (height, width, 3), in 256 bins; zeros without pixels."""
    if not pixels_rgb.size:
        return np.zeros(np.prod(_BINS), np.float32)
    # an image of one row where there are only pixels
    hsv = cv2.cvtColor(pixels_rgb.reshape(-1, pixels_rgb.shape[-2], 3), cv2.COLOR_RGB2HSV)
    counts = cv2.calcHist([hsv], [0, 1, 2], None, list(_BINS), [0, 180, 0, 256, 0, 256])
    return np.asarray(counts.ravel() / counts.sum(), dtype=np.float32)


def intersection(a: Histogram, b: Histogram) -> float:
    """Histogram intersection (Swain and Ballard 1991): 1 for equal, 0 for disjoint."""
    return float(np.minimum(a, b).sum())
