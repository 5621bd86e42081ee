"""Decoded frames shared by all processes of a node through files, so that agents of one size share one decoding.

A clip is cut, from its first frame, into windows of 32 frames. Of a short clip whole windows are decoded, whichever of
their frames were asked for, because the next agent asks for others; of a long clip only the asked frames are where they
are sparse. Each decoded piece is one .npy file, named by the video's SHA-256, the long side and the frames it spans.
A clip is decoded once for each long side that agents ask for: sizes are never derived from one another, because frames
shrunk twice would differ from frames shrunk once.
"""

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from infra.video import Frames, VideoError, fitted_size, iter_frames, probe, video_sha256
from schemas.clip import Clip

_log = logging.getLogger(__name__)

_WINDOW_FRAMES = 32
_LONG_CLIP_FRAMES = 320
"""Clips above this are decoded sparsely where they are asked sparsely."""
_SPARSE_SHARE = 8
"""A window of a long clip is sparse when fewer than one frame in this many is asked for."""
_LOCK_FILES = 256
"""Videos and sizes share this many locks, whose files stay: removing a lock file that others may hold is not safe."""

_Span = tuple[int, int]
"""Displayed frames [first, end) of one file of the cache."""


class ClipFrames(Protocol):
    """What of a `schemas.clip.Clip` says which frames it has; training samples, which are no clips, say it too."""

    @property
    def clip_id(self) -> str: ...  # noqa: D102 - fields of Clip
    @property
    def video(self) -> str: ...  # noqa: D102
    @property
    def video_sha256(self) -> str: ...  # noqa: D102
    @property
    def start_frame(self) -> int: ...  # noqa: D102
    @property
    def end_frame(self) -> int: ...  # noqa: D102
    @property
    def height_px(self) -> int: ...  # noqa: D102
    @property
    def width_px(self) -> int: ...  # noqa: D102


class DecodeCache:
    """A bounded store of decoded frames; an `agents.base.FrameSource`.

    Files in `cache_dir` never exceed `max_bytes`; the least recently used go first, and what was evicted is decoded
    again. Without `fills_windows`, only frames that were asked for are kept of a long clip, for readers that want few
    of it. A process that wants frames of a video that another is decoding waits for it. Any process may be killed at
    any moment. Where a disk is full or not writable, frames are served and not kept, with one warning a process.
    """

    _has_warned = False

    def __init__(self, videos_root: Path, cache_dir: Path, max_bytes: int, fills_windows: bool = True) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must be 0 or more, got {max_bytes}")
        self._videos_root = videos_root
        self._folder = cache_dir / "frames"
        self._locks = cache_dir / "locks"
        self._max_bytes = max_bytes
        self._fills_windows = fills_windows

    def read(self, clip: ClipFrames, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        """Frames of the clip at displayed indices of its file, in that order, as `infra.video.read_frames` gives them.

        Raises ValueError for a frame outside the clip, VideoError where the file does not hold a frame or is no longer
        the one that the clip was made from.
        """
        outside = [index for index in frame_idx if not clip.start_frame <= index < clip.end_frame]
        if outside:
            span = f"[{clip.start_frame}, {clip.end_frame})"
            raise ValueError(f"clip {clip.clip_id}: got frame {outside[0]}; the clip spans {span}")
        path = self._videos_root / clip.video
        side_px = min(long_side_px, max(clip.height_px, clip.width_px))
        frames = np.empty((len(frame_idx), *fitted_size(probe(path), side_px), 3), np.uint8)
        asked = np.asarray(frame_idx, np.int64)
        spans = self._spans(clip, side_px, asked)
        missing = [span for span in spans if not self._take(clip, side_px, span, asked, frames)]
        if missing:
            self._locks.mkdir(parents=True, exist_ok=True)
            with FileLock(self._lock_file(clip, side_px)):
                missing = [span for span in missing if not self._take(clip, side_px, span, asked, frames)]
                self._decode(clip, path, side_px, missing, asked, frames)
        return frames

    def times_s(self, clip: Clip, frame_idx: Sequence[int]) -> tuple[float, ...]:
        """When frames of the clip appear, in seconds from the file's first, as `infra.video.probe` gives them.

        Those of a folder of pictures follow from the clip's rate.
        """
        frame_time_s = probe(self._videos_root / clip.video, folder_fps=clip.fps).frame_time_s
        return tuple(frame_time_s[index] for index in frame_idx)

    def _file(self, clip: ClipFrames, side_px: int, span: _Span) -> Path:
        return self._folder / f"{clip.video_sha256}-{side_px}-{span[0]}-{span[1]}.npy"

    def _lock_file(self, clip: ClipFrames, side_px: int) -> Path:
        return self._locks / f"{(int(clip.video_sha256, 16) + side_px) % _LOCK_FILES:02x}.lock"

    def _spans(self, clip: ClipFrames, side_px: int, asked: npt.NDArray[np.int64]) -> list[_Span]:
        """The pieces that hold the asked frames, in order."""
        windows: dict[int, list[int]] = {}
        for index in np.unique(asked).tolist():
            windows.setdefault((index - clip.start_frame) // _WINDOW_FRAMES, []).append(index)
        spans: list[_Span] = []
        for number, indices in windows.items():
            first = clip.start_frame + number * _WINDOW_FRAMES
            window = (first, min(first + _WINDOW_FRAMES, clip.end_frame))
            few = len(indices) * _SPARSE_SHARE < _WINDOW_FRAMES or not self._fills_windows
            sparse = few and clip.end_frame - clip.start_frame > _LONG_CLIP_FRAMES
            if sparse and not self._file(clip, side_px, window).exists():
                spans += [(index, index + 1) for index in indices]
            else:
                spans.append(window)
        return spans

    def _take(self, clip: ClipFrames, side_px: int, span: _Span, asked: npt.NDArray[np.int64], frames: Frames) -> bool:
        """Copy the asked frames of one span from the cache; false where it is not there."""
        file = self._file(clip, side_px, span)
        try:
            window = np.load(file, mmap_mode="r")
            _touch(file)
        except (OSError, ValueError, EOFError):  # absent, just evicted, or torn by a power cut
            return False
        if window.shape != (span[1] - span[0], *frames.shape[1:]):
            return False
        _copy(window, span, asked, frames)
        return True

    def _decode(
        self,
        clip: ClipFrames,
        path: Path,
        side_px: int,
        spans: Sequence[_Span],
        asked: npt.NDArray[np.int64],
        frames: Frames,
    ) -> None:
        if not spans:
            return
        if video_sha256(path) != clip.video_sha256:
            raise VideoError(
                "unreadable_video", f"{clip.video}: has changed since clip {clip.clip_id} was made from it"
            )
        wanted = [index for span in spans for index in range(*span)]
        decoded = iter_frames(path, wanted, side_px)
        for span in spans:
            window = np.stack([image for _, image in itertools.islice(decoded, span[1] - span[0])])
            _copy(window, span, asked, frames)
            self._store(self._file(clip, side_px, span), window)

    def _store(self, file: Path, window: Frames) -> None:
        """Keep one file if that can be done; the frames are decoded already and must reach their reader."""
        partial = file.with_suffix(".partial")
        try:
            self._write(file, partial, window)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            if not DecodeCache._has_warned:
                DecodeCache._has_warned = True
                _log.warning("decoded frames are not kept, so each agent decodes for itself: %s", error)

    def _write(self, file: Path, partial: Path, window: Frames) -> None:
        """Write one file, after making room for it; a window above the whole bound is not kept."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._locks / "room.lock"):
            size = window.nbytes + 256  # the header of a .npy file takes up to 256 bytes
            if size > self._max_bytes:
                return
            _make_room(self._folder, self._max_bytes - size)
            with partial.open("wb") as stream:
                np.save(stream, window)
            _touch(partial)
            partial.replace(file)


def _copy(window: Frames, span: _Span, asked: npt.NDArray[np.int64], frames: Frames) -> None:
    inside = np.flatnonzero((asked >= span[0]) & (asked < span[1]))
    frames[inside] = window[asked[inside] - span[0]]


def _touch(file: Path) -> None:
    """Mark a file as used now; the kernel's own stamps may tie within some milliseconds."""
    now = time.time_ns()
    os.utime(file, ns=(now, now))


def _make_room(folder: Path, budget: int) -> None:
    """Delete the least recently used files until those left hold at most `budget` bytes; called under the room lock."""
    kept = []
    for entry in os.scandir(folder):
        if entry.name.endswith(".partial"):  # left by a process that was killed while it held the lock
            Path(entry.path).unlink()
        else:
            stat = entry.stat()
            kept.append((stat.st_mtime_ns, stat.st_size, entry.path))
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= budget:
            return
        Path(path).unlink()
        total -= size
