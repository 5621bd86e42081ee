"""Segmenter: one set of masks for each mention of a clip, or the reason why there is none."""

import json
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.base import FrameSource, MaskTracker
from agents.measure import colour_shares, motion_facts
from agents.resolve import Candidate, ResolveConfig, resolve
from schemas.caption import ColourShare
from schemas.clip import Clip
from schemas.jobs import SegmenterJob
from schemas.label import AgentLabel
from schemas.mask import box_xyxy_px, decode
from schemas.mention import Mention
from schemas.quarantine import QuarantineEntry, Reason
from schemas.record import Record, short_id
from schemas.track import ObjectMasks, Track, TrackSet

REVISION = 1


class SegmenterConfig(Record):
    """How tracks are matched to mentions.

    `min_visible_frames`: a track seen in fewer frames is too short to describe.
    `colour_frames`, `colour_long_side_px`: how many frames, of which size, are read to measure an object's colours.
    """

    min_visible_frames: int = Field(default=4, ge=1)
    colour_frames: int = Field(default=4, ge=1)
    colour_long_side_px: int = Field(default=320, ge=32)
    resolve: ResolveConfig = ResolveConfig()


class Segmenter:
    """Clip and mentions to tracks: one call of the tracker for all classes mentioned, then `agents.resolve`."""

    def __init__(self, config: SegmenterConfig, tracker: MaskTracker, frames: FrameSource) -> None:
        self._config, self._tracker, self._frames = config, tracker, frames

    def label(self) -> AgentLabel:
        """The tracker, its weights and both configurations."""
        config = {"segmenter": self._config.model_dump(mode="json"), "tracker": self._tracker.settings()}
        return AgentLabel(
            agent="segmenter",
            engine=self._tracker.name,
            weights=self._tracker.weights(),
            config_json=json.dumps(config, sort_keys=True),
            prompt_hash="",
            revision=REVISION,
        )

    def setup(self) -> None:
        """Load the tracker's models."""
        self._tracker.setup()

    def process(self, jobs: Sequence[SegmenterJob]) -> list[TrackSet]:
        """One track set per job, in order; each mention has tracks in it or one rejected entry."""
        return [self._segment(job.clip, job.mentions.mentions) for job in jobs]

    def close(self) -> None:
        """Nothing outlives the object."""

    def _segment(self, clip: Clip, mentions: Sequence[Mention]) -> TrackSet:
        classes = sorted({mention.detector_class for mention in mentions})
        found = self._tracker.track(clip, classes) if classes else []
        long_enough = [item for item in found if _num_visible(item) >= self._config.min_visible_frames]
        with_colours = any(mention.said.colours for mention in mentions)
        candidates = [self._candidate(clip, item, with_colours) for item in long_enough]
        tracks: list[Track] = []
        rejected: list[QuarantineEntry] = []
        outcomes = resolve(mentions, candidates, self._config.resolve)
        for mention, outcome in zip(mentions, outcomes, strict=True):
            tracks += [_track(clip, mention, nth, long_enough[index]) for nth, index in enumerate(outcome.picked)]
            if outcome.reason is not None:
                reason, evidence = self._refusal(mention, outcome.reason, outcome.evidence, found, long_enough)
                rejected.append(_entry(clip, mention, reason, evidence))
        return TrackSet(clip_id=clip.clip_id, tracks=tuple(tracks), rejected=tuple(rejected))

    def _refusal(
        self,
        mention: Mention,
        reason: Reason,
        evidence: str,
        found: Sequence[ObjectMasks],
        long_enough: Sequence[ObjectMasks],
    ) -> tuple[Reason, str]:
        """`not_found` becomes `track_too_short` where the class was seen, but never for long enough."""
        brief = [_num_visible(item) for item in found if item.detector_class == mention.detector_class]
        if reason != "not_found" or not brief or any(i.detector_class == mention.detector_class for i in long_enough):
            return reason, evidence
        least = self._config.min_visible_frames
        return "track_too_short", f"seen in {max(brief)} tracked frames at most, {least} are needed"

    def _candidate(self, clip: Clip, masks: ObjectMasks, with_colours: bool) -> Candidate:
        seen = [counts for counts in masks.rle if counts is not None]
        boxes = np.array([box_xyxy_px(counts, masks.height_px, masks.width_px) for counts in seen])
        x1, y1, x2, y2 = np.median(boxes, axis=0)
        motion = motion_facts(masks, clip.start_s, clip.end_s)
        return Candidate(
            detector_class=masks.detector_class,
            score=masks.score,
            visible_share=len(seen) / len(masks.rle),
            colours=self._colours(clip, masks) if with_colours else (),
            x_share=float((x1 + x2) / 2 / masks.width_px),
            y_share=float((y1 + y2) / 2 / masks.height_px),
            travel_x_diag=motion.displacement_x_diag if motion else None,
            travel_y_diag=motion.displacement_y_diag if motion else None,
            growth=motion.growth if motion else None,
        )

    def _colours(self, clip: Clip, masks: ObjectMasks) -> tuple[ColourShare, ...]:
        """The colours of an object's pixels over a few frames, evenly spread over those that show it."""
        seen = [(index, rle) for index, rle in zip(masks.frame_idx, masks.rle, strict=True) if rle is not None]
        places = np.unique(np.linspace(0, len(seen) - 1, self._config.colour_frames).round().astype(int))
        picked = [seen[place] for place in places]
        frames = self._frames.read(clip, [index for index, _ in picked], self._config.colour_long_side_px)
        pixels: list[npt.NDArray[np.uint8]] = []
        for frame, (_, counts) in zip(frames, picked, strict=True):
            mask = decode(counts, masks.height_px, masks.width_px).astype(np.uint8)
            small = cv2.resize(mask, frame.shape[1::-1], interpolation=cv2.INTER_AREA)
            pixels.append(frame[small > 0])
        return colour_shares(np.concatenate(pixels))


def _num_visible(masks: ObjectMasks) -> int:
    return sum(counts is not None for counts in masks.rle)


def _track(clip: Clip, mention: Mention, nth: int, masks: ObjectMasks) -> Track:
    return Track(
        track_id=short_id(clip.clip_id, mention.mention_id, nth),
        clip_id=clip.clip_id,
        mention_id=mention.mention_id,
        noun=mention.noun,
        masks=masks,
    )


def _entry(clip: Clip, mention: Mention, reason: Reason, evidence: str) -> QuarantineEntry:
    return QuarantineEntry(
        subject_id=mention.mention_id,
        source_id=clip.source_id,
        clip_id=clip.clip_id,
        noun=mention.noun,
        stage="segmenter",
        reason=reason,
        evidence=evidence,
    )
