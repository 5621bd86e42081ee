"""From source rows to clips: one shot of one video with one caption, or the reason why there is none."""

import bisect
import unicodedata
from pathlib import Path

from pydantic import Field

from infra.scenes import shots
from infra.source_rows import SourceError, SourceListing, SourceRow, read_source, rejection
from infra.video import VideoError, VideoInfo, probe, video_sha256
from schemas.clip import Clip
from schemas.quarantine import QuarantineEntry, Reason
from schemas.record import Record, Share, short_id

__all__ = ["ClipConfig", "ClipSet", "SourceError", "SourceListing", "SourceRow", "clips_of", "read_source"]

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
    """Most pixels a frame, which bounds what decoding one takes in memory."""

    max_overrun_s: float = Field(default=1.0, ge=0)
    """How far a stated end may lie beyond the video's; up to this it is taken as rounding."""


class ClipSet(Record):
    """The clips of one source row, and what of it was rejected; never both empty."""

    source_id: str
    clips: tuple[Clip, ...]
    rejected: tuple[QuarantineEntry, ...]


class RowError(Exception):
    """A row that gives no clip; `reason` says why, the text is the evidence."""

    def __init__(self, reason: Reason, evidence: str) -> None:
        super().__init__(evidence)
        self.reason: Reason = reason


def clips_of(row: SourceRow, root: Path, config: ClipConfig) -> ClipSet:
    """One clip for each shot in the row's span, each with the row's caption.

    A shot below `min_shot_s` becomes an entry `shot_too_short`; a row that gives no clip at all becomes one entry.
    """
    try:
        _check_caption(row, config)
        path = video_path(row, root)
        info = probe(path)
        _check_size(info, config)
        first, end = _span(row, info, config)
        spans = shots(path, first, end)
        sha256 = video_sha256(path)
    except (RowError, VideoError) as error:
        entry = rejection(row.source_id, error.reason, str(error))
        return ClipSet(source_id=row.source_id, clips=(), rejected=(entry,))
    clips = [_clip(row, info, sha256, *span) for span in spans]
    return ClipSet(
        source_id=row.source_id,
        clips=tuple(clip for clip in clips if _seconds(clip) >= config.min_shot_s),
        rejected=tuple(_too_short(clip, config) for clip in clips if _seconds(clip) < config.min_shot_s),
    )


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
    """The video's path, once it is known that neither `..` nor a link leads out of the root; raises RowError."""
    try:
        resolved = (root / row.video).resolve()
        outside = Path(row.video).is_absolute() or not resolved.is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # an embedded NUL, a loop of links
        raise RowError("missing_file", f"{row.video!r} is no path ({error})") from error
    if outside:
        raise RowError("outside_root", f"{row.video} leads out of the videos root; give a path inside it")
    return resolved


def _check_size(info: VideoInfo, config: ClipConfig) -> None:
    if info.height_px * info.width_px > config.max_frame_px:
        raise RowError(
            "too_large",
            f"frames of {info.width_px} x {info.height_px} pixels; at most {config.max_frame_px} pixels are allowed",
        )


def _span(row: SourceRow, info: VideoInfo, config: ClipConfig) -> tuple[int, int]:
    """The displayed frames [first, end) that appear within the row's span."""
    start_s = 0.0 if row.start_s is None else row.start_s
    end_s = info.duration_s if row.end_s is None else row.end_s
    first = bisect.bisect_left(info.frame_time_s, start_s - _STAMP_SLACK_S)
    end = bisect.bisect_left(info.frame_time_s, end_s - _STAMP_SLACK_S)
    if start_s < 0 or end_s > info.duration_s + config.max_overrun_s or first >= end:
        raise RowError(
            "bad_span",
            f"[{start_s:g}, {end_s:g}) s holds no frames or lies outside the video's [0, {info.duration_s:.3f}) s",
        )
    return first, end


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
    return QuarantineEntry(
        subject_id=clip.clip_id,
        source_id=clip.source_id,
        clip_id=clip.clip_id,
        stage="source",
        reason="shot_too_short",
        evidence=f"the shot [{clip.start_s:.3f}, {clip.end_s:.3f}) s lasts {_seconds(clip):.3f} s, "
        f"below {config.min_shot_s:g} s",
    )
