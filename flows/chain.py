"""The chain of agents as the build sees it: what each one reads, and the key under which its output rests."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from flows.profile_config import ROLES, Role
from infra.given_store import given_store
from infra.lake import AgentStore, Lake
from schemas.caption import CaptionSet, MentionTextSet
from schemas.clip import Clip
from schemas.jobs import AnnotatorJob, RefinerJob, ReviewerJob, SegmenterJob, TextRefinerJob, TextReviewerJob
from schemas.label import AgentLabel
from schemas.mention import MentionSet
from schemas.quarantine import QuarantineEntry
from schemas.record import Record, content_id
from schemas.sample import SampleSet
from schemas.track import TrackSet
from schemas.verdict import VerdictSet

_JOBS: tuple[type[Record], ...] = (
    SegmenterJob,
    AnnotatorJob,
    ReviewerJob,
    TextReviewerJob,
    RefinerJob,
    TextRefinerJob,
)

Needs = Literal["mentions", "tracks"]
"""What an annotator's engine declares that it reads besides the clip."""


class Output(NamedTuple):
    """What an agent puts out, and the name under which that rests in later agents' jobs and holds its own records."""

    record: type[Record]
    field: str


def outputs_of(annotator_needs: Needs) -> dict[Role, Output]:
    """What each agent puts out: an annotator without tracks writes texts on mentions, one with them captions."""
    texts, captions = Output(MentionTextSet, "texts"), Output(CaptionSet, "captions")
    return {
        "analyzer": Output(MentionSet, "mentions"),
        "segmenter": Output(TrackSet, "tracks"),
        "annotator": texts if annotator_needs == "mentions" else captions,
        "reviewer": Output(VerdictSet, "verdicts"),
        "refiner": Output(SampleSet, "samples"),
    }


def upstream_of(annotator_needs: Needs) -> dict[Role, tuple[Role, ...]]:
    """What each agent reads: the paper's annotator beside the segmenter, one that needs tracks after it."""
    before_annotator: tuple[Role, ...] = ("analyzer",) if annotator_needs == "mentions" else ("analyzer", "segmenter")
    return {
        "analyzer": (),
        "segmenter": ("analyzer",),
        "annotator": before_annotator,
        "reviewer": ("analyzer", "segmenter", "annotator"),
        "refiner": ("analyzer", "segmenter", "annotator", "reviewer"),
    }


class Chain:
    """The agents' stores in one lake, with the key of every clip at every agent.

    A key names how an output comes about: the agent's label, the clip (caption, span and the video's SHA-256) and the
    keys of the outputs it reads. So every key of a build is known before any work, and what is stale can be counted
    without reading a single output.
    """

    def __init__(self, lake: Lake, labels: Mapping[Role, AgentLabel], annotator_needs: Needs) -> None:
        self.labels = dict(labels)
        self.annotator_needs: Needs = annotator_needs
        self.upstream = upstream_of(annotator_needs)
        self.output = outputs_of(annotator_needs)
        self._keys: dict[str, dict[Role, str]] = {}
        self._given = given_store(lake)
        self._stores: dict[Role, AgentStore[Any]] = {
            role: lake.agent_store(labels[role], self.output[role].record) for role in ROLES
        }
        self._failures = {role: lake.failure_store(labels[role]) for role in ROLES}

    def keys(self, clip: Clip) -> dict[Role, str]:
        """The clip's key at every agent."""
        if clip.clip_id not in self._keys:
            keys: dict[Role, str] = {}
            for role in ROLES:
                keys[role] = content_id(self.labels[role], clip, *(keys[upstream] for upstream in self.upstream[role]))
            self._keys[clip.clip_id] = keys
        return self._keys[clip.clip_id]

    def waits_for(self, role: Role) -> tuple[Role, ...]:
        """The agents right before this one: what it reads, without what those have waited for themselves."""
        read = self.upstream[role]
        return tuple(other for other in read if not any(other in self.upstream[later] for later in read))

    def store(self, role: Role) -> AgentStore[Any]:
        """Where one agent's outputs rest."""
        return self._stores[role]

    def failure_store(self, role: Role) -> AgentStore[QuarantineEntry]:
        """Where it rests what one agent could not finish."""
        return self._failures[role]

    def stale(self, role: Role, clips: Iterable[Clip]) -> list[Clip]:
        """The clips that this agent has neither an output for nor failed on."""
        settled = self._stores[role].keys() | self._failures[role].keys()
        return [clip for clip in clips if self.keys(clip)[role] not in settled]

    def failures(self, role: Role, clips: Iterable[Clip]) -> list[QuarantineEntry]:
        """What this agent could not finish of the clips; an output that came about in spite of it counts, and so does
        that a failure was taken out.
        """
        keys = {self.keys(clip)[role] for clip in clips} - self._stores[role].keys()
        found = self._failures[role].find(keys)
        return sorted(found.values(), key=lambda entry: entry.clip_id)

    def outputs(self, role: Role, clips: Sequence[Clip]) -> dict[str, Any]:
        """The outputs of one agent by clip id; clips without one are left out."""
        by_key = {self.keys(clip)[role]: clip.clip_id for clip in clips}
        held = self._stores[role].keys() & by_key.keys()
        return {by_key[key]: output for key, output in self._stores[role].read(held).items()}

    def jobs(self, role: Role, clips: Sequence[Clip]) -> list[Record]:
        """What the agent is to be handed for each clip whose upstream outputs are all there, in order."""
        if role == "analyzer":
            return list(clips)
        upstream = {other: self.outputs(other, clips) for other in self.upstream[role]}
        ready = [clip for clip in clips if all(clip.clip_id in found for found in upstream.values())]
        fields = {"clip", *(self.output[other].field for other in upstream)}
        (job_type,) = (job for job in _JOBS if job.model_fields.keys() - {"given"} == fields)
        given = self._given.read({clip.given_sha256 for clip in ready} - {""}) if role == "segmenter" else {}
        return [
            job_type.model_validate(
                {"clip": clip}
                | {self.output[other].field: found[clip.clip_id] for other, found in upstream.items()}
                | ({"given": given[clip.given_sha256]} if clip.given_sha256 in given else {})
            )
            for clip in ready
        ]
