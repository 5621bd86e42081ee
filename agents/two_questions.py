"""The two questions on one object, what it does and what it looks like, and what keeps an answer from being of use.

As in the paper (App. C), a subject that does nothing is left out.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from agents.chat_prompt import ChatPrompt, read_prompt, tag_of
from infra.chat import ImagePart, JsonObject
from infra.structured_chat import Question, StructuredChat
from schemas.quarantine import Reason
from schemas.record import Record


class MotionReply(Record):
    """What the model says an object does; `acts` is false where it does nothing."""

    id: str
    text: str
    acts: bool


class LooksReply(Record):
    """What the model says an object looks like."""

    id: str
    text: str


ReplyT = TypeVar("ReplyT", MotionReply, LooksReply)


class Told(NamedTuple):
    """What the model says of one object; `moving` is whether it acts."""

    appearance: str
    motion: str
    moving: bool


class Dropped(NamedTuple):
    """Why an object is left out."""

    reason: Reason
    evidence: str


class TwoQuestions:
    """Both questions, one after the other, on the same pictures, which a server evaluates once.

    `motion` and `looks` are the prompts' files. `fault_of` says what else than emptiness keeps a text from standing in
    a caption, empty where nothing does.
    """

    def __init__(self, chat: StructuredChat, motion: str, looks: str, fault_of: Callable[[str], str]) -> None:
        self._chat, self._fault_of = chat, fault_of
        self._motion, self._looks = read_prompt(motion, MotionReply), read_prompt(looks, LooksReply)

    @property
    def prompts(self) -> tuple[ChatPrompt, ...]:
        """Both prompts, for the label."""
        return self._motion, self._looks

    async def ask(
        self, subject_id: str, pictures: Sequence[ImagePart], about: JsonObject, *, is_subject: bool
    ) -> Told | Dropped:
        """The model's texts on one object, told apart by `subject_id`, or why it is left out: it is a subject that does
        nothing, or a text stays of no use.

        Raises BadReplyError where a reply is none, and a ChatError where the server does not answer.
        """
        motion = await self._reply(self._motion, MotionReply, subject_id, pictures, about)
        if fault := self._fault(motion.text):
            return Dropped("unusable_text", f"the text on its motion {fault}: {motion.text[:200]!r}")
        if is_subject and not motion.acts:
            return Dropped("static_subject", f"the model sees it do nothing: {motion.text[:200]!r}")
        looks = await self._reply(self._looks, LooksReply, subject_id, pictures, about)
        if fault := self._fault(looks.text):
            return Dropped("unusable_text", f"the text on its looks {fault}: {looks.text[:200]!r}")
        return Told(_plain(looks.text), _plain(motion.text), motion.acts)

    async def _reply(
        self, prompt: ChatPrompt, reply: type[ReplyT], subject_id: str, pictures: Sequence[ImagePart], about: JsonObject
    ) -> ReplyT:
        # ids of the two questions differ, so that an answer to one never passes for one to the other
        tag = tag_of(subject_id, reply.__name__)
        return await self._chat.ask(
            Question(
                messages=prompt.shown(pictures, {"id": tag, **about}),
                again=prompt.ask_again,
                reply=reply,
                ids=(tag,),
                ids_of=lambda told: (told.id,),
                flaws_of=lambda told: [f"the text {fault}"] if (fault := self._fault(told.text)) else [],
            )
        )

    def _fault(self, text: str) -> str:
        return self._fault_of(text) if text.strip() else "is empty"


def _plain(text: str) -> str:
    return " ".join(text.split())
