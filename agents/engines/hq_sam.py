"""HQ-SAM: boxes to masks with sharper edges than those of Segment Anything."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.engines.torch_run import CheckpointConfig, Halving, placement
from infra.checkpoints import checkpoint_folder, checkpoint_label
from infra.video import Image
from schemas.record import BoxXyxyPx

Boxed = tuple[Image, Sequence[BoxXyxyPx]]
"""An image and boxes in its pixels."""
Masks = tuple[npt.NDArray[np.bool_], list[float]]
"""Masks (boxes, height, width) of an image's boxes, and the model's own estimate of each one's IoU."""


class HqSamConfig(CheckpointConfig):
    """Which of the model's masks are taken, and how much is worked on at once."""

    hq_token_only: bool = False
    """Masks from the high-quality token alone; without it, its logits are added to those of SAM.

    The authors take the token alone for images of one object, the sum for many and for boxes of a detector.
    """
    frames_per_batch: int = Field(default=4, ge=1)
    """Frames, of any clips, in one pass of the image encoder at most; halved where a GPU has no room for them."""
    boxes_per_batch: int = Field(default=32, ge=1)
    """Boxes of one frame in one pass of the decoder at most; halved where a GPU has no room for them."""


class HqSam:
    """Boxes to masks by `SamHQModel` (Ke et al. 2023): images are embedded once, then each box is a short pass.

    Images of any size share a pass of the encoder, since each is shrunk to the model's square and seen alone in it.
    Of the decoder's outputs the one for unambiguous prompts is taken, as a box is one. Only the image encoder, which
    is nearly all of the work, runs in the configured number format; prompts and decoder are kept in float32, as
    bfloat16 rounds a box to some pixels of 1024.
    """

    name = "hq-sam"

    def __init__(self, config: HqSamConfig) -> None:
        self.config = config
        self._frame_batches = Halving(config.frames_per_batch)
        self._box_batches = Halving(config.boxes_per_batch)
        self._model: Any = None
        self._processor: Any = None

    def weights(self) -> tuple[str, ...]:
        """The model folder's name and content; raises CheckpointError where it is not there."""
        return (checkpoint_label(self.config.model),)

    def setup(self) -> None:
        """Load model and image processor; raises CheckpointError where their folder is not there."""
        import torch
        from transformers import SamHQModel, SamImageProcessorPil

        folder = checkpoint_folder(self.config.model)
        device, dtype = placement(self.config)
        self._processor = SamImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self._model = SamHQModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        self._model.eval().to(device).vision_encoder.to(dtype)

    def masks_many(self, asked: Sequence[Boxed]) -> Iterator[Masks]:
        """For each image its boxes' masks and IoU estimates, in order; an image without boxes is not embedded.

        Images are embedded as they are asked for, `frames_per_batch` ahead at most: so many masks are held.
        """
        done = chain.from_iterable(self._frame_batches.batches([item for item in asked if item[1]], self._run))
        for image, boxes in asked:
            yield next(done) if boxes else (np.zeros((0, *image.shape[:2]), dtype=np.bool_), [])

    def _run(self, asked: Sequence[Boxed]) -> list[Masks]:
        import torch

        inputs = self._processor(images=[image for image, _ in asked], return_tensors="pt")
        found: list[Masks] = []
        with torch.inference_mode():
            pixels = inputs["pixel_values"].to(self._model.device, self._model.vision_encoder.dtype)
            embedding, intermediate = self._model.get_image_embeddings(pixels)
            for number, (_, boxes) in enumerate(asked):
                own = slice(number, number + 1)
                embedded = embedding[own].float(), [item[own].float() for item in intermediate]
                sizes = {name: inputs[name][own].tolist() for name in ("original_sizes", "reshaped_input_sizes")}
                decode = partial(self._decode, embedded, sizes)
                decoded = list(chain.from_iterable(self._box_batches.batches(boxes, decode)))
                found.append((np.stack([mask for mask, _ in decoded]), [iou for _, iou in decoded]))
        return found

    def _decode(
        self, embedded: tuple[Any, Any], sizes: dict[str, list[list[int]]], boxes: Sequence[BoxXyxyPx]
    ) -> list[tuple[npt.NDArray[np.bool_], float]]:
        import torch

        image_embedding, intermediate_embeddings = embedded
        scaled = to_model_px(boxes, sizes["original_sizes"][0], sizes["reshaped_input_sizes"][0])
        outputs = self._model(
            image_embeddings=image_embedding,
            intermediate_embeddings=intermediate_embeddings,
            input_boxes=torch.from_numpy(scaled)[None].to(self._model.device),
            multimask_output=False,
            hq_token_only=self.config.hq_token_only,
        )
        (solid,) = self._processor.post_process_masks([outputs.pred_masks[0]], **sizes)
        masks: npt.NDArray[np.bool_] = solid[:, 0].cpu().numpy()
        ious = outputs.iou_scores[0, :, 0].clamp(0, 1).tolist()
        return list(zip(masks, ious, strict=True))


def to_model_px(
    boxes_xyxy_px: Sequence[BoxXyxyPx], original: Sequence[int], resized: Sequence[int]
) -> npt.NDArray[np.float32]:
    """(N, 4) boxes in pixels of the resized image, from those of the original; both sizes are (height, width)."""
    scale = np.array([resized[1] / original[1], resized[0] / original[0]] * 2)
    scaled: npt.NDArray[np.float32] = (np.asarray(boxes_xyxy_px, dtype=np.float64) * scale).astype(np.float32)
    return scaled
