"""Reviewer by chat models: a region captioner says what it sees in one mask, a text model whether that is the object.

As the paper has it (App. C), with Osprey and Qwen2-Instruct-7B: the captioner knows neither noun nor text, and what is
not a yes is dropped; of the paper's samples 40 % are kept. Here the model gives its reason before it answers, may say
that it cannot tell, which drops under a reason of its own, and the captioner is any model that sees.
"""

import asyncio
from typing import Literal, NamedTuple, Protocol

from pydantic import Field

from agents.base import FrameSource
from agents.chat_agent import ChatAgent
from agents.chat_prompt import chat_label, prompt_hash, read_prompt, sampling_of, tag_of, weights_of
from agents.marked_frames import Mask, marked_picture, mask_on
from infra.chat import JsonObject
from infra.structured_chat import Question, StructuredChat
from infra.video import Image
from schemas.clip import Clip
from schemas.jobs import ReviewerJob, TextReviewerJob
from schemas.label import AgentLabel
from schemas.mask import area_px
from schemas.quarantine import QuarantineEntry, Reason
from schemas.record import Record
from schemas.track import ObjectMasks, Track
from schemas.verdict import Check, Outcome, Verdict, VerdictSet

REVISION = 1
DESCRIBE_PROMPT, MATCH_PROMPT = "chat_describe_region.md", "chat_match.md"

Answer = Literal["yes", "no", "unsure"]


class _Ruling(NamedTuple):
    """What an answer comes to; the model gives no figure, so the score is one of three."""

    outcome: Outcome
    score: float
    reason: Reason | None


_RULINGS: dict[Answer, _Ruling] = {
    "yes": _Ruling("agrees", 1.0, None),
    "no": _Ruling("disagrees", 0.0, "other_object"),
    "unsure": _Ruling("cannot_tell", 0.5, "unsure_match"),
}


class ChatReviewerConfig(Record):
    """Settings of the chat reviewer."""

    picture_px: int = Field(default=640, ge=64)
    """Long side of the frame that the captioner is shown; smaller videos keep their size."""
    max_reasks: int = Field(default=2, ge=0)
    """How often a model is shown what is wrong with a reply, at most."""


class RegionReply(Record):
    """What a model says it sees in a region."""

    id: str
    text: str


class MatchReply(Record):
    """Whether two texts can be about one thing, and why."""

    id: str
    reason: str
    answer: Answer


class RegionCaptioner(Protocol):
    """A frame and a mask to a short description; it is told nothing else."""

    name: str

    def weights(self) -> tuple[str, ...]:
        """One `name@sha256-prefix` per model that it loads itself; opens nothing."""

    def settings(self) -> JsonObject:
        """Everything else that shapes its output, its prompt by hash; opens nothing."""

    async def setup(self) -> None:
        """Open what the descriptions share."""

    async def describe(self, image: Image, mask: Mask, region_id: str) -> str:
        """A short description, empty where there is none; image and mask are of one size."""

    async def probe(self) -> None:
        """Raise where no description can be had."""

    async def close(self) -> None:
        """Free what `setup` took."""


class ChatRegionCaptioner(ChatAgent):
    """Descriptions by a chat model that sees, shown the frame with the region outlined."""

    def __init__(self, chat: StructuredChat) -> None:
        super().__init__(chat)
        self._prompt = read_prompt(DESCRIBE_PROMPT, RegionReply)
        self.name = f"chat:{chat.settings.model}"

    def weights(self) -> tuple[str, ...]:
        """What the server computes with, as far as the settings say."""
        return weights_of(self._chat.settings)

    def settings(self) -> JsonObject:
        """Model, sampling and prompt."""
        return {**sampling_of(self._chat.settings), "prompt_hash": prompt_hash((self._prompt,))}

    async def describe(self, image: Image, mask: Mask, region_id: str) -> str:
        """What the model says; raises BadReplyError and ChatError."""
        picture = await asyncio.to_thread(marked_picture, image, mask)
        tag = tag_of(region_id)
        reply = await self._chat.ask(
            Question(
                messages=self._prompt.shown((picture,), {"id": tag}),
                again=self._prompt.ask_again,
                reply=RegionReply,
                ids=(tag,),
                ids_of=lambda told: (told.id,),
                flaws_of=lambda told: [] if told.text.strip() else ["the text is empty"],
            )
        )
        return " ".join(reply.text.split())


class ChatReviewer:
    """ReviewerJob or TextReviewerJob to VerdictSet; the questions on one clip come one after the other."""

    def __init__(
        self, config: ChatReviewerConfig, captioner: RegionCaptioner, chat: StructuredChat, frames: FrameSource
    ) -> None:
        self._config, self._captioner, self._chat, self._frames = config, captioner, chat, frames
        self._prompt = read_prompt(MATCH_PROMPT, MatchReply)

    def label(self) -> AgentLabel:
        """Captioner and matching model, with sampling and prompts."""
        config = self._config.model_dump(mode="json") | {"captioner": self._captioner.settings()}
        label = chat_label("reviewer", REVISION, config, self._chat.settings, (self._prompt,))
        engine = f"{self._captioner.name}+{label.engine}"
        return label.model_copy(update={"engine": engine, "weights": (*self._captioner.weights(), *label.weights)})

    async def setup(self) -> None:
        """Open both."""
        await self._captioner.setup()
        await self._chat.start()

    async def close(self) -> None:
        """Close both."""
        await self._captioner.close()
        await self._chat.close()

    async def probe(self) -> None:
        """Ask both servers for a word."""
        await self._captioner.probe()
        await self._chat.probe()

    async def process_one(self, job: ReviewerJob | TextReviewerJob) -> VerdictSet:
        """One verdict per track, in order; dropped tracks in `rejected` too. In a TextReviewerJob, tracks whose mention
        has no text give no sample, so there is nothing to ask of them and no verdict.

        Raises BadReplyError where a reply is none, a ChatError where a server does not answer, and VideoError.
        """
        texts = _texts_on(job)
        tracks = [track for track in job.tracks.tracks if track.track_id in texts]
        verdicts = tuple([await self._verdict(job.clip, track, texts[track.track_id]) for track in tracks])
        rejected = tuple(
            _rejection(job.clip, track, verdict)
            for track, verdict in zip(tracks, verdicts, strict=True)
            if not verdict.keep
        )
        return VerdictSet(clip_id=job.clip.clip_id, verdicts=verdicts, rejected=rejected)

    async def _verdict(self, clip: Clip, track: Track, text: str) -> Verdict:
        image, mask = await asyncio.to_thread(self._look, clip, track.masks)
        seen = await self._captioner.describe(image, mask, track.track_id)
        if not seen:
            return _ruled(track, "unsure", "the captioner has no words for it")
        reply = await self._match(track, text, seen)
        return _ruled(track, reply.answer, f"seen as {seen[:200]!r}: {' '.join(reply.reason.split())[:300]}")

    def _look(self, clip: Clip, masks: ObjectMasks) -> tuple[Image, Mask]:
        position = best_position(masks)
        (image,) = self._frames.read(clip, [masks.frame_idx[position]], self._config.picture_px)
        return image, mask_on(image, masks, position)

    async def _match(self, track: Track, text: str, seen: str) -> MatchReply:
        tag = tag_of(track.track_id, "match")
        return await self._chat.ask(
            Question(
                messages=self._prompt.messages({"id": tag, "noun": track.noun, "text": text, "seen": seen}),
                again=self._prompt.ask_again,
                reply=MatchReply,
                ids=(tag,),
                ids_of=lambda told: (told.id,),
                flaws_of=lambda told: [] if told.reason.strip() else ["the reason is empty"],
            )
        )


def best_position(masks: ObjectMasks) -> int:
    """The place in `masks` of the largest mask of the middle half of the frames that show the object.

    The paper takes a frame at random; objects come in and go out at a track's ends.
    """
    seen = [(position, area_px(counts)) for position, counts in enumerate(masks.rle) if counts is not None]
    middle = seen[len(seen) // 4 : max(len(seen) // 4 + 1, len(seen) - len(seen) // 4)]
    return max(middle, key=lambda one: one[1])[0]


def _texts_on(job: ReviewerJob | TextReviewerJob) -> dict[str, str]:
    """By track, what is to be held against it: the text on its mention; or the annotator's text on the track itself,
    and the words of the source's caption where the annotator has none.
    """
    if isinstance(job, TextReviewerJob):
        told = {text.mention_id: f"{text.appearance} {text.motion}" for text in job.texts.texts}
        return {track.track_id: told[track.mention_id] for track in job.tracks.tracks if track.mention_id in told}
    phrases = {mention.mention_id: mention.phrase for mention in job.mentions.mentions}
    named = {track.track_id: phrases.get(track.mention_id, track.noun) for track in job.tracks.tracks}
    return named | {caption.track_id: f"{caption.appearance} {caption.motion}" for caption in job.captions.captions}


def _ruled(track: Track, answer: Answer, detail: str) -> Verdict:
    ruling = _RULINGS[answer]
    check = Check(name="same_object", outcome=ruling.outcome, score=ruling.score, detail=detail)
    return Verdict(
        track_id=track.track_id, keep=ruling.reason is None, score=ruling.score, reason=ruling.reason, checks=(check,)
    )


def _rejection(clip: Clip, track: Track, verdict: Verdict) -> QuarantineEntry:
    assert verdict.reason is not None, "only dropped tracks are rejected"
    evidence = "; ".join(f"{check.name}: {check.detail}" for check in verdict.checks)
    return QuarantineEntry.of_clip(
        clip, "reviewer", verdict.reason, evidence, subject_id=track.track_id, noun=track.noun
    )
