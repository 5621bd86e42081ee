"""On which frame of a clip each noun is looked for: few frames, and as few as possible of them prompted."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from agents.base import Detection
from schemas.record import Record, Share

Look = Callable[[Sequence[int], Sequence[str]], list[list[Detection]]]
"""Boxes of the given nouns on each of the given places among the tracked frames."""


class PromptFramesConfig(Record):
    """Frames as shares of the clip: 0 is its first, 1 its last.

    `first`: all looked at together, for all nouns. The middle one halves the way that masks are carried; the paper
    takes a frame at random, which no second run would take again.
    `others`: looked at one after another, in this order, for the nouns that were not found yet.
    """

    first: tuple[Share, ...] = (0.5,)
    others: tuple[Share, ...] = (0.25, 0.75, 0.0, 1.0)


class FoundOn(NamedTuple):
    """A place among the tracked frames, and the boxes of the nouns that are prompted there."""

    place: int
    detections: tuple[Detection, ...]


def find_nouns(look: Look, num_frames: int, nouns: Sequence[str], config: PromptFramesConfig) -> list[FoundOn]:
    """Frames that together show every noun that was found on any frame looked at, the one that serves most first.

    All boxes of a noun come from one frame, so one object is not prompted twice under one noun. Looking ends as soon as
    every noun was found.
    """
    seen: dict[int, list[Detection]] = {}
    missing = list(dict.fromkeys(nouns))
    for places in [_places(config.first, num_frames), *([place] for place in _places(config.others, num_frames))]:
        fresh = [place for place in places if place not in seen]
        if not missing or not fresh:
            continue
        seen |= zip(fresh, look(fresh, missing), strict=True)
        found = {box.detector_class for boxes in seen.values() for box in boxes}
        missing = [noun for noun in missing if noun not in found]
    return _fewest(seen)


def _places(shares: Sequence[float], num_frames: int) -> list[int]:
    return list(dict.fromkeys(round(share * (num_frames - 1)) for share in shares))


def _fewest(seen: dict[int, list[Detection]]) -> list[FoundOn]:
    """Greedily, the place that shows most of the nouns left; of equal ones the one that is surer, then the earlier."""
    left = {box.detector_class for boxes in seen.values() for box in boxes}
    chosen: list[FoundOn] = []
    while left:
        best = max(seen, key=lambda place: _worth(seen[place], left))
        picked = tuple(box for box in seen[best] if box.detector_class in left)
        chosen.append(FoundOn(best, picked))
        left -= {box.detector_class for box in picked}
    return chosen


def _worth(boxes: Sequence[Detection], left: set[str]) -> tuple[int, float]:
    best: dict[str, float] = {}
    for box in boxes:
        if box.detector_class in left:
            best[box.detector_class] = max(box.score, best.get(box.detector_class, 0.0))
    return len(best), sum(best.values())
