"""Annotator by a chat model that sees, as the paper has it (App. C): two questions per noun, beside the segmenter.

The model is shown frames of the whole clip as they are, with the noun and its phrase of the caption, which tells "the
red car" from another car; nothing is known of masks yet. Whether its texts are on the object that the segmenter finds
is for the reviewer to say. Facts are measured later, when there are tracks (`agents.texts_on_tracks`).

The pictures of a clip are the same for all its mentions and both questions, so a server evaluates them once.
"""

import asyncio
from typing import Literal

from agents.annotator import AnnotatorConfig
from agents.base import FrameSource
from agents.chat_agent import ChatAgent
from agents.chat_annotator import ChatAnnotatorConfig, Shown
from agents.chat_prompt import chat_label
from agents.marked_frames import QUALITY
from agents.refiner import mid_segment
from agents.two_questions import Dropped, TwoQuestions
from infra.chat import ImagePart, JsonObject
from infra.pictures import jpeg
from infra.structured_chat import StructuredChat
from schemas.caption import MentionText, MentionTextSet
from schemas.clip import Clip
from schemas.jobs import SegmenterJob
from schemas.label import AgentLabel
from schemas.mention import Mention
from schemas.quarantine import QuarantineEntry

REVISION = 1
MOTION_PROMPT, LOOKS_PROMPT = "chat_annotate_noun_motion.md", "chat_annotate_noun_looks.md"


class ChatAnnotatorByNoun(ChatAgent):
    """SegmenterJob to MentionTextSet; the questions on one clip come one after the other.

    Of the settings, those for measured facts are the refiner's business and not in this label.
    """

    needs: Literal["mentions", "tracks"] = "mentions"

    def __init__(self, config: ChatAnnotatorConfig, chat: StructuredChat, frames: FrameSource) -> None:
        super().__init__(chat)
        self._config, self._frames = config, frames
        # nothing was drawn into the pictures, so no word tells of it
        self._questions = TwoQuestions(chat, MOTION_PROMPT, LOOKS_PROMPT, lambda _: "")

    def label(self) -> AgentLabel:
        """Model, sampling and prompts."""
        config = self._config.model_dump(mode="json", exclude=set(AnnotatorConfig.model_fields))
        return chat_label("annotator", REVISION, config, self._chat.settings, self._questions.prompts)

    async def process_one(self, job: SegmenterJob) -> MentionTextSet:
        """Texts on each mention, or the reason why there are none: a subject that does nothing, or a text that is of no
        use. A clip without mentions is not read.

        Raises BadReplyError where a reply is none, a ChatError where the server does not answer, and VideoError.
        """
        clip, mentions = job.clip, job.mentions.mentions
        shown = await asyncio.to_thread(self._show, clip) if mentions else Shown((), ())
        found = [await self._told(clip, mention, shown) for mention in mentions]
        return MentionTextSet(
            clip_id=clip.clip_id,
            texts=tuple(one for one in found if isinstance(one, MentionText)),
            rejected=tuple(one for one in found if isinstance(one, QuarantineEntry)),
        )

    async def _told(self, clip: Clip, mention: Mention, shown: Shown) -> MentionText | QuarantineEntry:
        """The model's texts on a mention, or why it is left out."""
        about: JsonObject = {"noun": mention.noun, "phrase": mention.phrase, "times_s": list(shown.times_s)}
        is_subject = mention.role == "subject"
        told = await self._questions.ask(mention.mention_id, shown.pictures, about, is_subject=is_subject)
        if isinstance(told, Dropped):
            return QuarantineEntry.of_clip(clip, "annotator", *told, subject_id=mention.mention_id, noun=mention.noun)
        return MentionText(mention_id=mention.mention_id, noun=mention.noun, **told._asdict())

    def _show(self, clip: Clip) -> Shown:
        """Frames of the whole clip, from the middles of equal parts."""
        chosen = [clip.start_frame + place for place in mid_segment(clip.num_frames, self._config.num_pictures)]
        images = self._frames.read(clip, chosen, self._config.picture_px)
        times_s = tuple(round(time_s - clip.start_s, 1) for time_s in self._frames.times_s(clip, chosen))
        return Shown(tuple(ImagePart.of_jpeg(jpeg(image, QUALITY)) for image in images), times_s)
