"""Refiner by a chat model: it words the detailed captions of a clip, all in one question; the rest is `SampleMaker`'s.
Where the model cannot tell several objects apart, it is asked of each alone.

The paper has GPT-4o merge the texts on motion and appearance and take out what repeats or is made up. Here what may be
said is known, so each text is held to it: over a fact that is lost or added, the model is asked again, and a caption
that still fails stays as the merged sentences.
"""

import logging
from collections.abc import Sequence

from pydantic import Field, JsonValue

from agents.chat_agent import ChatAgent
from agents.chat_prompt import chat_label, read_prompt, tag_of
from agents.refiner import REVISION as SAMPLES_REVISION
from agents.refiner import TEMPLATE, Note, RefinerConfig, SampleMaker, Worded
from agents.wording import added_words, lost_facts
from infra.structured_chat import BadReplyError, Question, StructuredChat
from schemas.jobs import RefinerJob
from schemas.label import AgentLabel
from schemas.record import Record
from schemas.sample import SampleSet

REVISION = 1
PROMPT = "chat_refine.md"
_LOG = logging.getLogger("refiner")


class ChatRefinerConfig(RefinerConfig):
    """Settings of the chat refiner."""

    max_reasks: int = Field(default=2, ge=0)
    """How often the model is shown what is wrong with a reply, at most."""


class ObjectText(Record):
    """The text on one object."""

    id: str
    text: str


class RefinerReply(Record):
    """What the model says of a clip's objects, each by its id. An id for the clip besides confuses small ones."""

    objects: tuple[ObjectText, ...]


class ChatRefiner(ChatAgent):
    """RefinerJob to SampleSet, one question a clip as a rule. `labels` are those of the agents before it."""

    def __init__(self, config: ChatRefinerConfig, chat: StructuredChat, labels: tuple[AgentLabel, ...]) -> None:
        super().__init__(chat)
        self._config = config
        self._prompt = read_prompt(PROMPT, RefinerReply)
        self._wording = self.label().engine
        self._maker = SampleMaker(config, (*labels, self.label()))

    def label(self) -> AgentLabel:
        """Model, sampling and prompt."""
        config = self._config.model_dump(mode="json") | {"samples_revision": SAMPLES_REVISION}
        return chat_label("refiner", REVISION, config, self._chat.settings, (self._prompt,))

    async def process_one(self, job: RefinerJob) -> SampleSet:
        """The clip's samples; every kept track is in one or, with the reason, in `rejected`.

        Raises BadReplyError where the model gives nothing of use, and a ChatError where the server does not answer.
        """
        notes = self._maker.notes(job)
        return self._maker.samples(job, await self._worded(notes) if notes else {})

    async def _worded(self, notes: Sequence[Note]) -> dict[str, Worded]:
        try:
            return await self._worded_at_once(notes)
        except BadReplyError as error:
            if len(notes) == 1:
                raise
            _LOG.info("%d objects are asked for one by one: %s", len(notes), error.reason)
        alone = [await self._worded_at_once([note]) for note in notes]
        return {track_id: worded for one in alone for track_id, worded in one.items()}

    async def _worded_at_once(self, notes: Sequence[Note]) -> dict[str, Worded]:
        tags = [tag_of(note.track_id) for note in notes]
        asked: list[JsonValue] = [{"id": tag, "notes": note.text} for tag, note in zip(tags, notes, strict=True)]
        reply = await self._chat.ask(
            Question(
                messages=self._prompt.messages({"objects": asked}),
                again=self._prompt.ask_again,
                reply=RefinerReply,
                ids=tags,
                ids_of=lambda reply: [item.id for item in reply.objects],
                flaws_of=lambda reply: _flaws(reply, notes),
            )
        )
        return {
            note.track_id: Worded(note.text, TEMPLATE)
            if _flaw(item.text, note)
            else Worded(_plain(item.text), self._wording)
            for item, note in zip(reply.objects, notes, strict=True)
        }


def _flaws(reply: RefinerReply, notes: Sequence[Note]) -> list[str]:
    found = [(item.id, _flaw(item.text, note)) for item, note in zip(reply.objects, notes, strict=True)]
    return [f"the text of {item_id} {flaw}" for item_id, flaw in found if flaw]


def _flaw(said: str, note: Note) -> str:
    """What keeps a text from standing for the notes (`agents.wording.facts_survive`), empty where nothing does."""
    text = _plain(said)
    lost, added = lost_facts(text, note.text, note.facts), added_words(text, note.text)
    faults = [f"leaves out: {', '.join(lost)}"] if lost else []
    faults += [f"adds the words: {', '.join(added)}"] if added else []
    faults += [] if text.endswith(".") else ["does not end with a full stop"]
    return " and ".join(faults)


def _plain(text: str) -> str:
    return " ".join(text.split())
