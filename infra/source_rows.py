"""Reading a source: a folder of videos with captions beside them, or a manifest, into rows.

A bad row costs itself only: it becomes a quarantine entry. A source that cannot be read at all is an error of the user.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from schemas.quarantine import QuarantineEntry, Reason
from schemas.record import Record, short_id

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
NEEDED_COLUMNS = ("video", "caption")
COLUMNS = (*NEEDED_COLUMNS, "id", "start_s", "end_s", "license")

_NO_CONTROLS = {code: " " if chr(code).isspace() else None for code in (*range(32), *range(127, 160))}

_RawRow = tuple[str, Mapping[str, Any] | str]
"""Where a row stands in its source, and its values, or what is wrong with it."""


class SourceError(ValueError):
    """A source that cannot be read at all: absent, empty, of an unknown kind, or without the needed columns."""


class SourceRow(Record):
    """One captioned video, or a span of one, as its source states it.

    `video` is a path relative to the videos' root. None for `start_s` or `end_s` is the video's own start or end.
    `license` is empty where the source states none.
    """

    source_id: str = Field(min_length=1)
    video: str = Field(min_length=1)
    caption: str
    start_s: float | None
    end_s: float | None
    license: str


class SourceListing(Record):
    """All rows of a source in order, and those that could not be read."""

    rows: tuple[SourceRow, ...]
    rejected: tuple[QuarantineEntry, ...]


def read_source(source: Path, root: Path | None) -> tuple[Path, SourceListing]:
    """The videos' root and the rows of a source.

    A folder is walked in sorted order; links to folders are not followed. The caption of `a.mp4` is the text of
    `a.txt`, or `caption` of the JSON object in `a.json`, which may hold `id, start_s, end_s, license` too and wins over
    the text. A CSV, JSONL or Parquet manifest has columns `video, caption` and may have the same four; other columns
    are ignored. The root is the folder or the manifest's folder unless given. Runs of white space in captions become
    one space. An id that is not given derives from video, span and caption; a row whose id came before is rejected.

    Raises SourceError.
    """
    source = source.absolute()
    if not source.exists():
        raise SourceError(f"source {source} does not exist; give a folder of videos or a manifest file")
    if root is not None and not root.is_dir():
        raise SourceError(f"videos root {root} is not a folder")
    videos_root = root.absolute() if root is not None else source if source.is_dir() else source.parent
    listing = _listing(_folder_rows(source, videos_root) if source.is_dir() else _manifest_rows(source), source)
    if not listing.rows and not listing.rejected:
        raise SourceError(f"source {source} is empty: {_what_is_missing(source)}")
    return videos_root, listing


def rejection(source_id: str, reason: Reason, evidence: str) -> QuarantineEntry:
    """The entry for a row that gave no clip."""
    return QuarantineEntry(
        subject_id=source_id, source_id=source_id, clip_id="", stage="source", reason=reason, evidence=evidence
    )


def _listing(raw_rows: Iterator[_RawRow], source: Path) -> SourceListing:
    rows: dict[str, SourceRow] = {}
    rejected: list[QuarantineEntry] = []
    for place, values in raw_rows:
        where = _printable(f"{source.name}:{place}")
        try:
            if isinstance(values, str):
                raise ValueError(values)
            row = _row(values)
        except ValueError as error:
            rejected.append(rejection(where, "bad_row", f"{where}: {_one_line(error)}"))
            continue
        if row.source_id in rows:
            rejected.append(rejection(row.source_id, "bad_row", f"{where}: id {row.source_id} came before"))
        else:
            rows[row.source_id] = row
    return SourceListing(rows=tuple(rows.values()), rejected=tuple(rejected))


def _row(values: Mapping[str, Any]) -> SourceRow:
    video, caption = _text(values, "video"), " ".join(_text(values, "caption").translate(_NO_CONTROLS).split())
    if video != video.translate(_NO_CONTROLS):
        raise ValueError(f"video is no path: {video!r}")
    start_s, end_s = _seconds(values, "start_s"), _seconds(values, "end_s")
    return SourceRow(
        source_id=_text(values, "id") or short_id(video, start_s, end_s, caption),
        video=video,
        caption=caption,
        start_s=start_s,
        end_s=end_s,
        license=_text(values, "license"),
    )


def _text(values: Mapping[str, Any], column: str) -> str:
    value = values.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{column} must be text, got {type(value).__name__}")
    return str(value).strip()


def _seconds(values: Mapping[str, Any], column: str) -> float | None:
    value = values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{column} must be a number of seconds, got {type(value).__name__}")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{column} must be a number of seconds, got {str(value)[:40]!r}") from None


def _folder_rows(folder: Path, root: Path) -> Iterator[_RawRow]:
    if not folder.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"folder {folder} does not lie in the videos root {root}")
    below_root = folder.resolve().relative_to(root.resolve())
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                place = path.relative_to(folder)
                yield place.as_posix(), _sidecar(path, (below_root / place).as_posix())


def _sidecar(path: Path, video: str) -> Mapping[str, Any] | str:
    text_file, json_file = _beside(path, ".txt"), _beside(path, ".json")
    try:
        if json_file.is_file():
            return _object(json_file.read_text(encoding="utf-8-sig")) | {"video": video}
        caption = text_file.read_text(encoding="utf-8-sig") if text_file.is_file() else ""
    except (OSError, ValueError) as error:
        return f"caption file: {_one_line(error)}"
    return {"video": video, "caption": caption}


def _beside(path: Path, suffix: str) -> Path:
    """The video's companion; a camera that shouts its names (`A.MP4`) has one that does too."""
    quiet = path.with_suffix(suffix)
    return quiet if quiet.exists() else path.with_suffix(suffix.upper())


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is wanted, got {type(value).__name__}")
    return value


def _manifest_rows(manifest: Path) -> Iterator[_RawRow]:
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    reader = readers.get(manifest.suffix.lower())
    if reader is None:
        raise SourceError(f"manifest {manifest} must be one of {', '.join(readers)}, got {manifest.suffix!r}")
    try:
        yield from reader(manifest)
    except (OSError, csv.Error, pa.ArrowException) as error:
        raise SourceError(f"manifest {manifest} cannot be read: {_one_line(error)}") from error


def _csv_rows(manifest: Path) -> Iterator[_RawRow]:
    # bytes that are not UTF-8 become surrogates, which records refuse: they cost their own row only
    with manifest.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        _need_columns(manifest, reader.fieldnames or [])
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield f"{reader.line_num}", _one_line(error)
                continue
            if row is None:
                return
            yield f"{reader.line_num}", row if None not in row else "has more values than columns"


def _jsonl_rows(manifest: Path) -> Iterator[_RawRow]:
    seen: set[str] = set()
    rows: list[_RawRow] = []
    with manifest.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    values = _object(line)
                    seen |= values.keys()
                    rows.append((f"{number}", values))
                except ValueError as error:
                    rows.append((f"{number}", _one_line(error)))
    if rows:
        _need_columns(manifest, seen)
    yield from rows


def _parquet_rows(manifest: Path) -> Iterator[_RawRow]:
    with pq.ParquetFile(manifest) as file:
        names = file.schema_arrow.names
        _need_columns(manifest, names)
        number = 0
        for batch in file.iter_batches(columns=[name for name in COLUMNS if name in names]):
            for values in batch.to_pylist():
                number += 1
                yield f"{number}", values


def _need_columns(manifest: Path, names: Any) -> None:
    absent = [column for column in NEEDED_COLUMNS if column not in names]
    if absent:
        raise SourceError(
            f"manifest {manifest} lacks {' and '.join(absent)}; it needs columns {', '.join(NEEDED_COLUMNS)}, "
            f"got {', '.join(map(str, names)) or 'none'}"
        )


def _what_is_missing(source: Path) -> str:
    if source.is_dir():
        return f"it holds no video file ({', '.join(sorted(VIDEO_SUFFIXES))})"
    return "it holds no row"


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    return _printable(" ".join(str(error).split()))


def _printable(text: str) -> str:
    """The text with bytes that are not UTF-8 written out."""
    return text.encode(errors="backslashreplace").decode()
