"""Questions to a chat server whose answers are records: checked, and asked again, a bounded number of times, with what
is wrong.

A model is shown its reply and the fault, so that it can mend it. Ids are not forced by the schema: they are echoed, and
an answer that bears other ids than its question is none, whoever mixed them up, the model or the server.
"""

import asyncio
import functools
import itertools
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import JsonValue, ValidationError

from infra.answer_cache import AnswerCache
from infra.chat import Chat, ChatSettings, ChatTooLongError, Completion, JsonObject, Message
from infra.chat_client import ChatClient
from infra.token_count import TokenCount, spend
from schemas.record import Record

ReplyT = TypeVar("ReplyT", bound=Record)
Connect = Callable[[ChatSettings], AbstractAsyncContextManager[Chat]]
"""Opens the client of the server that the settings name."""
AskAgain = Callable[[str, str], Sequence[Message]]
"""From a reply and what is wrong with it to the turns that show both to the model."""

Fault = Literal["refused", "truncated", "not_json", "wrong_shape", "wrong_ids"]
"""Why a reply counts for nothing."""

_LOG = logging.getLogger("chat")
_SHOWN_CHARS, _SHOWN_CUT_OFF_CHARS = 4000, 200
_EVIDENCE_CHARS = 300
_MAX_TOLD = 4
_WORDS = frozenset({"title", "description"})
_PROBE = Message(role="user", content="Reply with the word: yes")
_BLANKS = re.compile(r"\s{3,}")


class BadReplyError(Exception):
    """No reply to a question was of use, after all re-asks; the message tells of the last one."""

    def __init__(self, reason: Fault, detail: str, reply: str, asks: int) -> None:
        said = " ".join(reply.split())
        cut = said if len(said) <= _EVIDENCE_CHARS else f"{said[:_EVIDENCE_CHARS]}..."
        super().__init__(f"{reason} after {asks} asks: {detail}; the last reply: {cut or '(nothing)'}")
        self.reason = reason


def _none(_: object) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Question(Generic[ReplyT]):
    """What is asked, and what a reply must be.

    `ids` must come back in this order by `ids_of`. `flaws_of` names what else is wrong: the model is asked again over
    it, and the caller deals with what stays so.
    """

    messages: Sequence[Message]
    again: AskAgain
    reply: type[ReplyT]
    ids: Sequence[str]
    ids_of: Callable[[ReplyT], Sequence[str]]
    flaws_of: Callable[[ReplyT], Sequence[str]] = field(default=_none)


async def ask_until(
    ask: Callable[[Sequence[Message]], Awaitable[Completion]],
    messages: Sequence[Message],
    fault_of: Callable[[Completion], str],
    again: AskAgain,
    max_reasks: int,
) -> int:
    """Ask, and as long as `fault_of` names a fault, ask again with reply and fault; returns how often was asked.

    Raises what `ask` raises.
    """
    conversation = tuple(messages)
    for asks in itertools.count(1):
        completion = await ask(conversation)
        fault = fault_of(completion)
        if not fault or asks > max_reasks:
            break
        conversation = (*conversation, *again(_shown(completion) or "(nothing)", fault))
    return asks


class StructuredChat:
    """One agent's way to its server; `start` comes first, in the event loop that asks.

    Answers are kept in `answers` by payload hash: all of a conversation once its last reply is of use, so that nothing
    bad is ever answered from there. Without a folder nothing is kept. `connect` opens the server's client.
    """

    def __init__(
        self,
        settings: ChatSettings,
        answers: Path | None,
        max_reasks: int,
        connect: Connect = ChatClient,
    ) -> None:
        self.settings = settings
        self._answers = answers
        self.max_reasks = max_reasks
        self._connect = connect
        self._stack = AsyncExitStack()
        self._chat: Chat | None = None
        self._cache: AnswerCache | None = None
        self._count = TokenCount()

    @property
    def count(self) -> TokenCount:
        """What was asked so far, failed questions included."""
        return self._count

    async def start(self) -> None:
        """Open the client. Raises ChatRefusedError where the key is not there."""
        self._chat = await self._stack.enter_async_context(self._connect(self.settings))
        self._cache = AnswerCache(self._answers) if self._answers else None

    async def close(self) -> None:
        """Close the client and log what the agent's questions cost."""
        if self._chat is not None:
            _LOG.info("%s: %s", self.settings.model, self._count)
        await self._stack.aclose()

    async def ask(self, question: Question[ReplyT]) -> ReplyT:
        """The latest of the sound replies with the fewest flaws.

        Raises BadReplyError where none is sound, and a ChatError where the server gives none.
        """
        conversation = _Conversation(question)
        asked = _Asked()
        try:
            asks = await ask_until(
                lambda messages: self._answer(messages, question, asked),
                question.messages,
                conversation.take_in,
                conversation.again,
                self.max_reasks,
            )
        except ChatTooLongError:
            asks = len(asked.kept)
            if not asks:
                raise  # else it is the re-ask that does not fit
        finally:
            self._count += asked.count
            spend(asked.count)
            _LOG.debug("%s", asked.count)
        reply = conversation.result(asks)
        if self._cache:
            fresh = [(payload, completion) for payload, completion, is_new in asked.kept if is_new]
            await asyncio.to_thread(_put_all, self._cache, fresh)
        return reply

    async def probe(self) -> None:
        """Ask for a word, and take any answer; raises a ChatError where there is none."""
        assert self._chat is not None, "start() comes first"
        completion = await self._chat.complete((_PROBE,))
        self._count += _cost(completion)

    async def _answer(self, messages: Sequence[Message], question: Question[ReplyT], asked: "_Asked") -> Completion:
        assert self._chat is not None, "start() comes first"
        schema = schema_of(question.reply)
        payload = self._chat.payload(messages, schema)
        completion = await asyncio.to_thread(self._cache.get, payload) if self._cache else None
        reasks = int(len(messages) > len(question.messages))
        if completion is not None:
            asked.take_in(payload, completion, TokenCount(cached=1, reasks=reasks), is_new=False)
            return completion
        completion = await self._chat.complete(messages, schema)
        asked.take_in(payload, completion, _cost(completion) + TokenCount(reasks=reasks), is_new=True)
        return completion


def _cost(completion: Completion) -> TokenCount:
    return TokenCount(
        requests=1,
        prompt_tokens=completion.prompt_tokens or 0,
        completion_tokens=completion.completion_tokens or 0,
    )


@functools.cache
def schema_of(reply: type[Record]) -> JsonObject:
    """The JSON schema of a reply, without the words of its docstrings: these are for readers of the code."""
    return {key: _bare(value) for key, value in reply.model_json_schema().items() if key not in _WORDS}


def _bare(schema: JsonValue) -> JsonValue:
    if isinstance(schema, list):
        return [_bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # a field may bear such a name, but then it is an object itself
    return {key: _bare(value) for key, value in schema.items() if key not in _WORDS or not isinstance(value, str)}


class _Asked:
    """The answers to one question and its re-asks, and what they cost."""

    def __init__(self) -> None:
        self.kept: list[tuple[JsonObject, Completion, bool]] = []
        self.count = TokenCount()

    def take_in(self, payload: JsonObject, completion: Completion, count: TokenCount, *, is_new: bool) -> None:
        self.kept.append((payload, completion, is_new))
        self.count += count


class _UnsoundError(Exception):
    def __init__(self, reason: Fault, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Conversation(Generic[ReplyT]):
    """The replies to one question so far."""

    def __init__(self, question: Question[ReplyT]) -> None:
        self._question = question
        self._best: tuple[int, ReplyT] | None = None
        self._fault: tuple[_UnsoundError, str] | None = None
        self._has_other_ids = False

    def take_in(self, completion: Completion) -> str:
        """What is wrong with a reply, empty where nothing is."""
        try:
            reply = _read(completion, self._question)
        except _UnsoundError as fault:
            self._fault = (fault, completion.text or completion.refusal)
            self._has_other_ids = fault.reason == "wrong_ids"
            return str(fault)
        self._has_other_ids = False
        flaws = list(self._question.flaws_of(reply))
        if self._best is None or len(flaws) <= self._best[0]:
            self._best = (len(flaws), reply)
        return _listed(flaws)

    def again(self, reply: str, told: str) -> Sequence[Message]:
        """The turns of a re-ask. Wrong ids are not shown, and the question is put once more: small models copy what
        they are shown, SmolLM2 its wrong ids each time.
        """
        asked = self._question.messages[-1].content
        if not self._has_other_ids or not isinstance(asked, str):
            return self._question.again(reply, told)
        needed = f"it must bear these ids, in this order: {', '.join(self._question.ids)}"
        *shown, last = self._question.again("...", needed)
        return *shown, last.model_copy(update={"content": f"{last.content}\n\n{asked}"})

    def result(self, asks: int) -> ReplyT:
        if self._best is not None:
            return self._best[1]
        assert self._fault is not None, "there was a reply"
        fault, reply = self._fault
        raise BadReplyError(fault.reason, str(fault), reply, asks)


def _read(completion: Completion, question: Question[ReplyT]) -> ReplyT:
    """The reply as a record, of which the ids are right."""
    if (completion.refusal and not completion.text) or completion.finish_reason == "content_filter":
        raise _UnsoundError("refused", "the request was declined")
    if completion.finish_reason == "length":
        raise _UnsoundError("truncated", "the reply was cut off before its end; it must be shorter")
    try:
        reply = question.reply.model_validate_json(completion.text)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        if faults[0]["type"] == "json_invalid":
            said = faults[0]["msg"].removeprefix("Invalid JSON: ")
            raise _UnsoundError("not_json", f"the reply is not JSON: {said}") from error
        told = [f"{'.'.join(map(str, fault['loc'])) or 'the reply'}: {fault['msg']}" for fault in faults]
        raise _UnsoundError("wrong_shape", _listed(told)) from error
    faults_of_ids = wrong_ids(question.ids, question.ids_of(reply))
    if faults_of_ids:
        raise _UnsoundError("wrong_ids", _listed(faults_of_ids))
    return reply


def wrong_ids(expected: Sequence[str], got: Sequence[str]) -> list[str]:
    """What is wrong with the ids of a reply, empty where they are those expected, in that order."""
    if list(expected) == list(got):
        return []
    wanted, there = Counter(expected), Counter(got)
    faults = [f"the id {name!r} is missing" for name in wanted if name not in there]
    faults += [f"the id {name[:40]!r} was not asked for" for name in there if name not in wanted]
    faults += [f"the id {name!r} comes {there[name]} times" for name in wanted if there[name] > wanted[name]]
    return faults or [f"the ids must come in this order: {', '.join(expected)}"]


def _listed(faults: Sequence[str]) -> str:
    more = [f"and {len(faults) - _MAX_TOLD} more"] if len(faults) > _MAX_TOLD else []
    return "; ".join([*faults[:_MAX_TOLD], *more])


def _shown(completion: Completion) -> str:
    """A reply as the model sees it again: without long blanks, and where it was cut off, its beginning alone.

    Small models under a JSON schema run into blanks or in circles; shown theirs, they go on with it.
    """
    text = _BLANKS.sub(" ", completion.text or completion.refusal)
    return text[: _SHOWN_CUT_OFF_CHARS if completion.finish_reason == "length" else _SHOWN_CHARS]


def _put_all(cache: AnswerCache, answers: Sequence[tuple[JsonObject, Completion]]) -> None:
    try:
        for payload, completion in answers:
            cache.put(payload, completion)
    except OSError as error:
        _LOG.warning("an answer is not kept, and asked for again where it is needed again: %s", error)
