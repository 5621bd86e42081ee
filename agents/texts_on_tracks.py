"""The refiner where the annotator ran beside the segmenter: texts on mentions meet tracks, and facts are measured.

Samples need facts of each object (directions, contacts, what can be seen when), and those need tracks. They are
measured here as `agents.annotator` measures them, and the mention's texts stand in place of the measured ones. From
there on a refiner works as it does behind an annotator that needs tracks.

Of a mention with a stated count ("two dogs") each track bears the same texts, which hold of each (see the prompts). A
track whose mention has no text, because the annotator left it out, gives no sample and is rejected with that reason.
"""

import asyncio
import json
from collections.abc import Sequence

from agents.annotator import REVISION as FACTS_REVISION
from agents.annotator import Annotator
from agents.base import Agent, AsyncAgent
from schemas.caption import CaptionSet
from schemas.clip import Clip
from schemas.jobs import AnnotatorJob, RefinerJob, TextRefinerJob
from schemas.label import AgentLabel
from schemas.quarantine import QuarantineEntry, Reason
from schemas.sample import SampleSet
from schemas.track import Track

REVISION = 1


class RefinerOfTexts:
    """TextRefinerJob to SampleSet, by a refiner of captions and an annotator that measures the facts."""

    def __init__(self, refiner: Agent[RefinerJob, SampleSet], facts: Annotator) -> None:
        self._refiner, self._facts = refiner, facts

    def label(self) -> AgentLabel:
        """The refiner's, with what shapes the facts."""
        return _label_with(self._refiner.label(), self._facts)

    def setup(self) -> None:
        """Load what the refiner needs."""
        self._refiner.setup()

    def close(self) -> None:
        """Free it."""
        self._refiner.close()

    def process(self, jobs: Sequence[TextRefinerJob]) -> list[SampleSet]:
        """One sample set per job; every kept track is in a sample or, with the reason, in `rejected`, and so is every
        track whose mention has no text.
        """
        measured = [with_facts(job, self._facts) for job in jobs]
        refined = self._refiner.process(measured)
        return [_with_rejected(*parts) for parts in zip(jobs, measured, refined, strict=True)]


class ChatRefinerOfTexts:
    """As `RefinerOfTexts`, for a refiner behind a chat server."""

    def __init__(self, refiner: AsyncAgent[RefinerJob, SampleSet], facts: Annotator) -> None:
        self._refiner, self._facts = refiner, facts

    def label(self) -> AgentLabel:
        """The refiner's, with what shapes the facts."""
        return _label_with(self._refiner.label(), self._facts)

    async def setup(self) -> None:
        """Open what the refiner needs."""
        await self._refiner.setup()

    async def close(self) -> None:
        """Close it."""
        await self._refiner.close()

    async def probe(self) -> None:
        """Ask the refiner's server for a word."""
        await self._refiner.probe()

    async def process_one(self, job: TextRefinerJob) -> SampleSet:
        """The clip's samples, as `RefinerOfTexts.process` gives them.

        Raises what the refiner raises, and VideoError.
        """
        measured = await asyncio.to_thread(with_facts, job, self._facts)
        return _with_rejected(job, measured, await self._refiner.process_one(measured))


def with_facts(job: TextRefinerJob, facts: Annotator) -> RefinerJob:
    """The job with captions: measured facts and the mentions' texts. Tracks without a text are left out of it, though
    not out of what others touch; of those with one, the captions' `rejected` are too short to be measured. Raises
    VideoError.
    """
    measured_job = AnnotatorJob(clip=job.clip, mentions=job.mentions, tracks=job.tracks)
    (measured,) = facts.process([measured_job])
    texts = {text.mention_id: text for text in job.texts.texts}
    captions = tuple(
        caption.model_copy(update={"appearance": text.appearance, "motion": text.motion, "moving": text.moving})
        for caption in measured.captions
        if (text := texts.get(caption.mention_id))
    )
    told = tuple(track for track in job.tracks.tracks if track.mention_id in texts)
    told_ids = {track.track_id for track in told}
    too_short = tuple(entry for entry in measured.rejected if entry.subject_id in told_ids)
    return RefinerJob(
        clip=job.clip,
        mentions=job.mentions,
        tracks=job.tracks.model_copy(update={"tracks": told}),
        captions=CaptionSet(clip_id=measured.clip_id, captions=captions, rejected=too_short),
        verdicts=job.verdicts,
    )


def label_with_facts(label: AgentLabel, facts: Annotator) -> AgentLabel:
    """The annotator's label as samples are to bear it: who wrote the texts, and who measured the facts."""
    return label.model_copy(update={"engine": f"{label.engine}+{facts.label().engine}"})


def _label_with(label: AgentLabel, facts: Annotator) -> AgentLabel:
    config = json.loads(label.config_json) | {
        "facts": json.loads(facts.label().config_json),
        "facts_revision": FACTS_REVISION,
        "texts_revision": REVISION,
    }
    return label.model_copy(update={"config_json": json.dumps(config, sort_keys=True)})


def _with_rejected(job: TextRefinerJob, measured: RefinerJob, refined: SampleSet) -> SampleSet:
    """The samples, with the tracks that are too short to be measured and those that no text is on."""
    too_short = [entry.model_copy(update={"stage": "refiner"}) for entry in measured.captions.rejected]
    told = {text.mention_id for text in job.texts.texts}
    reasons = {entry.subject_id: entry.reason for entry in job.texts.rejected}
    without_text = [
        _no_text(job.clip, track, reasons[track.mention_id])
        for track in job.tracks.tracks
        if track.mention_id not in told
    ]
    return refined.model_copy(update={"rejected": (*refined.rejected, *too_short, *without_text)})


def _no_text(clip: Clip, track: Track, why: Reason) -> QuarantineEntry:
    evidence = f"the annotator left out its mention {track.mention_id}: {why}"
    return QuarantineEntry.of_clip(clip, "refiner", "no_sample", evidence, subject_id=track.track_id, noun=track.noun)
