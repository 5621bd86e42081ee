"""Rows as a source states them, before they are checked: from a manifest, or from a folder of videos with captions.

A row that cannot be read comes as what is wrong with it; only a source that cannot be read at all raises.
"""

import csv
import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from infra.frame_folder import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
SIDECAR_SUFFIXES = (".json", ".txt")
NEEDED_COLUMNS = ("video", "caption")
COLUMNS = (*NEEDED_COLUMNS, "id", "start_s", "end_s", "license", "fps")

RawRow = tuple[str, Mapping[str, Any] | str]
"""Where a row stands in its source, and its values, or what is wrong with it."""


class SourceError(ValueError):
    """A source that cannot be read at all: absent, empty, of an unknown kind, or without the needed columns."""


def manifest_rows(manifest: Path, columns: set[str]) -> Iterator[RawRow]:
    """The rows of a CSV, JSONL or Parquet manifest, read as they are asked for; `columns` gains the names it has.

    Raises SourceError, for a column that is needed before the first row is given.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    reader = readers.get(manifest.suffix.lower())
    if reader is None:
        raise SourceError(f"manifest {manifest} must be one of {', '.join(readers)}, got {manifest.suffix!r}")
    try:
        yield from reader(manifest, columns)
    except (OSError, csv.Error, pa.ArrowException) as error:
        raise SourceError(f"manifest {manifest} cannot be read: {one_line(error)}") from error


def folder_rows(folder: Path, root: Path, columns: set[str]) -> Iterator[RawRow]:
    """A row for each video of a folder, each captioned folder of images, and each captioned file of another kind.

    Otherwise as `manifest_rows`; `columns` gains the keys of JSON captions.
    """
    if not folder.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"folder {folder} does not lie in the videos root {root}")
    below_root = folder.resolve().relative_to(root.resolve())
    unread: list[OSError] = []
    lonely: list[str] = []
    has_rows = False
    for parent, folders, names in os.walk(folder, onerror=unread.append):
        seen = sorted(name for name in folders if not name.startswith("."))
        frame_folders = [name for name in seen if _is_frame_folder(Path(parent, name))]
        folders[:] = [name for name in seen if name not in frame_folders]
        for name in sorted((*_files_of_rows(names, frame_folders), *frame_folders)):
            place = Path(parent, name).relative_to(folder)
            has_rows = True
            yield place.as_posix(), _captioned(Path(parent, name), (below_root / place).as_posix(), columns)
        lonely += [Path(parent, name).relative_to(folder).as_posix() for name in _lonely_captions(names, seen)]
    if has_rows:  # else the source is just no folder of videos
        yield from ((place, "a caption without a video beside it") for place in lonely)
    for error in unread:
        yield Path(error.filename).relative_to(folder).as_posix(), f"the folder cannot be read: {error.strerror}"


def one_line(error: Exception) -> str:
    """What an error says, in one printable line."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    if isinstance(error, UnicodeEncodeError):
        return "holds bytes that are not UTF-8"
    return printable(" ".join(str(error).split()))


def printable(text: str) -> str:
    """The text with control characters, and bytes that are not UTF-8, written out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def with_nearest(name: str, others: Iterable[str]) -> str:
    """The name, and in brackets the one of `others` that is much like it, if any."""
    near = difflib.get_close_matches(name.lower(), sorted(others), n=1)
    return printable(f"{name} (is it {near[0]}?)" if near else name)


def _files_of_rows(names: Sequence[str], frame_folders: Sequence[str]) -> list[str]:
    """The files that make a row: videos, and files of other kinds beside a caption that nothing else claims."""
    files = [Path(name) for name in names if not name.startswith(".")]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    sidecars = {path.stem for path in files if path.suffix.lower() in SIDECAR_SUFFIXES}
    free = sidecars - {path.stem for path in videos} - set(frame_folders)
    known = (*VIDEO_SUFFIXES, *SIDECAR_SUFFIXES)
    others = [path for path in files if path.stem in free and path.suffix.lower() not in known]
    return [path.name for path in (*videos, *others)]


def _lonely_captions(names: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Texts beside which nothing bears their name; JSON files are too often something else."""
    files = [Path(name) for name in names if not name.startswith(".")]
    claimed = {path.stem for path in files if path.suffix.lower() not in SIDECAR_SUFFIXES} | set(folders)
    return sorted(path.name for path in files if path.suffix.lower() == ".txt" and path.stem not in claimed)


def _is_frame_folder(folder: Path) -> bool:
    """Whether a folder has a caption beside it and images in it; one of videos may have a note beside it too."""
    if not any(_beside(folder, suffix).is_file() for suffix in SIDECAR_SUFFIXES):
        return False
    try:
        with os.scandir(folder) as entries:
            suffixes = {Path(entry.name).suffix.lower() for entry in entries if not entry.name.startswith(".")}
    except OSError:  # whoever reads it says so
        return True
    return bool(suffixes & IMAGE_SUFFIXES) and not suffixes & VIDEO_SUFFIXES


def _captioned(path: Path, video: str, columns: set[str]) -> Mapping[str, Any] | str:
    if not path.is_dir() and path.suffix.lower() not in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        known = ", ".join(sorted(VIDEO_SUFFIXES))
        return f"a caption lies beside it, but {path.suffix!r} is no kind of video; known are {known}"
    text_file, json_file = _beside(path, ".txt"), _beside(path, ".json")
    try:
        if json_file.is_file():
            values = _object(json_file.read_text(encoding="utf-8-sig"))
            columns.update(values)
            return values | {"video": video}
        caption = text_file.read_text(encoding="utf-8-sig") if text_file.is_file() else ""
    except (OSError, ValueError) as error:
        return f"caption file: {one_line(error)}"
    return {"video": video, "caption": caption}


def _beside(path: Path, suffix: str) -> Path:
    """The video's companion; a camera that shouts its names (`A.MP4`) has one that does too."""
    stem = path.name if path.is_dir() else path.stem
    quiet = path.with_name(stem + suffix)
    return quiet if quiet.exists() else path.with_name(stem + suffix.upper())


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is wanted, got {type(value).__name__}")
    return value


def _csv_rows(manifest: Path, columns: set[str]) -> Iterator[RawRow]:
    # bytes that are not UTF-8 become surrogates, which records refuse: they cost their own row only
    with manifest.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns.update(reader.fieldnames or [])
        _need_columns(manifest, columns)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield f"{reader.line_num}", one_line(error)
                continue
            if row is None:
                return
            if None in row:
                yield f"{reader.line_num}", "has more values than columns"
            else:
                yield f"{reader.line_num}", row | {"video": (row["video"] or "").strip()}


def _jsonl_rows(manifest: Path, columns: set[str]) -> Iterator[RawRow]:
    """Rows are held back until all needed columns have been seen, each in some row."""
    held: list[RawRow] = []
    with manifest.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = _object(line)
                columns.update(values)
                held.append((f"{number}", values))
            except ValueError as error:
                held.append((f"{number}", one_line(error)))
            if columns.issuperset(NEEDED_COLUMNS):
                yield from held
                held.clear()
    if held:
        _need_columns(manifest, columns)


def _parquet_rows(manifest: Path, columns: set[str]) -> Iterator[RawRow]:
    with pq.ParquetFile(manifest) as file:
        columns.update(file.schema_arrow.names)
        _need_columns(manifest, columns)
        number = 0
        for batch in file.iter_batches(columns=[name for name in COLUMNS if name in columns]):
            for values in batch.to_pylist():
                number += 1
                yield f"{number}", values


def _need_columns(manifest: Path, names: set[str]) -> None:
    absent = [column for column in NEEDED_COLUMNS if column not in names]
    if absent:
        told = " and ".join(with_nearest(column, names - set(COLUMNS)) for column in absent)
        got = printable(", ".join(sorted(names))) or "none"
        raise SourceError(f"manifest {manifest} lacks {told}; it needs {', '.join(NEEDED_COLUMNS)}, got {got}")
