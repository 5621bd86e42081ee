"""A video kept as a folder of pictures, one a frame, as DAVIS (`00000.jpg`) and MeViS (`00005.jpg`) have it.

Frames are the folder's pictures in the natural order of their names ("9" before "10"), numbered from 0 whatever their
names begin at. Hidden files, other files and subfolders are passed over. A picture's EXIF rotation is applied, as
OpenCV does when it reads one, and transparency dropped.
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from infra.image_header import stated_size
from infra.video_index import VideoInfo
from infra.video_stream import MAX_FRAME_PX, VideoError, check_size

Image = npt.NDArray[np.uint8]
"""(height, width, 3) RGB."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})

_HEAD_BYTES = 1 << 16
"""Read first for a picture's size; a JPEG with larger metadata is read whole."""

Version = tuple[tuple[str, int, int], ...]
"""Name, time of change in ns and size of each picture, in the order of frames."""


def is_folder(path: Path) -> bool:
    """Whether the path is a folder; false for a path that cannot be, such as one with a name too long."""
    try:
        return path.is_dir()
    except OSError:
        return False


def frame_files(folder: Path) -> Version:
    """The folder's pictures as they are now, in the order of frames.

    Raises VideoError: missing_file where there is none, still_image where there is one, outside_root where a link leads
    out of the folder, unreadable_video where two kinds of picture (JPEG and PNG, say) leave open which are the frames.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if _is_picture(entry.name) and not entry.is_dir()]
    except OSError as error:
        raise _unreadable(folder, error) from error
    if not found:
        raise VideoError("missing_file", f"{folder.name}: a folder without a picture")
    _check_files(folder, found)
    kinds = sorted({_kind(entry.name) for entry in found})
    if len(kinds) > 1:
        raise VideoError("unreadable_video", f"{folder.name}: holds {' and '.join(kinds)} files; keep one kind")
    if len(found) == 1:
        raise VideoError("still_image", f"{folder.name}: holds 1 frame; a video has at least 2")
    found.sort(key=lambda entry: _natural(entry.name))
    try:
        stats = [entry.stat() for entry in found]
    except OSError as error:
        raise _unreadable(folder, error) from error
    return tuple((entry.name, stat.st_mtime_ns, stat.st_size) for entry, stat in zip(found, stats, strict=True))


def _unreadable(folder: Path, error: OSError) -> VideoError:
    what = Path(error.filename or folder).name
    return VideoError("unreadable_video", f"{folder.name}: {what} cannot be read ({error.strerror})")


def folder_info(folder: Path, fps: float, max_frame_px: int = MAX_FRAME_PX) -> VideoInfo:
    """What a folder holds, with the frames `1 / fps` seconds apart; a folder states no rate of its own.

    Sizes are read off all pictures' headers and the first one is decoded, for its rotation. Raises ValueError for a
    rate that is not above 0, else VideoError as `frame_files`, too_large, or unreadable_video where a picture differs
    in size from the first or none.
    """
    if not fps > 0:
        raise ValueError(f"folder_fps must be above 0, got {fps}")
    version = frame_files(folder)
    height_px, width_px = _size(folder, version, max_frame_px)
    num_frames = len(version)
    return VideoInfo(
        num_frames=num_frames,
        fps=fps,
        height_px=height_px,
        width_px=width_px,
        frame_time_s=tuple((np.arange(num_frames) / fps).tolist()),
        duration_s=num_frames / fps,
        is_truncated=False,
        stated_duration_s=None,
    )


def folder_frames(folder: Path, frame_idx: Sequence[int]) -> Iterator[Image]:
    """The frames at the given indices, one after the other. Raises VideoError for one that does not decode."""
    version = frame_files(folder)
    size_px = _size(folder, version, MAX_FRAME_PX)
    for index in frame_idx:
        image = _decoded(folder, version[index][0])
        if image.shape[:2] != size_px:
            raise _other_size(folder, version[index][0], image.shape[:2], size_px)
        yield image


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the pictures' names and contents in the order of frames, 64 hex digits."""
    return _sha256(folder, frame_files(folder))


@functools.lru_cache(maxsize=256)
def _sha256(folder: Path, version: Version) -> str:
    whole = hashlib.sha256()
    for name, _, _ in version:
        whole.update(os.fsencode(name) + b"\0" + hashlib.sha256(_read(folder / name)).digest())
    return whole.hexdigest()


@functools.lru_cache(maxsize=32)
def _size(folder: Path, version: Version, max_frame_px: int) -> tuple[int, int]:
    """(height, width) of all frames as displayed."""
    stated = [_stated_size(folder / name) for name, _, _ in version]
    for (name, _, _), size_px in zip(version, stated, strict=True):
        check_size(f"{folder.name}/{name}", size_px, max_frame_px)
        if size_px != stated[0]:
            raise _other_size(folder, name, size_px, stated[0])
    height_px, width_px, _ = _decoded(folder, version[0][0]).shape
    return height_px, width_px


def _stated_size(path: Path) -> tuple[int, int]:
    return stated_size(_read(path, _HEAD_BYTES)) or _needed_size(path, _read(path))


def read_picture(path: Path) -> Image:
    """One picture as it is displayed. Raises VideoError: unreadable_video, or too_large."""
    return _decoded(path.parent, path.name)


def _decoded(folder: Path, name: str) -> Image:
    data = _read(folder / name)
    check_size(f"{folder.name}/{name}", _needed_size(folder / name, data), MAX_FRAME_PX)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise VideoError("unreadable_video", f"{folder.name}/{name}: the picture does not decode")
    return np.asarray(image, np.uint8)


def _needed_size(path: Path, data: bytes) -> tuple[int, int]:
    size_px = stated_size(data)
    if size_px is None:
        raise VideoError("unreadable_video", f"{path.parent.name}/{path.name}: not a picture that can be read")
    return size_px


def _read(path: Path, num_bytes: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise VideoError("unreadable_video", f"{path.parent.name}/{path.name}: {reason}") from error


def _other_size(folder: Path, name: str, got: Sequence[int], first: Sequence[int]) -> VideoError:
    return VideoError(
        "unreadable_video",
        f"{folder.name}/{name}: {got[1]} x {got[0]} pixels; the folder's first frame has {first[1]} x {first[0]}",
    )


def _check_files(folder: Path, found: Sequence["os.DirEntry[str]"]) -> None:
    inside = folder.resolve()
    for entry in found:
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(inside):
            raise VideoError("outside_root", f"{folder.name}/{entry.name}: a link that leads out of the folder")
        if not entry.is_file():
            raise VideoError("unreadable_video", f"{folder.name}/{entry.name}: not a file")


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _kind(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return ".jpg" if suffix == ".jpeg" else suffix


def _natural(name: str) -> tuple[list[int | str], str]:
    """A key by which numbers within names count as numbers."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdecimal() else part for part in parts], name
