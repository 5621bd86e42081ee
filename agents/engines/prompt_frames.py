"""On which frame of a clip each noun is looked for: few frames, and as few as possible of them prompted."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agents.base import Detection
from schemas.record import Record, Share


class Question(NamedTuple):
    """Which nouns are looked for on which places among the tracked frames of the clip at `position` of a batch."""

    position: int
    places: tuple[int, ...]
    nouns: tuple[str, ...]


Look = Callable[[Sequence[Question]], list[list[list[Detection]]]]
"""For each question, for each of its places, the boxes of its nouns."""


class PromptFramesConfig(Record):
    """Where in the clip nouns are looked for. Frames are shares of the clip: 0 is its first, 1 its last."""

    first: tuple[Share, ...] = (0.5,)
    """Frames, as shares of the clip, that are all looked at together, for all nouns.

    The middle one halves the way that masks are carried; the paper takes a frame at random, which no second run would
    take again.
    """
    others: tuple[Share, ...] = (0.25, 0.75, 0.0, 1.0)
    """Frames, as shares of the clip, that are looked at one after another, in this order, for the nouns that were not
    found yet.
    """


class FoundOn(NamedTuple):
    """A place among the tracked frames, and the boxes of the nouns that are prompted there."""

    place: int
    detections: tuple[Detection, ...]


def find_nouns(
    look: Look, clips: Sequence[tuple[int, Sequence[str]]], config: PromptFramesConfig
) -> list[list[FoundOn]]:
    """For each clip, of so many tracked frames and with such nouns, the frames on which they are prompted.

    Together a clip's frames show every noun that was found on any of those looked at; the one that serves most comes
    first. All boxes of a noun come from one frame, so one object is not prompted twice under one noun. All clips are
    looked at in one call of `look`, then in another those in which nouns are missing, and so on; a clip is left alone
    as soon as each of its nouns was found.
    """
    searches = [_Search(config, num_frames, nouns) for num_frames, nouns in clips]
    while questions := [
        Question(position, places, tuple(search.missing))
        for position, search in enumerate(searches)
        if (places := search.next_places())
    ]:
        for question, boxes in zip(questions, look(questions), strict=True):
            searches[question.position].take(question.places, boxes)
    return [_fewest(search.seen) for search in searches]


class _Search:
    """One clip's boxes by place, and what is still to be looked for and looked at."""

    def __init__(self, config: PromptFramesConfig, num_frames: int, nouns: Sequence[str]) -> None:
        self.seen: dict[int, list[Detection]] = {}
        self.missing = list(dict.fromkeys(nouns))
        rounds = [config.first, *([share] for share in config.others)]
        self._rounds = deque([round(share * (num_frames - 1)) for share in shares] for shares in rounds)

    def next_places(self) -> tuple[int, ...]:
        """Places of the next round that were not looked at; none where all was found or every round is over."""
        while self.missing and self._rounds:
            if fresh := [place for place in dict.fromkeys(self._rounds.popleft()) if place not in self.seen]:
                return tuple(fresh)
        return ()

    def take(self, places: Sequence[int], boxes: Sequence[list[Detection]]) -> None:
        """Note what the places showed."""
        self.seen |= zip(places, boxes, strict=True)
        found = {box.detector_class for own in boxes for box in own}
        self.missing = [noun for noun in self.missing if noun not in found]


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
