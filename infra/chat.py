"""What is said to and by a server that speaks OpenAI's chat completions; `infra.chat_client` asks it."""

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Protocol, Self
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, field_validator

from schemas.record import Record

JsonObject = dict[str, JsonValue]
REPLICAS_SCHEME = "vllm"


class ChatError(Exception):
    """A question that got no completion; the message is one line."""


class ChatRefusedError(ChatError):
    """The server will not serve such requests (4xx: key, model, address, parameters): asking on is of no use."""


class ChatDeclinedError(ChatRefusedError):
    """The server will not serve this request (400, 422: a picture it cannot read, words that its filter stops); it may
    be that it serves no other either.
    """


class ChatTooLongError(ChatError):
    """One request does not fit the server's context; others may."""


class ChatLostError(ChatError):
    """No completion after all attempts: the server is away, overloaded, or broken."""


class ChatSettings(Record):
    """Which server is asked, and how."""

    base_url: str
    """What comes before `/chat/completions`, as `http://127.0.0.1:8000/v1`; a query string is kept. In a profile
    of builds `vllm://NAME` stands for the servers of the section `[[vllm]]` with that name.
    """
    model: Annotated[str, Field(min_length=1)]
    """The name by which the server knows the model."""
    weights: str = ""
    """What the server computes with, by a name to be changed when that changes: what was made with the old one is then
    stale, and its answers are not used again. Where empty, servers at `vllm://NAME` are told apart by their section
    and the files of their model, others by `model` alone.
    """
    api_key_env: str = ""
    """The environment variable that holds the key; empty, no key is sent."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """How far sampling strays from the likeliest token; at 0 it does not."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Above 0, tokens are the less likely the more often they came in the reply; small models, which run in circles
    under a JSON schema, do so less at 0.3. At 0 it is not sent.
    """
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """A longer reply is cut off."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests in flight at once."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Bounds one attempt as a whole."""
    max_attempts: Annotated[int, Field(ge=1)] = 8
    """Tries of a request that the server turned away as busy, failed or lost."""
    first_wait_s: Annotated[float, Field(ge=0)] = 1.0
    """The wait before attempt n+1 is drawn from 0 to `first_wait_s * 2**(n-1)`; a Retry-After comes before it."""
    max_wait_s: Annotated[float, Field(ge=0)] = 60.0
    """The most that is waited before an attempt, and that a Retry-After counts for."""

    @property
    def replicas_name(self) -> str:
        """The name of the servers that the run starts for this; empty where an address is given."""
        scheme, _, name = self.base_url.partition("://")
        return name if scheme == REPLICAS_SCHEME else ""

    @field_validator("base_url")
    @classmethod
    def _is_a_plain_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme == REPLICAS_SCHEME and value == f"{REPLICAS_SCHEME}://{parts.hostname}":
            return value
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"got {value!r}; a server's address looks like http://127.0.0.1:8000/v1, and vllm://NAME stands for "
                "servers that the run starts"
            )
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
    `model` is the name the server gives, `system_fingerprint` is from the reply (OpenAI, llama.cpp); `server_version`
    is set by those who have asked for it (`infra.chat_client.ChatClient.server_version`).
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    refusal: str
    model: str
    system_fingerprint: str
    server_version: str = ""


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
