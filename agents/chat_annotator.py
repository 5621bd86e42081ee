"""Annotator by a chat model that sees: two questions per object, on what it does and on what it looks like.

The paper (App. C) asks InternVL2-26B the same two of video and noun, beside the segmenter, and leaves out subjects that
do nothing (`agents.chat_annotator_by_noun`). Here the segmenter comes first and the object is outlined in the frames: a
noun alone does not tell two dogs apart, and questions need facts of each object. Facts are those of `agents.annotator`,
measured from masks and pixels; the model adds the texts, and says whether the object acts.
"""

import asyncio
import re
from typing import Literal, NamedTuple

from pydantic import Field

from agents.annotator import REVISION as FACTS_REVISION
from agents.annotator import Annotator, AnnotatorConfig
from agents.base import FrameSource
from agents.chat_agent import ChatAgent
from agents.chat_prompt import chat_label
from agents.marked_frames import read_marked
from agents.refiner import mid_segment
from agents.two_questions import Dropped, TwoQuestions
from infra.chat import ImagePart, JsonObject
from infra.structured_chat import StructuredChat
from schemas.caption import CaptionSet, ObjectCaption
from schemas.clip import Clip
from schemas.jobs import AnnotatorJob
from schemas.label import AgentLabel
from schemas.quarantine import QuarantineEntry
from schemas.track import Track

REVISION = 1
MOTION_PROMPT, LOOKS_PROMPT = "chat_annotate_motion.md", "chat_annotate_looks.md"

_MARK = re.compile(r"\b(?:outlin\w+|contours?)\b", re.IGNORECASE)
"""Words for what was drawn into the frames and is not in the video."""


class ChatAnnotatorConfig(AnnotatorConfig):
    """Settings of the chat annotators; those shared with `AnnotatorConfig` are for the measured facts."""

    num_pictures: int = Field(default=8, ge=1, le=64)
    """Frames that the model is shown, of each track with the object outlined, or of the whole clip as they are."""
    picture_px: int = Field(default=640, ge=64)
    """Long side of these pictures; smaller videos keep their size."""
    max_reasks: int = Field(default=2, ge=0)
    """How often the model is shown what is wrong with a reply, at most."""


class Shown(NamedTuple):
    """Pictures in order of time, and when they are, in seconds from the clip's start."""

    pictures: tuple[ImagePart, ...]
    times_s: tuple[float, ...]


class ChatAnnotator(ChatAgent):
    """AnnotatorJob to CaptionSet; the questions on one clip come one after the other."""

    needs: Literal["mentions", "tracks"] = "tracks"

    def __init__(self, config: ChatAnnotatorConfig, chat: StructuredChat, frames: FrameSource) -> None:
        super().__init__(chat)
        self._config, self._frames = config, frames
        self._facts = Annotator(config, frames)
        self._questions = TwoQuestions(chat, MOTION_PROMPT, LOOKS_PROMPT, _fault)

    def label(self) -> AgentLabel:
        """Who words the texts and who measures the facts, with model, sampling and prompts."""
        config = self._config.model_dump(mode="json") | {"facts_revision": FACTS_REVISION}
        label = chat_label("annotator", REVISION, config, self._chat.settings, self._questions.prompts)
        return label.model_copy(update={"engine": f"{label.engine}+{self._facts.label().engine}"})

    async def process_one(self, job: AnnotatorJob) -> CaptionSet:
        """One caption per track, or the reason why there is none: seen too briefly, a subject that does nothing, or a
        text that is of no use.

        Raises BadReplyError where a reply is none, a ChatError where the server does not answer, and VideoError.
        """
        (measured,) = await asyncio.to_thread(self._facts.process, [job])
        tracks = {track.track_id: track for track in job.tracks.tracks}
        subjects = {mention.mention_id for mention in job.mentions.mentions if mention.role == "subject"}
        found = [
            await self._told(job.clip, caption, tracks[caption.track_id], is_subject=caption.mention_id in subjects)
            for caption in measured.captions
        ]
        captions = tuple(one for one in found if isinstance(one, ObjectCaption))
        dropped = tuple(one for one in found if isinstance(one, QuarantineEntry))
        return CaptionSet(clip_id=measured.clip_id, captions=captions, rejected=(*measured.rejected, *dropped))

    async def _told(
        self, clip: Clip, caption: ObjectCaption, track: Track, *, is_subject: bool
    ) -> ObjectCaption | QuarantineEntry:
        """The caption with the model's texts, or why the object is left out."""
        shown = await asyncio.to_thread(self._show, clip, track)
        about: JsonObject = {"noun": track.noun, "times_s": list(shown.times_s)}
        told = await self._questions.ask(track.track_id, shown.pictures, about, is_subject=is_subject)
        if isinstance(told, Dropped):
            return QuarantineEntry.of_clip(clip, "annotator", *told, subject_id=track.track_id, noun=track.noun)
        return caption.model_copy(update=told._asdict())

    def _show(self, clip: Clip, track: Track) -> Shown:
        masks = track.masks
        seen = [position for position, counts in enumerate(masks.rle) if counts is not None]
        chosen = [seen[place] for place in mid_segment(len(seen), self._config.num_pictures)]
        pictures = read_marked(self._frames, clip, masks, chosen, self._config.picture_px)
        return Shown(pictures, tuple(round(masks.frame_time_s[position] - clip.start_s, 1) for position in chosen))


def _fault(text: str) -> str:
    """What of the marks is in a text, empty where nothing is."""
    marks = sorted({found.lower() for found in _MARK.findall(text)})
    return f"tells of the mark ({', '.join(marks)}), which is not in the video" if marks else ""
