"""Pictures for people and for models that see: an object's outline drawn into a frame, and JPEG files."""

import cv2
import numpy as np
import numpy.typing as npt

from infra.frame_folder import Image

ColourRgb = tuple[int, int, int]


def draw_outline(picture: Image, mask: npt.NDArray[np.bool_], colour_rgb: ColourRgb, width_px: int) -> None:
    """Draw the mask's outline, holes included, into the picture, with a black seam on both sides."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, lines, -1, (0, 0, 0), width_px + 2)
    cv2.drawContours(picture, lines, -1, colour_rgb, width_px)


def jpeg(image: Image, quality: int, *, whole_colours: bool = False) -> bytes:
    """A JPEG file of the image; `quality` is 0 to 100. The same image gives the same bytes.

    Colours are kept at half the size, in which a line of two pixels loses its own, unless `whole_colours`.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    if whole_colours:
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return bytes(data)
