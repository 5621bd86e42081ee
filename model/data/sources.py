"""Where items come from: a build's shards, and official JSON or JSONL files, each read by index."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from infra.builds import KINDS, read_columns, read_manifest
from infra.lake import Lake, LakeError
from infra.raw_rows import one_line
from model.data.item import BadItemError, ItemObject, Media, RunLengths, TrainItem, messages_of
from model.data.json_index import JsonIndex
from model.data.official import official_item
from schemas.arrow import arrow_schema
from schemas.clip import Split
from schemas.sample import Kind, Sample

_FILE_GROUP_ROWS = 256
_KEPT_GROUPS = 10
"""Decoded row groups kept: those of a window of `model.data.order`, and some of the next."""


class Source(Protocol):
    """Items by index. `root` holds what their paths name; `groups` are rows that are cheap to read together.

    `item` raises BadItemError for a row that is no item, anything else where the source itself cannot be read.
    """

    name: str
    root: Path

    def __len__(self) -> int: ...

    @property
    def groups(self) -> tuple[int, ...]: ...  # noqa: D102 - told by the class

    def item(self, index: int) -> TrainItem: ...  # noqa: D102 - told by the class


class ShardSource:
    """The samples of one split of a build, of all kinds unless told otherwise.

    Opening reads the manifest and one column. Row groups are decoded when one of their rows is asked for, and a few of
    them kept. `root` is the videos' root that the manifest names, unless given. Raises LakeError, and ValueError where
    nothing is left to train on.
    """

    def __init__(
        self,
        lake: Lake,
        build_id: str,
        *,
        root: Path | None = None,
        kinds: Sequence[Kind] = KINDS,
        split: Split = "train",
    ) -> None:
        manifest = read_manifest(lake, build_id)
        self.name = f"build {build_id}"
        self.root = root or Path(manifest.videos_root)
        self._lake = lake
        self._paths: list[str] = []
        places = []
        for kind in kinds:
            shards = [entry for entry in manifest.shards_of(kind) if entry.rows]
            first, ends = len(self._paths), np.cumsum([entry.rows for entry in shards])
            self._paths += [entry.path for entry in shards]
            places += _kept_rows(lake, build_id, kind, split, first, ends.tolist())
        self._places = np.concatenate(places) if places else np.empty((0, 3), np.int32)
        if not len(self._places):
            raise ValueError(f"{self.name} has no sample of split {split} of {', '.join(kinds)}; choose another build")
        self.groups = tuple(len(place) for place in places)
        self._tables: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": OrderedDict()}

    def item(self, index: int) -> TrainItem:
        """The sample as an item. Raises BadItemError (bad_row), or LakeError where a shard cannot be read."""
        shard, group, row = self._places[index].tolist()
        values = self._table(shard, group).slice(row, 1).to_pylist()[0]
        try:
            sample = Sample.model_validate(values)
        except ValidationError as error:
            raise BadItemError("bad_row", f"{values.get('sample_id')}: {one_line(error)}") from error
        return sample_item(sample, self.name)

    def _table(self, shard: int, group: int) -> pa.Table:
        key = (shard, group)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        path = self._lake.path(self._paths[shard])
        try:
            with self._lake.fs.open(path, "rb") as file:
                table = pq.ParquetFile(file).read_row_group(group, arrow_schema(Sample).names, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise LakeError(f"cannot read {path}: {error}") from error
        self._tables[key] = table
        if len(self._tables) > _KEPT_GROUPS:
            self._tables.popitem(last=False)
        return table


class FileSource:
    """The rows of an official JSON array or JSONL file, of schema A or B or LLaVA-style, mixed as they come.

    `root` holds the videos and images that rows name. Asking for one item reads no further than to it; `len` scans the
    file once. Raises DataFileError.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.name = path.name
        self.root = root
        self._index = JsonIndex(path)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def groups(self) -> tuple[int, ...]:
        """Runs of neighbouring rows; raises ValueError for a file without any."""
        whole, rest = divmod(len(self), _FILE_GROUP_ROWS)
        if not whole + rest:
            raise ValueError(f"{self.name} holds no row; leave it out")
        return (_FILE_GROUP_ROWS,) * whole + ((rest,) if rest else ())

    def item(self, index: int) -> TrainItem:
        """The row as an item. Raises BadItemError (bad_row and others of `official_item`)."""
        try:
            row = self._index.value(index)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadItemError("bad_row", f"row {index} is no JSON: {one_line(error)}") from error
        return official_item(row, index, self.name)


def sample_item(sample: Sample, source: str) -> TrainItem:
    """A shard's row as an item, of which nothing from `visible_until_s` on may be seen."""
    objects = tuple(
        ItemObject(
            item.frame_idx,
            tuple(None if counts is None else RunLengths(counts, sample.height, sample.width) for counts in item.rle),
        )
        for item in sample.objects
    )
    media = Media(
        sample.video,
        is_image=False,
        span_s=(sample.start_s, sample.visible_until_s),
        folder_fps=sample.fps,
        sha256=sample.video_sha256,
    )
    messages = messages_of((turn.speaker, turn.value) for turn in sample.conversations)
    return TrainItem(sample.sample_id, source, messages, media, objects)


def _kept_rows(
    lake: Lake, build_id: str, kind: Kind, split: Split, first_shard: int, ends: Sequence[int]
) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    """For each row group that holds rows of the split: (n, 3) of shard, group in it, row in that."""
    found = []
    seen = shard = group = 0
    for table in read_columns(lake, build_id, kind, ["split"]):
        rows = np.flatnonzero(np.array(table["split"].to_pylist()) == split)
        if len(rows):
            places = np.column_stack([np.full_like(rows, first_shard + shard), np.full_like(rows, group), rows])
            found.append(places.astype(np.int32))
        seen, group = seen + table.num_rows, group + 1
        if seen == ends[shard]:
            shard, group = shard + 1, 0
    return found
