"""Quarantine: what was dropped or failed, each with its reason and evidence."""

from typing import Literal, Self

from pydantic import Field

from schemas.clip import Clip
from schemas.record import Record

Stage = Literal["source", "analyzer", "segmenter", "annotator", "reviewer", "refiner"]

Reason = Literal[
    # source: the row or the video
    "missing_file",
    "empty_file",
    "outside_root",
    "no_caption",
    "caption_too_long",
    "unsupported_language",
    "unreadable_video",
    "no_video_stream",
    "still_image",
    "too_large",
    "truncated",
    "bad_span",
    "bad_row",
    "shot_too_short",
    "bad_masks",
    # source: kept out, so that a bench stays unseen
    "bench_video",
    "near_duplicate",
    # analyzer: the noun
    "not_detectable",
    "scenery",
    "pronoun",
    "no_mention",
    "no_masks_given",
    "not_in_caption",
    # segmenter: the object
    "not_found",
    "ambiguous",
    "plural",
    "count_mismatch",
    "same_object",
    "track_too_short",
    # annotator: the object
    "static_subject",
    "unusable_text",
    # reviewer: the claim
    "other_object",
    "unsure_match",
    "class_mismatch",
    "colour_mismatch",
    "direction_mismatch",
    "place_mismatch",
    "count_claim_mismatch",
    "unstable_mask",
    "not_visible",
    # refiner: the kind of sample
    "no_sample",
    # any stage: the machine
    "agent_error",
    "agent_timeout",
    "agent_died",
    "no_answer",
    "request_declined",
]


class QuarantineEntry(Record):
    """One thing that left the graph before a sample.

    `subject_id` names it: a source id, clip id, mention id or track id, as `stage` says; `noun` is its word where it
    has one, else empty. `evidence` is a sentence with the figures that decided. `retryable` is true where the same
    input may pass on another try (a death, a time-out), false where only a change of input or profile helps.
    """

    subject_id: str = Field(min_length=1)
    source_id: str
    clip_id: str
    noun: str = ""
    stage: Stage
    reason: Reason
    evidence: str
    retryable: bool = False

    @classmethod
    def of_clip(
        cls,
        clip: Clip,
        stage: Stage,
        reason: Reason,
        evidence: str,
        *,
        subject_id: str = "",
        noun: str = "",
        retryable: bool = False,
    ) -> Self:
        """What left the graph of a clip: its mention or track `subject_id`, or the clip itself where none is given."""
        return cls(
            subject_id=subject_id or clip.clip_id,
            source_id=clip.source_id,
            clip_id=clip.clip_id,
            noun=noun,
            stage=stage,
            reason=reason,
            evidence=evidence,
            retryable=retryable,
        )
