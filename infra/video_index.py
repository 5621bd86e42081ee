"""What a video file holds and where each displayed frame lies in it.

A file's frames are numbered from 0 in the order in which a player shows them. That order is read from the presentation
stamps of the packets, without decoding; where those cannot be trusted (missing, doubled, damaged, or a codec whose
packets are not always shown frames) one pass of decoding settles it.
"""

import contextlib
import functools
import hashlib
import itertools
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from infra.container_bytes import stated_bytes
from infra.video_stream import VideoError, decoded_frames, open_video, quarter_turns
from schemas.record import Record

_ONE_FRAME_A_PACKET = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg", "ffv1", "prores", "dnxhd", "rawvideo"})
"""Codecs of which each stamped packet shows one frame; VP8, for one, has hidden ones."""

_FIRST_ZEROS, _LAST_ZEROS = 4, 16
"""No frame begins in so many zero bytes, nor ends in so many but by rare chance, which costs one pass of decoding."""

_JPEG_END = b"\xff\xd9"

_STATE_DURATION = frozenset({"mov", "matroska", "avi", "flv"})
"""Formats with a duration in their header; of others FFmpeg guesses one."""

_GUESSED_FPS = Fraction(25)
"""For a file that states neither stamps nor a rate."""


class VideoInfo(Record):
    """What is known of a video without its pictures.

    `height_px` and `width_px` are those after rotation. `frame_time_s[i]` is when displayed frame `i` appears, counted
    from the first, so `frame_time_s[0]` is 0; `duration_s` is when the last one ends. `fps` is the average rate.
    `is_truncated` is true where the file ends before its container says, or in a packet that is damaged or cannot be
    read: the frames are then those that decode. `stated_duration_s` is the container's own word, None without one.
    """

    num_frames: int
    fps: float
    height_px: int
    width_px: int
    frame_time_s: tuple[float, ...]
    duration_s: float
    is_truncated: bool
    stated_duration_s: float | None


@dataclass(frozen=True)
class VideoIndex:
    """Where each displayed frame lies.

    `frame_pts` are its stamps, rising; None where only counting from the start can tell frames apart. `packet_pts` are
    those of all packets, rising, with `packet_rank` their place in the file; `key_pts` those of key frames, rising.
    All are in the stream's time base. `packet_size` are the packets' bytes, in file order. `one_frame_each` is true
    where each packet decodes to the frame of its stamp, whatever follows it. `turns` are the first frame's
    `quarter_turns`: asking every frame would tie it into a cycle, and memory would hold hundreds of large ones.
    """

    info: VideoInfo
    frame_pts: npt.NDArray[np.int64] | None
    packet_pts: npt.NDArray[np.int64]
    packet_rank: npt.NDArray[np.int64]
    packet_size: npt.NDArray[np.int64]
    key_pts: npt.NDArray[np.int64]
    one_frame_each: bool
    turns: npt.NDArray[np.int32] | None

    def rank(self, pts: int | None) -> int | None:
        """The place in the file of the packet with this stamp; None where no packet bears it."""
        if pts is None:
            return None
        at = int(np.searchsorted(self.packet_pts, pts))
        return int(self.packet_rank[at]) if at < len(self.packet_pts) and self.packet_pts[at] == pts else None


@dataclass(frozen=True)
class _Packets:
    """Packets of the stream in file order.

    `pts` is None where a stamp is missing or doubled, or the file is damaged: what a damaged packet decodes to depends
    on where decoding began, so such a file is always read from its start. `last_duration` is that of the packet shown
    last, 0 where unknown. `first_frame` is the first that decodes, None where none does.
    """

    pts: npt.NDArray[np.int64] | None
    shown: npt.NDArray[np.bool_]
    keys: npt.NDArray[np.bool_]
    sizes: npt.NDArray[np.int64]
    last_duration: int
    first_frame: Any
    codec: str
    ends_early: bool

    @property
    def tell_frames(self) -> bool:
        """Whether the shown packets are the displayed frames: no hidden ones, none shown before the first key.

        Fields of interlaced H.264 may come in a packet each.
        """
        if self.pts is None or self.codec not in _ONE_FRAME_A_PACKET or not self.shown.any() or not self.keys[0]:
            return False
        if self.codec == "h264" and self.first_frame is not None and self.first_frame.interlaced_frame:
            return False
        return bool(self.pts[self.shown].min() >= self.pts[0])


def index_of(path: Path) -> VideoIndex:
    """The index of a file, kept for the process while the file's size and time of change stay.

    Raises VideoError (missing_file, unreadable_video, no_video_stream, still_image).
    """
    return _built_index(*_version(path))


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, 64 hex digits, kept as `index_of`. Raises VideoError (missing_file)."""
    return _sha256(*_version(path))


def forget_indexes() -> None:
    """Build every index anew from now on, as a process that just started does."""
    _built_index.cache_clear()


def _version(path: Path) -> tuple[Path, int, int]:
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        raise VideoError("missing_file", f"{path.name}: cannot be found ({error})") from error
    if not path.is_file():
        raise VideoError("missing_file", f"{path.name}: not a file")
    return path, stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=32)
def _built_index(path: Path, _mtime_ns: int, size: int) -> VideoIndex:
    container, stream = open_video(path)
    with container:
        time_base = Fraction(stream.time_base)
        stated_fps = Fraction(stream.average_rate or stream.guessed_rate or _GUESSED_FPS)
        stated_duration_s = _stated_duration_s(container, stream)
        packets = _demux(container, stream)
    if packets.first_frame is None:
        raise VideoError("unreadable_video", f"{path.name}: no frame of it decodes")
    shown_pts = _decoded_pts(path) if not packets.tell_frames else ()
    frame_pts = _frame_stamps(packets, shown_pts)
    num_frames = len(shown_pts) if frame_pts is None else len(frame_pts)
    if num_frames < 2:
        raise VideoError("still_image", f"{path.name}: holds {num_frames} frame; a video has at least 2")
    times = _times(frame_pts if frame_pts is not None else shown_pts, time_base, stated_fps)
    fps = (num_frames - 1) / float(times[-1])
    turns = quarter_turns(packets.first_frame)
    height_px, width_px = _displayed_size(packets.first_frame, turns)
    info = VideoInfo(
        num_frames=num_frames,
        fps=fps,
        height_px=height_px,
        width_px=width_px,
        frame_time_s=tuple(times.tolist()),
        duration_s=float(times[-1]) + (float(packets.last_duration * time_base) or 1 / fps),
        is_truncated=packets.ends_early or (stated_bytes(path) or 0) > size,
        stated_duration_s=stated_duration_s,
    )
    pts = packets.pts if frame_pts is not None and packets.pts is not None else np.empty(0, np.int64)
    rank = np.argsort(pts)
    keys = np.sort(pts[packets.keys[: len(pts)]])
    return VideoIndex(info, frame_pts, pts[rank], rank, packets.sizes, keys, packets.tell_frames, turns)


def _demux(container: Any, stream: Any) -> _Packets:
    seen = []
    whole, last_is_whole, first_frame = True, True, None
    try:
        for packet in container.demux(stream):
            if packet.size:
                stamp, duration = packet.pts, packet.duration or 0
                seen.append((stamp, not packet.is_discard, packet.is_keyframe, packet.size, duration))
                last_is_whole = not packet.is_corrupt and _has_data(packet, stream.codec_context.name)
                whole = whole and last_is_whole
            if first_frame is None:
                first_frame = _frame_in(packet, stream, drains=len(seen) == 1)
    except (av.FFmpegError, EOFError):
        whole = last_is_whole = False
    stamps, shown, keys, sizes, durations = zip(*seen, strict=True) if seen else ((),) * 5
    stamped = whole and None not in stamps and len(set(stamps)) == len(stamps)
    return _Packets(
        pts=np.array(stamps, np.int64) if stamped else None,
        shown=np.array(shown, np.bool_),
        keys=np.array(keys, np.bool_),
        sizes=np.array(sizes, np.int64),
        last_duration=durations[int(np.argmax(stamps))] if seen and stamped else 0,
        first_frame=first_frame,
        codec=stream.codec_context.name,
        ends_early=not last_is_whole,
    )


def _frame_in(packet: Any, stream: Any, drains: bool) -> Any:
    """A frame that the packet completes; with `drains` the decoder is not left to wait for packets that come later."""
    frames = []
    with contextlib.suppress(av.FFmpegError, EOFError):
        frames += stream.decode(packet)
        if drains:
            frames += stream.decode(None)
            stream.codec_context.flush_buffers()
    return frames[0] if frames else None


def _has_data(packet: Any, codec: str) -> bool:
    """False for a packet that is zeros from some byte on, as in a file laid out before its download broke off."""
    if codec == "rawvideo":  # black
        return True
    if codec == "mjpeg":  # cameras fill packets up to whole sectors
        return bytes(packet).rstrip(b"\0").endswith(_JPEG_END)
    data = memoryview(packet)
    return any(data[:_FIRST_ZEROS]) and any(data[-_LAST_ZEROS:])


def _decoded_pts(path: Path) -> tuple[int | None, ...]:
    container, stream = open_video(path)
    with container:
        return tuple(frame.pts for frame in decoded_frames(container.demux(stream), stream))


def _displayed_size(frame: Any, turns: npt.NDArray[np.int32] | None) -> tuple[int, int]:
    return (frame.width, frame.height) if turns is not None and turns[0, 0] == 0 else (frame.height, frame.width)


def _stated_duration_s(container: Any, stream: Any) -> float | None:
    if container.format.name.split(",")[0] not in _STATE_DURATION:
        return None
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _frame_stamps(packets: _Packets, shown_pts: tuple[int | None, ...]) -> npt.NDArray[np.int64] | None:
    """Stamps of displayed frames that reading can rely on: each one a packet's own, rising."""
    if packets.pts is None:
        return None
    if packets.tell_frames:
        return np.sort(packets.pts[packets.shown])
    if not _rising(shown_pts):
        return None
    stamps = np.array(shown_pts, np.int64)
    return stamps if np.isin(stamps, packets.pts).all() else None


def _times(stamps: Any, time_base: Fraction, stated_fps: Fraction) -> npt.NDArray[np.float64]:
    """Seconds since the first frame, by the frames' stamps where they rise, else by the stated rate."""
    if _rising(tuple(stamps)):
        since_first = np.array(stamps, np.int64) - stamps[0]
        return np.asarray(since_first * time_base.numerator / time_base.denominator, np.float64)
    return np.arange(len(stamps)) / float(stated_fps)


def _rising(stamps: tuple[int | None, ...]) -> bool:
    known = [stamp for stamp in stamps if stamp is not None]
    return len(known) == len(stamps) and all(a < b for a, b in itertools.pairwise(known))
