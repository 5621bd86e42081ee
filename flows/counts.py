"""How much of what a build made and dropped: the figures behind its card and its report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from flows.chain import Needs
from schemas.caption import MentionText, ObjectCaption
from schemas.clip import Clip, Split
from schemas.mention import Mention
from schemas.quarantine import QuarantineEntry, Reason, Stage
from schemas.sample import Kind, QaType, Sample
from schemas.track import Track
from schemas.verdict import Verdict


@dataclass(frozen=True)
class StageCounts:
    """What one stage was handed, what came out, and what it dropped, most frequent reason first."""

    stage: Stage
    taken: int
    taken_what: str
    given: int
    given_what: str
    dropped: tuple[tuple[Reason, int], ...]

    @property
    def num_dropped(self) -> int:
        """Everything this stage put into quarantine."""
        return sum(count for _, count in self.dropped)


@dataclass(frozen=True)
class BuildCounts:
    """The figures of a build, or of a part of one: parts add up with `+`.

    `reviewed` counts tracks with a verdict, `kept` those that the reviewer let through; `videos` holds SHA-256 sums.
    What the annotator describes (`annotator_needs`) is for the whole of a build to say: a sum has it from its first
    part.
    """

    source_rows: int = 0
    clips: int = 0
    mentions: int = 0
    tracks: int = 0
    captions: int = 0
    reviewed: int = 0
    kept: int = 0
    videos: frozenset[str] = frozenset()
    samples: Counter[tuple[Kind, QaType, Split]] = field(default_factory=Counter)
    drops: Counter[tuple[Stage, Reason]] = field(default_factory=Counter)
    clips_by_license: Counter[str] = field(default_factory=Counter)
    samples_by_license: Counter[str] = field(default_factory=Counter)
    annotator_needs: Needs = "tracks"

    def __add__(self, other: "BuildCounts") -> "BuildCounts":
        return BuildCounts(
            source_rows=self.source_rows + other.source_rows,
            clips=self.clips + other.clips,
            mentions=self.mentions + other.mentions,
            tracks=self.tracks + other.tracks,
            captions=self.captions + other.captions,
            reviewed=self.reviewed + other.reviewed,
            kept=self.kept + other.kept,
            videos=self.videos | other.videos,
            samples=self.samples + other.samples,
            drops=self.drops + other.drops,
            clips_by_license=self.clips_by_license + other.clips_by_license,
            samples_by_license=self.samples_by_license + other.samples_by_license,
            annotator_needs=self.annotator_needs,
        )

    @property
    def num_samples(self) -> int:
        """All samples."""
        return self.samples.total()

    @property
    def num_drops(self) -> int:
        """All quarantine entries."""
        return self.drops.total()

    def stages(self) -> tuple[StageCounts, ...]:
        """The way from rows to samples, stage by stage."""
        by_mention = self.annotator_needs == "mentions"
        described, reviewed = (self.mentions, "tracks") if by_mention else (self.tracks, "captions")
        return (
            self._stage("source", self.source_rows, "rows", self.clips, "clips"),
            self._stage("analyzer", self.clips, "clips", self.mentions, "mentions"),
            self._stage("segmenter", self.mentions, "mentions", self.tracks, "tracks"),
            self._stage("annotator", described, self.annotator_needs, self.captions, "captions"),
            self._stage("reviewer", self.reviewed, reviewed, self.kept, "kept"),
            self._stage("refiner", self.kept, "objects", self.num_samples, "samples"),
        )

    def _stage(self, stage: Stage, taken: int, taken_what: str, given: int, given_what: str) -> StageCounts:
        dropped = [(reason, count) for (where, reason), count in self.drops.items() if where == stage]
        ordered = tuple(sorted(dropped, key=lambda item: (-item[1], item[0])))
        return StageCounts(stage, taken, taken_what, given, given_what, ordered)


def count_build(
    source_rows: int,
    clips: Sequence[Clip],
    mentions: Sequence[Mention],
    tracks: Sequence[Track],
    captions: Sequence[ObjectCaption | MentionText],
    verdicts: Sequence[Verdict],
    samples: Sequence[Sample],
    quarantine: Sequence[QuarantineEntry],
) -> BuildCounts:
    """The figures of these records."""
    return BuildCounts(
        source_rows=source_rows,
        clips=len(clips),
        mentions=len(mentions),
        tracks=len(tracks),
        captions=len(captions),
        reviewed=len(verdicts),
        kept=sum(verdict.keep for verdict in verdicts),
        videos=frozenset(clip.video_sha256 for clip in clips),
        samples=Counter((sample.kind, sample.qa_type, sample.split) for sample in samples),
        drops=Counter((entry.stage, entry.reason) for entry in quarantine),
        clips_by_license=Counter(clip.license for clip in clips),
        samples_by_license=Counter(sample.license for sample in samples),
    )
