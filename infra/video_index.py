"""What a video file holds and where each displayed frame lies in it.

A file's frames are numbered from 0 in the order in which a player shows them. That order is read from the presentation
stamps of the packets, without decoding; where those cannot be trusted (missing, doubled, damaged, or a codec whose
packets are not always shown frames) one pass of decoding settles it.
"""

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition

from schemas.quarantine import Reason
from schemas.record import Record

_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,obu,ivf,asf,flv,ogg,mxf,nut,"
    "wav,mp3,flac,aac,gif,apng,png_pipe,jpeg_pipe,bmp_pipe,webp_pipe,tiff_pipe"
)
"""Formats of one file. Playlists (HLS, DASH, concat, image sequences) name other files, in the source root or not."""

_ONE_FRAME_A_PACKET = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg", "ffv1", "prores", "dnxhd", "rawvideo"})
"""Codecs of which each stamped packet shows one frame; VP8, for one, has hidden ones."""

_THREADS = 2
"""Set by hand: 0 lets the decoder take every core of a node that runs many agents."""

_GUESSED_FPS = Fraction(25)
"""For a file that states neither stamps nor a rate."""


class VideoError(ValueError):
    """A file that holds no video that can be read, or not the frame that was asked for; `reason` says which."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class VideoInfo(Record):
    """What is known of a video without its pictures.

    `height_px` and `width_px` are those after rotation. `frame_time_s[i]` is when displayed frame `i` appears, counted
    from the first, so `frame_time_s[0]` is 0; `duration_s` is when the last one ends. `fps` is the average rate.
    """

    num_frames: int
    fps: float
    height_px: int
    width_px: int
    frame_time_s: tuple[float, ...]
    duration_s: float


@dataclass(frozen=True)
class VideoIndex:
    """Where each displayed frame lies.

    `frame_pts` are its stamps, rising; None where only counting from the start can tell frames apart. `packet_pts` are
    those of all packets, rising, with `packet_rank` their place in the file; `key_pts` those of key frames, rising.
    All are in the stream's time base. `packet_size` are the packets' bytes, in file order.
    """

    info: VideoInfo
    frame_pts: npt.NDArray[np.int64] | None
    packet_pts: npt.NDArray[np.int64]
    packet_rank: npt.NDArray[np.int64]
    packet_size: npt.NDArray[np.int64]
    key_pts: npt.NDArray[np.int64]

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
    last, 0 where unknown.
    """

    pts: npt.NDArray[np.int64] | None
    shown: npt.NDArray[np.bool_]
    keys: npt.NDArray[np.bool_]
    sizes: npt.NDArray[np.int64]
    last_duration: int
    one_frame_each: bool

    @property
    def tell_frames(self) -> bool:
        """Whether the shown packets are the displayed frames: no hidden ones, none shown before the first key."""
        if self.pts is None or not self.one_frame_each or not self.shown.any() or not self.keys[0]:
            return False
        return bool(self.pts[self.shown].min() >= self.pts[0])


@dataclass(frozen=True)
class _Decoded:
    """What decoding from the start gave: the stamp of each frame, and the size of the first as displayed."""

    pts: tuple[int | None, ...]
    height_px: int
    width_px: int


def index_of(path: Path) -> VideoIndex:
    """The index of a file, kept for the process while the file's size and time of change stay.

    Raises VideoError (missing_file, unreadable_video, no_video_stream, still_image).
    """
    return _built_index(*_version(path))


def video_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, 64 hex digits, kept as `index_of`. Raises VideoError (missing_file)."""
    return _sha256(*_version(path))


def open_video(path: Path) -> tuple[Any, Any]:
    """The opened container, for the caller to close, and its video stream with threads set.

    Raises VideoError (unreadable_video, no_video_stream).
    """
    try:
        # an absolute name, so that no part of it can be read as a protocol
        container = av.open(str(path.absolute()), options={"format_whitelist": _DEMUXERS}, metadata_errors="ignore")
    except (av.FFmpegError, OSError) as error:
        raise VideoError("unreadable_video", f"{path.name}: cannot be opened as a video ({error.strerror})") from error
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        container.close()
        raise VideoError("no_video_stream", f"{path.name}: holds no video stream")
    if stream.codec_context is None:
        container.close()
        raise VideoError("unreadable_video", f"{path.name}: no decoder for its video stream")
    stream.codec_context.thread_count = _THREADS
    stream.thread_type = "SLICE"  # frame threads report a damaged packet late and lose good frames with it
    return container, stream


def decoded_frames(packets: Iterator[Any], stream: Any) -> Iterator[Any]:
    """The frames that decode, in displayed order; damaged packets are passed over, an unreadable rest ends them."""
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            packet = None
        frames = []
        with contextlib.suppress(av.FFmpegError, EOFError):
            # the last packet of a stream has no data: it flushes what the decoder holds
            frames = stream.decode(packet)
        yield from frames
        if packet is None or not packet.size:
            return


def quarter_turns(frame: Any) -> npt.NDArray[np.int32] | None:
    """The upper left 2x2 of a frame's display matrix as signs (ISO/IEC 14496-12, tkhd), None where there is none.

    A stored pixel (x, y) is displayed at (a x + c y, b x + d y) for [[a, b], [c, d]].
    """
    try:
        data = frame.side_data[SideDataType.DISPLAYMATRIX]
    except KeyError:
        return None
    matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]
    return np.sign(np.where(np.abs(matrix) * 2 > np.abs(matrix).max(), matrix, 0)).astype(np.int32)


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
def _built_index(path: Path, _mtime_ns: int, _size: int) -> VideoIndex:
    container, stream = open_video(path)
    with container:
        time_base = Fraction(stream.time_base)
        stated_fps = Fraction(stream.average_rate or stream.guessed_rate or _GUESSED_FPS)
        packets = _demux(container, stream)
    decoded = _decode(path, first_only=packets.tell_frames)
    frame_pts = _frame_stamps(packets, decoded)
    num_frames = len(decoded.pts) if frame_pts is None else len(frame_pts)
    if num_frames < 2:
        raise VideoError("still_image", f"{path.name}: holds {num_frames} frame; a video has at least 2")
    times = _times(frame_pts if frame_pts is not None else decoded.pts, time_base, stated_fps)
    fps = (num_frames - 1) / float(times[-1])
    info = VideoInfo(
        num_frames=num_frames,
        fps=fps,
        height_px=decoded.height_px,
        width_px=decoded.width_px,
        frame_time_s=tuple(times.tolist()),
        duration_s=float(times[-1]) + (float(packets.last_duration * time_base) or 1 / fps),
    )
    pts = packets.pts if frame_pts is not None and packets.pts is not None else np.empty(0, np.int64)
    rank = np.argsort(pts)
    return VideoIndex(info, frame_pts, pts[rank], rank, packets.sizes, np.sort(pts[packets.keys[: len(pts)]]))


def _demux(container: Any, stream: Any) -> _Packets:
    seen = []
    whole = True
    try:
        for packet in container.demux(stream):
            if packet.size:
                stamp, duration = packet.pts, packet.duration or 0
                seen.append((stamp, not packet.is_discard, packet.is_keyframe, packet.size, duration))
                whole = whole and not packet.is_corrupt
    except (av.FFmpegError, EOFError):
        whole = False
    stamps, shown, keys, sizes, durations = zip(*seen, strict=True) if seen else ((),) * 5
    stamped = whole and None not in stamps and len(set(stamps)) == len(stamps)
    return _Packets(
        pts=np.array(stamps, np.int64) if stamped else None,
        shown=np.array(shown, np.bool_),
        keys=np.array(keys, np.bool_),
        sizes=np.array(sizes, np.int64),
        last_duration=durations[int(np.argmax(stamps))] if seen and stamped else 0,
        one_frame_each=stream.codec_context.name in _ONE_FRAME_A_PACKET,
    )


def _decode(path: Path, first_only: bool) -> _Decoded:
    stamps: list[int | None] = []
    size_px = (0, 0)
    container, stream = open_video(path)
    with container:
        for frame in decoded_frames(container.demux(stream), stream):
            if not stamps:
                turns = quarter_turns(frame)
                swapped = turns is not None and turns[0, 0] == 0
                size_px = (frame.width, frame.height) if swapped else (frame.height, frame.width)
            stamps.append(frame.pts)
            if first_only:
                break
    if not stamps:
        raise VideoError("unreadable_video", f"{path.name}: no frame of it decodes")
    return _Decoded(tuple(stamps), *size_px)


def _frame_stamps(packets: _Packets, decoded: _Decoded) -> npt.NDArray[np.int64] | None:
    """Stamps of displayed frames that reading can rely on: each one a packet's own, rising."""
    if packets.pts is None:
        return None
    if packets.tell_frames:
        return np.sort(packets.pts[packets.shown])
    if not _rising(decoded.pts):
        return None
    stamps = np.array(decoded.pts, np.int64)
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
