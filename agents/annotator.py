"""Annotator: what can be measured of each track, as facts and as two texts, motion and appearance apart.

The paper's annotator asks InternVL2 two questions per object, on its dynamics and on its looks (App. C); this one
measures both from masks and pixels: it names no action, part or material, and is as right as its masks are. Motion is
that in the frame, so a moving camera moves everything.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.base import FrameSource
from agents.measure import colour_shares, contacts, motion_facts, size_of
from agents.wording import (
    Subject,
    colours_clause,
    contact_clause,
    escape_tags,
    motion_clause,
    sentence,
    size_clause,
    view_clause,
)
from infra.video import Image
from schemas.caption import AppearanceFacts, CaptionSet, Contact, MotionFacts, ObjectCaption
from schemas.clip import Clip
from schemas.jobs import AnnotatorJob
from schemas.label import AgentLabel
from schemas.mask import area_px, decode
from schemas.quarantine import QuarantineEntry
from schemas.record import Record
from schemas.track import ObjectMasks, Track

REVISION = 1


class AnnotatorConfig(Record):
    """Settings of the measuring annotator."""

    future_share: float = Field(default=0.6, gt=0, lt=1)
    """Part of the clip that is shown before a future question."""
    num_colour_frames: int = Field(default=3, ge=1)
    """Frames of each track whose pixels are looked at."""
    long_side_px: int = Field(default=320, ge=32)
    """Size at which these frames are read."""


class Annotator:
    """AnnotatorJob to CaptionSet, from measurements alone."""

    needs: Literal["mentions", "tracks"] = "tracks"

    def __init__(self, config: AnnotatorConfig, frames: FrameSource) -> None:
        self._config = config
        self._frames = frames

    def label(self) -> AgentLabel:
        """Engine `measured-facts`, without weights or prompts."""
        return AgentLabel(
            agent="annotator",
            engine="measured-facts",
            weights=(),
            config_json=self._config.model_dump_json(),
            prompt_hash="",
            revision=REVISION,
        )

    def setup(self) -> None:
        """Nothing to load."""

    def close(self) -> None:
        """Nothing to free."""

    def process(self, jobs: Sequence[AnnotatorJob]) -> list[CaptionSet]:
        """One caption set per job; tracks seen in fewer than two frames are rejected."""
        return [self._annotate(job) for job in jobs]

    def _annotate(self, job: AnnotatorJob) -> CaptionSet:
        images = self._read(job.clip, job.tracks.tracks)
        captions, rejected = [], []
        for track in job.tracks.tracks:
            motion = motion_facts(track.masks, job.clip.start_s, job.clip.end_s)
            if motion is None:
                rejected.append(_too_short(job.clip, track))
            else:
                captions.append(self._caption(job, track, motion, images))
        return CaptionSet(clip_id=job.clip.clip_id, captions=tuple(captions), rejected=tuple(rejected))

    def _caption(
        self, job: AnnotatorJob, track: Track, motion: MotionFacts, images: Mapping[int, Image]
    ) -> ObjectCaption:
        clip = job.clip
        visible_until_s = clip.start_s + self._config.future_share * (clip.end_s - clip.start_s)
        looks = self._appearance(track, images)
        touched = tuple(_contacts(track, job.tracks.tracks))
        seen_s = [
            time_s
            for time_s, counts in zip(track.masks.frame_time_s, track.masks.rle, strict=True)
            if counts is not None
        ]
        appearance, motion_text = _texts(clip, track, looks, motion, touched, (seen_s[0], seen_s[-1]))
        return ObjectCaption(
            track_id=track.track_id,
            mention_id=track.mention_id,
            noun=track.noun,
            visible_from_s=seen_s[0],
            visible_to_s=seen_s[-1],
            visible_until_s=visible_until_s,
            appearance_facts=looks,
            motion_facts=motion,
            seen_facts=motion_facts(track.masks, clip.start_s, visible_until_s),
            rest_facts=motion_facts(track.masks, visible_until_s, clip.end_s),
            contacts=touched,
            appearance=appearance,
            motion=motion_text,
            moving=motion.moves,
        )

    def _read(self, clip: Clip, tracks: Sequence[Track]) -> dict[int, Image]:
        """The colour frames of all tracks in one read, by frame index."""
        wanted = sorted({index for track in tracks for index in self._colour_frames(track.masks)})
        if not wanted:
            return {}
        return dict(zip(wanted, self._frames.read(clip, wanted, self._config.long_side_px), strict=True))

    def _colour_frames(self, masks: ObjectMasks) -> list[int]:
        """Visible frames at the middles of equal parts of the track."""
        visible = [index for index, counts in zip(masks.frame_idx, masks.rle, strict=True) if counts is not None]
        num = min(self._config.num_colour_frames, len(visible))
        return [visible[(2 * i + 1) * len(visible) // (2 * num)] for i in range(num)]

    def _appearance(self, track: Track, images: Mapping[int, Image]) -> AppearanceFacts:
        masks = track.masks
        counts_at = dict(zip(masks.frame_idx, masks.rle, strict=True))
        pixels = [
            _inner_pixels(images[index], decode(counts, masks.height_px, masks.width_px))
            for index in self._colour_frames(masks)
            if (counts := counts_at[index]) is not None
        ]
        areas_px = [area_px(counts) for counts in masks.rle if counts is not None]
        area_share = float(np.median(areas_px)) / (masks.height_px * masks.width_px)
        return AppearanceFacts(
            detector_class=masks.detector_class,
            colours=colour_shares(np.concatenate(pixels)),
            size=size_of(area_share),
            area_share=round(area_share, 6),
        )


def _inner_pixels(image: Image, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Pixels (N, 3) on the object, without its rim, which mixes with the background."""
    height, width = image.shape[:2]
    small = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA)
    inner = cv2.erode(small, np.ones((5, 5), np.uint8))
    return np.asarray(image[(inner if inner.any() else small).astype(bool)], dtype=np.uint8)


def _contacts(track: Track, tracks: Sequence[Track]) -> list[Contact]:
    return [
        Contact(track_id=other.track_id, noun=other.noun, start_s=start_s, end_s=end_s)
        for other in tracks
        if other.track_id != track.track_id
        for start_s, end_s in contacts(track.masks, other.masks)
    ]


def _texts(
    clip: Clip,
    track: Track,
    looks: AppearanceFacts,
    motion: MotionFacts,
    touched: Sequence[Contact],
    view_s: tuple[float, float],
) -> tuple[str, str]:
    """The texts on looks and on motion."""
    subject = Subject(escape_tags(track.noun), looks.detector_class == "person")
    appearance = [colours_clause(subject, looks), f"{subject.it} {size_clause(looks)}"]
    moves = [f"{subject.the} {motion_clause(motion)}"]
    if touched:
        moves.append(f"in the frame, {subject.it} {contact_clause(track.noun, touched, clip.start_s)}")
    moves.append(f"{subject.it} {view_clause(*view_s, clip.start_s, clip.end_s)}")
    return " ".join(map(sentence, appearance)), " ".join(map(sentence, moves))


def _too_short(clip: Clip, track: Track) -> QuarantineEntry:
    seen = sum(counts is not None for counts in track.masks.rle)
    evidence = f"seen in {seen} of {len(track.masks.rle)} frames; motion needs at least 2 with a mask in the clip"
    return QuarantineEntry.of_clip(
        clip, "annotator", "track_too_short", evidence, subject_id=track.track_id, noun=track.noun
    )
