"""From source rows to clips: one shot of one video with one caption, or the reason why there is none."""

import bisect
import functools
import stat
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import av
import cv2
from pydantic import Field

from infra.fingerprint import Fingerprint, fingerprint_key, fingerprint_of, frame_hash
from infra.raw_rows import SourceError, one_line
from infra.scenes import shots
from infra.source_rows import SourceListing, SourceRow, read_source, rejection
from infra.video import FOLDER_FPS, VideoError, VideoInfo, probe, video_sha256
from schemas.clip import Clip
from schemas.quarantine import QuarantineEntry, Reason
from schemas.record import Record, Share, short_id

__all__ = [
    "ClipConfig",
    "ClipSet",
    "SourceError",
    "SourceListing",
    "SourceRow",
    "clips_of",
    "printed_clips_of",
    "read_source",
]

_STAMP_SLACK_S = 1e-3
"""Times in manifests are often rounded to milliseconds; a frame this close to an edge of a span is on it."""


class ClipConfig(Record):
    """What makes a row's video and caption usable."""

    min_shot_s: float = Field(default=0.8, gt=0)
    """Shots shorter than this hold too little motion to describe."""

    max_caption_chars: int = Field(default=10_000, gt=0)
    """A longer text is no caption of one clip, and costs every agent time."""

    min_latin_share: Share = 0.5
    """Least share of Latin letters among a caption's letters: the agents read English."""

    max_frame_px: int = Field(default=4096 * 2304, gt=0)
    """Most pixels a frame, which bounds what decoding one takes in memory; more is refused before one is decoded."""

    frame_folder_fps: float = Field(default=FOLDER_FPS, gt=0)
    """Rate of a folder of images whose row states none."""

    max_overrun_s: float = Field(default=1.0, ge=0)
    """How far a stated end may lie beyond the video's; up to this it is taken as rounding."""


class ClipSet(Record):
    """The clips of one source row, and what of it was rejected; never both empty."""

    source_id: str
    clips: tuple[Clip, ...]
    rejected: tuple[QuarantineEntry, ...]


class PrintedClips(NamedTuple):
    """The clips of a row, and the fingerprint of each by `infra.fingerprint.fingerprint_key`."""

    clips: ClipSet
    fingerprints: Mapping[str, Fingerprint]


class RowError(Exception):
    """A row that gives no clip; `reason` says why, the text is the evidence."""

    def __init__(self, reason: Reason, evidence: str) -> None:
        super().__init__(evidence)
        self.reason: Reason = reason


def clips_of(row: SourceRow, root: Path, config: ClipConfig) -> ClipSet:
    """One clip for each shot in the row's span, each with the row's caption.

    A shot below `min_shot_s` becomes an entry `shot_too_short`; a row that gives no clip at all becomes one entry. Of a
    file that is cut off or damaged what decodes is used, and an entry `truncated` says so.
    """
    return printed_clips_of(row, root, config).clips


def printed_clips_of(row: SourceRow, root: Path, config: ClipConfig) -> PrintedClips:
    """`clips_of` with the clips' fingerprints, for which nothing is decoded a second time."""
    if refused := refusal(row, root, config):
        return PrintedClips(refused, {})
    try:
        path = video_path(row, root)
        info = probe(path, folder_fps=row.fps or config.frame_folder_fps, max_frame_px=config.max_frame_px)
        first, end = _span(row, info, config)
        sha256 = video_sha256(path)
        found = _shots(path, sha256, first, end)
    except (RowError, VideoError) as error:
        return PrintedClips(_no_clips(row, error), {})
    except (OSError, av.FFmpegError, cv2.error) as error:  # a disk that fails, a picture that vanishes meanwhile
        said = f"{row.video}: {type(error).__name__}: {one_line(error)}"
        return PrintedClips(_no_clips(row, VideoError("unreadable_video", said)), {})
    clips = [_clip(row, info, sha256, *span) for span, _ in found]
    short = tuple(_too_short(clip, config) for clip in clips if _seconds(clip) < config.min_shot_s)
    cut_off = (rejection(row.source_id, "truncated", _what_decodes(row, info)),) if info.is_truncated else ()
    clip_set = ClipSet(
        source_id=row.source_id,
        clips=tuple(clip for clip in clips if _seconds(clip) >= config.min_shot_s),
        rejected=(*cut_off, *short),
    )
    return PrintedClips(clip_set, {fingerprint_key(sha256, *span): fingerprint for span, fingerprint in found})


def refusal(row: SourceRow, root: Path, config: ClipConfig) -> ClipSet | None:
    """The entry of a row that gives no clip whatever its video holds, which is not opened; None for other rows."""
    try:
        _check_caption(row, config)
        video_path(row, root)
    except RowError as error:
        return _no_clips(row, error)
    return None


def _no_clips(row: SourceRow, error: RowError | VideoError) -> ClipSet:
    entry = rejection(row.source_id, error.reason, str(error))
    return ClipSet(source_id=row.source_id, clips=(), rejected=(entry,))


@functools.lru_cache(maxsize=64)
def _shots(path: Path, _sha256: str, first: int, end: int) -> tuple[tuple[tuple[int, int], Fingerprint], ...]:
    """The shots of one content; many rows may speak of one video, as the expressions of a data set do."""
    hashes: list[str | None] = []
    spans = shots(path, first, end, lambda image: hashes.append(frame_hash(image)))
    return tuple((span, fingerprint_of(hashes[span[0] - first : span[1] - first])) for span in spans)


def _check_caption(row: SourceRow, config: ClipConfig) -> None:
    letters = [char for char in row.caption if char.isalpha()]
    if not letters:
        raise RowError("no_caption", f"{row.video} has no caption, or one without a word")
    if len(row.caption) > config.max_caption_chars:
        raise RowError(
            "caption_too_long", f"{len(row.caption)} characters; at most {config.max_caption_chars} are allowed"
        )
    latin = sum(unicodedata.name(char, "").startswith("LATIN") for char in letters) / len(letters)
    if latin < config.min_latin_share:
        raise RowError(
            "unsupported_language",
            f"{latin:.0%} of the caption's letters are Latin, below {config.min_latin_share:.0%}",
        )


def video_path(row: SourceRow, root: Path) -> Path:
    """The path of the row's video, which exists and to which neither `..` nor a link leads out of the root.

    Raises RowError (missing_file, outside_root, empty_file).
    """
    try:
        resolved = (root / row.video).resolve()
        if Path(row.video).is_absolute() or not resolved.is_relative_to(root.resolve()):
            raise RowError("outside_root", f"{row.video} leads out of the videos root; give a path inside it")
        status = resolved.stat()
    except (OSError, ValueError, RuntimeError) as error:  # not there, an embedded NUL, a loop of links
        why = error.strerror if isinstance(error, OSError) else error
        raise RowError("missing_file", f"{row.video} cannot be found in the videos root ({why})") from error
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise RowError("empty_file", f"{row.video} holds no bytes")
    return resolved


def _span(row: SourceRow, info: VideoInfo, config: ClipConfig) -> tuple[int, int]:
    """The displayed frames [first, end) that appear within the row's span; of a cut-off file those that are left."""
    start_s = 0.0 if row.start_s is None else row.start_s
    end_s = info.duration_s if row.end_s is None else row.end_s
    first = bisect.bisect_left(info.frame_time_s, start_s - _STAMP_SLACK_S)
    end = bisect.bisect_left(info.frame_time_s, end_s - _STAMP_SLACK_S)
    if info.is_truncated and 0 <= start_s < end_s and start_s >= info.duration_s:
        raise RowError("truncated", f"{_what_decodes(row, info)}; the span begins at {start_s:g} s")
    is_beyond = end_s > info.duration_s + config.max_overrun_s and not info.is_truncated
    if start_s < 0 or is_beyond or first >= end:
        raise RowError(
            "bad_span",
            f"[{start_s:g}, {end_s:g}) s holds no frames or lies outside the video's [0, {info.duration_s:.3f}) s",
        )
    return first, end


def _what_decodes(row: SourceRow, info: VideoInfo) -> str:
    stated_s = info.stated_duration_s
    whole = "" if stated_s is None else f" of the {stated_s:.3f} s that it states"
    return f"{row.video} is cut off or damaged: {info.num_frames} frames, {info.duration_s:.3f} s{whole}, decode"


def _clip(row: SourceRow, info: VideoInfo, sha256: str, first: int, end: int) -> Clip:
    return Clip(
        clip_id=short_id(row.source_id, sha256, first, end, row.caption),
        source_id=row.source_id,
        video=row.video,
        video_sha256=sha256,
        license=row.license,
        start_s=info.frame_time_s[first],
        end_s=info.frame_time_s[end] if end < info.num_frames else info.duration_s,
        start_frame=first,
        end_frame=end,
        fps=info.fps,
        height_px=info.height_px,
        width_px=info.width_px,
        caption=row.caption,
    )


def _seconds(clip: Clip) -> float:
    return clip.end_s - clip.start_s


def _too_short(clip: Clip, config: ClipConfig) -> QuarantineEntry:
    span = f"[{clip.start_s:.3f}, {clip.end_s:.3f}) s"
    evidence = f"the shot {span} lasts {_seconds(clip):.3f} s, below {config.min_shot_s:g} s"
    return QuarantineEntry.of_clip(clip, "source", "shot_too_short", evidence)
