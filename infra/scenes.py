"""Shot cuts by PySceneDetect's AdaptiveDetector, fed with our own frames so that its numbers are displayed frames.

The detector compares each frame's mean change in hue, saturation and lightness with that of its neighbours, so a moving
camera is no cut. Settings are the library's own but one: it drops a cut that comes within 15 frames of the last, which
would leave two shots in one clip; here every cut counts and shots that are too short are dropped later, by name.
Dissolves and fades are not found.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scenedetect.detectors import AdaptiveDetector

from infra.video import Image, iter_frames

LONG_SIDE_PX = 256
"""The width to which PySceneDetect itself shrinks frames."""


def shots(
    path: Path, start_frame: int, end_frame: int, show: Callable[[Image], None] | None = None
) -> list[tuple[int, int]]:
    """The shots of the displayed frames [start_frame, end_frame), half-open, in order and without gaps.

    Frames are decoded one after the other, never held together; `show` is handed each, shrunk to `LONG_SIDE_PX`. A cut
    next to the span's ends, within two frames, is not seen. Raises `infra.video.VideoError`.
    """
    detector = AdaptiveDetector(min_scene_len=1)
    cuts: list[int] = []
    for frame, image in iter_frames(path, range(start_frame, end_frame), LONG_SIDE_PX):
        if show:
            show(image)
        cuts += detector.process_frame(frame, np.ascontiguousarray(image[..., ::-1]))
    return list(itertools.pairwise((start_frame, *cuts, end_frame)))
