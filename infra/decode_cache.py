"""Decoded frames shared by all processes of a node through files, so that no agent decodes what another one has had.

What is asked for is decoded and kept, each frame as one .npy file, named by the video's SHA-256, the long side and the
frame's number; nothing else is, since turning, shrinking and writing a frame costs several times its decoding. Sizes
are never derived from one another, because frames shrunk twice would differ from frames shrunk once.
"""

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from infra.video import Frames, Image, VideoError, fitted_size, iter_frames, probe, video_sha256
from schemas.clip import Clip

_log = logging.getLogger(__name__)

_LOCK_FILES = 256
"""Videos and sizes share this many locks, whose files stay: removing a lock file that others may hold is not safe."""

_POLL_S = 0.005
"""Between two tries for a lock: that on the store's room is held for less, that on a video for tens of these."""
_HELD = "held_bytes"
"""File beside the frames: at most so many bytes are kept. Without it they are counted."""


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

    Frames kept in `cache_dir` never exceed `max_bytes`; the least recently used go first, and what was evicted is
    decoded again. Any number of threads and processes may read; one that wants frames of a video that another is
    decoding waits for it. Any process may be killed at any moment. Where a disk is full or not writable, frames are
    served and not kept, with one warning a process.
    """

    _has_warned = False

    def __init__(self, videos_root: Path, cache_dir: Path, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must be 0 or more, got {max_bytes}")
        self._videos_root = videos_root
        self._folder = cache_dir / "frames"
        self._locks = cache_dir / "locks"
        self._max_bytes = max_bytes

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
        missing = [one for one in np.unique(asked).tolist() if not self._take(clip, side_px, one, asked, frames)]
        if missing:
            self._locks.mkdir(parents=True, exist_ok=True)
            with FileLock(self._lock_file(clip, side_px)).acquire(poll_interval=_POLL_S):
                missing = [one for one in missing if not self._take(clip, side_px, one, asked, frames)]
                self._decode(clip, path, side_px, missing, asked, frames)
        return frames

    def times_s(self, clip: Clip, frame_idx: Sequence[int]) -> tuple[float, ...]:
        """When frames of the clip appear, in seconds from the file's first, as `infra.video.probe` gives them.

        Those of a folder of pictures follow from the clip's rate.
        """
        frame_time_s = probe(self._videos_root / clip.video, folder_fps=clip.fps).frame_time_s
        return tuple(frame_time_s[index] for index in frame_idx)

    def _file(self, clip: ClipFrames, side_px: int, index: int) -> Path:
        return self._folder / f"{clip.video_sha256}-{side_px}-{index}.npy"

    def _lock_file(self, clip: ClipFrames, side_px: int) -> Path:
        return self._locks / f"{(int(clip.video_sha256, 16) + side_px) % _LOCK_FILES:02x}.lock"

    def _take(self, clip: ClipFrames, side_px: int, index: int, asked: npt.NDArray[np.int64], frames: Frames) -> bool:
        """Copy one frame from the cache to wherever it is asked for; false where it is not there."""
        file = self._file(clip, side_px, index)
        try:
            image = np.load(file, mmap_mode="r")
            _touch(file)
        except (OSError, ValueError, EOFError):  # absent, just evicted, or torn by a power cut
            return False
        if image.shape != frames.shape[1:]:
            return False
        frames[asked == index] = image
        return True

    def _decode(
        self,
        clip: ClipFrames,
        path: Path,
        side_px: int,
        missing: Sequence[int],
        asked: npt.NDArray[np.int64],
        frames: Frames,
    ) -> None:
        if not missing:
            return
        if video_sha256(path) != clip.video_sha256:
            raise VideoError(
                "unreadable_video", f"{clip.video}: has changed since clip {clip.clip_id} was made from it"
            )
        for index, image in iter_frames(path, missing, side_px):
            frames[asked == index] = image
            self._store(self._file(clip, side_px, index), image)

    def _store(self, file: Path, image: Image) -> None:
        """Keep one frame if that can be done; it is decoded already and must reach its reader."""
        partial = file.with_suffix(".partial")
        try:
            self._write(file, partial, image)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            if not DecodeCache._has_warned:
                DecodeCache._has_warned = True
                _log.warning("decoded frames are not kept, so each agent decodes for itself: %s", error)

    def _write(self, file: Path, partial: Path, image: Image) -> None:
        """Write one file, after making room for it; a frame above the whole bound is not kept."""
        self._folder.mkdir(parents=True, exist_ok=True)
        size = image.nbytes + 256  # the header of a .npy file takes up to 256 bytes
        if size > self._max_bytes:
            return
        with FileLock(self._locks / "room.lock").acquire(poll_interval=_POLL_S):
            _take_room(self._folder, size, self._max_bytes)
            with partial.open("wb") as stream:
                np.save(stream, image)
            _touch(partial)
            partial.replace(file)


def _touch(file: Path) -> None:
    """Mark a file as used now; the kernel's own stamps may tie within some milliseconds."""
    now = time.time_ns()
    os.utime(file, ns=(now, now))


def _take_room(folder: Path, size: int, max_bytes: int) -> None:
    """Count `size` more bytes as kept, which are not there yet; called under the room lock.

    Looking through all files takes long where there are many, so it is done only where the bound is reached, and then
    room is made for more to come.
    """
    tally = folder / _HELD
    try:
        held = int(tally.read_bytes())
    except (OSError, ValueError):  # a new folder, or torn by a kill
        held = max_bytes
    if held + size > max_bytes:
        held = _make_room(folder, (max_bytes - size) * 7 // 8)
    tally.write_bytes(b"%d" % (held + size))


def _make_room(folder: Path, budget: int) -> int:
    """Delete the least recently used files until those left hold at most `budget` bytes; how many they hold."""
    kept = []
    for entry in os.scandir(folder):
        if entry.name.endswith(".partial"):  # left by a process that was killed while it held the lock
            Path(entry.path).unlink()
        elif entry.name != _HELD:
            stat = entry.stat()
            kept.append((stat.st_mtime_ns, stat.st_size, entry.path))
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= budget:
            break
        Path(path).unlink()
        total -= size
    return total
