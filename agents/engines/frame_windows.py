"""Which frames of a clip a tracker looks at, and how they come: some at a time, the next ones while it works."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from infra.video import Frames
from schemas.clip import Clip

ItemT = TypeVar("ItemT")
DoneT = TypeVar("DoneT")

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


def read_ahead(
    read: Callable[[Sequence[int]], DoneT], places: Sequence[int], size: int
) -> Generator[tuple[Sequence[int], DoneT]]:
    """Windows of up to `size` places with what `read` gives for them; the next one is read by a thread meanwhile.

    At most two windows are held. Raises what `read` raises, when the window is due.
    """
    windows = [places[first : first + size] for first in range(0, len(places), size)]
    return in_a_thread(lambda window: (window, read(window)), windows, ahead=1)


def in_a_thread(work: Callable[[ItemT], DoneT], items: Iterable[ItemT], ahead: int) -> Generator[DoneT]:
    """What `work` makes of each item, in order; a thread does up to `ahead` items more than were taken.

    The items are made by the caller's own thread. Raises what `work` raises, when its item is due; a caller that stops
    early waits for the items that were begun.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        begun: deque[Future[DoneT]] = deque()
        for item in items:
            begun.append(thread.submit(work, item))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
