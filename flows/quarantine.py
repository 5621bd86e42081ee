"""What a build dropped or could not finish: counted, looked at one by one, and failures tried again."""

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

from flows.clip_lookup import clips_of_rows
from infra.builds import KINDS, BuildCommand, Manifest, chosen_manifest, read_columns, read_quarantine
from infra.lake import Lake
from infra.sources import SourceError, read_source
from schemas.clip import Clip
from schemas.quarantine import QuarantineEntry, Reason, Stage
from schemas.record import Record

STAGES: tuple[Stage, ...] = get_args(Stage)
REASONS: tuple[Reason, ...] = get_args(Reason)

_OBJECTS = ("clip_id", "kind", "objects.list.element.object_id", "objects.list.element.noun")


class QuarantineError(ValueError):
    """Nothing in quarantine is what was asked for, or it cannot be tried again."""


class ReasonCount(Record):
    """How many entries one stage made for one reason, and one of them."""

    stage: Stage
    reason: Reason
    n: int
    retryable: int
    example: QuarantineEntry


class QuarantineList(Record):
    """The quarantine of a build, or what of it was chosen; `entries` are the first of `total`."""

    build_id: str
    total: int
    counts: tuple[ReasonCount, ...]
    entries: tuple[QuarantineEntry, ...]


class Fate(Record):
    """What became of one noun of a clip: where it was dropped, or how many samples speak of it."""

    object_id: str
    noun: str
    became: str


class Story(Record):
    """Everything known of one clip, or of one row that gave none, with entries in quarantine.

    `video` is where the file lay when the build was made; it and `caption` are None where neither the lake nor the
    source has the row, and `unknown` says why. `clip` is None where the row gave none.
    """

    entries: tuple[QuarantineEntry, ...]
    source_id: str
    video: str | None
    caption: str | None
    unknown: str
    clip: Clip | None
    others: tuple[Fate, ...]


class Refused(Record):
    """An entry that was asked for by name and is not tried again, with the reason why not."""

    entry: QuarantineEntry
    why: str


class Retry(Record):
    """Failures taken out of quarantine; `command` tries their clips again."""

    build_id: str
    taken: tuple[QuarantineEntry, ...]
    refused: tuple[Refused, ...]
    command: BuildCommand


@dataclass(frozen=True)
class Choice:
    """Which entries are meant: any of the stages, any of the reasons, any of the names; all where none is given."""

    stages: Collection[str] = ()
    reasons: Collection[str] = ()
    names: Collection[str] = ()

    def __post_init__(self) -> None:
        for what, given, known in (("stage", self.stages, STAGES), ("reason", self.reasons, REASONS)):
            for name in set(given) - set(known):
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise QuarantineError(f"no {what} {name!r}; the nearest is {near!r}")

    def takes(self, entry: QuarantineEntry) -> bool:
        """Whether an entry is meant."""
        return (
            (not self.stages or entry.stage in self.stages)
            and (not self.reasons or entry.reason in self.reasons)
            and (not self.names or not _names_of(entry).isdisjoint(self.names))
        )


def list_quarantine(lake: Lake, build_id: str | None, choice: Choice, limit: int) -> QuarantineList:
    """Counts by stage and reason, in the order of the chain and most frequent first, and the first `limit` entries."""
    manifest = chosen_manifest(lake, build_id)
    num: Counter[tuple[Stage, Reason]] = Counter()
    retryable: Counter[tuple[Stage, Reason]] = Counter()
    examples: dict[tuple[Stage, Reason], QuarantineEntry] = {}
    entries: list[QuarantineEntry] = []
    for entry in filter(choice.takes, read_quarantine(lake, manifest.build_id)):
        place = (entry.stage, entry.reason)
        num[place] += 1
        retryable[place] += entry.retryable
        examples.setdefault(place, entry)
        if len(entries) < limit:
            entries.append(entry)
    order = sorted(num, key=lambda place: (STAGES.index(place[0]), -num[place], place[1]))
    return QuarantineList(
        build_id=manifest.build_id,
        total=num.total(),
        counts=tuple(
            ReasonCount(
                stage=stage,
                reason=reason,
                n=num[stage, reason],
                retryable=retryable[stage, reason],
                example=examples[stage, reason],
            )
            for stage, reason in order
        ),
        entries=tuple(entries),
    )


def tell(lake: Lake, build_id: str | None, name: str, limit: int) -> tuple[Story, ...]:
    """What is known of the entries that bear a name: the id of what was dropped, of its clip or of its row.

    At most `limit` clips. Raises QuarantineError where nothing bears it.
    """
    manifest = chosen_manifest(lake, build_id)
    asked = Choice(names=(name,))
    named = [entry for entry in read_quarantine(lake, manifest.build_id) if asked.takes(entry)]
    if not named:
        raise QuarantineError(
            f"build {manifest.build_id} has no {name!r} in quarantine; `videorefer quarantine list` shows what it has"
        )
    subjects = list(islice(dict.fromkeys((entry.source_id, entry.clip_id) for entry in named), limit))
    clips = clips_of_rows(lake, {source_id for source_id, _ in subjects})
    fates = _fates(lake, manifest.build_id, frozenset(clip_id for _, clip_id in subjects if clip_id))
    stories = []
    for source_id, clip_id in subjects:
        entries = tuple(entry for entry in named if (entry.source_id, entry.clip_id) == (source_id, clip_id))
        told = {entry.subject_id for entry in entries}
        others = tuple(fate for fate in fates.get(clip_id, ()) if fate.object_id not in told)
        clip = clips.get(clip_id)
        video, caption, unknown = (clip.video, clip.caption, "") if clip else _row_of(manifest, source_id)
        path = None if video is None else str(Path(manifest.videos_root) / video)
        stories.append(
            Story(
                entries=entries,
                source_id=source_id,
                video=path,
                caption=caption,
                unknown=unknown,
                clip=clip,
                others=others,
            )
        )
    return tuple(stories)


def retry(lake: Lake, build_id: str | None, choice: Choice) -> Retry:
    """Take the chosen failures of a build out of the lake, so that the next build tries their clips again.

    What an agent judged, or what is wrong with a row, stays: the same input gives the same verdict. Raises
    QuarantineError where nothing can be tried again.
    """
    manifest = chosen_manifest(lake, build_id)
    chosen = [entry for entry in read_quarantine(lake, manifest.build_id) if choice.takes(entry)]
    refused = [Refused(entry=entry, why=_why_not(entry)) for entry in chosen if not entry.retryable]
    wanted = [entry for entry in chosen if entry.retryable]
    if not wanted:
        raise QuarantineError(_nothing_to_retry(manifest, refused))
    taken: list[QuarantineEntry] = []
    for label in manifest.labels:
        clip_ids = {entry.clip_id for entry in wanted if entry.stage == label.agent}
        if clip_ids:
            store = lake.failure_store(label)
            held = {key: entry for key, entry in store.find(store.keys()).items() if entry.clip_id in clip_ids}
            store.remove(held)
            taken += held.values()
    if not taken:
        raise QuarantineError(
            f"{len(wanted)} failures of build {manifest.build_id} were taken out before; they are tried again by: "
            f"{manifest.asked.line(lake.address)}"
        )
    taken.sort(key=lambda entry: (STAGES.index(entry.stage), entry.clip_id))
    by_name = tuple(refusal for refusal in refused if choice.names)
    return Retry(build_id=manifest.build_id, taken=tuple(taken), refused=by_name, command=manifest.asked)


def _nothing_to_retry(manifest: Manifest, refused: Sequence[Refused]) -> str:
    if not refused:
        return f"build {manifest.build_id} has nothing of that in quarantine"
    reasons = Counter(refusal.entry.reason for refusal in refused)
    first = refused[0]
    return (
        f"nothing to try again among {len(refused)} entries ({', '.join(f'{n} {name}' for name, n in reasons.items())})"
        f": {first.entry.subject_id} is {first.entry.reason}: {first.why}"
    )


def _why_not(entry: QuarantineEntry) -> str:
    if entry.stage == "source":
        return "only a change of the source helps, or of the profile's limits"
    return f"the {entry.stage} judged so; only another caption, video or profile helps"


def _names_of(entry: QuarantineEntry) -> set[str]:
    return {entry.subject_id, entry.clip_id, entry.source_id}


def _fates(lake: Lake, build_id: str, clip_ids: frozenset[str]) -> dict[str, list[Fate]]:
    """By clip, what became of every noun that was dropped or is spoken of."""
    if not clip_ids:
        return {}
    nouns: dict[tuple[str, str], str] = {}
    became: dict[tuple[str, str], list[str]] = {}
    for entry in read_quarantine(lake, build_id):
        if entry.clip_id in clip_ids:
            place = (entry.clip_id, entry.subject_id)
            nouns[place] = entry.noun
            became.setdefault(place, []).append(f"dropped by {entry.stage}: {entry.reason}")
    sampled: dict[tuple[str, str], Counter[str]] = {}
    for clip_id, kind, object_id, noun in _sampled_objects(lake, build_id, clip_ids):
        nouns[clip_id, object_id] = noun
        sampled.setdefault((clip_id, object_id), Counter())[kind] += 1
    for place, kinds in sampled.items():
        became[place] = ["in " + ", ".join(f"{n} {kind}" for kind, n in kinds.items())]
    fates: dict[str, list[Fate]] = {}
    for (clip_id, object_id), parts in became.items():
        fate = Fate(object_id=object_id, noun=nouns[clip_id, object_id], became="; ".join(parts))
        fates.setdefault(clip_id, []).append(fate)
    return fates


def _sampled_objects(lake: Lake, build_id: str, clip_ids: frozenset[str]) -> Iterator[tuple[str, str, str, str]]:
    for kind in KINDS:
        for table in read_columns(lake, build_id, kind, _OBJECTS, clip_ids):
            for row in table.to_pylist():
                if row["clip_id"] in clip_ids:
                    for item in row["objects"]:
                        yield row["clip_id"], kind, item["object_id"], item["noun"]


def _row_of(manifest: Manifest, source_id: str) -> tuple[str | None, str | None, str]:
    """Video and caption of a row that gave no clip; where the source does not tell, why not."""
    try:
        _, listing = read_source(Path(manifest.source), Path(manifest.videos_root))
    except (SourceError, OSError) as error:
        return None, None, f"the source cannot be read from here: {error}"
    for row in listing.rows:
        if row.source_id == source_id:
            return row.video, row.caption, ""
    if any(source_id in (entry.source_id, entry.subject_id) for entry in listing.rejected):
        return None, None, f"the row is in {manifest.source}, but cannot be read"
    return None, None, f"the row is gone: {manifest.source} has no {source_id}"
