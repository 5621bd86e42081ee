"""From a source to clips and units: what a build is about to work on."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.profile_config import Profile
from infra.cutting import CutPool, Cutter
from infra.frame_folder import frame_files
from infra.given_store import given_store
from infra.lake import AgentStore, Lake
from infra.sources import ClipSet, RowError, SourceRow, read_source, refusal, video_path
from schemas.clip import Clip
from schemas.label import AgentLabel
from schemas.quarantine import QuarantineEntry
from schemas.record import content_id

RUNS_AT_ONCE = 32
"""Videos that are cut, then committed together: what a kill can cost."""

ROWS_OF_A_RUN = 32


@dataclass(frozen=True)
class Plan:
    """The clips of a build in the order of their source, cut into units, and the rows that gave none."""

    videos_root: Path
    num_rows: int
    clips: tuple[Clip, ...]
    rejected: tuple[QuarantineEntry, ...]
    units: tuple[tuple[Clip, ...], ...]


@dataclass(frozen=True)
class KnownRows:
    """The rows of a source, and of which of them the lake holds clips; no video was opened to tell.

    `keys` name the rows' cuts in the lake by source id, empty where there is no such file; `unread` are entries of the
    source that are no rows; `ignored_columns` are those that nobody reads.
    """

    videos_root: Path
    rows: tuple[SourceRow, ...]
    unread: tuple[QuarantineEntry, ...]
    ignored_columns: tuple[str, ...]
    keys: dict[str, str]
    found: dict[str, ClipSet]

    @property
    def fresh(self) -> list[SourceRow]:
        """The rows that are to be cut, or have given no clip before."""
        return [row for row in self.rows if row.source_id not in self.found]


def known_rows(source: Path, root: Path | None, lake: Lake, profile: Profile, limit: int | None) -> KnownRows:
    """Read the source and what the lake holds of its rows; writes nothing.

    With `limit`, the first so many rows that could be read are taken.
    """
    videos_root, listing = read_source(source, root)
    rows = listing.rows[:limit]
    store: AgentStore[ClipSet] = lake.agent_store(_source_label(profile), ClipSet)
    stamp = functools.cache(_stamp)
    keys = {row.source_id: _row_key(row, videos_root, stamp) for row in rows}
    by_key = store.read(store.keys().intersection(keys.values()))
    held = given_store(lake).keys()
    found = {name: by_key[key] for name, key in keys.items() if key in by_key and _given_ids(by_key[key]) <= held}
    unread = listing.rejected if limit is None else ()
    return KnownRows(videos_root, rows, unread, listing.ignored_columns, keys, found)


def plan_build(
    source: Path, root: Path | None, lake: Lake, profile: Profile, limit: int | None, say: Callable[[str], None]
) -> Plan:
    """Read the source, cut its rows into clips, one shot each, and the clips into units.

    Cutting a video needs its frames, so the cuts of a row rest in the lake like an agent's output, under the row, the
    file's size and time of change, and the configuration. Rows that gave no clip are looked at again by every run.
    With `limit`, the first so many rows that could be read are taken. `say` is told how far cutting has come.
    """
    known = known_rows(source, root, lake, profile, limit)
    if known.ignored_columns:
        say(f"columns that nobody reads: {', '.join(known.ignored_columns)}")
    found = known.found | _cut_fresh(known, lake, profile, say)
    clip_sets = [found[row.source_id] for row in known.rows]
    clips = tuple(clip for clip_set in clip_sets for clip in clip_set.clips)
    rejected = tuple(entry for clip_set in clip_sets for entry in clip_set.rejected)
    return Plan(
        videos_root=known.videos_root,
        num_rows=len(known.rows) + len(known.unread),
        clips=clips,
        rejected=(*known.unread, *rejected),
        units=tuple(_units(clips, profile)),
    )


def _cut_fresh(known: KnownRows, lake: Lake, profile: Profile, say: Callable[[str], None]) -> dict[str, ClipSet]:
    """Cut the rows that are not in the lake, some videos at a time, and commit each such lot."""
    store: AgentStore[ClipSet] = lake.agent_store(_source_label(profile), ClipSet)
    given = given_store(lake)
    root, config = known.videos_root, profile.clips
    found = {row.source_id: item for row in known.fresh if (item := refusal(row, root, config))}
    runs = list(_runs([row for row in known.fresh if row.source_id not in found]))
    with CutPool(functools.partial(Cutter, root, config), len(runs)) as pool:
        for start in range(0, len(runs), RUNS_AT_ONCE):
            parts = list(pool.cut(runs[start : start + RUNS_AT_ONCE]))
            cut, held = [part.clips for part in parts], given.keys()
            new_masks = {key: item for part in parts for key, item in part.masks.items() if key not in held}
            given.append(list(new_masks.items()))  # before the cuts, which promise that they are there
            store.append([(key, item) for item in cut if item.clips and (key := known.keys[item.source_id])])
            found |= {item.source_id: item for item in cut}
            say(f"cut {len(found)} of {len(known.fresh)} new rows into clips")
    return found


def _runs(rows: Sequence[SourceRow]) -> Iterator[list[SourceRow]]:
    """Rows of one video that stand together, at most `ROWS_OF_A_RUN`: one process reads the video once for them."""
    for _, group in itertools.groupby(rows, key=lambda row: row.video):
        run = list(group)
        yield from (run[start : start + ROWS_OF_A_RUN] for start in range(0, len(run), ROWS_OF_A_RUN))


def _given_ids(clips: ClipSet) -> set[str]:
    return {clip.given_sha256 for clip in clips.clips} - {""}


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
        revision=2,
    )


def _row_key(row: SourceRow, videos_root: Path, stamp: Callable[[Path], str]) -> str:
    """Empty where there is no file inside the root: the row is then quarantined afresh, whatever the lake holds."""
    try:
        stamps = [stamp(video_path(row, videos_root))]
        stamps += [stamp(videos_root / row.masks.path)] if row.masks else []
    except (OSError, ValueError, RowError):
        return ""
    return content_id(row, *stamps)


def _stamp(path: Path) -> str:
    """Changes with a file, and with every picture of a folder: names, sizes and times of change."""
    if path.is_dir():
        return content_id(*(str(file) for file in frame_files(path)))
    stat = path.stat()
    return content_id(stat.st_size, stat.st_mtime_ns)
