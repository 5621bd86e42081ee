"""Collage: pixels pasted onto a background at fractions of a pixel, and frames written as a video."""

import functools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from infra.cutouts import Rgba, packaged_image
from infra.video import Image
from schemas.mask import Mask
from schemas.record import BoxXyxyPx

Canvas = npt.NDArray[np.float32]
"""(height, width, 3) RGB, 0 to 1."""
Sprite = npt.NDArray[np.float32]
"""(height, width, 4) RGBA, 0 to 1, alpha multiplied in."""

BACKGROUNDS = (("clip-city", 10), ("clip-city", 150), ("clip-bikes", 5), ("clip-bikes", 100), ("clip-bikes", 180))
"""Packaged clip and frame: none shows a person up close."""
_BLUR_SIGMA_PX = 5.0


@functools.lru_cache(maxsize=8)
def background(index: int, height_px: int, width_px: int) -> Canvas:
    """A background (height, width, 3), 0 to 1: cropped to shape and blurred until detectors find little in it."""
    image = packaged_image(*BACKGROUNDS[index])
    scale = max(height_px / image.shape[0], width_px / image.shape[1])
    size = (max(width_px, round(image.shape[1] * scale)), max(height_px, round(image.shape[0] * scale)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    top, left = (size[1] - height_px) // 2, (size[0] - width_px) // 2
    crop = image[top : top + height_px, left : left + width_px].astype(np.float32) / 255.0
    return np.asarray(cv2.GaussianBlur(crop, (0, 0), _BLUR_SIGMA_PX), dtype=np.float32)


def sprite_of(rgba: Rgba, height_px: int) -> Sprite:
    """A cut-out's pixels at a height; its shape stays."""
    layer = rgba.astype(np.float32) / 255.0
    layer[..., :3] *= layer[..., 3:]
    size = (max(1, round(height_px * layer.shape[1] / layer.shape[0])), height_px)
    how = cv2.INTER_AREA if height_px < layer.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(layer, size, interpolation=how), dtype=np.float32)


def paste(canvas: Canvas, sprite: Sprite, box_xyxy_px: BoxXyxyPx) -> Mask:
    """Blend a sprite, stretched to a box, into the canvas, in place; returns where its alpha is at least 0.5."""
    mask = np.zeros(canvas.shape[:2], dtype=np.bool_)
    x1, y1, x2, y2 = box_xyxy_px
    left, top = max(0, int(np.floor(x1)) - 1), max(0, int(np.floor(y1)) - 1)
    right = min(canvas.shape[1], int(np.ceil(x2)) + 1)
    bottom = min(canvas.shape[0], int(np.ceil(y2)) + 1)
    if right <= left or bottom <= top:
        return mask
    scale_x, scale_y = (x2 - x1) / sprite.shape[1], (y2 - y1) / sprite.shape[0]
    # pixel centres lie at half, hence the half steps
    to_patch = np.array(
        [
            [scale_x, 0, x1 - left + scale_x / 2 - 0.5],
            [0, scale_y, y1 - top + scale_y / 2 - 0.5],
        ]
    )
    patch = cv2.warpAffine(sprite, to_patch, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    place = (slice(top, bottom), slice(left, right))
    canvas[place] = canvas[place] * (1 - patch[..., 3:]) + patch[..., :3]
    mask[place] = patch[..., 3] >= 0.5
    return mask


def write_video(path: Path, frames: Sequence[Image], fps: int) -> None:
    """Frames as H.264 at high quality, as MPEG-4 part 2 where FFmpeg came without x264; same frames, same bytes."""
    x264 = "libx264" in av.codecs_available
    options = {"crf": "14", "preset": "veryfast"} if x264 else {"qscale": "2"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if x264 else "mpeg4", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1  # slices follow the thread count, and with them the bytes
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
