"""Pictures of the report: which frames of a clip to show, their JPEGs, and mask outlines as SVG paths.

A frame is stored once however many cards show it: outlines are drawn over it by the page, in each card's colours.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import cv2
import numpy as np

from agents.base import FrameSource
from infra.pictures import jpeg
from infra.video import Image, VideoError
from schemas.clip import Clip
from schemas.mask import decode
from schemas.sample import Sample
from schemas.track import Track

T = TypeVar("T")

Role = Literal["main", "context", "after"]
"""A frame that the card is about, one of the clip beside those of a row, or one later than a model may see."""

FRAMES_PER_STRIP = 5
FRAMES_AFTER = 2
LONG_SIDE_PX = 320
FIRST_QUALITY = 82

PictureKey = tuple[str, int]
"""Clip id and displayed frame index."""


@dataclass(frozen=True)
class Still:
    """One frame of a strip: the RLE of each object in the card's order, None where it is not outlined."""

    frame_idx: int
    time_s: float
    role: Role
    rle: tuple[str | None, ...]


@dataclass(frozen=True)
class Strip:
    """Frames of one clip in order of time."""

    clip: Clip
    stills: tuple[Still, ...]

    def picture_keys(self) -> list[PictureKey]:
        """The pictures that the strip shows."""
        return [(self.clip.clip_id, still.frame_idx) for still in self.stills]


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items spread over the sequence, first and last among them."""
    if len(items) <= count:
        return list(items)
    if count < 2:
        return [items[len(items) // 2]] * count
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def sample_strip(sample: Sample, clip: Clip, tracks: Mapping[str, Track]) -> Strip:
    """The row's own masked frames, filled up with frames of its tracks; for a future question also what came after.

    Frames of the tracks are marked: `context` within what a model may see, `after` beyond it.
    """
    row: dict[int, Still] = {}
    masks = [dict(zip(item.frame_idx, item.rle, strict=True)) for item in sample.objects]
    times = {i: t for item in sample.objects for i, t in zip(item.frame_idx, item.frame_time_s, strict=True)}
    num_after = FRAMES_AFTER if sample.qa_type == "future" else 0
    count = FRAMES_PER_STRIP - num_after
    for idx in evenly(sorted(times), count):
        row[idx] = Still(idx, times[idx], "main", tuple(mask.get(idx) for mask in masks))
    around = _track_stills([tracks.get(item.object_id) for item in sample.objects], sample.visible_until_s)
    seen = [still for still in around if still.role == "context" and still.frame_idx not in row]
    after = [still for still in around if still.role == "after"]
    chosen = [*row.values(), *evenly(seen, count - len(row)), *evenly(after, num_after)]
    return Strip(clip, tuple(sorted(chosen, key=lambda still: still.frame_idx)))


def track_strip(track: Track, clip: Clip) -> Strip:
    """Frames in which the track's object is seen."""
    masks = track.masks
    columns = zip(masks.frame_idx, masks.frame_time_s, masks.rle, strict=True)
    seen = [Still(idx, time_s, "main", (rle,)) for idx, time_s, rle in columns if rle is not None]
    return Strip(clip, tuple(evenly(seen, FRAMES_PER_STRIP)))


def plain_strip(clip: Clip) -> Strip:
    """Frames from the middles of equal parts of the clip, without outlines."""
    count = min(FRAMES_PER_STRIP, clip.num_frames)
    offsets = [int((i + 0.5) * clip.num_frames / count) for i in range(count)]
    stills = [Still(clip.start_frame + k, clip.start_s + k / clip.fps, "main", ()) for k in offsets]
    return Strip(clip, tuple(stills))


def read_pictures(strips: Sequence[Strip], frames: FrameSource) -> dict[PictureKey, bytes]:
    """JPEGs of all frames that the strips show, each clip read once; those of an unreadable clip are left out."""
    wanted: dict[str, set[int]] = defaultdict(set)
    clips = {strip.clip.clip_id: strip.clip for strip in strips}
    for strip in strips:
        wanted[strip.clip.clip_id].update(still.frame_idx for still in strip.stills)
    pictures: dict[PictureKey, bytes] = {}
    for clip_id, indices in wanted.items():
        order = sorted(indices)
        try:
            images = frames.read(clips[clip_id], order, LONG_SIDE_PX)
        except VideoError:
            continue  # the card says that its frames could not be read
        for idx, image in zip(order, images, strict=True):
            pictures[clip_id, idx] = jpeg(image, FIRST_QUALITY)
    return pictures


def shrink(pictures: Mapping[PictureKey, bytes], long_side_px: int, quality: int) -> dict[PictureKey, bytes]:
    """The same pictures, smaller: no side above `long_side_px`, JPEG quality 0 to 100."""
    return {key: jpeg(_within(_image(data), long_side_px), quality) for key, data in pictures.items()}


@lru_cache(maxsize=4096)
def outline(rle: str, height_px: int, width_px: int) -> str:
    """SVG path data of a mask's outline, in pixels of the mask, corners within 1/400 of its long side."""
    mask = decode(rle, height_px, width_px).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    tolerance_px = max(height_px, width_px) / 400
    parts = []
    for contour in contours:
        simple = cv2.approxPolyDP(contour, tolerance_px, closed=True)
        points = (simple if len(simple) > 2 else contour)[:, 0]
        parts.append("M" + "L".join(f"{x} {y}" for x, y in points.tolist()) + "Z")
    return "".join(parts)


def _track_stills(tracks: Sequence[Track | None], visible_until_s: float) -> list[Still]:
    known = [track for track in tracks if track]
    masks = [dict(zip(t.masks.frame_idx, t.masks.rle, strict=True)) if t else {} for t in tracks]
    times = {i: t for track in known for i, t in zip(track.masks.frame_idx, track.masks.frame_time_s, strict=True)}
    return [
        Still(idx, times[idx], "context" if times[idx] < visible_until_s else "after", tuple(m.get(idx) for m in masks))
        for idx in sorted(times)
    ]


def _image(data: bytes) -> Image:
    image: Image = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return image


def _within(image: Image, long_side_px: int) -> Image:
    height, width = image.shape[:2]
    scale = min(1.0, long_side_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smaller: Image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return smaller
