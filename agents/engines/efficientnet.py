"""EfficientNet-Lite3 on TensorFlow Lite, 8 bits: image crops to probabilities of the 1000 ImageNet classes."""

from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from infra.video import Image
from infra.weights import weight_label, weight_path

INPUT_SIDE_PX = 280


class EfficientNetLite3:
    """Image classifier.

    The graph takes raw 0..255 bytes (1, 280, 280, 3) and gives bytes that stand for 1/256 each; those do not sum to
    1 after rounding (0.7 to 1.0 on photographs), so they are scaled to.
    """

    name = "efficientnet-lite3"

    def __init__(self) -> None:
        self._interpreter: Any = None

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The 1000 ImageNet class names in output order, synonyms parted by ", " as the list ships."""
        return tuple(weight_path("efficientnet-labels").read_text(encoding="utf-8").splitlines())

    def weights(self) -> tuple[str, ...]:
        """Model and label list."""
        return (weight_label("efficientnet-lite3"), weight_label("efficientnet-labels"))

    def setup(self) -> None:
        """Load the graph on one thread."""
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(weight_path("efficientnet-lite3")), num_threads=1)
        self._interpreter.allocate_tensors()

    def probabilities(self, image: Image) -> npt.NDArray[np.float32]:
        """(1000,), summing to 1, of an (height, width, 3) RGB image of any size, squeezed to the input square."""
        interpreter = self._interpreter
        square = cv2.resize(np.ascontiguousarray(image), (INPUT_SIDE_PX, INPUT_SIDE_PX), interpolation=cv2.INTER_AREA)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], square[None].astype(np.uint8))
        interpreter.invoke()
        scores = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0].astype(np.float32)
        return np.asarray(scores / max(float(scores.sum()), 1.0), dtype=np.float32)
