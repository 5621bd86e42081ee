"""Which videos a bench is about, by the names that its file gives them: these must stay out of training.

Bench-D names clips of Panda-70M, `<YouTube id>_<start>_<end>.mp4`; Bench-Q names sequences of DAVIS and MeViS,
`DAVIS/JPEGImages/480p/<sequence>`. Other copies of them go by other folders, suffixes and spans, so ids are compared.
"""

import os
import re
from pathlib import Path, PurePosixPath

from benchmark.items import BenchFileError, place, read_rows
from infra.frame_folder import IMAGE_SUFFIXES
from infra.raw_rows import VIDEO_SUFFIXES

_YOUTUBE_CHARS = 11
_CLOCK = r"\d{1,2}[:._-]\d{2}[:._-]\d{2}(?:\.\d+)?"
_SPAN_OF_VIDEO = re.compile(rf"([\w-]{{{_YOUTUBE_CHARS}}})_{_CLOCK}_{_CLOCK}")


def bench_video_ids(path: Path) -> frozenset[str]:
    """The ids of all videos of a Bench-D or Bench-Q file: YouTube's where a name has one, else the name alone.

    A name such as `bear` is that of any video called so, which is then kept out without need. Raises BenchFileError,
    for a file without an item too.
    """
    ids = set()
    for row, values in enumerate(read_rows(path)):
        video = values.get("video")
        if not isinstance(video, str) or not _name(video):
            raise BenchFileError(f"{place(path, row)}: `video` is {str(video)[:80]!r}; allowed is a file or folder")
        span = _SPAN_OF_VIDEO.fullmatch(_name(video))
        ids.add(span[1] if span else _name(video))
    if not ids:
        raise BenchFileError(f"{path} has no items; it needs one or more")
    return frozenset(ids)


def video_ids(video: str) -> frozenset[str]:
    """The ids that a video of a source may bear by its path: its name, and a YouTube id that the name begins with.

    It is a bench's video where one of them is among `bench_video_ids`.
    """
    name = _name(video)
    begins, rest = name[:_YOUTUBE_CHARS], name[_YOUTUBE_CHARS:]
    return frozenset({name, begins} if rest and not rest[0].isalnum() else {name})


def videos_of(folder: Path) -> tuple[str, ...]:
    """The video files in a bench's folder, at any depth, and folders of two images or more, relative to it and sorted.

    Hidden ones are passed over, and images beside videos. Raises BenchFileError where there is no video.
    """
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        suffixes = {name: Path(name).suffix.lower() for name in names if not name.startswith(".")}
        videos = [name for name, suffix in suffixes.items() if suffix in VIDEO_SUFFIXES]
        is_frames = not videos and sum(suffix in IMAGE_SUFFIXES for suffix in suffixes.values()) > 1
        found += [Path(parent, name).relative_to(folder).as_posix() for name in ([""] if is_frames else videos)]
    if not found:
        what = "holds no video, neither files nor folders of images" if folder.is_dir() else "is no folder"
        raise BenchFileError(f"{folder} {what}; give the one with the bench's videos")
    return tuple(sorted(found))


def _name(video: str) -> str:
    """The last part of a path without a video's suffix: names of folders, and spans, may hold full stops."""
    path = PurePosixPath(video.replace("\\", "/"))
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name
