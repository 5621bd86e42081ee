"""Exact frames of a video by displayed index: seek to the key frame before, decode, hold stamps against those wanted.

Frames are those that a full decode from the start shows, in the same order; `infra.video_index` numbers them.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from infra.frame_folder import Image, folder_frames, folder_info, folder_sha256, is_folder
from infra.video_index import VideoIndex, VideoInfo, file_sha256, index_of
from infra.video_stream import MAX_FRAME_PX, VideoError, check_size, decoded_frames, open_video

__all__ = [
    "MAX_FRAME_PX",
    "Frames",
    "Image",
    "VideoError",
    "VideoInfo",
    "fitted_size",
    "iter_frames",
    "probe",
    "read_frames",
    "shrunk",
    "video_sha256",
]

Frames = npt.NDArray[np.uint8]
"""(N, height, width, 3) RGB."""

FOLDER_FPS = 24.0
"""That of DAVIS's sequences, for folders of which nobody knows better."""

_MAX_GAP_FRAMES = 16
"""Up to this many unwanted frames before the next group's key frame, going on costs less than a seek and a flush."""

_SEEK_TRIES = 3
"""Key frames tried, each before the last, until a seek lands at or before the wanted one."""


def probe(path: Path, *, folder_fps: float = FOLDER_FPS, max_frame_px: int = MAX_FRAME_PX) -> VideoInfo:
    """What a file, or a folder of pictures, holds.

    `folder_fps` is the rate of a folder, which states none; files have their own. Frames above `max_frame_px` pixels
    are refused before one is decoded. Raises VideoError (missing_file, unreadable_video, no_video_stream, still_image,
    too_large, outside_root).
    """
    if is_folder(path):
        return folder_info(path, folder_fps, max_frame_px)
    if max_frame_px < MAX_FRAME_PX:
        container, _ = open_video(path, max_frame_px)
        container.close()
    info = index_of(path).info
    check_size(path.name, (info.height_px, info.width_px), max_frame_px)
    return info


def video_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's pictures with their names; 64 hex digits. Raises VideoError."""
    return folder_sha256(path) if is_folder(path) else file_sha256(path)


def read_frames(path: Path, frame_idx: Sequence[int], long_side_px: int) -> Frames:
    """The frames at displayed indices `frame_idx`, in that order (repeats allowed), as (N, height, width, 3) RGB.

    They are turned as the file's rotation says and shrunk, by area averaging, so that no side exceeds `long_side_px`;
    frames already within the limit keep their size. Raises VideoError where the file does not hold one of them or it
    does not decode.
    """
    height_px, width_px = fitted_size(probe(path), long_side_px)
    frames = np.empty((len(frame_idx), height_px, width_px, 3), np.uint8)
    asked = np.asarray(frame_idx, np.int64)
    for index, image in iter_frames(path, frame_idx, long_side_px):
        frames[asked == index] = image
    return frames


def iter_frames(path: Path, frame_idx: Sequence[int], long_side_px: int) -> Iterator[tuple[int, Image]]:
    """Each frame of `frame_idx` once, in displayed order, as (index, image), one in memory at a time.

    Otherwise as `read_frames`.
    """
    info = probe(path)
    wanted = sorted(set(frame_idx))
    if wanted and not 0 <= wanted[0] <= wanted[-1] < info.num_frames:
        asked = f"frames {wanted[0]} to {wanted[-1]} were asked for"
        raise VideoError("unreadable_video", f"{path.name}: {asked}; the file holds 0 to {info.num_frames - 1}")
    size_px = fitted_size(info, long_side_px)
    images = folder_frames(path, wanted) if is_folder(path) else _file_frames(path, wanted)
    for index, image in zip(wanted, images, strict=True):
        yield index, _fitted(image, size_px)


def fitted_size(info: VideoInfo, long_side_px: int) -> tuple[int, int]:
    """Height and width of a video's frames once no side exceeds `long_side_px`."""
    return _within((info.height_px, info.width_px), long_side_px)


def shrunk(image: Image, long_side_px: int) -> Image:
    """A picture as `read_frames` gives a video's frames: shrunk so that no side exceeds `long_side_px`."""
    return _fitted(image, _within((image.shape[0], image.shape[1]), long_side_px))


def _within(size_px: tuple[int, int], long_side_px: int) -> tuple[int, int]:
    if long_side_px < 1:
        raise ValueError(f"long_side_px must be at least 1, got {long_side_px}")
    scale = min(1.0, long_side_px / max(size_px))
    return max(1, round(size_px[0] * scale)), max(1, round(size_px[1] * scale))


def _file_frames(path: Path, wanted: Sequence[int]) -> Iterator[Image]:
    index = index_of(path)
    found = 0
    for frame in _by_seeking(path, index, wanted):
        yield _upright(frame, index.turns)
        found += 1
    for frame in _from_start(path, index, wanted[found:]):
        yield _upright(frame, index.turns)


def _by_seeking(path: Path, index: VideoIndex, wanted: Sequence[int]) -> Iterator[Any]:
    """The wanted frames in order, up to the first that does not turn up where its stamp says."""
    if index.frame_pts is None or not len(index.key_pts) or not wanted:
        return
    container, stream = open_video(path, strict=True)
    with container:
        for key, group in _groups(index, index.frame_pts, wanted):
            packets = _packets_from(container, stream, index, key)
            todo = index.frame_pts[group].tolist()
            for frame in _needed_frames(packets, stream, index, int(index.key_pts[key]), frozenset(todo)):
                if frame.pts is None or frame.pts > todo[0]:
                    return
                if frame.pts == todo[0]:
                    yield frame
                    todo.pop(0)
                    if not todo:
                        break
            if todo:
                return


def _needed_frames(
    packets: Iterator[Any], stream: Any, index: VideoIndex, key_pts: int, wanted: frozenset[int]
) -> Iterator[Any]:
    """The wanted frames and at least those that they are predicted from; none after a damaged packet.

    Where each packet is a frame, pictures that no other refers to are not decoded unless wanted (H.264 alone marks them
    so that this is safe: nal_ref_idc, ITU-T H.264 7.4.1; in HEVC a higher temporal layer may refer to them), nor is
    anything after the last wanted packet: the decoder is told that the stream ends, and gives what it holds back.
    """
    context = stream.codec_context
    left = len(wanted)
    skips = index.one_frame_each and context.name == "h264"
    for packet in packets:
        if skips:
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        ends = index.one_frame_each and packet.pts in wanted and left == 1
        try:
            yield from stream.decode(packet)
            if ends:
                yield from stream.decode(None)
        except (av.FFmpegError, EOFError):
            # leading frames of an open group may lack what they are predicted from, and are shown before those wanted
            if packet.pts is None or packet.pts >= key_pts:
                return
        left -= packet.pts in wanted
        if ends or not packet.size:
            return


def _groups(
    index: VideoIndex, frame_pts: npt.NDArray[np.int64], wanted: Sequence[int]
) -> Iterator[tuple[int, list[int]]]:
    """Runs of wanted frames to decode from one key frame each, as (number of the key frame, frames).

    A frame's key frame is the last one shown at or before it: leading frames of an open group, which follow a key
    frame in the file but are shown before it, need the group before.
    """
    keys = np.maximum(np.searchsorted(index.key_pts, frame_pts[wanted], side="right") - 1, 0).tolist()
    key_frames = np.searchsorted(frame_pts, index.key_pts).tolist()
    first_key, group = keys[0], [wanted[0]]
    for key, frame in zip(keys[1:], wanted[1:], strict=True):
        if key_frames[key] - group[-1] > _MAX_GAP_FRAMES:
            yield first_key, group
            first_key, group = key, []
        group.append(frame)
    yield first_key, group


def _packets_from(container: Any, stream: Any, index: VideoIndex, key: int) -> Iterator[Any]:
    """Packets from at or before key frame `key` in the file; none where seeking does not get there.

    Demuxers seek by decoding stamp, presentation stamp or byte, so where a seek landed is read off the first packet.
    """
    if key == 0:  # groups rise, so nothing has been read yet
        return iter(container.demux(stream))
    key_rank = index.rank(int(index.key_pts[key]))
    for earlier in range(key, max(key - _SEEK_TRIES, -1), -1):
        try:
            container.seek(int(index.key_pts[earlier]), stream=stream)
            # a seek by byte may land inside a packet, of which the rest comes without its stamp
            packets = itertools.dropwhile(lambda packet: index.rank(packet.pts) is None, container.demux(stream))
            first = next(packets)
        except (av.FFmpegError, StopIteration):
            break
        rank = index.rank(first.pts)
        if rank is not None and key_rank is not None and rank <= key_rank:
            return _as_indexed(itertools.chain((first,), packets), index, rank)
    return iter(())


def _as_indexed(packets: Iterator[Any], index: VideoIndex, rank: int) -> Iterator[Any]:
    """Packets while they are those that the index saw from `rank` on.

    After a seek in a program stream FFmpeg may stamp packets otherwise than in a read from the start.
    """
    for packet in packets:
        if packet.size and (index.rank(packet.pts) != rank or packet.size != index.packet_size[rank]):
            return
        yield packet
        rank += 1


def _from_start(path: Path, index: VideoIndex, wanted: Sequence[int]) -> Iterator[Any]:
    """The wanted frames in order, by decoding everything before them."""
    if not wanted:
        return
    marks: list[int] = list(wanted) if index.frame_pts is None else index.frame_pts[wanted].tolist()
    found = 0
    container, stream = open_video(path)
    with container:
        for count, frame in enumerate(decoded_frames(container.demux(stream), stream)):
            if marks[found] == (count if index.frame_pts is None else frame.pts):
                yield frame
                found += 1
                if found == len(marks):
                    return
    raise VideoError("unreadable_video", f"{path.name}: frame {wanted[found]} does not decode")


def _upright(frame: Any, turns: npt.NDArray[np.int32] | None) -> Image:
    image: Image = frame.to_ndarray(format="rgb24")
    if turns is not None:
        if turns[0, 0] == 0:
            image = image.transpose(1, 0, 2)
        image = image[:: 1 if turns[:, 1].sum() >= 0 else -1, :: 1 if turns[:, 0].sum() >= 0 else -1]
    return np.ascontiguousarray(image)


def _fitted(image: Image, size_px: tuple[int, int]) -> Image:
    """The image at the video's size: shrunk, or, where a stream changes size midway, stretched as players do."""
    if image.shape[:2] == size_px:
        return image
    return np.asarray(cv2.resize(image, size_px[::-1], interpolation=cv2.INTER_AREA), np.uint8)
