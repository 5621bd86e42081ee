"""The text of a request: turns and placeholders are checked, and the chat is cut into token ids with label boundaries.

Formats follow the official loader (`videorefer/train.py`, `videorefer/mm_utils.py`): the scene's tag is moved to the
head of the first user turn, and only answers are learnt. Where the official loader puts up with a tag too many or too
few, which shifts every later placeholder, a request here is refused.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from model.request import IMAGE, REGION, VIDEO, Message, Request, RequestError, Scene

PLACEHOLDERS = (VIDEO, IMAGE, REGION)


class Piece(NamedTuple):
    """`token_ids` of a stretch of the chat, of which the first `num_learnt` are learnt.

    That is none of a question, and of an answer all up to its last special token, which ends the turn.
    """

    token_ids: list[int]
    num_learnt: int


def checked_messages(request: Request, with_answer: bool) -> tuple[Message, ...]:
    """The turns with the scene's tag at the head of the first user turn, on a line of its own.

    A system turn may come first; then user and assistant alternate, up to an answer if `with_answer`, else up to a
    question. Raises `RequestError` where turns, tags or the number of `<region>` are otherwise.
    """
    messages = request.messages
    _check_turns([message.role for message in messages], with_answer)
    first = 1 if messages[0].role == "system" else 0
    tag = _tag(request.scene)
    for place, message in enumerate(messages):
        _check_placeholders(message, tag if place == first else None)
    got = sum(message.content.count(REGION) for message in messages)
    if got != len(request.objects):
        raise RequestError(
            "regions", f"the text has {got} {REGION} for {len(request.objects)} objects; each object needs exactly one"
        )
    if tag is None:
        return messages
    text = messages[first].content.replace(tag, "").strip()
    return (*messages[:first], Message("user", f"{tag}\n{text}".strip()), *messages[first + 1 :])


def chat_pieces(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[Piece]:
    """Questions and answers by turns, in the tokenizer's chat template; joined they are the whole chat.

    Each is tokenised by itself, so that a label boundary never falls inside a token and a question has the same ids
    whether its answer follows or is still to be generated. Raises ValueError where the template is missing, where what
    it writes for the first turns is not how it begins the whole chat, or where it ends an answer with no special token
    (then nothing would teach the model to stop).
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat template: set tokenizer.chat_template, or take the one of its model"
        )
    special = _special_ids(tokenizer)
    pieces, written = [], ""
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        question = _render(tokenizer, messages[:place], add_generation_prompt=True)
        answered = _render(tokenizer, messages[: place + 1], add_generation_prompt=False)
        answer_ids = _ids(tokenizer, _rest(answered, question))
        pieces += [Piece(_ids(tokenizer, _rest(question, written)), 0), Piece(answer_ids, _learnt(answer_ids, special))]
        written = answered
    if messages[-1].role != "assistant":
        question = _render(tokenizer, messages, add_generation_prompt=True)
        pieces.append(Piece(_ids(tokenizer, _rest(question, written)), 0))
    return pieces


def _check_turns(roles: list[str], with_answer: bool) -> None:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    alternate = all(role == ("user", "assistant")[place % 2] for place, role in enumerate(turns))
    if not turns or not alternate or (turns[-1] == "assistant") != with_answer:
        last = "assistant" if with_answer else "user"
        raise RequestError(
            "turns", f"the turns are {roles}; allowed are user and assistant by turns, after at most one system turn, "
            f"up to one of the {last}"
        )  # fmt: skip


def _tag(scene: Scene | None) -> str | None:
    if scene is None:
        return None
    return IMAGE if scene.is_image else VIDEO


def _check_placeholders(message: Message, tag: str | None) -> None:
    """`tag` may stand once; no other scene tag may, and `<region>` only in user turns."""
    for other in (VIDEO, IMAGE):
        got, allowed = message.content.count(other), int(other == tag)
        if got > allowed:
            raise RequestError(
                "scene_tag", f"a turn of the {message.role} has {got} {other}; allowed is {allowed}: only the tag "
                "of the scene that is there stands in the text, once, in the first user turn"
            )  # fmt: skip
    if message.role != "user" and REGION in message.content:
        raise RequestError(
            "regions", f"a turn of the {message.role} has {REGION}; only user turns may: name objects by <object0>, ..."
        )


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    turns: list[dict[str, Any]] = [message._asdict() for message in messages]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    return text


def _rest(whole: str, start: str) -> str:
    if not whole.startswith(start):
        raise ValueError(
            "the chat template writes the first turns otherwise once more follow, so answers cannot be told apart: "
            f"{start[-80:]!r} is not how {whole[: len(start)][-80:]!r} begins; use a template that only appends"
        )
    return whole[len(start) :]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of all special tokens; an end of turn may be special without being named EOS."""
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added.union(tokenizer.all_special_ids))


def _learnt(answer_ids: list[int], special: frozenset[int]) -> int:
    """How many ids of an answer are learnt; a line break that the template puts after the end token is not."""
    for num_learnt in range(len(answer_ids), 0, -1):
        if answer_ids[num_learnt - 1] in special:
            return num_learnt
    raise ValueError("the chat template ends an answer with no special token: add the tokenizer's EOS token there")
