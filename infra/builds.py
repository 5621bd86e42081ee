"""Builds: immutable versions of the dataset in a lake, committed by their manifest.

Shards come first, `manifest.json` last and whole, then `latest.json`. What has no manifest is no build, and the same
records give the same bytes, so a build that was cut off is simply written again over itself.
"""

import hashlib
import io
import itertools
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeVar, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from infra.forecasts import ForecastError
from infra.lake import Lake, LakeError
from infra.work import AgentWork
from schemas.arrow import arrow_schema, from_table, to_table
from schemas.label import AgentLabel
from schemas.quarantine import QuarantineEntry
from schemas.record import Record
from schemas.sample import SCHEMA_VERSION, Kind, Sample
from schemas.track import Track

R = TypeVar("R", bound=Record)

Content = Literal["short_caption", "detailed_caption", "qa", "tracks", "quarantine"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CONTENTS: tuple[Content, ...] = get_args(Content)

DEFAULT_PROFILE = "embedded"
ROWS_PER_SHARD = 4096
ROWS_PER_GROUP = 256
_MASK_COLUMNS = ("objects", "masks")


class CommittedError(LakeError):
    """A build of that id is committed already, by an earlier run or one beside this; builds never change."""


class ShardEntry(Record):
    """One Parquet file of a build; `path` is relative to the lake."""

    content: Content
    path: str
    rows: int
    sha256: str
    bytes: int


class CountEntry(Record):
    """A figure of the build's report: how many `name` there are in `group`."""

    group: str
    name: str
    n: int


class BuildCommand(Record):
    """What a build was asked for, its paths absolute; the same again, in any folder, finishes or repeats it.

    `ray` is the address of the cluster it joined, None in manifests of programs that did not keep it.
    """

    source: str
    root: str | None = None
    profile: str
    limit: int | None = None
    ray: str | None = None

    def line(self, lake: str) -> str:
        """The command line that asks for it, ready to be pasted into a shell."""
        words = ["videorefer", "build", "--source", self.source, "--lake", lake]
        words += [] if self.root is None else ["--root", self.root]
        words += [] if self.profile == DEFAULT_PROFILE else ["--profile", self.profile]
        words += [] if self.limit is None else ["--limit", str(self.limit)]
        words += [] if self.ray is None else ["--ray", self.ray]
        return shlex.join(words)


class Manifest(Record):
    """What a build is and holds.

    `source` and `videos_root` are where clips came from (samples' `video` is relative to the latter), `profile_json`
    the resolved profile, `labels` the agents that made it. `created_at` is ISO 8601 text and enters no hash. `command`
    is what was asked for, and `work` what each agent was last seen doing: in this run, or where it had nothing to do,
    in an earlier one. Both are empty in manifests of programs that did not keep them. `forecast` is how far off the
    forecast for these agents was, None where there was none.
    """

    build_id: str
    schema_version: str
    created_at: str
    source: str
    videos_root: str
    profile_name: str
    profile_json: str
    labels: tuple[AgentLabel, ...]
    counts: tuple[CountEntry, ...]
    command: BuildCommand | None = None
    work: tuple[AgentWork, ...] = ()
    forecast: ForecastError | None = None
    shards: tuple[ShardEntry, ...] = ()

    @property
    def asked(self) -> BuildCommand:
        """What the build was asked for; where that was not kept, what gives the same clips and agents."""
        return self.command or BuildCommand(source=self.source, root=self.videos_root, profile=self.profile_name)

    def shards_of(self, content: Content) -> tuple[ShardEntry, ...]:
        """The files of one kind of content, in order."""
        return tuple(entry for entry in self.shards if entry.content == content)


class BuildWriter:
    """Writes one build. Everything is written once, in the order of its ids, then committed.

    Here and with each file, raises CommittedError where a build of that id is already committed.
    """

    def __init__(self, lake: Lake, build_id: str, rows_per_shard: int = ROWS_PER_SHARD) -> None:
        self._lake = lake
        self._build_id = build_id
        self._rows_per_shard = rows_per_shard
        self._entries: dict[Content, list[ShardEntry]] = {}
        self._check_open()

    def write_samples(self, kind: Kind, samples: Iterable[Sample]) -> None:
        """Write all samples of a kind, sorted by `clip_id`, then `sample_id`; none still gives one empty shard."""
        self._write(kind, _rising(_of_kind(samples, kind)), Sample)

    def write_tracks(self, tracks: Iterable[Track]) -> None:
        """Write every track once, with all its masked frames."""
        self._write("tracks", tracks, Track)

    def write_quarantine(self, entries: Iterable[QuarantineEntry]) -> None:
        """Write what was dropped or failed."""
        self._write("quarantine", entries, QuarantineEntry)

    def write_page(self, name: str, text: str) -> None:
        """Write a page to be read by people beside the manifest."""
        self._put(f"builds/{self._build_id}/{name}", text.encode())

    @property
    def written_bytes(self) -> int:
        """Bytes of the shards written so far."""
        return sum(entry.bytes for entries in self._entries.values() for entry in entries)

    def commit(self, manifest: Manifest) -> Manifest:
        """Make it a build: `manifest`, with the shards written here, becomes visible, then `latest.json` names it.

        Where another build has committed the same meanwhile, its manifest stands and is returned.
        """
        if missing := [content for content in CONTENTS if content not in self._entries]:
            raise ValueError(f"build {self._build_id} cannot be committed: {', '.join(missing)} not written")
        if manifest.build_id != self._build_id:
            raise ValueError(f"got the manifest of build {manifest.build_id}, this is {self._build_id}")
        shards = tuple(entry for content in CONTENTS for entry in self._entries[content])
        manifest = manifest.model_copy(update={"shards": shards})
        if (other := committed_manifest(self._lake, self._build_id)) is not None:  # a build beside us was first
            return other
        self._remove_strays({entry.path for entry in shards})
        self._lake.put(_manifest_name(self._build_id), manifest.model_dump_json(indent=2).encode())
        set_latest(self._lake, self._build_id)
        return manifest

    def _write(self, content: Content, records: Iterable[R], record_type: type[R]) -> None:
        if content in self._entries:
            raise ValueError(f"{content} of build {self._build_id} is already written")
        entries: list[ShardEntry] = []
        rest = iter(records)
        while (rows := list(itertools.islice(rest, self._rows_per_shard))) or not entries:
            data = _parquet_bytes(rows, record_type, content)
            path = f"{_folder(self._build_id, content)}/{_stem(content)}-{len(entries):05d}.parquet"
            self._put(path, data)
            digest = hashlib.sha256(data).hexdigest()
            entries.append(ShardEntry(content=content, path=path, rows=len(rows), sha256=digest, bytes=len(data)))
        self._entries[content] = entries

    def _put(self, path: str, data: bytes) -> None:
        self._check_open()
        self._lake.put(path, data)

    def _check_open(self) -> None:
        if self._lake.get(_manifest_name(self._build_id)) is not None:
            raise CommittedError(
                f"build {self._build_id} is already committed in {self._lake.root}; builds never change"
            )

    def _remove_strays(self, kept: set[str]) -> None:
        # an earlier try of this build may have been cut off after writing more shards than this one has
        for content in CONTENTS:
            folder = _folder(self._build_id, content)
            for name in self._lake.names(folder):
                if f"{folder}/{name}" not in kept:
                    self._lake.remove(f"{folder}/{name}")


def set_latest(lake: Lake, build_id: str) -> None:
    """Name a committed build as the one to use where none is named."""
    lake.put("latest.json", json.dumps({"build": build_id}).encode())


def latest_build(lake: Lake) -> str | None:
    """The build that `latest.json` names, None where there is none."""
    text = lake.get("latest.json")
    if text is None:
        return None
    try:
        return str(json.loads(text)["build"])
    except (ValueError, KeyError, TypeError) as error:
        raise LakeError(f'{lake.path("latest.json")} must read {{"build": "<id>"}}, got {text[:80]!r}') from error


def list_builds(lake: Lake) -> tuple[Manifest, ...]:
    """The manifests of all committed builds, oldest first."""
    found = [build_id for build_id in lake.names("builds") if lake.get(_manifest_name(build_id)) is not None]
    return tuple(sorted((read_manifest(lake, b) for b in found), key=lambda m: (m.created_at, m.build_id)))


def read_manifest(lake: Lake, build_id: str) -> Manifest:
    """The manifest of a committed build; raises LakeError where there is no such build."""
    manifest = committed_manifest(lake, build_id)
    if manifest is None:
        raise LakeError(f"the lake {lake.root} has no build {build_id}")
    return manifest


def chosen_manifest(lake: Lake, build_id: str | None) -> Manifest:
    """The manifest of a build, the latest if none is named; raises LakeError where there is no such build."""
    chosen = build_id or latest_build(lake)
    if chosen is None:
        raise LakeError(f"the lake {lake.root} holds no build yet")
    return read_manifest(lake, chosen)


def committed_manifest(lake: Lake, build_id: str) -> Manifest | None:
    """The manifest of a build, None where that build is not committed."""
    text = lake.get(_manifest_name(build_id))
    if text is None:
        return None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise LakeError(f"{lake.path(_manifest_name(build_id))} is no manifest: {error.errors()[0]['msg']}") from error
    _check_version(manifest.schema_version, _manifest_name(build_id))
    return manifest


def read_samples(lake: Lake, build_id: str, kind: Kind) -> Iterator[Sample]:
    """The samples of one kind, in the order written, one row group in memory at a time."""
    return _read(lake, build_id, kind, Sample)


def read_tracks(lake: Lake, build_id: str) -> Iterator[Track]:
    """The tracks of a build, in the order written."""
    return _read(lake, build_id, "tracks", Track)


def read_quarantine(lake: Lake, build_id: str) -> Iterator[QuarantineEntry]:
    """What a build dropped, in the order written."""
    return _read(lake, build_id, "quarantine", QuarantineEntry)


def read_columns(
    lake: Lake, build_id: str, content: Content, columns: Sequence[str] | None, clip_ids: frozenset[str] | None = None
) -> Iterator[pa.Table]:
    """Some columns of a build (None: all), in the order written, one row group in memory at a time.

    Nested columns are named by their path in Parquet (`objects.list.element.noun`), and nothing else is read. With
    `clip_ids`, only row groups in which one of them stands, whole.
    """
    for entry in read_manifest(lake, build_id).shards_of(content):
        try:
            with lake.fs.open(lake.path(entry.path), "rb") as file:
                shard = pq.ParquetFile(file)
                _check_version((shard.schema_arrow.metadata or {}).get(b"schema_version", b"").decode(), entry.path)
                for group in range(shard.num_row_groups):
                    held = shard.read_row_group(group, ["clip_id"])["clip_id"].to_pylist() if clip_ids else ()
                    if clip_ids is None or not clip_ids.isdisjoint(held):
                        yield shard.read_row_group(group, columns)
        except (OSError, pa.ArrowException) as error:
            raise LakeError(f"cannot read {lake.path(entry.path)}: {error}") from error


def verify_build(lake: Lake, build_id: str) -> list[str]:
    """Hold every file of a build against its manifest: what is missing or changed, one line each; empty when sound."""
    problems: list[str] = []
    for entry in read_manifest(lake, build_id).shards:
        data = lake.get(entry.path)
        if data is None:
            problems.append(f"{entry.path} is missing")
        elif (digest := hashlib.sha256(data).hexdigest()) != entry.sha256:
            problems.append(f"{entry.path} has sha256 {digest[:12]}, the manifest says {entry.sha256[:12]}")
        elif (rows := pq.read_metadata(io.BytesIO(data)).num_rows) != entry.rows:
            problems.append(f"{entry.path} has {rows} rows, the manifest says {entry.rows}")
    return problems


def _manifest_name(build_id: str) -> str:
    return f"builds/{build_id}/manifest.json"


def _folder(build_id: str, content: Content) -> str:
    if content == "quarantine":
        return f"quarantine/{build_id}"
    return f"builds/{build_id}/tracks" if content == "tracks" else f"builds/{build_id}/data/{content}"


def _stem(content: Content) -> str:
    return "shard" if content in KINDS else "part"


def _of_kind(samples: Iterable[Sample], kind: Kind) -> Iterator[Sample]:
    for sample in samples:
        if sample.kind != kind:
            raise ValueError(f"sample {sample.sample_id} is a {sample.kind}, expected {kind}")
        yield sample


def _rising(samples: Iterable[Sample]) -> Iterator[Sample]:
    last = ("", "")
    for sample in samples:
        place = (sample.clip_id, sample.sample_id)
        if place <= last:
            raise ValueError(f"samples must come once each, sorted by clip_id and sample_id; got {place} after {last}")
        last = place
        yield sample


def _parquet_bytes(rows: list[R], record_type: type[R], content: Content) -> bytes:
    table = to_table(rows, record_type)
    table = table.replace_schema_metadata({"schema_version": SCHEMA_VERSION, "kind": content})
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression=_compression(table.schema)) as writer:
        if rows:  # `datasets` does not read a row group without rows
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    return sink.getvalue()


def _compression(schema: pa.Schema) -> dict[str, str]:
    """Zstandard for every column but masks: run lengths are dense already and are what training reads most."""
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.read_metadata(sink).schema
    paths = [columns.column(i).path for i in range(len(columns))]
    return {path: "snappy" if path.split(".")[0] in _MASK_COLUMNS else "zstd" for path in paths}


def _read(lake: Lake, build_id: str, content: Content, record_type: type[R]) -> Iterator[R]:
    for table in read_columns(lake, build_id, content, None):
        yield from from_table(_known(table, record_type), record_type)


def _known(table: pa.Table, record_type: type[Record]) -> pa.Table:
    """The columns that this version knows: a newer minor may have added some."""
    known = set(arrow_schema(record_type).names)
    return table.select([name for name in table.column_names if name in known])


def _check_version(version: str, path: str) -> None:
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise LakeError(f"{path} has schema version {version or 'none'}, this program reads {SCHEMA_VERSION}")
