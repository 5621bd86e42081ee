"""Clips found again: the lake keeps the cuts of every row that gave one, whichever build they went into."""

from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.lake import Lake, LakeError
from schemas.clip import Clip

_CUTS = "agents/source"


def clips_of_rows(lake: Lake, source_ids: Collection[str]) -> dict[str, Clip]:
    """By clip id, the clips that the lake holds of some source rows, of earlier states of the rows too.

    Raises LakeError for a part that does not open.
    """
    clips: dict[str, Clip] = {}
    if not source_ids:
        return clips
    for folder in lake.names(_CUTS):
        for name in lake.names(f"{_CUTS}/{folder}"):
            if name.endswith(".parquet"):
                for row in _read(lake, lake.path(_CUTS, folder, name), source_ids):
                    clips |= {clip["clip_id"]: Clip.model_validate(clip) for clip in row["clips"]}
    return clips


def _read(lake: Lake, path: str, source_ids: Collection[str]) -> list[dict[str, list[dict[str, Any]]]]:
    try:
        with lake.fs.open(path, "rb") as file:
            table = pq.read_table(file, columns=["clips"], filters=[("source_id", "in", list(source_ids))])
    except (OSError, pa.ArrowException) as error:
        raise LakeError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    found: list[dict[str, list[dict[str, Any]]]] = table.to_pylist()
    return found
