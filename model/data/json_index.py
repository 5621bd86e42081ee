"""Where each element of a large JSON array, or line of a JSONL file, begins and ends, found as far as asked.

The file is mapped and scanned in C, one match of a regular expression an element, at about the rate at which the
standard library parses it, but without its memory, from the front only as far as needed, and once: a finished index
is kept in the user's cache, named by path, size and time of change.
"""

import hashlib
import json
import mmap
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.settings import settings

_MAX_DEPTH = 16
"""Brackets in brackets within one element; official rows have 7."""
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_GAP = re.compile(rb"[ \t\r\n]*+")
_BOM = b"\xef\xbb\xbf"


def _nested(depth: int) -> str:
    """An expression for one balanced pair of brackets, `depth` deep; it never backtracks."""
    inside = _nested(depth - 1) if depth > 1 else ""
    return rf'[\[{{](?:[^"\[\]{{}}]++|{_STRING}{"|" if inside else ""}{inside})*+[\]}}]'


_ELEMENT = re.compile(rf'{_nested(_MAX_DEPTH)}|{_STRING}|[^"\[\]{{}},\s]++'.encode(), re.DOTALL)


class DataFileError(ValueError):
    """A file that cannot be read as what its name or first byte says it is."""


class JsonIndex:
    """The elements of a file that is one JSON array, or has one JSON value a line.

    Opening reads one byte range; `len` scans all of the file once. Raises DataFileError for a file that is absent,
    neither of both, or (once the scan gets there) breaks off. Processes share nothing but the cache.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            stat = path.stat()
            with path.open("rb") as file:
                head = file.read(4096)
        except OSError as error:
            raise DataFileError(f"{path} cannot be read: {error.strerror}") from error
        self._bytes = stat.st_size
        self._kept = _kept_file(path, stat)
        start = _GAP.match(head, len(_BOM) if head.startswith(_BOM) else 0)
        self._at = start.end() if start else 0
        self._is_array = head[self._at : self._at + 1] == b"["
        if not self._is_array and head[self._at : self._at + 1] not in (b"{", b""):
            raise DataFileError(f"{path} is neither a JSON array nor JSON objects, one a line")
        self._at += self._is_array
        self._found: list[tuple[int, int]] = []
        self._all: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self._whole())

    def value(self, index: int) -> Any:
        """The parsed element; scans no further than to it. Raises IndexError, DataFileError, or ValueError for text
        that is no JSON.
        """
        start, end = self._place(index)
        with self._path.open("rb") as file:
            file.seek(start)
            return json.loads(file.read(end - start))

    def _place(self, index: int) -> tuple[int, int]:
        if self._all is None and index >= len(self._found):
            self._load()
        if self._all is not None:
            start, end = self._all[index].tolist()
            return start, end
        if index >= len(self._found):
            self._scan(index + 1)
        return self._found[index]

    def _whole(self) -> npt.NDArray[np.int64]:
        if self._all is None:
            self._load()
        if self._all is None:
            self._scan(None)
            self._all = np.array(self._found, np.int64).reshape(-1, 2)
            self._keep(self._all)
            self._found = []
        return self._all

    def _scan(self, count: int | None) -> None:
        """Find elements until there are `count`, or all."""
        if not self._bytes:
            return
        with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            places = self._elements(data) if self._is_array else self._lines(data)
            for place in places:
                self._found.append(place)
                self._at = place[1]
                if len(self._found) == count:
                    return

    def _elements(self, data: mmap.mmap) -> Iterator[tuple[int, int]]:
        at, is_first = self._at, not self._found
        while True:
            at = self._past_gap(data, at)
            if data[at : at + 1] == b"]":
                break
            if not is_first:
                if data[at : at + 1] != b",":
                    raise self._broken(at)
                at = self._past_gap(data, at + 1)
            found = _ELEMENT.match(data, at)
            if found is None:
                raise self._broken(at)
            yield found.span()
            at, is_first = found.end(), False
        if self._past_gap(data, at + 1) != len(data):
            raise self._broken(at + 1)

    def _lines(self, data: mmap.mmap) -> Iterator[tuple[int, int]]:
        at = self._at
        while at < len(data):
            at = self._past_gap(data, at)
            end = data.find(b"\n", at)
            end = len(data) if end < 0 else end
            if end > at:
                yield at, end
            at = end + 1

    def _past_gap(self, data: mmap.mmap, at: int) -> int:
        gap = _GAP.match(data, at)
        return gap.end() if gap else at

    def _broken(self, at: int) -> DataFileError:
        where = f"after {len(self._found)} elements, at byte {at} of {self._bytes}"
        return DataFileError(f"{self._path} breaks off or is no JSON array {where}; fetch or write it anew")

    def _load(self) -> None:
        try:
            places = np.load(self._kept, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or torn by a power cut
            return
        if (
            places.ndim == 2
            and places.shape[1] == 2
            and places.dtype == np.int64
            and places.max(initial=0) <= self._bytes
        ):
            self._all = places

    def _keep(self, places: npt.NDArray[np.int64]) -> None:
        partial = self._kept.with_suffix(f".{uuid.uuid4().hex[:8]}.partial")
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.save(file, places, allow_pickle=False)
            partial.replace(self._kept)
        except OSError:  # a full or read-only disk costs the next run a scan, no more
            partial.unlink(missing_ok=True)


def _kept_file(path: Path, stat: os.stat_result) -> Path:
    version = f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    return settings().cache_dir / "json-index" / f"{hashlib.sha256(version.encode()).hexdigest()[:32]}.npy"
