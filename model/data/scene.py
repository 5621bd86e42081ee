"""From an item to a request: which frames are needed, decoded once, and the masks that lie on them."""

import functools
import hashlib
import math
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infra.decode_cache import DecodeCache
from infra.frame_folder import Image, frame_files, is_folder, read_picture
from infra.video import FOLDER_FPS, Frames, VideoInfo, probe, read_frames, shrunk, video_sha256
from model.data.item import BadItemError, ItemObject, Media, TrainItem
from model.data.masks import mask_of
from model.processing import VideoReferProcessor
from model.request import ObjectRegion, Request, Scene
from schemas.mask import Mask

_KEPT_SHA256 = 2**16
"""Files whose content a process remembers; those of an epoch are asked for near one another."""
_STAMP_SLACK_S = 1e-3
"""Times in files are often rounded to milliseconds; a frame this close to where a span begins is in it."""


class SceneConfig(NamedTuple):
    """How items become requests.

    `num_frames` show the scene. Frames whose shorter side exceeds `side_px`, that of the tower's square, are shrunk at
    decoding. A share `single_frame_share` of the items keeps one visible mask per object (paper appendix B.1: all in
    stage 2, half in stage 2.5). Of more than `max_masks` frames with masks that many are taken, evenly, as the official
    benchmark has 32. `keeps_absent` passes on frames in which an object is out of sight, as `paper_exact` wants.
    """

    num_frames: int
    side_px: int
    single_frame_share: float = 0.5
    max_masks: int = 32
    keeps_absent: bool = False


def scene_config(processor: VideoReferProcessor, single_frame_share: float = 0.5, max_masks: int = 32) -> SceneConfig:
    """How items become requests for a processor; the other arguments are the fields of that name."""
    return SceneConfig(
        processor.num_frames, processor.side_px, single_frame_share, max_masks, keeps_absent=processor.paper_exact
    )


class OpenVideo(NamedTuple):
    """A video or frame folder that was found, what named it, and what it holds."""

    path: Path
    media: Media
    info: VideoInfo


FrameReader = Callable[[OpenVideo, Sequence[int], int], Frames]
"""Frames of a video by displayed index, at a long side in pixels, as `infra.video.read_frames` gives them."""


def read_plainly(video: OpenVideo, frame_idx: Sequence[int], long_side_px: int) -> Frames:
    """A FrameReader that decodes each time."""
    return read_frames(video.path, frame_idx, long_side_px)


class _Span(NamedTuple):
    """What the cache needs to know of an item's frames."""

    clip_id: str
    video: str
    video_sha256: str
    start_frame: int
    end_frame: int
    height_px: int
    width_px: int


class CachedReader:
    """A FrameReader that keeps what it decoded in a bounded folder, which all workers of a node share."""

    def __init__(self, cache_dir: Path, max_bytes: int) -> None:
        self._cache_dir, self._max_bytes = cache_dir, max_bytes

    def __call__(self, video: OpenVideo, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        """The frames, from the folder where they are there."""
        path, media, info = video
        first, end = visible_frames(media, info)
        span = _Span(
            clip_id=media.path,
            video=path.name,
            video_sha256=media.sha256 or _sha256(path),
            start_frame=first,
            end_frame=end,
            height_px=info.height_px,
            width_px=info.width_px,
        )
        cache = DecodeCache(path.parent, self._cache_dir, self._max_bytes)
        return cache.read(span, frame_idx, long_side_px)


def request_of(
    item: TrainItem, root: Path, config: SceneConfig, seed: int, epoch: int, reader: FrameReader = read_plainly
) -> Request:
    """The item with its frames and masks. The same arguments give the same request.

    Raises BadItemError (outside_root, missing_file, changed_video, bad_span, frame_outside, not_visible,
    bad_mask) and VideoError.
    """
    if item.media is None:
        return Request(item.messages, None, ())
    path = _inside(root, item.media.path)
    if item.media.is_image:
        return _image_request(item, path, config)
    _check_content(item.media, path)
    draw = _Draw(seed, epoch, item.item_id)
    info = probe(path, folder_fps=item.media.folder_fps or FOLDER_FPS)
    first, end = visible_frames(item.media, info)
    objects = _by_displayed_frame(item, path)
    _check_frames(objects, first, end)
    size_px = (info.height_px, info.width_px)
    distinct = {  # an object of several rounds is shown alike in all
        one: _chosen_masks(one, number, size_px, config, draw) for number, one in enumerate(dict.fromkeys(objects))
    }
    shown = [first + frame for frame in mid_segment(end - first, config.num_frames)]
    wanted = sorted({*shown, *(frame for masks in distinct.values() for frame in masks)})
    place = {frame: at for at, frame in enumerate(wanted)}
    span_s = item.media.span_s or (0.0, info.duration_s)
    scene = Scene(
        frames=reader(
            OpenVideo(path, item.media, info), wanted, long_side_px(config.side_px, info.height_px, info.width_px)
        ),
        times_s=tuple(info.frame_time_s[frame] for frame in wanted),
        shown=tuple(place[frame] for frame in shown),
        start_s=span_s[0],
        end_s=span_s[1],
    )
    regions = {one: _region(masks, place, in_time_order=not config.keeps_absent) for one, masks in distinct.items()}
    return Request(item.messages, scene, tuple(regions[one] for one in objects))


def _region(masks: dict[int, Mask | None], place: dict[int, int], in_time_order: bool) -> ObjectRegion:
    """The masks by their places in the scene; the official arithmetic takes them as the file lists them."""
    frames = sorted(masks) if in_time_order else list(masks)
    return ObjectRegion(tuple(place[frame] for frame in frames), tuple(masks[frame] for frame in frames))


def long_side_px(side_px: int, height_px: int, width_px: int) -> int:
    """That of a frame whose shorter side is `side_px`, the tower's: shrunk further, it would be stretched again."""
    return math.ceil(side_px * max(height_px, width_px) / min(height_px, width_px))


def mid_segment(num_frames: int, num_shown: int) -> list[int]:
    """The frames that show a scene: the middle of each of `num_shown` segments of `num_frames` frames, each once.

    round((i + 0.5) (N - 1) / T), the official rule (`videorefer/mm_utils.py`, process_video). A clip shorter than T
    gives fewer frames, where the official loader pads with black ones.
    """
    segment = (num_frames - 1) / num_shown
    return sorted({round((number + 0.5) * segment) for number in range(num_shown)})


def visible_frames(media: Media, info: VideoInfo) -> tuple[int, int]:
    """Displayed frames [first, end) that may be seen. Raises BadItemError (bad_span) where there is none."""
    if media.span_s is None:
        return 0, info.num_frames
    start_s, end_s = media.span_s
    first = int(np.searchsorted(info.frame_time_s, start_s - _STAMP_SLACK_S))
    end = int(np.searchsorted(info.frame_time_s, end_s - _STAMP_SLACK_S))
    if first >= end:
        span = f"[{start_s:g}, {end_s:g}) s"
        raise BadItemError("bad_span", f"{media.path}: {span} holds no frame of {info.duration_s:.3f} s")
    return first, end


class _Draw(NamedTuple):
    """Chance that depends on nothing but an item and the time it is taken for."""

    seed: int
    epoch: int
    item_id: str

    def share(self, what: str) -> float:
        """In [0, 1)."""
        digest = hashlib.sha256(repr((*self, what)).encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48


def _chosen_masks(
    one: ItemObject, number: int, size_px: tuple[int, int], config: SceneConfig, draw: _Draw
) -> dict[int, Mask | None]:
    """Masks by displayed frame: of one frame or of all, as drawn."""
    stored = dict(zip(one.frame_idx, one.masks, strict=True))
    if draw.share("single") < config.single_frame_share:
        first_try = [frame for frame in one.frame_idx if stored[frame] is not None]
        start = int(draw.share(f"frame of object {number}") * len(first_try))
        for frame in (*first_try[start:], *first_try[:start]):
            if (mask := mask_of(stored[frame], size_px)) is not None:
                return {frame: mask}
    frames = [frame for frame in one.frame_idx if config.keeps_absent or stored[frame] is not None]
    taken = (
        [frames[at] for at in mid_segment(len(frames), config.max_masks)] if len(frames) > config.max_masks else frames
    )
    masks = {frame: mask_of(stored[frame], size_px) for frame in taken}
    if not config.keeps_absent:
        masks = {frame: mask for frame, mask in masks.items() if mask is not None}
        if not masks:
            raise BadItemError(
                "not_visible", f"object {number} has no mask with a pixel in {len(one.frame_idx)} frames"
            )
    return masks


def _by_displayed_frame(item: TrainItem, path: Path) -> tuple[ItemObject, ...]:
    """The objects, their frames numbered as we number those of a folder: "9" before "10"."""
    assert item.media is not None
    if not item.media.in_name_order or not is_folder(path):
        return item.objects
    names = [name for name, _, _ in frame_files(path)]
    displayed = [names.index(name) for name in sorted(names)]
    _check_frames(item.objects, 0, len(names))
    return tuple(one._replace(frame_idx=tuple(displayed[frame] for frame in one.frame_idx)) for one in item.objects)


def _check_frames(objects: Sequence[ItemObject], first: int, end: int) -> None:
    outside = [frame for one in objects for frame in one.frame_idx if not first <= frame < end]
    if outside:
        raise BadItemError("frame_outside", f"a mask is of frame {outside[0]}; frames {first} to {end - 1} may be seen")


def _check_content(media: Media, path: Path) -> None:
    """Masks lie on the frames that their build saw. Reads a file once a process, and again where it has changed."""
    if media.sha256 is not None and (found := _sha256(path)) != media.sha256:
        raise BadItemError(
            "changed_video",
            f"{media.path} is another file than its masks were made on: SHA-256 {found[:12]} instead of "
            f"{media.sha256[:12]}; put the old one back, or build again",
        )


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_of_state(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(_KEPT_SHA256)
def _sha256_of_state(path: Path, _size_bytes: int, _changed_at_ns: int) -> str:
    return video_sha256(path)


def _image_request(item: TrainItem, path: Path, config: SceneConfig) -> Request:
    image: Image = read_picture(path)
    regions = []
    for number, one in enumerate(item.objects):
        mask = mask_of(one.masks[0], (image.shape[0], image.shape[1]))
        if mask is None and not config.keeps_absent:
            raise BadItemError("not_visible", f"object {number} has no mask with a pixel")
        regions.append(ObjectRegion((0,), (mask,)))
    frames = shrunk(image, long_side_px(config.side_px, image.shape[0], image.shape[1]))[None]
    return Request(item.messages, Scene(frames, (0.0,), (0,), 0.0, 0.0, is_image=True), tuple(regions))


def _inside(root: Path, name: str) -> Path:
    """The path of an item's media, to which neither `..` nor a link leads out of the root."""
    try:
        path = (root / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(root.resolve()):
            raise BadItemError("outside_root", f"{name} leads out of the root of its source; give a path inside it")
        mode = path.stat().st_mode
    except BadItemError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # not there, an embedded NUL, a loop of links
        raise BadItemError("missing_file", f"{name} cannot be found ({error})") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadItemError("missing_file", f"{name} is neither a file nor a folder")
    return path
