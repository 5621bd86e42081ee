"""Opening a video file and decoding its stream: which formats, how large a frame, with how many threads."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition

from infra.image_header import stated_size
from schemas.quarantine import Reason

MAX_FRAME_PX = 8192 * 8192
"""No reader decodes larger frames, whatever a profile allows: one such frame takes 200 MB as RGB."""

_MAX_GROWTH = 4
"""A stream may change its size midway, to at most this many times the pixels that its header states."""

_EDGE_PX = 256
"""Decoders pad a frame by some of these, and count them."""

_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,obu,ivf,asf,flv,ogg,mxf,nut,"
    "wav,mp3,flac,aac,gif,apng,png_pipe,jpeg_pipe,bmp_pipe,webp_pipe,tiff_pipe"
)
"""Formats of one file. Playlists (HLS, DASH, concat, image sequences) name other files, in the source root or not."""

_THREADS = 1
"""What a decoder shows for a damaged slice depends on its number of threads; agents are what runs side by side."""


class VideoError(ValueError):
    """A file that holds no video that can be read, or not the frame that was asked for; `reason` says which."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def check_size(name: str, size_px: tuple[int, int], max_frame_px: int) -> None:
    """Raise VideoError (too_large) where frames of (height, width) `size_px` exceed `max_frame_px` pixels."""
    height_px, width_px = size_px
    if height_px * width_px > max_frame_px:
        frames = f"frames of {width_px} x {height_px} pixels"
        raise VideoError("too_large", f"{name}: {frames}; at most {max_frame_px} pixels are allowed")


def open_video(path: Path, max_frame_px: int = MAX_FRAME_PX, *, strict: bool = False) -> tuple[Any, Any]:
    """The opened container, for the caller to close, and its video stream with threads and limits set.

    No frame is decoded. A `strict` decoder raises an error for damage that others cover with guesses from the frames
    before, which are not the same ones after a seek. Raises VideoError (unreadable_video, no_video_stream, too_large).
    """
    check_size(path.name, _picture_size(path), max_frame_px)
    container = _opened(path, {"max_pixels": str(MAX_FRAME_PX)})
    try:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise VideoError("no_video_stream", f"{path.name}: holds no video stream")
        context = stream.codec_context
        if context is None:
            raise VideoError("unreadable_video", f"{path.name}: no decoder for its video stream")
        size_px = (context.height, context.width) if context.width else _untried_size(path)
        check_size(path.name, size_px, max_frame_px)
        context.options = {"max_pixels": str(_limit_px(size_px))} | ({"err_detect": "explode"} if strict else {})
        context.thread_count = _THREADS
    except VideoError:
        container.close()
        raise
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


def _limit_px(size_px: tuple[int, int]) -> int:
    height_px, width_px = size_px
    if not height_px * width_px:
        return MAX_FRAME_PX
    return min(MAX_FRAME_PX, _MAX_GROWTH * (height_px + _EDGE_PX) * (width_px + _EDGE_PX))


def _opened(path: Path, options: dict[str, str]) -> Any:
    """The container, with these options for the decoders that FFmpeg tries while it opens a file."""
    try:
        # an absolute name, so that no part of it can be read as a protocol
        return av.open(
            str(path.absolute()), options={"format_whitelist": _DEMUXERS} | options, metadata_errors="ignore"
        )
    except (av.FFmpegError, OSError) as error:
        raise VideoError("unreadable_video", f"{path.name}: cannot be opened as a video ({error.strerror})") from error


def _untried_size(path: Path) -> tuple[int, int]:
    """(height, width) of a file whose size is unknown because FFmpeg tried a decoder and that refused it."""
    with _opened(path, {"skip_frame": "all"}) as container:
        context = container.streams.best("video").codec_context
        return context.height, context.width


def _picture_size(path: Path) -> tuple[int, int]:
    """(height, width) that a GIF or a picture states; (0, 0) for other files.

    Their demuxers know no size before a decoder has tried a frame, and tell none where it refused.
    """
    try:
        with path.open("rb") as file:
            return stated_size(file.read(1 << 16)) or (0, 0)
    except OSError as error:
        raise VideoError("missing_file", f"{path.name}: cannot be read ({error.strerror})") from error
