"""From a source to clips and units: what a build is about to work on."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flows.profile_config import Profile
from infra.lake import AgentStore, Lake
from infra.sources import ClipSet, RowError, SourceRow, clips_of, read_source, video_path
from schemas.clip import Clip
from schemas.label import AgentLabel
from schemas.quarantine import QuarantineEntry
from schemas.record import content_id

ROWS_AT_ONCE = 32
"""Rows that are cut, then committed together: what a kill can cost."""


@dataclass(frozen=True)
class Plan:
    """The clips of a build in the order of their source, cut into units, and the rows that gave none."""

    videos_root: Path
    num_rows: int
    clips: tuple[Clip, ...]
    rejected: tuple[QuarantineEntry, ...]
    units: tuple[tuple[Clip, ...], ...]


def plan_build(
    source: Path, root: Path | None, lake: Lake, profile: Profile, limit: int | None, say: Callable[[str], None]
) -> Plan:
    """Read the source, cut its rows into clips, one shot each, and the clips into units.

    Cutting a video needs its frames, so the cuts of a row rest in the lake like an agent's output, under the row, the
    file's size and time of change, and the configuration. Rows that gave no clip are looked at again by every run.
    With `limit`, the first so many rows that could be read are taken. `say` is told how far cutting has come.
    """
    videos_root, listing = read_source(source, root)
    rows = listing.rows[:limit]
    unread = listing.rejected if limit is None else ()
    store: AgentStore[ClipSet] = lake.agent_store(_source_label(profile), ClipSet)
    keys = {row.source_id: _row_key(row, videos_root) for row in rows}
    by_key = store.read(store.keys().intersection(keys.values()))
    found = {source_id: by_key[key] for source_id, key in keys.items() if key in by_key}
    fresh = [row for row in rows if row.source_id not in found]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(fresh), ROWS_AT_ONCE):
            slice_ = fresh[start : start + ROWS_AT_ONCE]
            cut = list(threads.map(lambda row: clips_of(row, videos_root, profile.clips), slice_))
            store.append([(keys[item.source_id], item) for item in cut if item.clips and keys[item.source_id]])
            found |= {item.source_id: item for item in cut}
            say(f"cut {start + len(slice_)} of {len(fresh)} new rows into clips")
    clip_sets = [found[row.source_id] for row in rows]
    clips = tuple(clip for clip_set in clip_sets for clip in clip_set.clips)
    rejected = tuple(entry for clip_set in clip_sets for entry in clip_set.rejected)
    return Plan(
        videos_root=videos_root,
        num_rows=len(rows) + len(unread),
        clips=clips,
        rejected=(*unread, *rejected),
        units=tuple(_units(clips, profile)),
    )


def _units(clips: Sequence[Clip], profile: Profile) -> Iterator[tuple[Clip, ...]]:
    size = max(profile.clips_per_unit, -(-len(clips) // profile.max_units))
    for start in range(0, len(clips), size):
        yield tuple(clips[start : start + size])


def _source_label(profile: Profile) -> AgentLabel:
    return AgentLabel(
        agent="source",
        engine="pyav+pyscenedetect",
        weights=(),
        config_json=profile.clips.model_dump_json(),
        prompt_hash="",
        revision=1,
    )


def _row_key(row: SourceRow, videos_root: Path) -> str:
    """Empty where there is no file inside the root: the row is then quarantined afresh, whatever the lake holds."""
    try:
        stat = video_path(row, videos_root).stat()
    except (OSError, ValueError, RowError):
        return ""
    return content_id(row, stat.st_size, stat.st_mtime_ns)
