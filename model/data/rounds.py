"""Conversations of several rounds: questions on one clip, asked after one another about the same frames.

The paper speaks of multi-round data (section 4.1), its files have one round a row. Joined, the clip is decoded, seen
and pooled once for all of its rounds, so the same time teaches several times as many answers.
"""

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence

from model.data.item import TrainItem
from model.request import VIDEO

_NAMED = re.compile(r"<object(\d+)>")


def conversations(clips: Sequence[Hashable], max_rounds: int) -> list[list[int]]:
    """Places of rows that may be joined, `max_rounds` of one clip at most, given what each row's clip is called.

    Clips stand in the order of their first rows, and rows in theirs.
    """
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, clip in enumerate(clips):
        places[clip].append(place)
    return [rows[first : first + max_rounds] for rows in places.values() for first in range(0, len(rows), max_rounds)]


def joined(items: Sequence[TrainItem]) -> TrainItem:
    """One item with the rounds of several about the same media, whose tag stays in the first alone.

    `<object0>`, `<object1>` of a later round are counted on from the objects before it.
    """
    first, *later = items
    messages, objects = list(first.messages), list(first.objects)
    for item in later:
        for message in item.messages:
            content = _counted_from(len(objects), message.content.replace(VIDEO, "").lstrip())
            messages.append(message._replace(content=content))
        objects += item.objects
    item_id = f"{first.item_id} and {len(later)} more of its clip" if later else first.item_id
    return first._replace(item_id=item_id, messages=tuple(messages), objects=tuple(objects))


def _counted_from(number: int, text: str) -> str:
    return _NAMED.sub(lambda found: f"<object{number + int(found[1])}>", text)
