"""Items of a bench to requests: the row's masks and its video, and the words in which a model is asked."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from benchmark.items import DescriptionItem, QuestionItem
from benchmark.published import Mode, Scorer
from benchmark.wording import description_prompt, question_prompt
from model.data.item import BadItemError, ItemObject, Media, TrainItem
from model.data.official import official_item
from model.data.scene import SceneConfig, request_of
from model.request import REGION, VIDEO, Message, Request

_SOURCE = "bench"
_NAMED_REGION = re.compile(rf"(<object\d+>)\s?{REGION}")


class Shown(NamedTuple):
    """A request, and how many of its objects single mode shows on another frame than the item's."""

    request: Request
    num_off_frame: int


class Asker:
    """Makes requests of items, for one model and one way of asking.

    In mode `single` an object bears the mask at the row's `frame_idx` alone. Where it has none there, the annotated
    frame nearest to that one is taken, the earlier of two: the model cannot be shown an object without a mask, which
    the official code can, as zeros. In mode `multi` it bears those of all annotated frames. In mode `blind` the words
    are all that is asked with: what is answered right so, the item gives away.
    """

    def __init__(self, videos: Path, mode: Mode, scorer: Scorer, config: SceneConfig) -> None:
        self._videos, self._mode, self._scorer, self._config = videos, mode, scorer, config

    def request(self, item: QuestionItem | DescriptionItem, row: Mapping[str, Any]) -> Shown:
        """The request of an item; raises BadItemError and VideoError."""
        if self._mode == "blind":
            return Shown(Request((Message("user", _without_marks(self._words(item))),), None, ()), 0)
        said = {"from": "human", "value": f"{VIDEO}\n{self._words(item)}"}
        asked = official_item({**row, "id": item.item_id, "conversations": [said]}, item.row, _SOURCE)
        if not asked.objects:
            raise BadItemError("bad_row", "the row has no masks in `annotation` (or `masks`)")
        asked = asked._replace(media=_seen(row, asked.media))
        num_off_frame = 0
        if self._mode == "single":
            asked, num_off_frame = _single(asked, _frame_idx(row))
        return Shown(request_of(asked, self._videos, self._config, seed=0, epoch=0), num_off_frame)

    def _words(self, item: QuestionItem | DescriptionItem) -> str:
        if isinstance(item, DescriptionItem):
            return description_prompt()
        return item.question if self._scorer == "likelihood" else question_prompt(item)


def _without_marks(words: str) -> str:
    """The words without tags of video and regions: an object has the name it is given there, or is called an object."""
    bare = _NAMED_REGION.sub(r"\1", words.replace(VIDEO, "")).strip()
    if bare.count(REGION) == 1:
        return bare.replace(REGION, "the object")
    numbers = itertools.count(1)
    return re.sub(REGION, lambda _: f"object {next(numbers)}", bare)


def _seen(row: Mapping[str, Any], media: Media | None) -> Media | None:
    """What may be seen of the video: rows of `bench new` name the span, the file's content and a folder's rate.

    Their frames are counted as displayed, those of the official files in a folder's files sorted as text.
    """
    if media is None or not row.keys() & {"start_s", "visible_until_s", "video_sha256"}:
        return media
    start_s, until_s, sha256, fps = (row.get(name) for name in ("start_s", "visible_until_s", "video_sha256", "fps"))
    if not (_is_number(start_s) and _is_number(until_s) and isinstance(sha256, str)):
        raise BadItemError("bad_row", "`start_s` and `visible_until_s` are seconds and `video_sha256` is a text")
    if fps is not None and not (_is_number(fps) and fps > 0):
        raise BadItemError("bad_row", f"`fps` is a number above 0, got {fps!r:.40}")
    return media._replace(
        span_s=(float(start_s), float(until_s)),
        folder_fps=None if fps is None else float(fps),
        in_name_order=False,
        sha256=sha256,
    )


def _single(item: TrainItem, frame_idx: int) -> tuple[TrainItem, int]:
    objects = tuple(_nearest(one, frame_idx) for one in item.objects)
    return item._replace(objects=objects), sum(one.frame_idx != (frame_idx,) for one in objects)


def _nearest(one: ItemObject, frame_idx: int) -> ItemObject:
    seen = [pair for pair in zip(one.frame_idx, one.masks, strict=True) if pair[1] is not None]
    if not seen:
        raise BadItemError("not_visible", "an object has no mask in any annotated frame")
    frame, mask = min(seen, key=lambda pair: (abs(pair[0] - frame_idx), pair[0]))
    return ItemObject((frame,), (mask,))


def _frame_idx(row: Mapping[str, Any]) -> int:
    got = str(row.get("frame_idx"))
    if not (got.isascii() and got.isdecimal()):
        raise BadItemError("bad_row", f"`frame_idx` is a frame's number, got {got[:40]!r}; or ask with --mode multi")
    return int(got)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
