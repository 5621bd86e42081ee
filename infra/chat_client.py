"""A client for any server that speaks OpenAI's chat completions: vLLM, llama.cpp, Ollama, OpenAI itself.

What passes by itself is tried again with jitter and a bound: 429, 408, 5xx, resets, time-outs, replies that are no
completion. What does not pass is told at once, in one line. Nothing here knows what is asked or why.
"""

import asyncio
import hashlib
import json
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import httpx
import numpy as np
from pydantic import JsonValue

from infra.chat import (
    ChatDeclinedError,
    ChatLostError,
    ChatRefusedError,
    ChatSettings,
    ChatTooLongError,
    Completion,
    JsonObject,
    Message,
    Part,
    TextPart,
)
from infra.job_clock import turn

_CONNECT_S = 10.0
_VERSION_S = 5.0
MAX_REPLY_BYTES = 4 * 2**20
"""A longer body is no reply, and is not read to its end; the longest texts that models write take a tenth of that."""
_LINE_CHARS = 300
_MAX_DOUBLINGS = 60
_BACK_OFF = frozenset({408, 425, 429})
_NEVER = frozenset({501, 505})
"""Errors of a server's own that no waiting cures: it cannot do what is asked, or not in this HTTP."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_TOO_LONG = re.compile(
    r"context[ _]?(?:length|size|window)|maximum model length|max_model_len|too many tokens|prompt is too long",
    re.IGNORECASE,
)
_NO_CREDIT = "insufficient_quota"
"""OpenAI's code for a 429 that no waiting cures."""
_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"
"""Every server knows the first but OpenAI's for its newer models, which refuse it and name the second."""


class ChatClient:
    """Asks one server, at most `settings.concurrency` questions at a time; an async context manager.

    A question keeps its place while it waits for another attempt, so a struggling server is asked less. Proxies of the
    environment are used except for a server on this machine, and for one that the run itself has started, of which it
    gives the `key`. `transport` stands for the network where there is none.
    The key is in no error, even where a server repeats it. Raises ChatRefusedError for a key that is not there.
    """

    def __init__(
        self, settings: ChatSettings, transport: httpx.AsyncBaseTransport | None = None, key: str | None = None
    ) -> None:
        if settings.replicas_name:
            raise ChatRefusedError(
                f"{settings.base_url} stands for servers that only a build starts; give the address of one that runs, "
                "as http://127.0.0.1:8000/v1"
            )
        self.settings = settings
        base = httpx.URL(settings.base_url)
        path = base.path.rstrip("/")
        self._url = base.copy_with(path=f"{path}/chat/completions")
        root = path.removesuffix("/v1")
        self._version_urls = [base.copy_with(path=f"{root}{tail}") for tail in ("/version", "/api/version")]
        self._limit = _LIMIT
        self._places = asyncio.Semaphore(settings.concurrency)
        self._random = np.random.default_rng()
        self._key = _key(settings.api_key_env) if key is None else key
        key_header = {"authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx.AsyncClient(
            transport=transport,
            headers={"content-type": "application/json", **key_header},
            timeout=httpx.Timeout(settings.timeout_s, connect=min(_CONNECT_S, settings.timeout_s)),
            limits=httpx.Limits(max_connections=settings.concurrency),
            trust_env=key is None and base.host not in _LOOPBACK,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    def payload(self, messages: Sequence[Message], json_schema: Mapping[str, JsonValue] | None = None) -> JsonObject:
        """What `complete` sends, but for pictures, of which it has the SHA-256, so that kept questions stay small, and
        for the name of the limit of tokens where a server wants another; and the settings' `weights`, which are not
        sent. Its hash identifies a question.
        """
        return chat_payload(self.settings, messages, json_schema)

    async def complete(
        self, messages: Sequence[Message], json_schema: Mapping[str, JsonValue] | None = None
    ) -> Completion:
        """The reply to the messages, held to the schema where one is given and the server can.

        Raises ChatRefusedError, as ChatDeclinedError where it may be for this question alone, ChatTooLongError or
        ChatLostError.
        """
        payload = _payload(self.settings, messages, json_schema, str)
        async with turn(self._places, self.settings):
            failure, told_s = "", 0.0
            for attempt in range(self.settings.max_attempts):
                if attempt:
                    await asyncio.sleep(backoff_s(self.settings, self._random, attempt, told_s))
                told_s = 0.0
                try:
                    async with asyncio.timeout(self.settings.timeout_s):
                        response = await self._post(payload)
                except TimeoutError:
                    failure = f"no answer in {self.settings.timeout_s:g} s"
                    continue
                except httpx.RequestError as error:
                    failure = f"{type(error).__name__}: {_one_line(str(error), self._key) or 'the connection broke'}"
                    if mend := _mend(error):
                        raise ChatRefusedError(f"{self._place()} cannot be asked: {failure}; {mend}") from error
                    continue
                if response.is_success:
                    completion = _completion(response)
                    if completion:
                        return completion
                    failure = (
                        f"HTTP {response.status_code} with no chat completion: {_one_line(response.text, self._key)}"
                    )
                    continue
                failure, told_s = self._failure(response)
        raise ChatLostError(
            f"{self._place()} gave no answer in {self.settings.max_attempts} attempts; the last: {failure}"
        )

    async def server_version(self) -> str:
        """What the server says of its own release, at `/version` (vLLM) or `/api/version` (Ollama); empty where it says
        nothing in 5 s.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_VERSION_S):
                for url in self._version_urls:
                    with suppress(httpx.RequestError, ValueError, RecursionError):
                        response = await self._send("GET", url)
                        told = response.json() if response.is_success else None
                        if isinstance(told, dict) and isinstance(told.get("version"), str):
                            return _one_line(told["version"], self._key)
        return ""

    async def _send(self, method: str, url: httpx.URL, content: bytes | None = None) -> httpx.Response:
        """The response, read and decoded; raises httpx.RequestError, also where it is longer than any reply."""
        body = bytearray()
        async with self._http.stream(method, url, content=content) as response:
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MAX_REPLY_BYTES:
                    raise httpx.RemoteProtocolError(f"the reply goes on after {MAX_REPLY_BYTES // 2**20} MiB")
        headers = httpx.Headers(response.headers)
        headers.pop("content-encoding", None)
        return httpx.Response(response.status_code, headers=headers, content=bytes(body))

    async def _post(self, payload: JsonObject) -> httpx.Response:
        """The response; a server that will not have the old name of the limit is asked again by the new one."""
        limit = self._limit
        response = await self._send("POST", self._url, _body(payload, limit))
        if limit == _LIMIT and response.status_code in (400, 422):
            said, _ = _said(response, self._key)
            # vLLM names both where a question is too long
            if _NEW_LIMIT in said and not _TOO_LONG.search(said):
                self._limit = _NEW_LIMIT
                response = await self._send("POST", self._url, _body(payload, _NEW_LIMIT))
        return response

    def _failure(self, response: httpx.Response) -> tuple[str, float]:
        """What went wrong and the wait the server asks for; raises where another attempt is of no use."""
        said, codes = _said(response, self._key)
        failure = f"HTTP {response.status_code}: {said}"
        status = response.status_code
        if (status >= 500 and status not in _NEVER) or (status in _BACK_OFF and _NO_CREDIT not in codes):
            return failure, _retry_after_s(response)
        if status == 413 or (status in (400, 422) and _TOO_LONG.search(f"{codes} {said}")):
            raise ChatTooLongError(f"{self._place()}: {failure}")
        if response.is_redirect:
            failure += f" (it points to {response.headers.get('location', 'nowhere')})"
        hint = {
            404: "; does the address end in /v1, and is that the model's name there?",
            501: "; give the address of a server that has chat completions",
            505: "; give the address of a server, or of a proxy before it, that speaks HTTP/1.1",
        }.get(status, "")
        kind = ChatDeclinedError if status in (400, 422) else ChatRefusedError
        raise kind(f"{self._place()} refuses model {self.settings.model!r}: {failure}{hint}")

    def _place(self) -> str:
        return f"{self._url.scheme}://{self._url.netloc.decode()}{self._url.path}"


def chat_payload(
    settings: ChatSettings, messages: Sequence[Message], json_schema: Mapping[str, JsonValue] | None = None
) -> JsonObject:
    """What `ChatClient.payload` gives, wherever the server is."""
    payload = _payload(settings, messages, json_schema, _hash_of)
    return payload | {"weights": settings.weights} if settings.weights else payload


def backoff_s(settings: ChatSettings, random: np.random.Generator, attempt: int, told_s: float = 0.0) -> float:
    """How long to wait before attempt number `attempt`, from 1, that follows another; `told_s` is the server's wish."""
    most = min(settings.max_wait_s, settings.first_wait_s * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS))
    return min(told_s, settings.max_wait_s) + float(random.uniform(0, most))


def _payload(
    settings: ChatSettings,
    messages: Sequence[Message],
    json_schema: Mapping[str, JsonValue] | None,
    url_of: Callable[[str], str],
) -> JsonObject:
    payload: JsonObject = {
        "model": settings.model,
        "messages": [{"role": message.role, "content": _content(message, url_of)} for message in messages],
        "temperature": settings.temperature,
        _LIMIT: settings.max_tokens,
    }
    if settings.frequency_penalty:  # not every server knows it
        payload["frequency_penalty"] = settings.frequency_penalty
    if json_schema is not None:
        named: JsonObject = {"name": "reply", "strict": True, "schema": dict(json_schema)}
        payload["response_format"] = {"type": "json_schema", "json_schema": named}
    return payload


def _content(message: Message, url_of: Callable[[str], str]) -> JsonValue:
    """A message's content in OpenAI's form; `url_of` gives a picture's address from its data URI."""
    if isinstance(message.content, str):
        return message.content
    return [_part(part, url_of) for part in message.content]


def _part(part: Part, url_of: Callable[[str], str]) -> JsonValue:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": url_of(part.data_uri)}}


def _hash_of(data_uri: str) -> str:
    return f"sha256:{hashlib.sha256(data_uri.encode()).hexdigest()}"


def _body(payload: JsonObject, limit: str) -> bytes:
    return json.dumps({limit if key == _LIMIT else key: value for key, value in payload.items()}).encode()


def _key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        got = "holds characters no key has" if key else "is not set"
        raise ChatRefusedError(f"the environment variable {variable} {got}; it should hold the server's key")
    return key


def _mend(error: httpx.RequestError) -> str:
    """What must be done about an error that no other attempt mends; empty where one may."""
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return "mend the address, the key, or the proxy that the environment names"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "name the file of the authority that signed its certificate in SSL_CERT_FILE, or mend the host's name"
    if cause is not None and cause.reason == "WRONG_VERSION_NUMBER":
        return "the server speaks no TLS there: the address begins with http:// instead"
    return ""


def _completion(response: httpx.Response) -> Completion | None:
    """The reply read, or None where it is not a chat completion."""
    try:
        body = response.json()
        choice = body["choices"][0]
        message = choice["message"]
        usage = body.get("usage") or {}
        return Completion(
            text=_text(message.get("content")),
            finish_reason=choice.get("finish_reason") or "",
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            refusal=_text(message.get("refusal")),
            model=body.get("model") or "",
            system_fingerprint=body.get("system_fingerprint") or "",
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _text(content: object) -> str:
    """A message's text; some servers send it in parts. Halves of surrogate pairs, which are no text, become `?`."""
    if isinstance(content, list):
        content = "".join(str(part["text"]) for part in content if part.get("type") == "text")
    return "" if content is None else _encodable(str(content))


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _said(response: httpx.Response, secret: str) -> tuple[str, str]:
    """A refusal's message in one line, and its code and type."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return _one_line(response.text, secret) or response.reason_phrase, ""
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return _one_line(str(error), secret), ""
    said = error.get("message") or error.get("detail") or error
    return _one_line(str(said), secret), f"{error.get('code')} {error.get('type')}"


def _one_line(text: str, secret: str = "") -> str:
    shown = text.replace(secret, "***") if secret else text
    flat = _encodable(" ".join(shown.split()))
    return flat if len(flat) <= _LINE_CHARS else f"{flat[:_LINE_CHARS]}..."


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds the server asks to wait, 0 where it does not say; a number or an HTTP date."""
    told = response.headers.get("retry-after", "")
    try:
        wait_s = float(told)
    except ValueError:
        try:
            at = parsedate_to_datetime(told)
        except ValueError:
            return 0.0
        wait_s = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, wait_s) if np.isfinite(wait_s) else 0.0
