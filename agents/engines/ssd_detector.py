"""SSD-MobileNetV2 trained on COCO, through OpenCV's own network runtime (no TensorFlow)."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.base import Detection
from agents.engines.coco_classes import COCO_CLASSES
from infra import weights
from infra.video import Image
from schemas.record import Record, Share

_INPUT_SIDE_PX = 300
_NEARLY_SQUARE = 1.2
_PADDING = 114


class SsdDetectorConfig(Record):
    """What is looked at, and what a detection must reach to be returned.

    `square_view`: frames that are not square are seen a second time, padded to a square instead of squeezed; narrow
    upright objects score much higher there (a walker in 16:9: 0.99 against 0.36), wide ones in the squeezed view.
    `floor_score`: boxes below it are dropped. `nms_iou`: of two boxes of one class that overlap more, the better stays.
    `max_boxes`: at most this many are returned, best first.
    """

    square_view: bool = True
    floor_score: Share = 0.2
    nms_iou: Share = 0.5
    max_boxes: int = Field(default=50, ge=1)


class SsdDetector:
    """`Detector` over `frozen_inference_graph.pb` of ssd_mobilenet_v2_coco_2018_03_29 (TensorFlow's detection zoo).

    The graph normalises pixels itself and wants them as RGB, 0 to 255, squeezed to 300 x 300; it answers
    (1, 1, 100, 7) rows of [_, COCO id, score, x1, y1, x2, y2] in shares of the image. Small objects are missed.
    """

    name = "ssd-mobilenet-v2"
    classes: tuple[str, ...] = tuple(COCO_CLASSES.values())

    def __init__(self, config: SsdDetectorConfig | None = None) -> None:
        self.config = config or SsdDetectorConfig()
        self._net: Any = None

    def weights(self) -> tuple[str, ...]:
        """The frozen graph and its text description."""
        return (weights.weight_label("ssd-mobilenet-v2"), weights.weight_label("ssd-mobilenet-v2-graph"))

    def setup(self) -> None:
        """Read the network; raises WeightError where its files were not fetched yet."""
        self._net = cv2.dnn.readNetFromTensorflow(
            str(weights.weight_path("ssd-mobilenet-v2")), str(weights.weight_path("ssd-mobilenet-v2-graph"))
        )

    def detect(self, image: Image) -> list[Detection]:
        """Boxes above the floor score, best first, clipped to the image, in its pixels."""
        height_px, width_px = image.shape[:2]
        rows = self._rows(image)
        side_px = max(height_px, width_px)
        if self.config.square_view and side_px > _NEARLY_SQUARE * min(height_px, width_px):
            square = np.full((side_px, side_px, 3), _PADDING, dtype=np.uint8)
            square[:height_px, :width_px] = image
            padded = self._rows(square)
            padded[:, 3:7] *= np.array([side_px / width_px, side_px / height_px] * 2)
            rows = np.concatenate([rows, padded])
        return to_detections(rows, height_px, width_px, self.config)

    def _rows(self, image: Image) -> npt.NDArray[np.float64]:
        side = (_INPUT_SIDE_PX, _INPUT_SIDE_PX)
        # the graph wants RGB and gets RGB, so channels must not be swapped
        self._net.setInput(cv2.dnn.blobFromImage(image, size=side, swapRB=False))
        return np.array(self._net.forward(), dtype=np.float64).reshape(-1, 7)


def to_detections(
    rows: npt.NDArray[np.float64], height_px: int, width_px: int, config: SsdDetectorConfig
) -> list[Detection]:
    """Detections from the network's (N, 7) rows: floor score, per-class suppression, best first.

    Rows with an id outside COCO's 80 classes or without area inside the image are dropped.
    """
    scale = np.array([width_px, height_px, width_px, height_px], dtype=np.float64)
    boxes = np.clip(rows[:, 3:7], 0.0, 1.0) * scale
    known = np.array([int(class_id) in COCO_CLASSES for class_id in rows[:, 1]], dtype=bool)
    solid = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
    keep = known & solid & (rows[:, 2] >= config.floor_score)
    rows, boxes = rows[keep], boxes[keep]
    if not len(rows):
        return []
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(
        xywh.tolist(), rows[:, 2].tolist(), rows[:, 1].astype(int).tolist(), config.floor_score, config.nms_iou
    )
    order = sorted((int(i) for i in kept), key=lambda i: (-rows[i, 2], i))[: config.max_boxes]
    return [
        Detection(
            detector_class=COCO_CLASSES[int(rows[i, 1])],
            score=float(rows[i, 2]),
            box_xyxy_px=(float(boxes[i, 0]), float(boxes[i, 1]), float(boxes[i, 2]), float(boxes[i, 3])),
        )
        for i in order
    ]
