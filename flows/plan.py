"""From a source to clips and units: what a build is about to work on."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flows.cut_rows import CUT_ENGINE, RowCuts
from flows.decontaminate import BenchVideos, bench_ids, bench_rows, near_duplicates
from flows.profile_config import Profile
from infra.lake import Lake
from infra.sources import ClipSet, SourceRow, read_source
from infra.work import CUTTING, AgentWork
from schemas.clip import Clip
from schemas.quarantine import QuarantineEntry


@dataclass(frozen=True)
class Plan:
    """The clips of a build in the order of their source, cut into units, and the rows that gave none.

    `cutting` is what it took to cut the rows of which the lake held no clips, None where it held them all; two plans of
    the same clips are equal, whatever they took.
    """

    videos_root: Path
    num_rows: int
    clips: tuple[Clip, ...]
    rejected: tuple[QuarantineEntry, ...]
    units: tuple[tuple[Clip, ...], ...]
    cutting: AgentWork | None = field(default=None, compare=False)


@dataclass(frozen=True)
class KnownRows:
    """The rows of a source, and of which of them the lake holds clips; no video was opened to tell.

    `unread` are entries of the source that are no rows; `ignored_columns` are those that nobody reads. By source id,
    `barred` are the rows whose videos a bench asks about, which are never cut, and `found` the clips of the others.
    """

    videos_root: Path
    rows: tuple[SourceRow, ...]
    unread: tuple[QuarantineEntry, ...]
    ignored_columns: tuple[str, ...]
    barred: dict[str, QuarantineEntry]
    cuts: RowCuts
    found: dict[str, ClipSet]

    @property
    def fresh(self) -> list[SourceRow]:
        """The rows that are to be cut, or have given no clip before."""
        return [row for row in self.rows if row.source_id not in self.found and row.source_id not in self.barred]

    @property
    def clips(self) -> list[Clip]:
        """The clips in the order of their rows."""
        return [clip for row in self.rows if (item := self.found.get(row.source_id)) for clip in item.clips]


def known_rows(source: Path, root: Path | None, lake: Lake, profile: Profile, limit: int | None) -> KnownRows:
    """Read the source and what the lake holds of its rows; writes nothing.

    With `limit`, the first so many rows that could be read are taken. Raises SourceError and ProfileError.
    """
    ids = bench_ids(profile.decontamination)
    videos_root, listing = read_source(source, root)
    rows = listing.rows[:limit]
    barred = bench_rows(rows, ids)
    cuts = RowCuts("source", videos_root, [row for row in rows if row.source_id not in barred], profile.clips, lake)
    unread = listing.rejected if limit is None else ()
    return KnownRows(videos_root, rows, unread, listing.ignored_columns, barred, cuts, cuts.held())


def plan_build(
    source: Path, root: Path | None, lake: Lake, profile: Profile, limit: int | None, say: Callable[[str], None]
) -> Plan:
    """Read the source, cut its rows into clips, one shot each, take out what must not be trained on, and make units.

    A row that a bench asks about gives no clip, and a clip of `train` that is a copy of a held-out one, or of a bench's
    video, is dropped; both are quarantined. With `limit`, the first so many rows that could be read are taken. `say` is
    told how far cutting has come. Raises SourceError and ProfileError before any work.
    """
    known = known_rows(source, root, lake, profile, limit)
    benches = BenchVideos(profile.decontamination, lake)
    if known.ignored_columns:
        say(f"columns that nobody reads: {', '.join(known.ignored_columns)}")
    held, start_s = known.found, time.monotonic()
    known = replace(known, found=known.cuts.cut(held, say))
    took_s = time.monotonic() - start_s
    num_cut = sum(len(item.clips) for name, item in known.found.items() if name not in held)
    copies = near_duplicates(known.clips, benches.cut(say), profile.decontamination.near_distance, lake)
    clips = tuple(clip for clip in known.clips if clip.clip_id not in copies)
    return Plan(
        videos_root=known.videos_root,
        num_rows=len(known.rows) + len(known.unread),
        clips=clips,
        rejected=(*known.unread, *_dropped_rows(known), *copies.values()),
        units=tuple(_units(clips, profile)),
        cutting=AgentWork(agent=CUTTING, engine=CUT_ENGINE, clips=num_cut, busy_s=took_s) if num_cut else None,
    )


def _dropped_rows(known: KnownRows) -> Iterator[QuarantineEntry]:
    for row in known.rows:
        entry = known.barred.get(row.source_id)
        yield from (entry,) if entry else known.found[row.source_id].rejected


def unit_size(profile: Profile, num_clips: int) -> int:
    """Clips of a unit in a build of so many."""
    return max(profile.clips_per_unit, -(-num_clips // profile.max_units))


def _units(clips: Sequence[Clip], profile: Profile) -> Iterator[tuple[Clip, ...]]:
    size = unit_size(profile, len(clips))
    for start in range(0, len(clips), size):
        yield tuple(clips[start : start + size])
