"""From a source to clips and units: what a build is about to work on."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flows.profile_config import Profile
from infra.lake import AgentStore, Lake
from infra.sources import ClipSet, SourceRow, clips_of, read_source
from schemas.clip import Clip
from schemas.label import AgentLabel
from schemas.quarantine import QuarantineEntry
from schemas.record import content_id

PROBE_THREADS = 2


@dataclass(frozen=True)
class Plan:
    """The clips of a build in the order of their source, cut into units, and the rows that gave none."""

    videos_root: Path
    num_rows: int
    clips: tuple[Clip, ...]
    rejected: tuple[QuarantineEntry, ...]
    units: tuple[tuple[Clip, ...], ...]


def plan_build(source: Path, root: Path | None, lake: Lake, profile: Profile, limit: int | None) -> Plan:
    """Read the source, cut its rows into clips, one shot each, and the clips into units.

    Cutting a video needs its frames, so the cuts of a row rest in the lake like an agent's output, under the row, the
    file's size and time of change, and the configuration.
    """
    videos_root, listing = read_source(source, root)
    rows = listing.rows[:limit]
    store: AgentStore[ClipSet] = lake.agent_store(_source_label(profile), ClipSet)
    keys = {row.source_id: _row_key(row, videos_root) for row in rows}
    found = store.read(set(keys.values()) & store.keys())
    fresh = [row for row in rows if keys[row.source_id] not in found]
    with ThreadPoolExecutor(PROBE_THREADS) as threads:
        cut = list(threads.map(lambda row: clips_of(row, videos_root, profile.clips), fresh))
    if cut:
        store.append([(keys[row.source_id], clip_set) for row, clip_set in zip(fresh, cut, strict=True)])
    found |= {keys[row.source_id]: clip_set for row, clip_set in zip(fresh, cut, strict=True)}
    clip_sets = [found[keys[row.source_id]] for row in rows]
    clips = tuple(clip for clip_set in clip_sets for clip in clip_set.clips)
    rejected = tuple(entry for clip_set in clip_sets for entry in clip_set.rejected)
    return Plan(
        videos_root=videos_root,
        num_rows=len(rows) + len(listing.rejected),
        clips=clips,
        rejected=(*listing.rejected, *rejected),
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
    try:
        stat = (videos_root / row.video).stat()
    except (OSError, ValueError):  # missing, or no name for a file: the row is quarantined when it is cut
        return content_id(row, "no file")
    return content_id(row, stat.st_size, stat.st_mtime_ns)
