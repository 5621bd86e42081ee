"""Reviewer: an independent look at every track, with a verdict, a score and the checks behind it.

The paper has Osprey describe the masked object in one frame and Qwen2 say whether that is the annotator's object
(arXiv 2501.00599, App. C; 40 % kept; precision 0.88 and recall 0.71 by hand, Table 8). Here other frames, another model
and other measuring code than the segmenter's and the annotator's are held against the caption's claims and theirs.

Rule: a track is dropped when any check disagrees; what cannot be told never drops. Every check disagrees only beyond a
margin of its own (`agents.review_checks`). The verdict's score is the lowest score among the checks that could tell.
"""

import json
from collections.abc import Sequence

import cv2
import numpy as np
from pydantic import Field

from agents.base import FrameSource, ImageClassifier, TextEmbedder
from agents.class_vote import ON_PERSONS, RIDDEN_ANIMALS, ClassVote, Vote
from agents.imagenet_table import LABELS
from agents.nouns import NounMap, NounMatch
from agents.review_checks import REASONS, Evidence, all_checks
from agents.second_look import Look, box_path, crop_for_classifier
from infra.video import Image
from schemas.jobs import ReviewerJob
from schemas.label import AgentLabel
from schemas.mask import decode
from schemas.mention import Mention
from schemas.quarantine import QuarantineEntry
from schemas.record import Record, short_id
from schemas.track import ObjectMasks, Track
from schemas.verdict import Check, Verdict, VerdictSet

REVISION = 2
MIN_VOTE_PX = 1600
"""Smaller masks are blown up more than sevenfold for the classifier, which then guesses."""


class ReviewerConfig(Record):
    """How closely the reviewer looks."""

    looks: int = Field(default=6, ge=1, le=32)
    """Frames of each track that are read."""
    long_side_px: int = Field(default=480, ge=64)
    """Size to which these frames are shrunk."""
    noun_threshold: float = Field(default=0.6, ge=0, le=1)
    """Least cosine at which a noun's nearest class is held against the mention's."""


class Reviewer:
    """ReviewerJob to verdicts; `classes` are those of the segmenter's detector."""

    def __init__(
        self,
        config: ReviewerConfig,
        frames: FrameSource,
        classifier: ImageClassifier,
        embedder: TextEmbedder,
        classes: tuple[str, ...],
    ) -> None:
        self._config, self._frames, self._classifier, self._embedder = config, frames, classifier, embedder
        self._classes = classes
        self._nouns: NounMap | None = None
        self._votes: ClassVote | None = None

    def label(self) -> AgentLabel:
        """Classifier and embedder with their weights, the settings, the classes and the table of their labels."""
        config = self._config.model_dump(mode="json") | {
            "classes": short_id(*self._classes),
            "labels": short_id(json.dumps(LABELS), *ON_PERSONS, RIDDEN_ANIMALS),
        }
        return AgentLabel(
            agent="reviewer",
            engine=f"second-look+{self._classifier.name}+{self._embedder.name}",
            weights=(*self._classifier.weights(), *self._embedder.weights()),
            config_json=json.dumps(config, sort_keys=True),
            prompt_hash="",
            revision=REVISION,
        )

    def setup(self) -> None:
        """Load classifier and embedder, and embed the classes."""
        self._classifier.setup()
        self._embedder.setup()
        self._nouns = NounMap(self._embedder, self._classes)
        self._votes = ClassVote(self._classifier.labels)

    def process(self, jobs: Sequence[ReviewerJob]) -> list[VerdictSet]:
        """One verdict per track of each job, in order; dropped tracks in `rejected` too."""
        return [self._review(job) for job in jobs]

    def close(self) -> None:
        """Forget the embedded classes and labels."""
        self._nouns = self._votes = None

    def _review(self, job: ReviewerJob) -> VerdictSet:
        tracks = job.tracks.tracks
        looks = self._look(job, tracks)
        verdicts = tuple(self._verdict(job, track, looks[track.track_id]) for track in tracks)
        rejected = tuple(
            _rejection(job, track, verdict) for track, verdict in zip(tracks, verdicts, strict=True) if not verdict.keep
        )
        return VerdictSet(clip_id=job.clip.clip_id, verdicts=verdicts, rejected=rejected)

    def _look(self, job: ReviewerJob, tracks: Sequence[Track]) -> dict[str, list[Look]]:
        """The looks of every track, all frames of the clip in one read."""
        picked = {track.track_id: look_positions(track.masks, self._config.looks) for track in tracks}
        wanted = sorted({track.masks.frame_idx[i] for track in tracks for i in picked[track.track_id]})
        if not wanted:
            return {track.track_id: [] for track in tracks}
        images = dict(zip(wanted, self._frames.read(job.clip, wanted, self._config.long_side_px), strict=True))
        return {
            track.track_id: [
                look
                for i in picked[track.track_id]
                if (look := _look_at(images[track.masks.frame_idx[i]], track.masks, i)) is not None
            ]
            for track in tracks
        }

    def _verdict(self, job: ReviewerJob, track: Track, looks: list[Look]) -> Verdict:
        mention = next((m for m in job.mentions.mentions if m.mention_id == track.mention_id), None)
        evidence = Evidence(
            job=job,
            track=track,
            mention=mention,
            caption=next((c for c in job.captions.captions if c.track_id == track.track_id), None),
            path=box_path(track.masks),
            looks=looks,
            noun=self._noun(track, mention),
            vote=self._vote(track, looks),
        )
        return judge(track.track_id, all_checks(evidence))

    def _noun(self, track: Track, mention: Mention | None) -> NounMatch | None:
        """Where the noun goes, or it and the word before it ("dirt bike"), if together they are the mention's class."""
        assert self._nouns is not None, "setup() comes first"
        if mention is None or mention.detector_class not in self._classes:
            return None
        before = mention.phrase.lower().split()[-2:-1]
        whole = self._nouns.match(" ".join([*before, mention.noun]), self._config.noun_threshold)
        if whole.kind == "class" and whole.detector_class == mention.detector_class and " " in whole.nearest_word:
            return whole
        return self._nouns.match(track.noun, self._config.noun_threshold)

    def _vote(self, track: Track, looks: Sequence[Look]) -> Vote | None:
        assert self._votes is not None, "setup() comes first"
        large = [look for look in looks if look.mask.sum() >= MIN_VOTE_PX]
        if not large or track.masks.detector_class not in self._classes:
            return None  # of a noun that no detector knows, nobody knows what the labels of its pictures should be
        probabilities = [self._classifier.probabilities(crop_for_classifier(look)) for look in large]
        return self._votes.vote(np.mean(probabilities, axis=0), track.masks.detector_class)


def judge(track_id: str, checks: tuple[Check, ...]) -> Verdict:
    """Keep unless a check disagrees; the lowest-scoring one gives the reason, the first in order among equals."""
    telling = [check for check in checks if check.outcome != "cannot_tell"]
    against = [check for check in telling if check.outcome == "disagrees"]
    decisive = min(against, key=lambda check: check.score) if against else None
    return Verdict(
        track_id=track_id,
        keep=decisive is None,
        score=min((check.score for check in telling), default=0.5),
        reason=REASONS[decisive.name] if decisive else None,
        checks=checks,
    )


def look_positions(masks: ObjectMasks, num: int) -> list[int]:
    """Up to `num` positions in `masks` at which the object is seen, a third into equal parts and at odd places.

    Segmenters detect on evenly spaced key frames, which an even step from the start would meet again.
    """
    seen = [i for i, counts in enumerate(masks.rle) if counts is not None]
    wanted = [int((i + 1 / 3) * len(seen) / num) | 1 for i in range(num)]
    return sorted({seen[min(position, len(seen) - 1)] for position in wanted})


def _look_at(image: Image, masks: ObjectMasks, position: int) -> Look | None:
    counts = masks.rle[position]
    assert counts is not None, "only seen frames are looked at"
    full = decode(counts, masks.height_px, masks.width_px).astype(np.uint8)
    mask = cv2.resize(full, image.shape[1::-1], interpolation=cv2.INTER_NEAREST).astype(np.bool_)
    return Look(image, mask) if mask.any() else None


def _rejection(job: ReviewerJob, track: Track, verdict: Verdict) -> QuarantineEntry:
    assert verdict.reason is not None, "only dropped tracks are rejected"
    against = [check for check in verdict.checks if check.outcome == "disagrees"]
    evidence = "; ".join(f"{check.name}: {check.detail}" for check in against)
    return QuarantineEntry.of_clip(
        job.clip, "reviewer", verdict.reason, evidence, subject_id=track.track_id, noun=track.noun
    )
