"""Cut-outs: things of COCO classes with their mattes, taken from packaged photos and clips.

The mattes were made once, by a segmenter prompted with a box and then cleaned by hand; `assets/cutouts.json` keeps
them as COCO run-length encodings. The pixels come from the packaged files themselves.
"""

import functools
from importlib.resources import files

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter

from infra.video import read_frames
from infra.weights import weight_path
from schemas.mask import decode
from schemas.record import FrameIndex, Record
from schemas.words import Colour

Rgba = npt.NDArray[np.uint8]
"""(height, width, 4) RGBA, alpha not multiplied in."""

_NO_LIMIT_PX = 1 << 20

TINTS_RGB: dict[Colour, tuple[int, int, int]] = {
    "black": (28, 28, 28),
    "white": (240, 240, 240),
    "gray": (128, 128, 128),
    "red": (200, 30, 35),
    "orange": (240, 130, 20),
    "yellow": (235, 215, 35),
    "green": (30, 140, 50),
    "blue": (35, 75, 200),
    "purple": (125, 40, 165),
    "pink": (245, 140, 180),
    "brown": (115, 70, 35),
}
_WASH = 0.25
"""How much of a tint reaches pixels that had no colour."""
_LIGHTNESS_SHIFT = 0.3
"""How far the whole goes toward the tint's lightness."""


class Cutout(Record):
    """One thing cut out of a packaged photo, or of frame `frame_idx` of a packaged clip.

    `noun` is what a caption calls it, `detector_class` its COCO class; `tints` are the colours it can be given so that
    detectors still know it. `min_height_px` is the least height at which it is found in a frame of 640 x 360 pixels.
    `counts` is the matte, COCO run-length encoded at the image's own size.
    """

    name: str = Field(min_length=1)
    weight: str = Field(min_length=1)
    frame_idx: FrameIndex | None
    detector_class: str = Field(min_length=1)
    noun: str = Field(min_length=1)
    tints: tuple[Colour, ...]
    box_xyxy_px: tuple[int, int, int, int]
    min_height_px: int = Field(gt=0)
    counts: str = Field(min_length=1)
    height_px: int = Field(gt=0)
    width_px: int = Field(gt=0)

    def rgba(self) -> Rgba:
        """The crop to `box_xyxy_px`, alpha 255 on the thing; raises WeightError where its file was not fetched."""
        image = packaged_image(self.weight, self.frame_idx)
        if image.shape[:2] != (self.height_px, self.width_px):
            raise ValueError(
                f"cut-out {self.name} belongs to an image of {self.height_px} x {self.width_px} pixels, "
                f"{self.weight} has {image.shape[0]} x {image.shape[1]}"
            )
        alpha = decode(self.counts, self.height_px, self.width_px).astype(np.uint8) * 255
        left, top, right, bottom = self.box_xyxy_px
        return np.dstack([image, alpha])[top:bottom, left:right].copy()


@functools.cache
def load_cutouts() -> tuple[Cutout, ...]:
    """Every cut-out, without pixels."""
    text = (files("infra") / "assets" / "cutouts.json").read_text(encoding="utf-8")
    return TypeAdapter(tuple[Cutout, ...]).validate_json(text)


@functools.lru_cache(maxsize=16)
def packaged_image(weight: str, frame_idx: int | None) -> npt.NDArray[np.uint8]:
    """A packaged photo, or one frame of a packaged clip, as (height, width, 3) RGB; it is shared: do not write to it.

    Raises WeightError where the file was not fetched.
    """
    path = weight_path(weight)
    if frame_idx is not None:
        return np.asarray(read_frames(path, [frame_idx], _NO_LIMIT_PX)[0], dtype=np.uint8)
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError(f"{path.name} ({weight}) cannot be read as an image")
    return np.asarray(image, dtype=np.uint8)


def tinted(rgba: Rgba, colour: Colour) -> Rgba:
    """The crop repainted: what has a colour of its own takes the new one, the rest is washed with it a little.

    Works in CIELAB. Deep shadows and highlights stay neutral and the photo's lightness pattern stays whole:
    detectors do not know things that are of one colour all over. Alpha stays.
    """
    lab = cv2.cvtColor(rgba[..., :3].astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    target_rgb = np.array([[TINTS_RGB[colour]]], dtype=np.float32) / 255.0
    target = cv2.cvtColor(target_rgb, cv2.COLOR_RGB2LAB)[0, 0]
    lightness = lab[..., 0]
    painted = np.clip((np.hypot(lab[..., 1], lab[..., 2]) - 12) / 15, 0, 1)
    neutral = np.clip((lightness - 10) / 20, 0, 1) * np.clip((95 - lightness) / 25, 0, 1)
    share = (_WASH + (1 - _WASH) * painted) * neutral
    shaded = lab.copy()
    shaded[..., 0] += _LIGHTNESS_SHIFT * (target[0] - np.median(lightness[rgba[..., 3] > 0]))
    shaded[..., 1:] += share[..., None] * (target[1:] - lab[..., 1:])
    shaded[..., 0] = np.clip(shaded[..., 0], 0, 100)
    rgb = np.clip(cv2.cvtColor(shaded, cv2.COLOR_LAB2RGB), 0.0, 1.0)
    return np.dstack([np.round(rgb * 255).astype(np.uint8), rgba[..., 3]])
