"""HQ-SAM: boxes to masks with sharper edges than those of Segment Anything."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.engines.torch_run import CheckpointConfig, Halving, placement
from infra.checkpoints import checkpoint_folder, checkpoint_label
from infra.video import Image
from schemas.record import BoxXyxyPx


class HqSamConfig(CheckpointConfig):
    """`hq_token_only`: masks from the high-quality token alone; without it, its logits are added to those of SAM.

    The authors take the token alone for images of one object, the sum for many and for boxes of a detector.
    `boxes_per_batch`: boxes in one pass of the decoder at most; halved where a GPU has no room for them.
    """

    hq_token_only: bool = False
    boxes_per_batch: int = Field(default=32, ge=1)


class HqSam:
    """`MaskModel` over `SamHQModel` (Ke et al. 2023): the image is embedded once, then each box is a short pass.

    Of the decoder's outputs the one for unambiguous prompts is taken, as a box is one. Only the image encoder, which
    is nearly all of the work, runs in the configured number format; prompts and decoder are kept in float32, as
    bfloat16 rounds a box to some pixels of 1024.
    """

    name = "hq-sam"

    def __init__(self, config: HqSamConfig) -> None:
        self.config = config
        self._batches = Halving(config.boxes_per_batch)
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

    def masks(self, image: Image, boxes_xyxy_px: Sequence[BoxXyxyPx]) -> tuple[npt.NDArray[np.bool_], list[float]]:
        """Masks (len(boxes), height, width) and the model's IoU estimates; the encoder does not run without boxes."""
        import torch

        if not boxes_xyxy_px:
            return np.zeros((0, *image.shape[:2]), dtype=np.bool_), []
        inputs = self._processor(images=image, return_tensors="pt")
        sizes = {name: inputs[name].tolist() for name in ("original_sizes", "reshaped_input_sizes")}
        with torch.inference_mode():
            pixels = inputs["pixel_values"].to(self._model.device, self._model.vision_encoder.dtype)
            embedding, intermediate = self._model.get_image_embeddings(pixels)
            embedded = embedding.float(), [item.float() for item in intermediate]

            def run(boxes: Sequence[BoxXyxyPx]) -> list[tuple[npt.NDArray[np.bool_], float]]:
                return self._decode(embedded, boxes, sizes)

            decoded = list(chain.from_iterable(self._batches.batches(boxes_xyxy_px, run)))
        return np.stack([mask for mask, _ in decoded]), [iou for _, iou in decoded]

    def _decode(
        self, embedded: tuple[Any, Any], boxes: Sequence[BoxXyxyPx], sizes: dict[str, list[list[int]]]
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
