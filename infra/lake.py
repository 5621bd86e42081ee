"""The lake: a folder or object-store prefix that holds agent outputs by content, and builds.

Paths go through fsspec, so `s3://bucket/prefix` works like a folder. A file appears whole or not at all: locally by
writing beside it, syncing and renaming; elsewhere because an object store's put is atomic.
"""

import contextlib
import hashlib
import io
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from infra.whole_file import write_whole
from schemas.arrow import arrow_schema, to_table
from schemas.label import AgentLabel
from schemas.quarantine import QuarantineEntry
from schemas.record import Record

T = TypeVar("T")
OutT = TypeVar("OutT", bound=Record)

_KEY = pa.field("key", pa.string(), nullable=False)
_FILE = "__filename"  # the column in which pyarrow.dataset tells which file a row came from

_TRIES = 5
"""How often a store lists its parts anew where one went away before it was read: `remove` replaces parts."""


class LakeError(ValueError):
    """The lake cannot be read or written, or holds a file that is not what it should be."""


class _PartGoneError(LakeError):
    """A part that was listed is not there any more."""


class Lake:
    """A folder or fsspec URL, `address` as it was given. Opening it touches nothing; folders appear with the first
    write.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.address = os.fspath(root)
        try:
            fs, path = fsspec.core.url_to_fs(os.fspath(root))
        except (ImportError, ValueError) as error:
            raise LakeError(f"cannot open the lake {os.fspath(root)}: {error}") from error
        self.fs: Any = fs
        self.root = str(path).rstrip("/")
        self._is_local = isinstance(fs, LocalFileSystem)

    def path(self, *parts: str) -> str:
        """The full path of something inside the lake."""
        return "/".join((self.root, *parts))

    def uri(self, *parts: str) -> str:
        """Where a browser or another program finds something inside the lake."""
        path = self.path(*parts)
        return Path(path).as_uri() if self._is_local else str(self.fs.unstrip_protocol(path))

    def check_writable(self) -> None:
        """Write, and take away, a small file; raises LakeError where that fails."""
        name = f".writable-{uuid.uuid4().hex}"
        try:
            self.put(name, b"")
            self.fs.rm_file(self.path(name))
        except LakeError:
            raise
        except Exception as error:  # clients of object stores have exceptions of their own, for credentials say
            raise LakeError(f"cannot write to the lake {self.root}: {error}") from error

    def put(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, replacing one of that name; raises LakeError."""
        try:
            if self._is_local:
                write_whole(Path(self.path(name)), data)
            else:
                self.fs.pipe_file(self.path(name), data)
        except OSError as error:
            raise LakeError(f"cannot write to the lake {self.root}: {error}") from error

    def get(self, name: str) -> bytes | None:
        """A file's bytes, None where there is no such file."""
        try:
            return bytes(self.fs.cat_file(self.path(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise LakeError(f"cannot read from the lake {self.root}: {error}") from error

    def names(self, folder: str) -> list[str]:
        """Names of what lies directly in a folder, sorted; none where there is no such folder."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise LakeError(f"cannot list {self.path(folder)}: {error}") from error
        return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)

    def remove(self, name: str) -> None:
        """Take a file away; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold what others on this lake wait for under the same name, in `.locks`; a process that dies lets it go.

        An object store has no locks: nothing is waited for there, so what goes on inside must be harmless twice.
        """
        if not self._is_local:
            yield
            return
        path = Path(self.path(".locks", f"{name}.lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            lock.acquire()
        except OSError as error:
            raise LakeError(f"cannot write to the lake {self.root}: {error}") from error
        try:
            yield
        finally:
            lock.release()

    def agent_store(self, label: AgentLabel, record_type: type[OutT]) -> "AgentStore[OutT]":
        """The outputs of one agent under one label."""
        return AgentStore(self, label, record_type)

    def failure_store(self, label: AgentLabel) -> "AgentStore[QuarantineEntry]":
        """What one agent under one label could not finish, each under the key that its output would have."""
        return AgentStore(self, label, QuarantineEntry, "failures")


class AgentStore(Generic[OutT]):
    """Outputs of one agent under one label, in `agents/<agent>/<config hash>/part-*.parquet`; failures, which rest
    under `failures` in the same way, are the only ones that are ever taken out again.

    Columns are `key` and the fields of the output record. Parts never change, but `remove` may replace some. The same
    key may stand in two parts (two runs at once): the first part in name order is read, and as outputs are pure either
    would be right. Safe to use from many threads, and while others append or remove.
    """

    def __init__(self, lake: Lake, label: AgentLabel, record_type: type[OutT], under: str = "agents") -> None:
        self.folder = f"{under}/{label.agent}/{label.config_hash}"
        self._lake = lake
        self._label = label
        self._record_type = record_type
        self._schema = pa.schema([_KEY, *arrow_schema(record_type)])
        self._lock = threading.RLock()
        self._indexed: set[str] = set()
        self._part_of: dict[str, str] = {}
        self._is_loaded = False
        self._has_label = False

    def keys(self) -> frozenset[str]:
        """Every key in the store, as of the last `refresh` (the first call refreshes) and this store's own appends."""
        with self._lock:
            if not self._is_loaded:
                self.refresh()
            return frozenset(self._part_of)

    def refresh(self) -> None:
        """Take in parts that others have written, forget those they removed; raises LakeError for one that does not
        open.
        """
        with self._lock:
            _while_parts_go(self._take_in)

    def read(self, keys: Iterable[str]) -> dict[str, OutT]:
        """The outputs of the given keys, from only the parts that hold them.

        Raises LakeError where a key is not in the store.
        """
        wanted = set(keys)
        found = self.find(wanted)
        if missing := wanted - found.keys():
            raise LakeError(f"{self._lake.path(self.folder)} holds no output for {len(missing)} of the keys asked")
        return found

    def find(self, keys: Iterable[str]) -> dict[str, OutT]:
        """The outputs of those of the keys that the store holds; one that is removed meanwhile is left out."""
        wanted = set(keys)
        return _while_parts_go(lambda: self._find(wanted), before_another=self.refresh)

    def _find(self, wanted: set[str]) -> dict[str, OutT]:
        with self._lock:
            part_of = {key: self._part_of[key] for key in wanted & self.keys()}
        table = self._scan(sorted(set(part_of.values())), [*self._schema.names, _FILE], wanted)
        outputs: dict[str, OutT] = {}
        for row in table.to_pylist():
            key, part = row.pop("key"), row.pop(_FILE).rsplit("/", 1)[-1]
            if key not in outputs and part_of[key] == part:
                outputs[key] = self._record_of(row, part)
        return outputs

    def append(self, rows: Sequence[tuple[str, OutT]]) -> int:
        """Write the outputs as one new part, whole or not at all, and return its bytes; no rows, no part."""
        if not rows:
            return 0
        records = to_table([record for _, record in rows], self._record_type)
        keys = pa.array([key for key, _ in rows], pa.string())
        with self._lock:
            self._write_label()
            name, num_bytes = self._write_part(pa.table([keys, *records.columns], schema=self._schema))
            self._indexed.add(name)
            for key, _ in rows:
                self._part_of[key] = min(name, self._part_of.get(key, name))
        return num_bytes

    def remove(self, keys: Iterable[str]) -> None:
        """Take the rows of some keys out: parts that hold one are written anew without it, then deleted.

        Keys that are not in the store are no error. Stores of the same folder opened before notice when they refresh.
        Others that remove wait for each other; in an object store, of two at once one may leave what it should remove.
        """
        import pyarrow.dataset as ds  # brings pandas with it

        gone = set(keys)
        with self._lake.locked(self.folder.replace("/", "-")), self._lock:
            parts = self._listed()
            found = self._scan(parts, ["key", _FILE], gone)[_FILE].to_pylist()
            for part in sorted({path.rsplit("/", 1)[-1] for path in found}):
                kept = self._scan([part], self._schema.names, None).filter(~ds.field("key").isin(sorted(gone)))
                if kept.num_rows:
                    self._write_part(kept)
                self._lake.remove(f"{self.folder}/{part}")
            self._forget()

    def _take_in(self) -> None:
        parts = self._listed()
        if not self._indexed.issubset(parts):
            self._forget()  # whole: what stood in a part that is gone may stand in another one too
        self._index(self._scan([name for name in parts if name not in self._indexed], ["key", _FILE], None))
        self._indexed.update(parts)
        self._is_loaded = True

    def _forget(self) -> None:
        self._indexed.clear()
        self._part_of.clear()
        self._is_loaded = False

    def _listed(self) -> list[str]:
        return [name for name in self._lake.names(self.folder) if _is_part(name)]

    def _write_part(self, table: pa.Table) -> tuple[str, int]:
        """The part's name and its bytes."""
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue()
        name = f"part-{hashlib.sha256(data).hexdigest()[:32]}.parquet"
        self._lake.put(f"{self.folder}/{name}", data)
        return name, len(data)

    def _record_of(self, row: dict[str, object], part: str) -> OutT:
        try:
            return self._record_type.model_validate(row)
        except ValidationError as error:
            raise LakeError(
                f"{self._lake.path(self.folder, part)} holds a row that is no {self._record_type.__name__}: "
                f"{error.errors()[0]['msg']}; the agent's output changed without a new revision"
            ) from error

    def _write_label(self) -> None:
        if self._has_label:
            return
        name = f"{self.folder}/label.json"
        text = self._label.model_dump_json(indent=2).encode()
        found = self._lake.get(name)
        if found is None:
            self._lake.put(name, text)
        elif found != text:
            raise LakeError(f"{self._lake.path(name)} is not the label of this agent; the folder was changed by hand")
        self._has_label = True

    def _index(self, table: pa.Table) -> None:
        for key, path in zip(table["key"].to_pylist(), table[_FILE].to_pylist(), strict=True):
            part = path.rsplit("/", 1)[-1]
            self._part_of[key] = min(part, self._part_of.get(key, part))

    def _scan(self, parts: Sequence[str], columns: list[str], keys: set[str] | None) -> pa.Table:
        import pyarrow.dataset as ds  # brings pandas with it

        paths = [self._lake.path(self.folder, part) for part in parts]
        chosen = None if keys is None else ds.field("key").isin(sorted(keys))
        if not paths:
            return pa.table({name: [] for name in columns})
        try:
            dataset = ds.dataset(paths, schema=self._schema, filesystem=self._lake.fs, format="parquet")
            return dataset.to_table(columns=columns, filter=chosen)
        except FileNotFoundError as error:
            raise _PartGoneError(f"{self._lake.path(self.folder)}: parts go away while they are read") from error
        except (OSError, pa.ArrowException) as error:
            raise LakeError(self._what_is_torn(paths, error)) from error

    def _what_is_torn(self, paths: Sequence[str], error: Exception) -> str:
        for path in paths:
            try:
                with self._lake.fs.open(path, "rb") as file:
                    pq.read_table(file, schema=self._schema)
            except (OSError, pa.ArrowException) as reason:
                text = str(reason).splitlines()[0]
                return f"{path} is not a readable part ({text}); delete it and its outputs are computed again"
        return f"cannot read {self._lake.path(self.folder)}: {error}"


def _while_parts_go(read: Callable[[], T], before_another: Callable[[], None] = lambda: None) -> T:
    """What `read` gives, tried some times while parts are replaced under it."""
    for _ in range(_TRIES - 1):
        try:
            return read()
        except _PartGoneError:
            before_another()
    return read()


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")
