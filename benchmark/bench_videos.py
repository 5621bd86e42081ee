"""Which videos a bench is about, by the names that its file gives them: these must stay out of training.

Bench-D names clips of Panda-70M, `<YouTube id>_<start>_<end>.mp4`; Bench-Q names sequences of DAVIS and MeViS,
`DAVIS/JPEGImages/480p/<sequence>`. Other copies of them go by other folders, suffixes and spans, so ids are compared.
"""

import re
from pathlib import Path, PurePosixPath

from benchmark.items import BenchFileError, place, read_rows
from infra.raw_rows import VIDEO_SUFFIXES

_YOUTUBE_CHARS = 11
_CLOCK = r"\d{1,2}[:._-]\d{2}[:._-]\d{2}(?:\.\d+)?"
_SPAN_OF_VIDEO = re.compile(rf"([\w-]{{{_YOUTUBE_CHARS}}})_{_CLOCK}_{_CLOCK}")


def bench_video_ids(path: Path) -> frozenset[str]:
    """The ids of all videos of a Bench-D or Bench-Q file: YouTube's where a name has one, else the name alone.

    A name such as `bear` is that of any video called so, which is then kept out without need. Raises BenchFileError.
    """
    ids = set()
    for row, values in enumerate(read_rows(path)):
        video = values.get("video")
        if not isinstance(video, str) or not _name(video):
            raise BenchFileError(f"{place(path, row)}: `video` is {str(video)[:80]!r}; allowed is a file or folder")
        span = _SPAN_OF_VIDEO.fullmatch(_name(video))
        ids.add(span[1] if span else _name(video))
    return frozenset(ids)


def video_ids(video: str) -> frozenset[str]:
    """The ids that a video of a source may bear by its path: its name, and a YouTube id that the name begins with.

    It is a bench's video where one of them is among `bench_video_ids`.
    """
    name = _name(video)
    begins, rest = name[:_YOUTUBE_CHARS], name[_YOUTUBE_CHARS:]
    return frozenset({name, begins} if rest and not rest[0].isalnum() else {name})


def _name(video: str) -> str:
    """The last part of a path without a video's suffix: names of folders, and spans, may hold full stops."""
    path = PurePosixPath(video.replace("\\", "/"))
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name
