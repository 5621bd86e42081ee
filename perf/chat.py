"""Chat agents against a server that does everything wrong, through the pool, the client and the re-asks of a build.

The server answers one new question in five badly, at random, and the next try well: JSON cut off, wrong ids, answers
swapped between two questions that wait at the same time, storms of 429, resets, replies slower than the time-out,
pages of HTML, bodies shorter than they say, endless blanks, refusals, missing fields, and whole answers that claim to
be cut off. One job in five hundred is answered badly for ever, each in its own manner, so that it must fail, and for
that reason. Every other job must end with the answer to its own question: one that ends with another's makes this
script fail, as does a failure without cause or with another reason than its own.

20,000 jobs go over HTTP on loopback to a process of its own, 1,000,000 through a transport in this process; other
numbers may be given: `perf/chat.py HTTP IN_PROCESS`.
"""

import asyncio
import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from agents.chat_agent import ChatAgent
from infra.async_pool import AsyncPool
from infra.chat import ChatSettings, Message
from infra.chat_client import ChatClient
from infra.pool import JobFailure
from infra.structured_chat import Question, StructuredChat
from infra.token_count import TokenCount
from schemas.clip import Clip
from schemas.mention import MentionSet
from schemas.quarantine import QuarantineEntry
from schemas.record import Record, short_id

HTTP_JOBS, IN_PROCESS_JOBS = 20_000, 1_000_000
HTTP_WINDOW, IN_PROCESS_WINDOW = 64, 256
UNIT, UNITS_IN_FLIGHT = 500, 16
BAD_SHARE, STORM_EVERY, STORM_LENGTH = 0.2, 5_000, 150
DOOMED_ONE_IN = 500
EXPECTED = {
    "cut": "not_json",
    "blank": "not_json",
    "length": "truncated",
    "endless": "truncated",
    "wrong_id": "wrong_ids",
    "swap": "wrong_ids",
    "shape": "wrong_shape",
    "refusal": "refused",
    "html": "no chat completion",
    "429": "HTTP 429",
    "reset": "Error",
    "short_body": "Error",
    "slow": "no answer in",
}
"""What a server may do wrong, and what the evidence of a job must say to which it does nothing else."""
SLOW_S = 2.0
SWAP_WAIT_S = 0.05


class Answer(Record):
    """What the server is asked for."""

    id: str
    answer: str


@dataclass(frozen=True)
class Response:
    """What is sent; `length` is what the head says of the body, None to reset the connection instead."""

    status: int
    body: bytes
    length: int | None
    wait_s: float = 0.0


def doom_of(tag: str) -> str:
    """What the server does to every question of this id, empty for all but a few."""
    number = int(hashlib.sha256(tag.encode()).hexdigest()[:8], 16)
    return list(EXPECTED)[number // DOOMED_ONE_IN % len(EXPECTED)] if number % DOOMED_ONE_IN == 0 else ""


def right_answer(text: str) -> str:
    """The one answer to a question."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Hostile:
    """Decides what becomes of each question."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - nothing is to be kept secret
        self._count = 0
        self._swapping: asyncio.Future[bytes] | None = None
        self._given = b""
        self._had_it_bad: set[str] = set()

    async def respond(self, payload: dict[str, Any]) -> Response:
        """What to send for a question."""
        if len(payload["messages"]) == 1:
            return _said("yes")  # the probe
        asked = json.loads(payload["messages"][1]["content"])
        honest = {"id": asked["id"], "answer": right_answer(asked["text"])}
        self._count += 1
        doom = doom_of(asked["id"])
        storms = self._count % STORM_EVERY < STORM_LENGTH
        kind = doom or ("429" if storms else "")
        if not kind and asked["id"] not in self._had_it_bad and self._random.random() < BAD_SHARE:
            kind = self._random.choice(list(EXPECTED))
        (self._had_it_bad.add if kind else self._had_it_bad.discard)(asked["id"])
        if kind == "swap":
            return _said((await self._swapped(json.dumps(honest).encode())).decode())
        return _bad(kind, honest) if kind else _said(json.dumps(honest))

    async def _swapped(self, mine: bytes) -> bytes:
        """The text of another question that waits; where none comes, that of an earlier one."""
        if self._swapping is not None and not self._swapping.done():
            other, self._swapping = self._swapping, None
            theirs, self._given = self._given, mine
            other.set_result(mine)
            return theirs
        self._swapping = asyncio.get_running_loop().create_future()
        before, self._given = self._given, mine
        try:
            return await asyncio.wait_for(self._swapping, SWAP_WAIT_S)
        except TimeoutError:
            return before if before not in (b"", mine) else b'{"id": "none", "answer": "none"}'


def _bad(kind: str, honest: dict[str, str]) -> Response:
    """A response with what is wrong with it, of all kinds that need no other question."""
    text = json.dumps(honest)
    sent = _said(text)
    return {
        "cut": _said(text[: len(text) // 2]),
        "blank": _said("{" + " \n" * 500),
        "length": _said(text, "length"),
        "endless": _said('{"id": "' + " " * 1000, "length"),
        "wrong_id": _said(json.dumps(honest | {"id": short_id(honest["id"])[:8]})),
        "shape": _said(json.dumps({"id": honest["id"]})),
        "refusal": _said("", refusal="I would rather not"),
        "html": _whole(200, b"<html><body>Welcome to the proxy</body></html>"),
        "429": _whole(429, b'{"error": {"message": "slow down"}}'),
        "reset": Response(0, b"", None),
        "short_body": Response(200, sent.body[:-5], len(sent.body)),
        "slow": Response(200, sent.body, len(sent.body), wait_s=SLOW_S),
    }[kind]


def _said(text: str, finish_reason: str = "stop", **message: str) -> Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": text} | message, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 20, "completion_tokens": 10}
    return _whole(200, json.dumps({"model": "hostile", "choices": [choice], "usage": usage}).encode())


def _whole(status: int, body: bytes) -> Response:
    return Response(status, body, len(body))


async def serve(say: Callable[[str], object]) -> None:
    """A server on a free port of loopback, which is told; until it is killed."""
    hostile = Hostile(seed=1)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n") if b": " in line)
                body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
                response = await hostile.respond(json.loads(body)) if body else _whole(404, b"")
                await asyncio.sleep(response.wait_s)
                if response.length is None:
                    writer.transport.abort()
                    return
                retry = "retry-after: 0.05\r\n" if response.status == 429 else ""
                told = f"HTTP/1.1 {response.status} x\r\n{retry}content-length: {response.length}\r\n\r\n"
                writer.write(told.encode() + response.body)
                if response.length != len(response.body):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=512)
    say(f"{server.sockets[0].getsockname()[1]}\n")
    await server.serve_forever()


def transport_in_process() -> httpx.MockTransport:
    """The same server without a network."""
    hostile = Hostile(seed=2)

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        response = await hostile.respond(json.loads(request.content))
        if response.wait_s:
            await asyncio.sleep(response.wait_s)
        if response.length is None:
            raise httpx.ReadError("the connection was reset")
        if response.length != len(response.body):
            raise httpx.RemoteProtocolError("the body is shorter than it should be")
        retry = {"retry-after": "0.05"} if response.status == 429 else {}
        return httpx.Response(response.status, headers=retry, content=response.body)

    return httpx.MockTransport(handle)


class Asker(ChatAgent):
    """Asks for the answer to a clip's caption and takes it as it comes: only the id tells whose it is."""

    async def process_one(self, job: Clip) -> MentionSet:
        """The answer as the evidence of one entry."""
        tag = tag_of(job)
        user = json.dumps({"id": tag, "text": job.caption})
        reply = await self._chat.ask(
            Question(
                messages=(Message(role="system", content="Answer."), Message(role="user", content=user)),
                again=lambda reply, fault: (
                    Message(role="assistant", content=reply),
                    Message(role="user", content=fault),
                ),
                reply=Answer,
                ids=(tag,),
                ids_of=lambda reply: (reply.id,),
            )
        )
        entry = QuarantineEntry(
            subject_id=reply.id,
            source_id="",
            clip_id=job.clip_id,
            stage="analyzer",
            reason="no_mention",
            evidence=reply.answer,
        )
        return MentionSet(clip_id=job.clip_id, mentions=(), rejected=(entry,))


def tag_of(job: Clip) -> str:
    """The id that a question about the clip bears."""
    return short_id(job.clip_id)[:8]


def clips(number: int) -> Iterator[Clip]:
    """Each with a caption of its own."""
    first = Clip(
        clip_id="0",
        source_id="s",
        video="a.mp4",
        video_sha256="0" * 64,
        license="CC0-1.0",
        start_s=0,
        end_s=1,
        start_frame=0,
        end_frame=30,
        fps=30,
        height_px=4,
        width_px=4,
        caption="0",
    )
    for i in range(number):
        yield first.model_copy(update={"clip_id": f"clip-{i}", "caption": f"caption number {i}"})


@dataclass
class Tally:
    """What came of the jobs: `failed` by what was done to them, `wrong` for what must not be."""

    jobs: int
    took_s: float
    busy_s: float
    count: TokenCount
    failed: Counter[str]
    misassigned: int
    wrong: list[str]

    def report(self, name: str) -> str:
        """A few lines."""
        asked = self.count.requests
        failed = ", ".join(f"{kind} {self.failed[kind]}" for kind in sorted(self.failed))
        lines = [
            f"{name}: {self.jobs} jobs in {self.took_s:.1f} s, {asked / self.took_s:.0f} answers/s, "
            f"requests in flight {100 * self.busy_s / self.took_s:.0f} % of the most; {self.count}",
            f"  mis-assigned {self.misassigned}, failed {sum(self.failed.values())}, as they had to: {failed}",
            *(f"  WRONG: {line}" for line in self.wrong[:10]),
        ]
        return "\n".join(lines)


def hold(jobs: Iterable[Clip], settings: ChatSettings, transport: httpx.MockTransport | None) -> Tally:
    """Put the jobs through a pool unit by unit, and hold each against what had to come of it."""
    chat = StructuredChat(settings, None, 2, lambda wanted: ChatClient(wanted, transport))
    tally = Tally(0, 0.0, 0.0, TokenCount(), Counter(), 0, [])
    start_s = time.perf_counter()
    pool = AsyncPool(lambda: Asker(chat), window=2 * settings.concurrency, batch_size=32, timeout_s=600, max_attempts=2)
    waiting, lock = iter(jobs), threading.Lock()

    def serve_units() -> None:
        while True:
            with lock:
                unit = list(islice(waiting, UNIT))
            if not unit:
                return
            for batch in pool.run(int(unit[0].clip_id.removeprefix("clip-")), unit):
                with lock:
                    tally.busy_s += batch.busy_s
                    for outcome in batch.outcomes:
                        _weigh(outcome.job, outcome.result, tally)

    with pool, ThreadPoolExecutor(UNITS_IN_FLIGHT) as threads:
        for done in [threads.submit(serve_units) for _ in range(UNITS_IN_FLIGHT)]:
            done.result()
    tally.took_s, tally.count = time.perf_counter() - start_s, chat.count
    return tally


def _weigh(job: Clip, result: MentionSet | JobFailure, tally: Tally) -> None:
    tally.jobs += 1
    doom = doom_of(tag_of(job))
    if isinstance(result, JobFailure):
        tally.failed[doom or "none"] += 1
        if not doom or EXPECTED[doom] not in result.evidence:
            tally.wrong.append(f"{job.clip_id}, doomed to {doom or 'nothing'}: {result.evidence[:300]}")
        return
    (entry,) = result.rejected
    if entry.evidence != right_answer(job.caption):
        tally.misassigned += 1
        tally.wrong.append(f"{job.clip_id} has another's answer")
    elif doom:
        tally.wrong.append(f"{job.clip_id}, doomed to {doom}, was answered")


def settings_for(url: str, window: int) -> ChatSettings:
    """Patience that suits a server on this machine, where a reply that is on time takes well under a second."""
    return ChatSettings(
        base_url=url,
        model="hostile",
        concurrency=window,
        timeout_s=SLOW_S / 2,
        max_attempts=5,
        first_wait_s=0.01,
        max_wait_s=0.2,
    )


def over_http(number: int) -> Tally:
    """Against a server of its own process."""
    server = subprocess.Popen([sys.executable, Path(__file__), "serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        port = server.stdout.readline().strip()
        return hold(clips(number), settings_for(f"http://127.0.0.1:{port}/v1", HTTP_WINDOW), None)
    finally:
        server.kill()
        server.wait()


def in_process(number: int) -> Tally:
    """Without a network."""
    return hold(clips(number), settings_for("http://127.0.0.1:9/v1", IN_PROCESS_WINDOW), transport_in_process())


def main() -> int:
    """Both, with figures; 1 where anything came of a job that must not."""
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve(lambda line: (sys.stdout.write(line), sys.stdout.flush())))
        return 0
    http_jobs, in_process_jobs = (int(text) for text in sys.argv[1:3]) if sys.argv[1:] else (HTTP_JOBS, IN_PROCESS_JOBS)
    tallies = []
    for name, run, number in (("over HTTP", over_http, http_jobs), ("in process", in_process, in_process_jobs)):
        tallies.append(run(number))
        sys.stdout.write(tallies[-1].report(name) + "\n")
        sys.stdout.flush()
    return int(any(tally.wrong for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
