"""Reading a source: a folder of videos with captions beside them, or a manifest, into rows.

A bad row costs itself only: it becomes a quarantine entry. A source that cannot be read at all is an error of the user.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from infra.mask_sources import mask_rows
from infra.raw_rows import (
    COLUMNS,
    VIDEO_SUFFIXES,
    RawRow,
    SourceError,
    folder_rows,
    manifest_rows,
    one_line,
    printable,
    with_nearest,
)
from schemas.given import MaskRef
from schemas.quarantine import QuarantineEntry, Reason
from schemas.record import Record, short_id

_NO_CONTROLS = {code: " " if chr(code).isspace() else None for code in (*range(32), *range(127, 160))}


class SourceRow(Record):
    """One captioned video, or a span of one, as its source states it.

    `video` is a path relative to the videos' root, of a file or of a folder of images, of which `fps` is the rate where
    the source states one: files have their own. None for `start_s` or `end_s` is the video's own start or end.
    `license` is empty where the source states none. `masks` tells where those of the caption's objects are, None where
    the source gives none.
    """

    source_id: str = Field(min_length=1)
    video: str = Field(min_length=1)
    caption: str
    start_s: float | None
    end_s: float | None
    license: str
    fps: float | None = Field(default=None, gt=0)
    masks: MaskRef | None = None


class SourceListing(Record):
    """All rows of a source in order, those that could not be read, and the columns that nobody reads."""

    rows: tuple[SourceRow, ...]
    rejected: tuple[QuarantineEntry, ...]
    ignored_columns: tuple[str, ...] = ()


def check_source(source: Path, root: Path | None) -> tuple[str, ...]:
    """The columns of the first row that nobody reads, each with the known one that it is much like; no more is read.

    Raises SourceError where the source cannot be read at all.
    """
    source = source.absolute()
    _, raw_rows, columns = _open(source, root)
    if next(raw_rows, None) is None:
        raise _empty(source)
    return _ignored(columns)


def read_source(source: Path, root: Path | None) -> tuple[Path, SourceListing]:
    """The videos' root and the rows of a source.

    A folder is walked in sorted order; links to folders are not followed. The caption of `a.mp4` is the text of
    `a.txt`, or `caption` of the JSON object in `a.json`, which may hold `id, start_s, end_s, license, fps` too and wins
    over the text; a folder of images `a` with such a caption beside it is a video too. Of other files only those with a
    caption of their own make a row. A CSV, JSONL or Parquet manifest has columns `video, caption` and may have the same
    five; other columns are ignored. The root is the folder or the manifest's folder unless given. Runs of white space
    in captions become one space. An id that is not given derives from video, span and caption; a row whose id came
    before is rejected.

    A folder in one of the layouts of `infra.mask_sources` gives a row for each of its expressions, with their masks.

    Raises SourceError.
    """
    source = source.absolute()
    videos_root, raw_rows, columns = _open(source, root)
    listing = _listing(raw_rows, columns, source)
    if not listing.rows and not listing.rejected:
        raise _empty(source)
    return videos_root, listing


def rejection(source_id: str, reason: Reason, evidence: str) -> QuarantineEntry:
    """The entry for a row that gave no clip."""
    return QuarantineEntry(
        subject_id=source_id, source_id=source_id, clip_id="", stage="source", reason=reason, evidence=evidence
    )


def _open(source: Path, root: Path | None) -> tuple[Path, Iterator[RawRow], set[str]]:
    """The videos' root, the rows, and the names of their columns, which grow as rows are taken."""
    if not source.exists():
        raise SourceError(f"source {source} does not exist; give a folder of videos or a manifest file")
    if root is not None and not root.is_dir():
        raise SourceError(f"videos root {root} is not a folder")
    videos_root = root.absolute() if root is not None else source if source.is_dir() else source.parent
    columns: set[str] = set()
    if source.is_dir():
        return videos_root, mask_rows(source, videos_root) or folder_rows(source, videos_root, columns), columns
    return videos_root, manifest_rows(source, columns), columns


def _empty(source: Path) -> SourceError:
    suffixes = ", ".join(sorted(VIDEO_SUFFIXES))
    missing = f"it holds no video file ({suffixes})" if source.is_dir() else "it holds no row"
    return SourceError(f"source {source} is empty: {missing}")


def _listing(raw_rows: Iterator[RawRow], columns: set[str], source: Path) -> SourceListing:
    rows: dict[str, SourceRow] = {}
    rejected: list[QuarantineEntry] = []
    for place, values in raw_rows:
        where = printable(f"{source.name}:{place}")
        try:
            if isinstance(values, str):
                raise ValueError(values)
            row = _row(values)
        except ValueError as error:
            rejected.append(rejection(where, "bad_row", f"{where}: {one_line(error)}"))
            continue
        if row.source_id in rows:
            rejected.append(rejection(row.source_id, "bad_row", f"{where}: id {printable(row.source_id)} came before"))
        else:
            rows[row.source_id] = row
    return SourceListing(rows=tuple(rows.values()), rejected=tuple(rejected), ignored_columns=_ignored(columns))


def _ignored(columns: set[str]) -> tuple[str, ...]:
    return tuple(with_nearest(name, set(COLUMNS) - columns) for name in sorted(columns - set(COLUMNS)))


def _row(values: Mapping[str, Any]) -> SourceRow:
    video, caption = _text(values, "video"), " ".join(_text(values, "caption").translate(_NO_CONTROLS).split())
    if video != video.translate(_NO_CONTROLS):
        raise ValueError(f"video is no path: {video!r}")
    start_s, end_s = _number(values, "start_s"), _number(values, "end_s")
    states_its_own_fps = Path(video).suffix.lower() in VIDEO_SUFFIXES
    return SourceRow(
        source_id=_text(values, "id").strip() or short_id(video, start_s, end_s, caption),
        video=video,
        caption=caption,
        start_s=start_s,
        end_s=end_s,
        license=_text(values, "license").strip(),
        fps=None if states_its_own_fps else _number(values, "fps"),
        masks=masks if isinstance(masks := values.get("masks"), MaskRef) else None,
    )


def _text(values: Mapping[str, Any], column: str) -> str:
    value = values.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{column} must be text, got {type(value).__name__}")
    return str(value)


def _number(values: Mapping[str, Any], column: str) -> float | None:
    value = values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{column} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{column} must be a number, got {str(value)[:40]!r}") from None
