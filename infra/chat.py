"""What is said to and by a server that speaks OpenAI's chat completions; `infra.chat_client` asks it."""

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Protocol, Self
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, field_validator

from schemas.record import Record

JsonObject = dict[str, JsonValue]


class ChatError(Exception):
    """A question that got no completion; the message is one line."""


class ChatRefusedError(ChatError):
    """The server will not serve such requests (4xx: key, model, address, parameters): asking on is of no use."""


class ChatTooLongError(ChatError):
    """One request does not fit the server's context; others may."""


class ChatLostError(ChatError):
    """No completion after all attempts: the server is away, overloaded, or broken."""


class ChatSettings(Record):
    """Which server is asked, and how.

    `base_url` is what comes before `/chat/completions`, as `http://127.0.0.1:8000/v1`; a query string is kept.
    `api_key_env` names the environment variable that holds the key; empty, no key is sent. `timeout_s` bounds one
    attempt as a whole. The wait before attempt n+1 is drawn from 0 to `first_wait_s * 2**(n-1)`, at most `max_wait_s`;
    a Retry-After comes before it, cut at `max_wait_s` too.
    """

    base_url: str
    model: Annotated[str, Field(min_length=1)]
    api_key_env: str = ""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    concurrency: Annotated[int, Field(ge=1)] = 8
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    max_attempts: Annotated[int, Field(ge=1)] = 8
    first_wait_s: Annotated[float, Field(ge=0)] = 1.0
    max_wait_s: Annotated[float, Field(ge=0)] = 60.0

    @field_validator("base_url")
    @classmethod
    def _is_a_plain_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"got {value!r}; a server's address looks like http://127.0.0.1:8000/v1")
        if "@" in parts.netloc:
            raise ValueError("the address holds a user or password; name a key by api_key_env instead")
        return value


class TextPart(Record):
    """Words between pictures."""

    text: str


class ImagePart(Record):
    """A picture, which travels inside the request."""

    data_uri: Annotated[str, Field(pattern=r"^data:image/(jpeg|png);base64,[A-Za-z0-9+/]+=*$")]

    @classmethod
    def of_jpeg(cls, data: bytes) -> Self:
        """The picture of a JPEG file's bytes."""
        return cls(data_uri=f"data:image/jpeg;base64,{base64.b64encode(data).decode()}")


Part = TextPart | ImagePart


class Message(Record):
    """One turn of a chat: a text, or texts and pictures in the order in which a model sees them."""

    role: Literal["system", "user", "assistant"]
    content: str | tuple[Part, ...]


class Completion(Record):
    """A server's reply. Texts are empty and counts None where the server does not tell.

    `finish_reason` is `length` where `max_tokens` cut the text off. `refusal` is what OpenAI puts in place of a text.
    `model` is the name the server gives; `server_version` is from its `/version` (vLLM) or `/api/version` (Ollama),
    `system_fingerprint` from the reply (OpenAI, llama.cpp).
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    refusal: str
    model: str
    system_fingerprint: str
    server_version: str


class Chat(Protocol):
    """A server that is asked; `infra.chat_client.ChatClient` is one."""

    @property
    def settings(self) -> ChatSettings:
        """Model and sampling, for the record of the results."""

    def payload(self, messages: Sequence[Message], json_schema: Mapping[str, JsonValue] | None = None) -> JsonObject:
        """What identifies a question: equal payloads have one answer. It holds no address, and of pictures a hash."""

    async def complete(
        self, messages: Sequence[Message], json_schema: Mapping[str, JsonValue] | None = None
    ) -> Completion:
        """The reply; raises a ChatError."""
