"""The end of a build: shards, tracks, quarantine, card and report are written, the manifest last.

Clips are walked in the order of their ids, some at a time, so memory does not grow with the build; what the report
shows is picked on the way.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.card import dataset_card
from flows.chain import Chain
from flows.counts import BuildCounts, count_build
from flows.forecast import forecast_error
from flows.plan import Plan
from flows.profile_config import ROLES, Profile, Role
from flows.report import ReportInputs, pick_drops, pick_samples, render_report
from flows.result import BuildResult
from flows.wiring import Site
from infra.builds import (
    KINDS,
    BuildCommand,
    BuildWriter,
    CommittedError,
    CountEntry,
    Manifest,
    committed_manifest,
    latest_build,
    read_manifest,
    set_latest,
)
from infra.decode_cache import DecodeCache
from infra.lake import Lake, LakeError
from infra.work import AgentWork
from schemas.caption import CaptionSet, MentionText, MentionTextSet, ObjectCaption
from schemas.clip import Clip
from schemas.mention import MentionSet
from schemas.quarantine import QuarantineEntry, Stage
from schemas.record import Record, content_id
from schemas.sample import SCHEMA_VERSION, Kind, Sample, SampleSet
from schemas.track import Track, TrackSet
from schemas.verdict import VerdictSet

CLIPS_AT_ONCE = 64
"""Clips whose outputs are in memory together."""

_STAGES: tuple[Stage, ...] = ROLES


class LostError(RuntimeError):
    """A clip or mention that is neither in a sample nor in quarantine: a fault of ours, so nothing is committed."""


@dataclass(frozen=True)
class ClipOutputs:
    """Everything the agents said of one clip, in their order; empty sets from the agent on that failed."""

    clip: Clip
    mentions: MentionSet
    tracks: TrackSet
    captions: CaptionSet | MentionTextSet
    verdicts: VerdictSet
    samples: SampleSet

    @property
    def rejected(self) -> tuple[QuarantineEntry, ...]:
        """What the agents dropped, in the order of the chain."""
        sets = (self.mentions, self.tracks, self.captions, self.verdicts, self.samples)
        return tuple(entry for output in sets for entry in output.rejected)

    @property
    def texts(self) -> tuple[ObjectCaption | MentionText, ...]:
        """What the annotator wrote, on tracks or on mentions."""
        return self.captions.captions if isinstance(self.captions, CaptionSet) else self.captions.texts


@dataclass
class _Showcase:
    """The counts of a build and the few records that its report shows, gathered in one walk."""

    counts: BuildCounts
    samples: list[Sample] = field(default_factory=list)
    drops: list[QuarantineEntry] = field(default_factory=list)
    outputs: dict[str, ClipOutputs] = field(default_factory=dict)

    def add(self, chunk: Sequence[ClipOutputs], entries: Sequence[QuarantineEntry]) -> None:
        samples = [sample for outputs in chunk for sample in outputs.samples.samples]
        self.counts += count_build(
            0,
            [outputs.clip for outputs in chunk],
            [mention for outputs in chunk for mention in outputs.mentions.mentions],
            [track for outputs in chunk for track in outputs.tracks.tracks],
            [text for outputs in chunk for text in outputs.texts],
            [verdict for outputs in chunk for verdict in outputs.verdicts.verdicts],
            samples,
            entries,
        )
        self.samples = pick_samples([*self.samples, *samples])
        self.drops = pick_drops([*self.drops, *entries])
        shown = {sample.clip_id for sample in self.samples} | {entry.clip_id for entry in self.drops}
        held = self.outputs | {outputs.clip.clip_id: outputs for outputs in chunk}
        self.outputs = {clip_id: outputs for clip_id, outputs in held.items() if clip_id in shown}


def publish_build(
    plan: Plan,
    chain: Chain,
    failed: Sequence[QuarantineEntry],
    command: BuildCommand,
    lake: Lake,
    profile: Profile,
    site: Site,
    work: Sequence[AgentWork] = (),
) -> BuildResult:
    """Write and commit the build of what the lake now holds for a plan.

    The build's id is derived from the keys of all outputs and what was quarantined outside them: where that build is
    committed already, nothing is written but `latest.json`; where another run is about to commit it, it is waited for.
    `work` is what the agents did in this run. Raises LostError where a clip or mention got lost.
    """
    clips = sorted(plan.clips, key=lambda clip: clip.clip_id)
    failed = sorted(_as_in_lake(failed, clips, chain), key=lambda entry: entry.clip_id)
    outside = [*plan.rejected, *failed]
    # evidence may differ where two tries failed alike; they are one build
    failures = [part for entry in failed for part in (entry.clip_id, entry.stage, entry.reason)]
    outputs = [chain.keys(clip)["refiner"] for clip in clips]
    build_id = content_id(SCHEMA_VERSION, *outputs, *plan.rejected, *failures)[:16]
    with lake.locked(f"build-{build_id}"):
        try:
            manifest = _write(build_id, plan, clips, outside, chain, command, lake, profile, site, work)
            return BuildResult.of(manifest, lake, is_new=True)
        except CommittedError:
            set_latest(lake, build_id)
            return BuildResult.of(read_manifest(lake, build_id), lake, is_new=False)


def _as_in_lake(failed: Sequence[QuarantineEntry], clips: Sequence[Clip], chain: Chain) -> Iterator[QuarantineEntry]:
    """The failures in the words that the lake has first, the same for all builds that failed alike."""
    by_id = {clip.clip_id: clip for clip in clips}
    for role in ROLES:
        of_role = {chain.keys(by_id[entry.clip_id])[role]: entry for entry in failed if entry.stage == role}
        if of_role:
            store = chain.failure_store(role)
            store.refresh()
            yield from (of_role | store.find(of_role)).values()  # ours where it was taken out meanwhile


def _write(
    build_id: str,
    plan: Plan,
    clips: Sequence[Clip],
    outside: Sequence[QuarantineEntry],
    chain: Chain,
    command: BuildCommand,
    lake: Lake,
    profile: Profile,
    site: Site,
    work: Sequence[AgentWork],
) -> Manifest:
    writer = BuildWriter(lake, build_id)
    held = _Held(chain, {entry.clip_id: entry.stage for entry in outside if entry.stage in ROLES})
    for kind in KINDS:
        writer.write_samples(kind, _samples(kind, clips, held))
    writer.write_tracks(_tracks(clips, held))
    show = _Showcase(BuildCounts(source_rows=plan.num_rows, annotator_needs=chain.annotator_needs))
    show.add([], outside)
    writer.write_quarantine(_quarantine(clips, outside, held, show))
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    frames = DecodeCache(Path(site.videos_root), Path(site.frames_dir), profile.decode_cache_mib * 2**20)
    labels = tuple(chain.labels.values())
    shown = list(show.outputs.values())
    work = (*([plan.cutting] if plan.cutting else ()), *work)
    all_work = (*work, *_earlier_work(lake, chain, {entry.agent for entry in work}))
    off = forecast_error(lake, labels, profile, len(clips), work, writer.written_bytes)
    inputs = ReportInputs(
        build_id=build_id,
        profile_name=profile.name,
        created_at=created_at,
        labels=labels,
        counts=show.counts,
        clips=tuple(outputs.clip for outputs in shown),
        mentions=tuple(mention for outputs in shown for mention in outputs.mentions.mentions),
        tracks=tuple(track for outputs in shown for track in outputs.tracks.tracks),
        verdicts=tuple(verdict for outputs in shown for verdict in outputs.verdicts.verdicts),
        samples=tuple(show.samples),
        quarantine=tuple(show.drops),
        frames=frames,
        work=all_work,
        forecast=off,
    )
    writer.write_page("report.html", render_report(inputs))
    writer.write_page("README.md", dataset_card(build_id, profile, labels, show.counts))
    manifest = Manifest(
        build_id=build_id,
        schema_version=SCHEMA_VERSION,
        created_at=created_at,
        source=command.source,
        videos_root=str(plan.videos_root),
        profile_name=profile.name,
        profile_json=profile.model_dump_json(),
        labels=labels,
        counts=tuple(_count_entries(show.counts)),
        command=command,
        work=all_work,
        forecast=off,
    )
    return writer.commit(manifest)


def _earlier_work(lake: Lake, chain: Chain, worked: AbstractSet[str]) -> Iterator[AgentWork]:
    """What the latest build says of agents that had nothing to do now and have kept their engine."""
    known = None
    with contextlib.suppress(LakeError):  # of another version: an estimate is not worth a build
        latest = latest_build(lake)
        known = committed_manifest(lake, latest) if latest else None
    engines = {label.agent: label.engine for label in chain.labels.values()}
    for entry in known.work if known else ():
        if entry.agent not in worked and engines.get(entry.agent) == entry.engine:
            yield entry


@dataclass(frozen=True)
class _Held:
    """What the lake holds for a build. Of a clip that was given up, the agent that failed and all after it have no say:
    another build on the lake may have finished the clip meanwhile, and that must not change this one.
    """

    chain: Chain
    given_up: Mapping[str, Stage]

    def outputs(self, role: Role, clips: Sequence[Clip]) -> dict[str, Any]:
        return self.chain.outputs(role, [clip for clip in clips if self._counts(role, clip)])

    def _counts(self, role: Role, clip: Clip) -> bool:
        stage = self.given_up.get(clip.clip_id)
        return stage is None or _STAGES.index(role) < _STAGES.index(stage)


def _walk(clips: Sequence[Clip], held: _Held) -> Iterator[list[ClipOutputs]]:
    for chunk in _chunks(clips):
        found = {role: held.outputs(role, chunk) for role in held.chain.labels}
        for clip in chunk:
            for role, of_clips in found.items():
                of_clips.setdefault(clip.clip_id, _nothing(role, clip, held.chain))
        yield [ClipOutputs(clip, *(found[role][clip.clip_id] for role in ROLES)) for clip in chunk]


def _nothing(role: Role, clip: Clip, chain: Chain) -> Record:
    record, field_name = chain.output[role]
    return record.model_validate({"clip_id": clip.clip_id, field_name: (), "rejected": ()})


def _samples(kind: Kind, clips: Sequence[Clip], held: _Held) -> Iterator[Sample]:
    for output in _outputs("refiner", clips, held):
        of_kind = (sample for sample in output.samples if sample.kind == kind)
        yield from sorted(of_kind, key=lambda sample: sample.sample_id)


def _tracks(clips: Sequence[Clip], held: _Held) -> Iterator[Track]:
    for output in _outputs("segmenter", clips, held):
        yield from output.tracks


def _outputs(role: Role, clips: Sequence[Clip], held: _Held) -> Iterator[Any]:
    """One agent's outputs in the order of the clips, without those given up before or in it."""
    for chunk in _chunks(clips):
        found = held.outputs(role, chunk)
        yield from (found[clip.clip_id] for clip in chunk if clip.clip_id in found)


def _chunks(clips: Sequence[Clip]) -> Iterator[Sequence[Clip]]:
    return (clips[start : start + CLIPS_AT_ONCE] for start in range(0, len(clips), CLIPS_AT_ONCE))


def _quarantine(
    clips: Sequence[Clip], outside: Sequence[QuarantineEntry], held: _Held, show: _Showcase
) -> Iterator[QuarantineEntry]:
    yield from outside
    given_up = {entry.clip_id for entry in outside}
    for chunk in _walk(clips, held):
        for outputs in chunk:
            if outputs.clip.clip_id not in given_up:
                check_nothing_lost(outputs)
        entries = [entry for outputs in chunk for entry in outputs.rejected]
        show.add(chunk, entries)
        yield from entries


def check_nothing_lost(outputs: ClipOutputs) -> None:
    """Every mention ends in quarantine or in tracks, every track in a sample or in quarantine, every clip somewhere.

    Raises LostError naming what is missing.
    """
    dropped = {entry.subject_id for entry in outputs.rejected}
    sampled = {item.object_id for sample in outputs.samples.samples for item in sample.objects}
    tracked = {track.mention_id for track in outputs.tracks.tracks}
    lost_mentions: set[str] = {m.mention_id for m in outputs.mentions.mentions} - dropped - tracked
    lost_tracks: set[str] = {track.track_id for track in outputs.tracks.tracks} - dropped - sampled
    if lost := sorted(lost_mentions | lost_tracks):
        raise LostError(f"clip {outputs.clip.clip_id}: neither in a sample nor in quarantine: {', '.join(lost)}")
    if not dropped and not sampled:
        raise LostError(f"clip {outputs.clip.clip_id} left no trace")


def _count_entries(counts: BuildCounts) -> Iterator[CountEntry]:
    for stage in counts.stages():
        yield CountEntry(group="stages", name=f"{stage.stage}: {stage.given_what}", n=stage.given)
    for (kind, qa_type, split), n in sorted(counts.samples.items()):
        yield CountEntry(group="samples", name=" ".join((kind, *([] if qa_type == "none" else [qa_type]), split)), n=n)
    for (where, reason), n in sorted(counts.drops.items()):
        yield CountEntry(group="quarantine", name=f"{where} {reason}", n=n)
