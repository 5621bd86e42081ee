"""Prompts of chat agents: files in `agents/prompts`, told apart by hash, with what is asked in the last turn alone.

The instructions are the same for every clip and come first, so that a server evaluates them once. Pictures, which cost
more, come before them: several questions are asked of the same pictures, and a server evaluates those once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from infra.chat import ChatSettings, ImagePart, JsonObject, Message, TextPart
from infra.structured_chat import schema_of
from schemas.label import AgentLabel
from schemas.record import Record, content_id, short_id

AGAIN = "chat_again.md"
_ERROR = "{error}"


@dataclass(frozen=True)
class ChatPrompt:
    """Instructions, the words for what is wrong with a reply, and the record that a reply must be."""

    system: str
    again: str
    reply: type[Record]

    def messages(self, asked: JsonObject) -> tuple[Message, ...]:
        """The turns of a question."""
        user = json.dumps(asked, ensure_ascii=False)
        return Message(role="system", content=self.system), Message(role="user", content=user)

    def shown(self, pictures: Sequence[ImagePart], asked: JsonObject) -> tuple[Message, ...]:
        """The turn of a question on pictures."""
        text = f"{self.system}\n\n{json.dumps(asked, ensure_ascii=False)}"
        return (Message(role="user", content=(*pictures, TextPart(text=text))),)

    def ask_again(self, reply: str, error: str) -> tuple[Message, ...]:
        """The turns that show the model its reply and what is wrong with it."""
        told = Message(role="user", content=self.again.replace(_ERROR, error))
        return Message(role="assistant", content=reply), told


def read_prompt(name: str, reply: type[Record]) -> ChatPrompt:
    """The prompt of that file, with the common words for a re-ask."""
    folder = files("agents") / "prompts"
    system, again = ((folder / file).read_text(encoding="utf-8").strip() for file in (name, AGAIN))
    return ChatPrompt(system, again, reply)


def prompt_hash(prompts: Sequence[ChatPrompt]) -> str:
    """SHA-256 (hex) over all that a model may be sent apart from the clips."""
    parts = [(p.system, p.again, json.dumps(schema_of(p.reply), sort_keys=True)) for p in prompts]
    return content_id(*(text for part in parts for text in part))


def chat_label(
    agent: str, revision: int, config: JsonObject, chat: ChatSettings, prompts: Sequence[ChatPrompt]
) -> AgentLabel:
    """The label of an agent behind a chat server: model and sampling, and no address, as the model may move.

    What weights the server has is known as far as the settings say.
    """
    return AgentLabel(
        agent=agent,
        engine=f"chat:{chat.model}",
        weights=weights_of(chat),
        config_json=json.dumps(config | {"chat": sampling_of(chat)}, sort_keys=True),
        prompt_hash=prompt_hash(prompts),
        revision=revision,
    )


def sampling_of(chat: ChatSettings) -> JsonObject:
    """What of a server's settings shapes its answers."""
    told: JsonObject = {"model": chat.model, "temperature": chat.temperature, "max_tokens": chat.max_tokens}
    if chat.frequency_penalty:
        told["frequency_penalty"] = chat.frequency_penalty
    return told


def weights_of(chat: ChatSettings) -> tuple[str, ...]:
    """What the server computes with, for a label; nothing where the settings do not say."""
    return (chat.weights,) if chat.weights else ()


def tag_of(*ids: str) -> str:
    """A short id to be echoed: eight hexadecimal digits, which cost few tokens and do not meet by chance."""
    return short_id(*ids)[:8]
