"""Bench-D's descriptions put to a judge: all items at once through a window, every answer kept on disk.

The judge sees texts only, never the video, as in the official scripts. A reply that lacks a score is shown to it with
what is wrong, a bounded number of times. What stays without a score says why; it is never left out.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Protocol

from pydantic import Field

from benchmark.judge_reply import Dimension, Reason, ReplyScores, read_reply, without_scores
from benchmark.rubric import ReplyFormat, Rubric, reply_schema
from infra.answer_cache import AnswerCache, payload_hash
from infra.chat import Chat, ChatError, ChatLostError, ChatTooLongError, Completion, Message
from infra.structured_chat import ask_until
from schemas.record import Record

MAX_LOST_IN_A_ROW = 3
"""Items without any answer from the server, none answered between them, that end a run: it is not coming back."""


class JudgeGoneError(ChatError):
    """The server has stopped answering: the run ends, and the same command goes on from what is kept."""


class Judge(Chat, Protocol):
    """A server that marks descriptions, and says of what release it is; `infra.chat_client.ChatClient` is one."""

    async def server_version(self) -> str:
        """Empty where it does not say."""


class JudgeCase(Record):
    """One description to mark; `prediction` is None where the model gave none."""

    item_id: str
    reference: str
    prediction: str | None


class JudgeSettings(Record):
    """How a judge replies; without `explained`, a JSON reply is four numbers and nothing else (for small models)."""

    reply_format: ReplyFormat = "json"
    explained: bool = True
    max_reasks: Annotated[int, Field(ge=0)] = 2


class Judgement(Record):
    """The marks of one item, all from one reply: the latest of those with most scores.

    Each dimension is in `scores` or in `unscored`; `detail` says what was got for the latter. `asks` counts the
    questions put for it, those answered from the cache too.
    """

    item_id: str
    scores: dict[Dimension, float]
    unscored: dict[Dimension, Reason]
    detail: str
    reply: str
    asks: int


class JudgeRun(Record):
    """Who judged and how; figures stand in one table only where this is equal.

    `models_answered`, `server_versions` and `system_fingerprints` are as the server says, sorted, empty where it says
    nothing; more than one means that the judge changed during the run.
    """

    model_asked: str
    models_answered: tuple[str, ...]
    server_versions: tuple[str, ...]
    system_fingerprints: tuple[str, ...]
    rubric: str
    prompt_hash: str
    temperature: float
    max_tokens: int
    reply_format: ReplyFormat
    explained: bool
    max_reasks: int

    @property
    def version(self) -> str:
        """All that the server says of what answered, in one line."""
        return ", ".join(dict.fromkeys((*self.models_answered, *self.system_fingerprints, *self.server_versions)))

    @property
    def settings(self) -> str:
        """How it was asked, in one line."""
        form = self.reply_format if self.explained else f"{self.reply_format} without explanations"
        sampling = f"temperature {self.temperature:g}, max_tokens {self.max_tokens}"
        return f"{sampling}, replies as {form}, at most {self.max_reasks} re-asks"


class Judging(Record):
    """Judgements in the order of the cases, with who gave them; `asked` went to the server, `cached` did not."""

    judge: JudgeRun
    judgements: tuple[Judgement, ...]
    asked: int
    cached: int


async def judge_cases(
    judge: Judge,
    cache: AnswerCache,
    rubric: Rubric,
    settings: JudgeSettings,
    cases: Iterable[JudgeCase],
    on_done: Callable[[Judgement, bool], None] = lambda _judgement, _is_kept: None,
) -> Judging:
    """All cases judged, `judge.settings.concurrency` at a time.

    `on_done` is told of each, and whether the cache had all its answers.

    An answer is kept before it counts; the same call after a kill asks only what has no answer there, which is at
    most one window of questions that were under way. A case that the server does not answer is unscored (`no_reply`)
    and asked again by the next run. Raises ChatRefusedError at once, JudgeGoneError where MAX_LOST_IN_A_ROW cases get
    no answer, ChatLostError or ChatTooLongError where no case got one, and OSError where answers cannot be kept.
    """
    waiting = list(enumerate(cases))
    run = _Run(judge, await judge.server_version() if waiting else "", cache, rubric, settings)
    done: dict[int, Judgement] = {}
    places = iter(waiting)

    async def work() -> None:
        for place, case in places:
            done[place], is_kept = await run.judgement(case)
            on_done(done[place], is_kept)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(judge.settings.concurrency, len(waiting))):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    if run.failure and not run.completions:
        raise run.failure
    return Judging(
        judge=run.judge_run(),
        judgements=tuple(done[place] for place, _ in waiting),
        asked=run.asked,
        cached=run.cached,
    )


def _judgement(item_id: str, read: ReplyScores, reply: str, asks: int) -> Judgement:
    return Judgement(item_id=item_id, **read.model_dump(), reply=reply, asks=asks)


class _Run:
    """What the cases of one run share."""

    def __init__(self, judge: Judge, version: str, cache: AnswerCache, rubric: Rubric, settings: JudgeSettings) -> None:
        self._judge, self._version = judge, version
        self._cache, self._rubric, self._settings = cache, rubric, settings
        self._schema = reply_schema(explained=settings.explained) if settings.reply_format == "json" else None
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._lost_in_a_row = 0
        self.failure: ChatLostError | ChatTooLongError | None = None
        self.completions: list[Completion] = []
        self.asked = self.cached = 0

    async def judgement(self, case: JudgeCase) -> tuple[Judgement, bool]:
        """The marks of one case, with re-asks, and whether the cache had all its answers."""
        if case.prediction is None or not case.prediction.strip():
            nothing = without_scores("no_prediction", "there is no description")
            return _judgement(case.item_id, nothing, "", asks=0), False
        replies: list[tuple[ReplyScores, str]] = []
        from_cache: list[bool] = []

        async def ask(messages: Sequence[Message]) -> Completion:
            completion, is_cached = await self._answer(messages)
            from_cache.append(is_cached)
            return completion

        def fault_of(completion: Completion) -> str:
            read = _read(completion)
            replies.append((read, completion.text or completion.refusal))
            return "" if read.complete else read.detail

        question = self._rubric.messages(case.reference, case.prediction, self._settings.reply_format)
        try:
            asks = await ask_until(ask, question, fault_of, self._rubric.ask_again, self._settings.max_reasks)
        except (ChatLostError, ChatTooLongError) as error:
            from_cache.append(False)
            asks = len(from_cache)
            reason: Reason = "too_long" if isinstance(error, ChatTooLongError) else "no_reply"
            replies = replies or [(without_scores(reason, str(error)), "")]
        best = max(reversed(replies), key=lambda reply: len(reply[0].scores))
        return _judgement(case.item_id, *best, asks=asks), all(from_cache)

    async def _answer(self, messages: Sequence[Message]) -> tuple[Completion, bool]:
        """The answer, and whether the cache had it or the server gave it; equal questions wait for one another."""
        payload = self._judge.payload(messages, self._schema)
        async with self._locks[payload_hash(payload)]:
            cached = self._cache.get(payload)
            if cached:
                self.cached += 1
            completion = cached or await self._ask(messages)
            if not cached:
                self._cache.put(payload, completion)  # in this thread: a cancelled run must not lose it
        self.completions.append(completion)
        return completion, cached is not None

    async def _ask(self, messages: Sequence[Message]) -> Completion:
        self.asked += 1
        try:
            completion = await self._judge.complete(messages, self._schema)
        except ChatTooLongError as error:
            self.failure = error
            raise
        except ChatLostError as error:
            self.failure = error
            self._lost_in_a_row += 1
            if self._lost_in_a_row >= MAX_LOST_IN_A_ROW:
                raise JudgeGoneError(
                    f"{error}; the answers so far are kept and the same command goes on from them"
                ) from error
            raise
        self._lost_in_a_row = 0
        return completion.model_copy(update={"server_version": self._version})

    def judge_run(self) -> JudgeRun:
        """Who answered, as far as the server told."""
        chat, settings = self._judge.settings, self._settings
        return JudgeRun(
            model_asked=chat.model,
            models_answered=_told(completion.model for completion in self.completions),
            server_versions=_told(completion.server_version for completion in self.completions),
            system_fingerprints=_told(completion.system_fingerprint for completion in self.completions),
            rubric=self._rubric.name,
            prompt_hash=self._rubric.prompt_hash(settings.reply_format, explained=settings.explained),
            temperature=chat.temperature,
            max_tokens=chat.max_tokens,
            reply_format=settings.reply_format,
            explained=settings.explained,
            max_reasks=settings.max_reasks,
        )


def _told(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({text for text in texts if text}))


def _read(completion: Completion) -> ReplyScores:
    if completion.refusal and not completion.text:
        return without_scores("refused", f"the judge declined: {completion.refusal[:200]}")
    return read_reply(completion.text, completion.finish_reason)
