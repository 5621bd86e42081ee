"""Segmenter: one set of masks for each mention of a clip, or the reason why there is none."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.base import FrameSource, MaskTracker
from agents.histogram import hsv_histogram, intersection
from agents.measure import colour_shares, motion_facts
from agents.resolve import Candidate, Resolution, ResolveConfig, resolve
from infra.video import Image
from schemas.caption import ColourShare
from schemas.clip import Clip
from schemas.given import GivenMasks, GivenObject
from schemas.jobs import SegmenterJob
from schemas.label import AgentLabel
from schemas.mask import box_xyxy_px, check_size, decode, rle_iou
from schemas.mention import Mention
from schemas.quarantine import QuarantineEntry, Reason
from schemas.record import Record, Share, short_id
from schemas.track import ObjectMasks, Track, TrackSet

REVISION = 2
_BORDER_SHARE = 0.02
"""Of the frame's sides: nearer to the border, an object is taken to come in or go out."""


class SegmenterConfig(Record):
    """How tracks are matched to mentions."""

    min_visible_frames: int = Field(default=4, ge=1)
    """A track seen in fewer frames is too short to describe."""
    max_overlap: Share = 0.5
    """Of two picked tracks whose masks overlap more in the mean, the lesser is the same thing again."""
    likeness_frames: int = Field(default=8, ge=1)
    """Frames read to tell whether a track keeps to one object, where there are several."""
    colour_frames: int = Field(default=4, ge=1)
    """Frames read to measure an object's colours."""
    colour_long_side_px: int = Field(default=320, ge=32)
    """Size at which these frames are read."""
    resolve: ResolveConfig = ResolveConfig()


class Segmenter:
    """Clips and mentions to tracks: one call of the tracker for all clips and classes, then `agents.resolve`."""

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
        """One track set per job, in order; each mention has tracks in it or one rejected entry.

        Masks that came with a clip are its tracks as they are, and no tracker runs for it, nor for one without
        mentions.
        """
        wanted = [[] if job.given else sorted({item.detector_class for item in job.mentions.mentions}) for job in jobs]
        asked = [(job.clip, classes) for job, classes in zip(jobs, wanted, strict=True) if classes]
        answers = self._tracker.track_many(asked) if asked else []
        if len(answers) != len(asked):
            raise ValueError(f"tracker {self._tracker.name} gave {len(answers)} answers for {len(asked)} clips")
        found = iter(answers)
        return [
            self._pass_on(job.clip, job.mentions.mentions, job.given)
            if job.given
            else self._segment(job.clip, job.mentions.mentions, next(found) if classes else [])
            for job, classes in zip(jobs, wanted, strict=True)
        ]

    def close(self) -> None:
        """Nothing outlives the object."""

    def _pass_on(self, clip: Clip, mentions: Sequence[Mention], given: GivenMasks) -> TrackSet:
        tracks = [
            _track(clip, mention, nth, self._masks_of(clip, mention, item))
            for mention in mentions
            for nth, item in enumerate(given.objects)
        ]
        return TrackSet(clip_id=clip.clip_id, tracks=tuple(tracks), rejected=())

    def _masks_of(self, clip: Clip, mention: Mention, item: GivenObject) -> ObjectMasks:
        return ObjectMasks(
            detector_class=mention.detector_class,
            frame_idx=item.frame_idx,
            frame_time_s=self._frames.times_s(clip, item.frame_idx),
            rle=item.rle,
            height_px=clip.height_px,
            width_px=clip.width_px,
            score=1.0,
        )

    def _segment(self, clip: Clip, mentions: Sequence[Mention], found: Sequence[ObjectMasks]) -> TrackSet:
        long_enough = [item for item in found if _num_visible(item) >= self._config.min_visible_frames]
        with_colours = any(mention.said.colours for mention in mentions)
        num_found = Counter(item.detector_class for item in long_enough)
        in_company = [num_found[item.detector_class] > 1 for item in long_enough]
        images = self._images(clip, long_enough, with_colours, in_company)
        candidates = [
            self._candidate(clip, item, images, with_colours, in_company=alike)
            for item, alike in zip(long_enough, in_company, strict=True)
        ]
        tracks: list[Track] = []
        rejected: list[QuarantineEntry] = []
        outcomes = self._one_thing_once(clip, resolve(mentions, candidates, self._config.resolve), long_enough)
        for mention, outcome in zip(mentions, outcomes, strict=True):
            tracks += [_track(clip, mention, nth, long_enough[index]) for nth, index in enumerate(outcome.picked)]
            if outcome.reason is not None:
                reason, evidence = self._refusal(mention, outcome.reason, outcome.evidence, found, long_enough)
                rejected.append(_entry(clip, mention, reason, evidence))
        return TrackSet(clip_id=clip.clip_id, tracks=tuple(tracks), rejected=tuple(rejected))

    def _one_thing_once(
        self, clip: Clip, outcomes: Sequence[Resolution], found: Sequence[ObjectMasks]
    ) -> list[Resolution]:
        """The outcomes, refused where a pick covers the same pixels as one whose track is better."""
        best_first = sorted((-found[i].score, i, o.mention_id) for o in outcomes for i in o.picked)
        twins: dict[str, str] = {}
        kept: list[int] = []
        for _, index, mention_id in best_first:
            for counts in found[index].rle:
                if counts is not None:
                    check_size(counts, clip.height_px, clip.width_px)
            overlap = max((_mean_iou(found[index], found[other], clip) for other in kept), default=0.0)
            if overlap > self._config.max_overlap:
                twins[mention_id] = f"its track overlaps a better one by {overlap:.2f}: one thing found twice"
            else:
                kept.append(index)
        return [
            outcome.model_copy(update={"picked": (), "reason": "same_object", "evidence": twins[outcome.mention_id]})
            if outcome.mention_id in twins
            else outcome
            for outcome in outcomes
        ]

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

    def _images(
        self, clip: Clip, found: Sequence[ObjectMasks], with_colours: bool, in_company: Sequence[bool]
    ) -> dict[int, Image]:
        """The frames on which colours and likeness of all objects are measured, in one read, by frame index."""
        colour_frames = self._config.colour_frames if with_colours else 0
        wanted: set[int] = set()
        for masks, alike in zip(found, in_company, strict=True):
            for count in (colour_frames, self._config.likeness_frames if alike else 0):
                wanted.update(index for index, _ in _spread(masks, count))
        if not wanted:
            return {}
        frame_idx = sorted(wanted)
        return dict(zip(frame_idx, self._frames.read(clip, frame_idx, self._config.colour_long_side_px), strict=True))

    def _candidate(
        self, clip: Clip, masks: ObjectMasks, images: Mapping[int, Image], with_colours: bool, *, in_company: bool
    ) -> Candidate:
        seen = [counts for counts in masks.rle if counts is not None]
        boxes = np.array([box_xyxy_px(counts, masks.height_px, masks.width_px) for counts in seen])
        x1, y1, x2, y2 = np.median(boxes, axis=0)
        motion = motion_facts(masks, clip.start_s, clip.end_s)
        back_x, back_y = _back_diag(boxes, masks)
        return Candidate(
            detector_class=masks.detector_class,
            score=masks.score,
            visible_share=len(seen) / len(masks.rle),
            colours=self._colours(masks, images) if with_colours else (),
            x_share=float((x1 + x2) / 2 / masks.width_px),
            y_share=float((y1 + y2) / 2 / masks.height_px),
            travel_x_diag=motion.displacement_x_diag if motion else None,
            travel_y_diag=motion.displacement_y_diag if motion else None,
            growth=motion.growth if motion else None,
            back_x_diag=back_x,
            back_y_diag=back_y,
            breaks_off=_breaks_off(boxes, masks),
            likeness=self._likeness(masks, images) if in_company else 1.0,
        )

    def _colours(self, masks: ObjectMasks, images: Mapping[int, Image]) -> tuple[ColourShare, ...]:
        """The colours of an object's pixels over a few frames, evenly spread over those that show it."""
        return colour_shares(np.concatenate(_pixels(masks, images, self._config.colour_frames)))

    def _likeness(self, masks: ObjectMasks, images: Mapping[int, Image]) -> float:
        """How alike the object looks in the first and the second half of its frames: histogram intersection."""
        looks = [hsv_histogram(pixels) for pixels in _pixels(masks, images, self._config.likeness_frames)]
        half = len(looks) // 2
        if not half:
            return 1.0
        alike = intersection(np.mean(looks[:half], axis=0), np.mean(looks[half:], axis=0))
        return min(1.0, alike)  # sums of shares may pass 1 by rounding


def _spread(masks: ObjectMasks, count: int) -> list[tuple[int, str]]:
    """Up to `count` frames with their counts, evenly spread over those that show the object."""
    seen = [(index, counts) for index, counts in zip(masks.frame_idx, masks.rle, strict=True) if counts is not None]
    return [seen[place] for place in np.unique(np.linspace(0, len(seen) - 1, count).round().astype(int))]


def _pixels(masks: ObjectMasks, images: Mapping[int, Image], count: int) -> list[npt.NDArray[np.uint8]]:
    """(N, 3) pixels of an object in up to `count` frames, evenly spread over those that show it."""
    pixels: list[npt.NDArray[np.uint8]] = []
    for index, counts in _spread(masks, count):
        mask = decode(counts, masks.height_px, masks.width_px).astype(np.uint8)
        small = cv2.resize(mask, images[index].shape[1::-1], interpolation=cv2.INTER_AREA)
        pixels.append(images[index][small > 0])
    return pixels


def _back_diag(boxes: npt.NDArray[np.float64], masks: ObjectMasks) -> tuple[float, float]:
    """How far along x and y a path of (N, 4) boxes went against its displacement at most, in frame diagonals."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    # medians of three leave single bad masks out
    calm = np.median(np.stack([centres[:-2], centres[1:-1], centres[2:]]), axis=0) if len(centres) > 2 else centres
    onward = calm * np.where(calm[-1] < calm[0], -1, 1)
    back_px = (np.maximum.accumulate(onward, axis=0) - onward).max(axis=0)
    x, y = back_px / np.hypot(masks.height_px, masks.width_px)
    return float(x), float(y)


def _breaks_off(boxes: npt.NDArray[np.float64], masks: ObjectMasks) -> bool:
    """Whether the object, with a box for each frame that shows it, comes or goes away from the frame's border.

    Its first and last tracked frames are no coming and going.
    """
    size = np.array([masks.width_px, masks.height_px])
    slack = _BORDER_SHARE * size
    inside = np.asarray((boxes[:, :2] > slack).all(axis=1) & (boxes[:, 2:] < size - slack).all(axis=1))
    seen = np.array([counts is not None for counts in masks.rle])
    comes = seen[1:] & ~seen[:-1]
    goes = seen[:-1] & ~seen[1:]
    number = np.cumsum(seen) - 1
    return bool(inside[number[1:][comes]].any() or inside[number[:-1][goes]].any())


def _mean_iou(a: ObjectMasks, b: ObjectMasks, clip: Clip) -> float:
    """Mean IoU of two objects of a clip over the frames that show both, 0 where there is none."""
    other = dict(zip(b.frame_idx, b.rle, strict=True))
    return rle_iou(a.rle, [other.get(frame) for frame in a.frame_idx], (clip.height_px, clip.width_px))


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
    return QuarantineEntry.of_clip(
        clip, "segmenter", reason, evidence, subject_id=mention.mention_id, noun=mention.noun
    )
