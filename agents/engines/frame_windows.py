"""Which frames of a clip a tracker looks at, and how they come: some at a time, the next ones while it works."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from infra.video import Frames
from schemas.clip import Clip

ReadFrames = Callable[[Sequence[int]], Frames]
"""Frames at the given places of the tracked ones, in that order: (N, height, width, 3) RGB."""


def even_frames(clip: Clip, fps: float, min_frames: int, max_frames: int) -> list[int]:
    """Displayed-frame indices, evenly spaced over the clip, first and last frame included.

    `fps` frames a second, but no fewer than `min_frames` (where the clip has them) and no more than `max_frames`.
    """
    wanted = max(round((clip.end_s - clip.start_s) * fps), min_frames)
    count = min(wanted, max_frames, clip.num_frames)
    picked = np.linspace(clip.start_frame, clip.end_frame - 1, count).round().astype(int)
    return [int(index) for index in np.unique(picked)]


def read_ahead(read: ReadFrames, places: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], Frames]]:
    """Windows of up to `size` places with their frames, in order; the next window is read by a thread meanwhile.

    At most two windows are held. Raises what `read` raises, when the window is due.
    """
    windows = [places[first : first + size] for first in range(0, len(places), size)]
    if not windows:
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(read, windows[0])
        for window, following in zip(windows, [*windows[1:], None], strict=True):
            frames = coming.result()
            if following is not None:
                coming = pool.submit(read, following)
            yield window, frames
