"""Where items come from: a build's shards, and official JSON or JSONL files, each read by index."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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
from model.data.rounds import conversations, joined
from schemas.arrow import arrow_schema
from schemas.clip import Split
from schemas.sample import Kind, Sample

_FILE_GROUP_ROWS = 256
_KEPT_GROUPS = 10
"""Decoded row groups kept: those of a window of `model.data.order`, and some of the next."""
_SAME_SCENE = ["clip_id", "visible_until_s"]
"""Samples that agree in these see the same frames; a question on the future sees less of its clip than others."""


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

    Up to `max_rounds` samples of one kind, clip and row group that may see the same of it are one item, see
    `model.data.rounds`; where one of them is bad, the item is. Opening reads the manifest and a column or three. Row
    groups are decoded when one of their rows is asked for, and a few of them kept. `root` is the videos' root that the
    manifest names, unless given. Raises LakeError, and ValueError where nothing is left to train on.
    """

    def __init__(
        self,
        lake: Lake,
        build_id: str,
        *,
        root: Path | None = None,
        kinds: Sequence[Kind] = KINDS,
        split: Split = "train",
        max_rounds: int = 1,
    ) -> None:
        manifest = read_manifest(lake, build_id)
        self.name = f"build {build_id}"
        self.root = root or Path(manifest.videos_root)
        self._lake = lake
        self._paths: list[str] = []
        found: list[_GroupRows] = []
        for kind in kinds:
            shards = [entry for entry in manifest.shards_of(kind) if entry.rows]
            first, ends = len(self._paths), np.cumsum([entry.rows for entry in shards])
            self._paths += [entry.path for entry in shards]
            found += _kept_rows(lake, build_id, kind, split, first, ends.tolist(), max_rounds)
        if not found:
            raise ValueError(f"{self.name} has no sample of split {split} of {', '.join(kinds)}; choose another build")
        self._places = np.concatenate([group.places for group in found])
        self._ends = np.cumsum(np.concatenate([group.num_rounds for group in found]))
        self.groups = tuple(len(group.num_rounds) for group in found)
        self._tables: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ends)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": OrderedDict()}

    def item(self, index: int) -> TrainItem:
        """The samples as an item. Raises BadItemError (bad_row), or LakeError where a shard cannot be read."""
        end = int(self._ends[index])
        start = int(self._ends[index - 1]) if index else 0
        return joined([self._single(*place) for place in self._places[start:end].tolist()])

    def _single(self, shard: int, group: int, row: int) -> TrainItem:
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


class _GroupRows(NamedTuple):
    """What a row group holds of a split: (n, 3) of shard, group in it and row in that, the rows of an item beside one
    another, and how many each item has.
    """

    places: np.ndarray[Any, np.dtype[np.int32]]
    num_rounds: np.ndarray[Any, np.dtype[np.int64]]


def _kept_rows(
    lake: Lake, build_id: str, kind: Kind, split: Split, first_shard: int, ends: Sequence[int], max_rounds: int
) -> list[_GroupRows]:
    """For each row group that holds rows of the split, what it holds."""
    found = []
    seen = shard = group = 0
    columns = ["split", *(_SAME_SCENE if max_rounds > 1 else ())]
    for table in read_columns(lake, build_id, kind, columns):
        rows = np.flatnonzero(np.array(table["split"].to_pylist()) == split)
        if len(rows):
            num_rounds = np.ones(len(rows), np.int64)
            if max_rounds > 1:
                scenes = table.select(_SAME_SCENE).take(rows).to_pylist()
                taken = conversations([tuple(scene.values()) for scene in scenes], max_rounds)
                rows = rows[np.concatenate(taken)]
                num_rounds = np.array([len(one) for one in taken])
            places = np.column_stack([np.full_like(rows, first_shard + shard), np.full_like(rows, group), rows])
            found.append(_GroupRows(places.astype(np.int32), num_rounds))
        seen, group = seen + table.num_rows, group + 1
        if seen == ends[shard]:
            shard, group = shard + 1, 0
    return found
