"""Frames as chat models that see are shown them: one object outlined, the rest of the picture untouched.

The outline runs around the object, so that all of it stays in sight.
"""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from agents.base import FrameSource
from infra.chat import ImagePart
from infra.pictures import draw_outline, jpeg
from infra.video import Image
from schemas.clip import Clip
from schemas.mask import decode
from schemas.track import ObjectMasks

OUTLINE_RGB: Final = (255, 0, 0)
"""The prompts call it red."""
QUALITY: Final = 90
"""Of the JPEG files."""

Mask = npt.NDArray[np.bool_]


def marked_picture(image: Image, mask: Mask) -> ImagePart:
    """The image with the mask's outline in red; both are of one size.

    Where an object reaches the frame's edge, its outline runs outside.
    """
    width_px = max(2, round(max(image.shape[:2]) / 320))
    reach_px = width_px + 1
    rim_px = 2 * reach_px
    picture = np.pad(image, ((rim_px, rim_px), (rim_px, rim_px), (0, 0)))
    around = cv2.dilate(np.pad(mask, rim_px).astype(np.uint8), np.ones((2 * reach_px + 1, 2 * reach_px + 1), np.uint8))
    draw_outline(picture, around.astype(np.bool_), OUTLINE_RGB, width_px)
    within = np.ascontiguousarray(picture[rim_px:-rim_px, rim_px:-rim_px])
    return ImagePart.of_jpeg(jpeg(within, QUALITY, whole_colours=True))


def mask_on(image: Image, masks: ObjectMasks, position: int) -> Mask:
    """The object's mask at a place where it is seen, at the image's size; thin parts do not vanish as it shrinks."""
    counts = masks.rle[position]
    assert counts is not None, "only frames that show the object are marked"
    whole = decode(counts, masks.height_px, masks.width_px).astype(np.float32)
    shrunk = cv2.resize(whole, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk > 0)


def read_marked(
    frames: FrameSource, clip: Clip, masks: ObjectMasks, positions: Sequence[int], long_side_px: int
) -> tuple[ImagePart, ...]:
    """The frames at these places in `masks`, each with the object outlined. Raises VideoError."""
    images = frames.read(clip, [masks.frame_idx[position] for position in positions], long_side_px)
    return tuple(
        marked_picture(image, mask_on(image, masks, position))
        for image, position in zip(images, positions, strict=True)
    )
