"""Analyzer by a chat model: the nouns of a caption as `subjects` and `others`, as in the paper (App. C), each checked.

The paper has Qwen2-Instruct-7B list them, and says nothing of checks. Here each noun must stand in the caption, at a
place of its own; over one that does not, the model is asked again, and what stays wrong is rejected with the reason.
The noun itself is the class that an open-vocabulary detector is asked for.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from agents.analyzer import SKIN_COLOURS, rejection
from agents.chat_agent import ChatAgent
from agents.chat_prompt import chat_label, read_prompt, tag_of
from agents.expression import UNNAMED
from agents.plain_text import plain_text
from agents.vocabulary import COLOUR_WORDS, NUMERALS, STAND_INS
from infra.structured_chat import Question, StructuredChat
from schemas.clip import Clip
from schemas.label import AgentLabel
from schemas.mention import Mention, MentionSet, Number, Role, SaidAttributes
from schemas.quarantine import QuarantineEntry
from schemas.record import Record, short_id

REVISION = 2
PROMPT, GIVEN_PROMPT = "chat_analyze.md", "chat_analyze_given.md"
PERSONS = frozenset({"person", *STAND_INS["person"]})


class ChatAnalyzerConfig(Record):
    """Settings of the chat analyzer."""

    max_reasks: int = Field(default=2, ge=0)
    """How often the model is shown what is wrong with a reply, at most."""


class Thing(Record):
    """A noun as the model gives it: `phrase` and `noun` as they stand in the caption."""

    phrase: str
    noun: str
    singular: str
    number: Number


class AnalyzerReply(Record):
    """What the model says of a caption."""

    id: str
    subjects: tuple[Thing, ...]
    others: tuple[Thing, ...]


class GivenReply(Record):
    """What the model says of an expression whose objects' masks came with the clip; texts empty where it names none."""

    id: str
    phrase: str
    noun: str
    singular: str
    number: Number

    @property
    def thing(self) -> Thing:
        """What is picked out."""
        return Thing.model_validate(self.model_dump(exclude={"id"}))


class ChatAnalyzer(ChatAgent):
    """Clip to mentions, one question a clip."""

    def __init__(self, config: ChatAnalyzerConfig, chat: StructuredChat) -> None:
        super().__init__(chat)
        self._config = config
        self._prompt = read_prompt(PROMPT, AnalyzerReply)
        self._given_prompt = read_prompt(GIVEN_PROMPT, GivenReply)

    def label(self) -> AgentLabel:
        """Model, sampling and prompts."""
        prompts = (self._prompt, self._given_prompt)
        return chat_label("analyzer", REVISION, self._config.model_dump(mode="json"), self._chat.settings, prompts)

    async def process_one(self, job: Clip) -> MentionSet:
        """The mentions of the clip's caption, in the order of the text.

        Raises BadReplyError where the model gives nothing of use, and a ChatError where the server does not answer.
        """
        text, places = plain_text(job.caption)
        if job.given_sha256 and text:
            return await self._given(job, text, places)
        tag = tag_of(job.clip_id)
        reply = await self._chat.ask(
            Question(
                messages=self._prompt.messages({"id": tag, "caption": text}),
                again=self._prompt.ask_again,
                reply=AnalyzerReply,
                ids=(tag,),
                ids_of=lambda reply: (reply.id,),
                flaws_of=lambda reply: [item.flaw for item in _found(reply, text) if item.flaw],
            )
        )
        found = _found(reply, text)
        mentions = [_mention(job, item, text, places) for item in found if not item.flaw]
        rejected = [_rejection(job, number, item) for number, item in enumerate(found) if item.flaw]
        if not found:
            rejected.append(_no_mention(job))
        mentions.sort(key=lambda mention: mention.start_char)
        return MentionSet(clip_id=job.clip_id, mentions=tuple(mentions), rejected=tuple(rejected))

    async def _given(self, clip: Clip, text: str, places: Sequence[int]) -> MentionSet:
        """One mention for the objects whose masks came with the clip."""
        tag = tag_of(clip.clip_id)
        reply = await self._chat.ask(
            Question(
                messages=self._given_prompt.messages({"id": tag, "expression": text}),
                again=self._given_prompt.ask_again,
                reply=GivenReply,
                ids=(tag,),
                ids_of=lambda reply: (reply.id,),
                flaws_of=lambda reply: [item.flaw for item in _named(reply, text) if item.flaw],
            )
        )
        items = [item for item in _named(reply, text) if not item.flaw]
        whole = Thing(phrase=text, noun=UNNAMED, singular=UNNAMED, number=reply.number)
        item = items[0] if items else Found(whole, "subject", 0, len(text), len(text), "")
        mention = _mention(clip, item, text, places).model_copy(update={"mention_id": short_id(clip.clip_id, "given")})
        return MentionSet(clip_id=clip.clip_id, mentions=(mention,), rejected=())


class Found(NamedTuple):
    """A thing and its place in the text, `[start, end)`, its noun from `noun_start` on; or the flaw in it."""

    thing: Thing
    role: Role
    start: int
    end: int
    noun_start: int
    flaw: str


def _found(reply: AnalyzerReply, text: str) -> list[Found]:
    """Every thing of a reply, each at a noun of its own."""
    taken: set[int] = set()
    listed: list[tuple[Thing, Role]] = [(thing, "subject") for thing in reply.subjects]
    listed += [(thing, "other") for thing in reply.others]
    return [_find(thing, role, text, taken) for thing, role in listed]


def _named(reply: GivenReply, text: str) -> list[Found]:
    """What an expression names: one thing or none."""
    if not (reply.phrase or reply.noun or reply.singular):
        return []
    return [_find(reply.thing, "subject", text, set())]


def _find(thing: Thing, role: Role, text: str, taken: set[int]) -> Found:
    """The thing at the first place of its phrase whose noun is not taken yet; that noun is taken."""

    def flawed(flaw: str) -> Found:
        return Found(thing, role, 0, 0, 0, flaw)

    phrase, noun = thing.phrase.strip(), thing.noun.strip()
    spans = _places(phrase, text)
    if not spans:
        return flawed(f"{_cut(phrase)} does not stand in the caption")
    inside = _places(noun, phrase)
    if not inside:
        return flawed(f"the phrase {_cut(phrase)} does not hold the noun {_cut(noun)}")
    if not _is_form(thing.singular.strip(), noun, thing.number):
        return flawed(f"{_cut(thing.singular)} is not the singular of {_cut(noun)}, which you call {thing.number}")
    for start, end in spans:
        noun_start = start + inside[-1][0]
        if noun_start not in taken:
            taken.add(noun_start)
            return Found(thing, role, start, end, noun_start, "")
    return flawed(f"{_cut(phrase)} is listed more often than it stands in the caption")


def _places(words: str, text: str) -> list[tuple[int, int]]:
    """Where some whole words stand in a text, upper and lower case being one."""
    if not words:
        return []
    pattern = re.compile(rf"(?<!\w){re.escape(words)}(?!\w)", re.IGNORECASE)
    return [match.span() for match in pattern.finditer(text)]


def _is_form(singular: str, noun: str, number: Number) -> bool:
    """Whether this can be the noun's singular: itself for one thing; for several at least of the same first letter.

    Irregular plurals share no more than that ("mice", "people").
    """
    one, said = singular.casefold(), noun.casefold()
    return one == said if number == "singular" else bool(one) and one[0] == said[0] and len(one) <= len(said) + 1


def _mention(clip: Clip, item: Found, text: str, places: Sequence[int]) -> Mention:
    noun = " ".join(item.thing.singular.lower().split())
    return Mention(
        mention_id=short_id(clip.clip_id, item.noun_start, noun),
        clip_id=clip.clip_id,
        noun=noun,
        phrase=text[item.start : item.end],
        start_char=places[item.start],
        end_char=places[item.end - 1] + 1,
        role=item.role,
        number=item.thing.number,
        detector_class=noun,
        class_similarity=1.0,
        said=_said(text[item.start : item.noun_start], noun, item.thing.number),
    )


def _said(before: str, noun: str, number: Number) -> SaidAttributes:
    """What the words before the noun claim, colours and count; what else a caption says is left to it."""
    words = re.findall(r"\w+", before.lower())
    colours = dict.fromkeys(COLOUR_WORDS[word] for word in words if word in COLOUR_WORDS)
    counts = [NUMERALS[word] for word in words if word in NUMERALS]
    seen = [colour for colour in colours if noun not in PERSONS or colour not in SKIN_COLOURS]
    several = counts[0] if counts and counts[0] > 1 else None
    return SaidAttributes(colours=tuple(seen), count=1 if number == "singular" else several)


def _cut(said: str) -> str:
    return repr(said if len(said) <= 60 else f"{said[:60]}...")


def _rejection(clip: Clip, number: int, item: Found) -> QuarantineEntry:
    subject_id = short_id(clip.clip_id, "unplaced", number)
    return rejection(clip, subject_id, item.thing.noun.strip(), "not_in_caption", item.flaw)


def _no_mention(clip: Clip) -> QuarantineEntry:
    return rejection(clip, clip.clip_id, "", "no_mention", f"the model found no noun in {clip.caption[:80]!r}")
