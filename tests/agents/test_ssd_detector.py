import cv2
import numpy as np
import pytest

from agents.engines.coco_classes import COCO_CLASSES
from agents.engines.ssd_detector import SsdDetector, SsdDetectorConfig, to_detections

CONFIG = SsdDetectorConfig()


def row(class_id: int, score: float, *corners: float) -> list[float]:
    return [0.0, float(class_id), score, *corners]


def test_there_are_eighty_classes_with_ids_up_to_ninety() -> None:
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES.values())) == 80
    assert (min(COCO_CLASSES), max(COCO_CLASSES)) == (1, 90)
    assert (COCO_CLASSES[1], COCO_CLASSES[18], COCO_CLASSES[62], COCO_CLASSES[90]) == (
        "person",
        "dog",
        "chair",
        "toothbrush",
    )


def test_rows_become_boxes_in_pixels_best_first_and_clipped() -> None:
    rows = np.array([row(3, 0.5, 0.5, 0.5, 1.2, 1.1), row(1, 0.9, -0.1, 0.0, 0.25, 0.5)])
    first, second = to_detections(rows, 100, 200, CONFIG)
    assert (first.detector_class, first.score, first.box_xyxy_px) == ("person", 0.9, (0.0, 0.0, 50.0, 50.0))
    assert (second.detector_class, second.box_xyxy_px) == ("car", (100.0, 50.0, 200.0, 100.0))


def test_weak_unknown_and_empty_rows_are_dropped() -> None:
    rows = np.array(
        [row(1, 0.1, 0, 0, 1, 1), row(12, 0.9, 0, 0, 1, 1), row(0, 0.9, 0, 0, 1, 1), row(1, 0.9, 1.1, 0, 1.5, 1)]
    )
    assert to_detections(rows, 100, 100, CONFIG) == []
    assert to_detections(np.zeros((0, 7)), 100, 100, CONFIG) == []


def test_overlapping_boxes_of_one_class_are_one_and_of_two_classes_two() -> None:
    rows = np.array([row(3, 0.9, 0, 0, 0.5, 0.5), row(3, 0.6, 0, 0, 0.5, 0.45), row(8, 0.5, 0, 0, 0.5, 0.5)])
    assert [(item.detector_class, item.score) for item in to_detections(rows, 100, 100, CONFIG)] == [
        ("car", 0.9),
        ("truck", 0.5),
    ]


def test_no_more_boxes_than_asked_for() -> None:
    rows = np.array([row(1, 0.9 - i / 100, i / 10, 0, i / 10 + 0.08, 1) for i in range(8)])
    assert len(to_detections(rows, 100, 100, SsdDetectorConfig(max_boxes=3))) == 3


@pytest.mark.weights
def test_the_network_reads_and_finds_nothing_in_a_plain_image() -> None:
    detector = SsdDetector()
    detector.setup()
    assert detector.detect(np.full((90, 160, 3), 128, np.uint8)) == []
    assert detector.weights()[0].startswith("ssd-mobilenet-v2@")


@pytest.mark.weights
def test_a_box_of_the_padded_view_is_where_the_squeezed_view_has_it() -> None:
    # a drawn sign is found in both views at its true place; the padded view alone must not shift it
    image = np.full((300, 400, 3), (120, 160, 200), np.uint8)
    angles = np.pi / 8 + np.arange(8) * np.pi / 4
    for radius, colour in ((80, (255, 255, 255)), (74, (190, 20, 30))):
        points = np.stack([260 + radius * np.cos(angles), 120 + radius * np.sin(angles)], axis=1)
        cv2.fillPoly(image, [points.round().astype(np.int32)], colour)
    cv2.putText(image, "STOP", (202, 138), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (255, 255, 255), 5)
    for square_view in (False, True):
        detector = SsdDetector(SsdDetectorConfig(square_view=square_view))
        detector.setup()
        best = detector.detect(image)[0]
        assert best.detector_class == "stop sign"
        assert best.box_xyxy_px == pytest.approx((180, 40, 340, 200), abs=16)
