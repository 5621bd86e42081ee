"""Official training rows to items: schema A (`annotation`), schema B (`masks`), and LLaVA-style rows without regions.

Formats are those that the official loaders read (`videorefer/train.py`, `videorefer_videollama3/train.py`), with the
irregularities of the released files. `frame_idx`, `id` aside, is not needed: the keys say which frames bear masks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from model.data.item import BadItemError, ItemObject, Media, Polygons, RunLengths, StoredMask, TrainItem, messages_of

_Size = tuple[int, int] | None


def official_item(row: Any, index: int, source: str) -> TrainItem:
    """The item of one row; `index`, its place in the file, names it where it has no `id`.

    Of schema B each mask is one object, as its trainer reads it. That tags and `<region>` fit is left to the processor,
    which refuses what does not. Raises BadItemError (bad_row, bad_turns, several_media, bad_mask).
    """
    if not isinstance(row, dict):
        raise BadItemError("bad_row", f"a row is a JSON object, got {type(row).__name__}")
    if "stream" in row or "conversation" in row:
        raise BadItemError("bad_row", "rows of the stream format are not read; give `conversations`")
    media = _media(row)
    messages = messages_of(_turns(row.get("conversations")))
    return TrainItem(str(row.get("id", index)), source, messages, media, _objects(row, media))


def _turns(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, list):
        raise BadItemError("bad_turns", f"`conversations` is a list of turns, got {type(value).__name__}")
    turns = []
    for turn in value:
        speaker, said = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(speaker, str) or not isinstance(said, str):
            raise BadItemError("bad_turns", "a turn has the texts `from` and `value`")
        turns.append((speaker, said))
    return turns


def _media(row: Mapping[str, Any]) -> Media | None:
    given = {key: row[key] for key in ("video", "image") if row.get(key)}
    if len(given) > 1:
        raise BadItemError("several_media", "a row has a `video` or an `image`, got both")
    for key, value in given.items():
        paths = value if isinstance(value, list) else [value]
        if len(paths) != 1:
            raise BadItemError("several_media", f"`{key}` names {len(paths)} files; one is read")
        if not isinstance(paths[0], str):
            raise BadItemError("bad_row", f"`{key}` is a path, got {type(paths[0]).__name__}")
        return Media(paths[0], is_image=key == "image", in_name_order=key == "video")
    return None


def _objects(row: Mapping[str, Any], media: Media | None) -> tuple[ItemObject, ...]:
    annotation, masks = row.get("annotation"), row.get("masks")
    if annotation and masks:
        raise BadItemError("bad_row", "a row has `annotation` or `masks`, got both")
    given = annotation or masks or []
    if not isinstance(given, list):
        raise BadItemError("bad_row", f"objects come as a list, got {type(given).__name__}")
    if given and media is None:
        raise BadItemError("bad_row", "objects without a `video` or `image`")
    size_px = _size(row)
    is_image = media is not None and media.is_image
    if annotation:
        return tuple(_annotated(entry, size_px, is_image) for entry in given)
    if is_image:
        return tuple(ItemObject((0,), (_mask(mask, size_px),)) for mask in given)
    return tuple(
        ItemObject((_frame(key),), (_mask(mask, size_px),)) for entry in given for key, mask in _entries(entry)
    )


def _annotated(entry: Any, size_px: _Size, is_image: bool) -> ItemObject:
    """One object of schema A: masks by frame; `ytb_vos` rows nest them under one more key."""
    frames = _entries(entry)
    if len(frames) == 1 and _is_nested(frames[0][1]):
        frames = _entries(frames[0][1])
    masks = [_mask(value.get("segmentation") if isinstance(value, dict) else value, size_px) for _, value in frames]
    if not is_image:
        return ItemObject(tuple(_frame(key) for key, _ in frames), tuple(masks))
    seen = [mask for mask in masks if mask is not None]  # whatever the key, an image has frame 0 alone
    if len(seen) > 1:
        raise BadItemError("bad_mask", f"an object of an image has one mask, got {len(seen)}")
    return ItemObject((0,), (seen[0] if seen else None,))


def _entries(entry: Any) -> list[tuple[str, Any]]:
    if not isinstance(entry, dict) or not entry:
        raise BadItemError("bad_row", "an object is a JSON object of masks by frame, with one frame at least")
    return list(entry.items())


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(key.isdecimal() for key in value)


def _frame(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10):
        raise BadItemError("bad_row", f"frames are whole numbers, got {key!r:.40}")
    return int(key)


def _size(row: Mapping[str, Any]) -> _Size:
    height_px, width_px = row.get("height"), row.get("width")
    return (height_px, width_px) if isinstance(height_px, int) and isinstance(width_px, int) else None


def _mask(value: Any, size_px: _Size) -> StoredMask:
    if not value:  # null, {} and [] alike: out of sight
        return None
    if isinstance(value, dict):
        return _run_lengths(value)
    if isinstance(value, list) and all(isinstance(part, list) and _are_numbers(part) for part in value):
        return Polygons(tuple(tuple(part) for part in value), size_px)
    raise BadItemError("bad_mask", f"a mask is COCO run lengths or a list of polygons, got {str(value)[:60]}")


def _run_lengths(value: Mapping[str, Any]) -> RunLengths:
    size, counts = value.get("size"), value.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)):
        raise BadItemError("bad_mask", f"run lengths have a `size` [height, width], got {str(size)[:40]}")
    if isinstance(counts, list) and all(isinstance(run, int) for run in counts):
        return RunLengths(tuple(counts), *size)
    if not isinstance(counts, str):
        raise BadItemError("bad_mask", f"`counts` is a text or whole numbers, got {type(counts).__name__}")
    return RunLengths(counts, *size)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)
