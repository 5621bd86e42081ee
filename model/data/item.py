"""One training item as a source states it, before a pixel is read; masks stay as they were written."""

from collections.abc import Iterable
from typing import NamedTuple

from model.request import Message, Role

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}


class BadItemError(ValueError):
    """An item that cannot be trained on: `reason` is one word to count by, the text says what was found."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(said)
        self.reason = reason


class RunLengths(NamedTuple):
    """A mask as COCO runs: `counts` is the compressed string, or the run lengths themselves, background first."""

    counts: str | tuple[int, ...]
    height_px: int
    width_px: int


class Polygons(NamedTuple):
    """A mask as COCO polygons, each x, y, x, y, ... in pixels of (height, width) `size_px`, or of the frame as it is
    displayed where the file states no size.
    """

    points: tuple[tuple[float, ...], ...]
    size_px: tuple[int, int] | None


StoredMask = RunLengths | Polygons | None
"""None where the object is out of sight."""


class ItemObject(NamedTuple):
    """One object: displayed frames of the file, each once, and its mask in each."""

    frame_idx: tuple[int, ...]
    masks: tuple[StoredMask, ...]


class Media(NamedTuple):
    """The video file, frame folder or image of an item; `path` is relative to the source's root.

    Of a video only frames within [`start_s`, `end_s`) may be seen, all of them where None. `folder_fps` is the rate of
    a frame folder, which states none. `in_name_order` says that `frame_idx` counts a folder's files sorted as text, as
    the official loader does, which puts "10" before "9". `sha256` names the content where the source tells it.
    """

    path: str
    is_image: bool
    span_s: tuple[float, float] | None = None
    folder_fps: float | None = None
    in_name_order: bool = False
    sha256: str | None = None


class TrainItem(NamedTuple):
    """One item; `source` is the name of where it came from, `media` None for text alone.

    `objects` are in the order of the `<region>` in `messages`.
    """

    item_id: str
    source: str
    messages: tuple[Message, ...]
    media: Media | None
    objects: tuple[ItemObject, ...]


def messages_of(turns: Iterable[tuple[str, str]]) -> tuple[Message, ...]:
    """Messages of the official (`from`, `value`) turns; raises BadItemError (bad_turns) for any other speaker."""
    pairs = tuple(turns)
    if strange := [speaker for speaker, _ in pairs if speaker not in _ROLES]:
        raise BadItemError("bad_turns", f"a turn is from one of {', '.join(_ROLES)}; got {strange[0]!r:.40}")
    return tuple(Message(_ROLES[speaker], value) for speaker, value in pairs)
