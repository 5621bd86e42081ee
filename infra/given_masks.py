"""Masks that came with a source: read from its files and held against the video.

Counts are passed on as they are; only a mask without a pixel becomes None. What does not fit its video costs its row.
"""

import json
import mmap
import re
import struct
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from infra.frame_folder import frame_files
from infra.raw_rows import one_line
from infra.source_rows import rejection
from infra.sources import ClipSet
from infra.video import VideoError
from schemas.clip import Clip
from schemas.given import GivenMasks, GivenObject, MaskRef
from schemas.mask import encode, run_lengths
from schemas.quarantine import QuarantineEntry
from schemas.record import content_id, short_id

_KEPT = 64
"""Objects, or folders of PNG images, whose checked counts are kept: the expressions of one video come together."""

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]')

_Size = tuple[int, int]
"""Height and width."""


class MaskError(ValueError):
    """Masks that are missing or do not fit their video; the text is the evidence."""


class MaskReader:
    """Reads the masks that rows refer to, under one videos' root. Safe to use from many threads.

    Of a JSON file only the place of each object in it is kept, so memory does not grow with its masks.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._places: dict[Path, Mapping[str, tuple[int, int]]] = {}
        self._rle_object = lru_cache(_KEPT)(self._read_rle_object)
        self._png_folder = lru_cache(_KEPT)(_read_png_folder)

    def give(self, clips: ClipSet, ref: MaskRef) -> tuple[ClipSet, dict[str, GivenMasks]]:
        """The clips of one row with the ids of their masks, which enter their own, and the masks by id.

        A clip in which none of the objects is seen becomes an entry `not_visible`; masks that do not fit the video
        make one entry `bad_masks` of the row. Objects that are not seen in a clip are left out of it.
        """
        if not clips.clips:
            return clips, {}
        try:
            objects = self._objects(clips.clips[0], ref)
        except MaskError as error:
            entry = rejection(clips.source_id, "bad_masks", str(error))
            return clips.model_copy(update={"clips": (), "rejected": (*clips.rejected, entry)}), {}
        given: dict[str, GivenMasks] = {}
        kept: list[Clip] = []
        rejected = list(clips.rejected)
        for clip in clips.clips:
            seen = [part for item in objects if (part := _within(item, clip)) is not None]
            if seen:
                masks = GivenMasks(objects=tuple(seen))
                sha256 = content_id(masks)
                given[sha256] = masks
                kept.append(clip.model_copy(update={"clip_id": short_id(clip.clip_id, sha256), "given_sha256": sha256}))
            else:
                rejected.append(_not_visible(clip, ref))
        return clips.model_copy(update={"clips": tuple(kept), "rejected": tuple(rejected)}), given

    def _objects(self, clip: Clip, ref: MaskRef) -> list[GivenObject]:
        """Every object's masks over the whole video. Raises MaskError."""
        if not ref.objects:
            raise MaskError(f"the expression names no object of {ref.path}")
        path = (self._root / ref.path).resolve()
        if not path.is_relative_to(self._root.resolve()):
            raise MaskError(f"{ref.path} leads out of the videos root")
        index = _frame_numbers(self._root / clip.video)
        stems = ref.frames or tuple(index)
        if len(set(stems)) < len(stems):
            raise MaskError("the expressions name a frame of the video twice")
        if strange := [stem for stem in stems if stem not in index]:
            raise MaskError(f"masks are said of frame {strange[0]}, which the video lacks, as {len(strange)} in all")
        size = (clip.height_px, clip.width_px)
        try:
            read = self._from_png if path.is_dir() else self._from_json
            counts = {name: read(path, name, stems, size) for name in ref.objects}
        except OSError as error:
            raise MaskError(f"{ref.path} cannot be read: {one_line(error)}") from error
        order = sorted(range(len(stems)), key=lambda place: index[stems[place]])
        frame_idx = tuple(index[stems[place]] for place in order)
        return [
            GivenObject(object_id=name, frame_idx=frame_idx, rle=tuple(rle[place] for place in order))
            for name, rle in counts.items()
        ]

    def _from_json(self, path: Path, name: str, stems: Sequence[str], size: _Size) -> tuple[str | None, ...]:
        rle = self._rle_object(path, name, size)
        if len(rle) != len(stems):
            raise MaskError(f"{path.name} has {len(rle)} masks of object {name} for {len(stems)} frames")
        return rle

    def _read_rle_object(self, path: Path, name: str, size: _Size) -> tuple[str | None, ...]:
        with self._lock:
            if path not in self._places:
                try:
                    self._places[path] = places_of(path)
                except ValueError as error:
                    raise MaskError(f"{path.name} is no JSON object of masks: {one_line(error)}") from error
        place = self._places[path].get(name)
        if place is None:
            raise MaskError(f"{path.name} holds no object {name}")
        with path.open("rb") as file:
            file.seek(place[0])
            text = file.read(place[1] - place[0])
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MaskError(f"{path.name}: object {name}: {one_line(error)}") from error
        return tuple(_checked(f"{path.name}: object {name}, mask {i}", item, size) for i, item in enumerate(values))

    def _from_png(self, path: Path, name: str, stems: Sequence[str], size: _Size) -> tuple[str | None, ...]:
        masks = self._png_folder(path, size)
        if missing := [stem for stem in stems if stem not in masks]:
            raise MaskError(f"{path.name}/{missing[0]}.png is missing, as {len(missing)} of {len(stems)} in all")
        if not any(name in masks[stem] for stem in stems):
            raise MaskError(f"no pixel of {len(stems)} images in {path.name} has the value {name}")
        return tuple(masks[stem].get(name) for stem in stems)


def places_of(path: Path) -> dict[str, tuple[int, int]]:
    """From which to which byte the array of each key stands in the object of a JSON file.

    The file is scanned once, mapped and not loaded. What is not closed, as in a file cut short, is left out.
    """
    places: dict[str, tuple[int, int]] = {}
    depth, key, start = 0, b"", 0
    with path.open("rb") as file:
        if not file.read(1):
            return {}
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for token in _TOKEN.finditer(data):
                first = data[token.start()]
                if first == 0x22:  # a quotation mark: a key where no array is open
                    key = token[0] if depth == 1 else key
                elif first in b"[{":
                    depth += 1
                    start = token.start() if depth == 2 else start
                else:
                    depth -= 1
                    if depth == 1:
                        places[json.loads(key)] = (start, token.end())
    return places


def _frame_numbers(folder: Path) -> dict[str, int]:
    """The displayed index of each frame of a frame folder, by the name of its file without the suffix."""
    try:
        return {Path(name).stem: i for i, (name, _, _) in enumerate(frame_files(folder))}
    except (OSError, VideoError) as error:
        raise MaskError(f"masks need a folder of frames: {one_line(error)}") from error


def _checked(where: str, item: Any, size: _Size) -> str | None:
    """The counts of one COCO run-length mask, None where it is null, empty or without a pixel."""
    if not item:
        return None
    try:
        given, counts = tuple(item["size"]), item["counts"]
        runs = run_lengths(counts)
    except (KeyError, TypeError, ValueError) as error:
        raise MaskError(f"{where} is no COCO run lengths: {type(error).__name__} {one_line(error)}") from error
    if given != size or sum(runs) != size[0] * size[1]:
        told = f"is {given} and covers {sum(runs)} pixels"
        raise MaskError(f"{where} {told}; the video's frames are {size}, {size[0] * size[1]} pixels")
    return counts if sum(runs[1::2]) else None


def _read_png_folder(folder: Path, size: _Size) -> dict[str, dict[str, str]]:
    """By the stem of each PNG image of a folder: COCO counts by pixel value, without the background's 0."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png" and not path.is_symlink())
    masks: dict[str, dict[str, str]] = {}
    for path in paths:
        values = _png_values(path, size)
        present = np.flatnonzero(np.bincount(values.ravel(), minlength=2)[1:]) + 1
        masks[path.stem] = {str(value): encode(values == value) for value in present}
    return masks


def _png_values(path: Path, size: _Size) -> npt.NDArray[np.uint8]:
    """(height, width): the palette indices of a PNG image, or its grey values."""
    data = path.read_bytes()
    if len(data) < 24 or struct.unpack(">II", data[16:24]) != size[::-1]:
        raise MaskError(f"{path.parent.name}/{path.name} is no PNG image of {size[1]} x {size[0]} pixels, as the video")
    try:
        frames = av.CodecContext.create("png", "r").decode(av.Packet(data))
    except av.FFmpegError as error:
        raise MaskError(f"{path.parent.name}/{path.name} does not decode: {one_line(error)}") from error
    kind = frames[0].format.name if frames else "nothing"
    if kind not in ("pal8", "gray"):
        raise MaskError(f"{path.parent.name}/{path.name} is {kind}; masks are images with a palette, or of 8-bit grey")
    values: Any = frames[0].to_ndarray()
    return np.asarray(values[0] if kind == "pal8" else values, np.uint8)


def _within(item: GivenObject, clip: Clip) -> GivenObject | None:
    """The part of an object's masks in the clip's span, None where it is not seen there."""
    places = [i for i, frame in enumerate(item.frame_idx) if clip.start_frame <= frame < clip.end_frame]
    if all(item.rle[i] is None for i in places):
        return None
    frame_idx, rle = tuple(item.frame_idx[i] for i in places), tuple(item.rle[i] for i in places)
    return item.model_copy(update={"frame_idx": frame_idx, "rle": rle})


def _not_visible(clip: Clip, ref: MaskRef) -> QuarantineEntry:
    names = ", ".join(ref.objects)
    evidence = f"no mask of {names} in frames {clip.start_frame} to {clip.end_frame - 1}"
    return QuarantineEntry.of_clip(clip, "source", "not_visible", evidence)
