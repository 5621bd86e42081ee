"""Records from a chat server: what counts as an answer, what is asked again and how, what is kept, what it costs."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.chat import ChatLostError, ChatSettings, ChatTooLongError, ImagePart, Message, TextPart
from infra.structured_chat import BadReplyError, Question, StructuredChat, wrong_ids
from infra.token_count import TokenCount
from schemas.record import Record


class Item(Record):
    """Words for readers of the code, which no model is sent."""

    id: str
    description: str


class Reply(Record):
    items: tuple[Item, ...]


ASKED = (Message(role="system", content="Give a word for each id."), Message(role="user", content="a b"))
GOOD = json.dumps({"items": [{"id": "a", "description": "one"}, {"id": "b", "description": "two"}]})


def reply_of(*pairs: tuple[str, str]) -> str:
    return json.dumps({"items": [{"id": name, "description": word} for name, word in pairs]})


def again(reply: str, fault: str) -> Sequence[Message]:
    return Message(role="assistant", content=reply), Message(role="user", content=f"wrong: {fault}")


def question(flaws_of: Callable[[Reply], Sequence[str]] = lambda _: ()) -> Question[Reply]:
    return Question(
        messages=ASKED,
        again=again,
        reply=Reply,
        ids=("a", "b"),
        ids_of=lambda reply: [item.id for item in reply.items],
        flaws_of=flaws_of,
    )


def ask(
    server: Any, asked: Question[Reply] | None = None, answers: Path | None = None, times: int = 1, **chat: Any
) -> tuple[list[Reply], TokenCount]:
    quick = {"first_wait_s": 0.01, "max_wait_s": 0.02, "timeout_s": 5.0, "max_attempts": 2}

    async def run() -> tuple[list[Reply], TokenCount]:
        settings = ChatSettings(base_url=server.url, model="asked", **(quick | chat))
        asker = StructuredChat(settings, answers, max_reasks=2)
        await asker.start()
        try:
            return [await asker.ask(asked or question()) for _ in range(times)], asker.count
        finally:
            await asker.close()

    return asyncio.run(run())


def says(server: Any, *replies: Any) -> None:
    """The replies in turn, the last one for ever; a text stands for a whole reply that ends by itself."""
    told = [server.said(reply) if isinstance(reply, str) else reply for reply in replies]
    server.script = lambda _: told[min(len(server.received), len(told)) - 1]


def test_an_answer_comes_as_a_record_and_the_schema_does_not_name_the_ids(chat_server: Any) -> None:
    says(chat_server, GOOD)
    (reply,), count = ask(chat_server)
    assert [(item.id, item.description) for item in reply.items] == [("a", "one"), ("b", "two")]
    assert count == TokenCount(requests=1, prompt_tokens=11, completion_tokens=7)
    (sent,) = chat_server.received
    form = sent["response_format"]["json_schema"]
    item = {"id": {"type": "string"}, "description": {"type": "string"}}
    closed = {"type": "object", "additionalProperties": False}
    assert (form["strict"], form["schema"]) == (
        True,
        closed
        | {
            "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/Item"}}},
            "required": ["items"],
            "$defs": {"Item": closed | {"properties": item, "required": ["id", "description"]}},
        },
    )


FAULTS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "cut off, though it is whole": (lambda s: s.said(GOOD, "length"), "truncated", "cut off"),
    "endless blanks": (lambda s: s.said('{"items": [' + " " * 9000, "length"), "truncated", "cut off"),
    "half of it": (lambda s: s.said(GOOD[:-9]), "not_json", "not JSON: EOF"),
    "blanks": (lambda s: s.said("{" + "\n" * 9000), "not_json", "not JSON"),
    "a page": (lambda s: s.said("<html>"), "not_json", "not JSON"),
    "nothing": (lambda s: s.said(""), "not_json", "not JSON"),
    "deep": (lambda s: s.said("[" * 20_000), "not_json", "not JSON"),
    "a refusal": (lambda s: s.said(None, refusal="no"), "refused", "declined"),
    "a filter": (lambda s: s.said(GOOD, "content_filter"), "refused", "declined"),
    "a field missing": (
        lambda s: s.said('{"items": [{"id": "a"}]}'),
        "wrong_shape",
        "items.0.description: Field required",
    ),
    "a field more": (lambda s: s.said('{"items": [], "more": 1}'), "wrong_shape", "more: Extra inputs"),
    "a list": (lambda s: s.said("[]"), "wrong_shape", "the reply: "),
    "another's id": (lambda s: s.said(reply_of(("a", ""), ("c", ""))), "wrong_ids", "'c' was not asked for"),
    "an id missing": (lambda s: s.said(reply_of(("a", ""))), "wrong_ids", "the id 'b' is missing"),
    "an id twice": (lambda s: s.said(reply_of(("a", ""), ("a", ""), ("b", ""))), "wrong_ids", "'a' comes 2 times"),
    "ids swapped": (lambda s: s.said(reply_of(("b", ""), ("a", ""))), "wrong_ids", "in this order: a, b"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_bad_reply_is_shown_to_the_model_with_what_is_wrong(chat_server: Any, kind: str) -> None:
    make, _, said = FAULTS[kind]
    says(chat_server, make(chat_server), GOOD)
    (reply,), count = ask(chat_server)
    assert reply == Reply.model_validate_json(GOOD)
    assert (count.requests, count.reasks, count.completion_tokens) == (2, 1, 14)
    first, second = (sent["messages"] for sent in chat_server.received)
    assert second[:2] == first
    told = json.loads(make(chat_server).body)["choices"][0]["message"]
    shown = second[2]
    assert (shown["role"], second[3]["role"]) == ("assistant", "user")
    if FAULTS[kind][1] == "wrong_ids":  # shown other ids, small models copy them
        assert shown["content"] == "..."
        assert "it must bear these ids, in this order: a, b" in second[3]["content"]
        assert second[3]["content"].endswith(f"\n\n{first[1]['content']}")
    else:
        assert said in second[3]["content"]
        assert shown["content"][:20].split() == ((told["content"] or told.get("refusal") or "(nothing)")[:20]).split()
    assert len(shown["content"]) <= 4000


def test_of_a_reply_that_was_cut_off_the_beginning_alone_is_shown(chat_server: Any) -> None:
    # what SmolLM2 wrote on vLLM; shown all of its circle, it went on in it
    circle = '{"items": [' + '{"id": "a", "description": "A man moves down."}, ' * 50
    says(chat_server, chat_server.said(circle, "length"), GOOD)
    ask(chat_server)
    shown = chat_server.received[1]["messages"][2]["content"]
    assert circle.startswith(shown)
    assert 0 < len(shown) <= 200


@pytest.mark.parametrize("kind", FAULTS)
def test_re_asks_are_bounded_and_the_failure_says_why_and_shows_the_last_reply(chat_server: Any, kind: str) -> None:
    make, reason, said = FAULTS[kind]
    says(chat_server, make(chat_server))
    with pytest.raises(BadReplyError) as caught:
        ask(chat_server)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{reason} after 3 asks: ")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 800
    assert "\n" not in str(caught.value)
    assert len(chat_server.received) == 3


def test_of_sound_replies_the_latest_with_fewest_flaws_is_taken(chat_server: Any) -> None:
    replies = [reply_of(("a", word), ("b", "x")) for word in ("many", "few", "few too", "none")]
    flaws = {"many": ["1", "2", "3"], "few": ["1"], "few too": ["1"], "none": []}

    def flaws_of(reply: Reply) -> list[str]:
        return flaws[reply.items[0].description]

    says(chat_server, replies[0], replies[1], replies[2])
    assert ask(chat_server, question(flaws_of))[0][0].items[0].description == "few too"
    chat_server.received.clear()
    says(chat_server, replies[1], chat_server.said(GOOD, "length"))
    assert ask(chat_server, question(flaws_of))[0][0].items[0].description == "few"
    chat_server.received.clear()
    says(chat_server, replies[0], replies[3])
    assert ask(chat_server, question(flaws_of))[0][0].items[0].description == "none"
    assert "wrong: 1; 2; 3" in chat_server.received[1]["messages"][3]["content"]


def test_what_is_of_use_is_kept_with_the_way_to_it_and_what_is_not_is_asked_anew(
    chat_server: Any, tmp_path: Path
) -> None:
    says(chat_server, "no", "nor this", "never", "no", GOOD)
    with pytest.raises(BadReplyError):
        ask(chat_server, answers=tmp_path)
    assert list(tmp_path.iterdir()) == []
    _, count = ask(chat_server, answers=tmp_path)
    assert (count.requests, count.cached, len(chat_server.received)) == (2, 0, 5)
    (reply,), count = ask(chat_server, answers=tmp_path, timeout_s=9.0, concurrency=3)
    assert (count.requests, count.cached, count.reasks, count.completion_tokens) == (0, 2, 1, 0)
    assert reply == Reply.model_validate_json(GOOD)
    assert len(chat_server.received) == 5
    assert ask(chat_server, answers=tmp_path, temperature=0.5)[1].requests == 1


def test_an_answer_that_cannot_be_kept_is_none_the_worse(
    chat_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*parts: object, synced: bool) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("infra.answer_cache.write_whole", full)
    says(chat_server, GOOD)
    assert ask(chat_server, answers=tmp_path)[0] == [Reply.model_validate_json(GOOD)]
    assert "no space left" in caplog.text


def test_the_same_model_elsewhere_is_the_same(chat_server: Any, tmp_path: Path) -> None:
    says(chat_server, GOOD)
    ask(chat_server, answers=tmp_path)
    chat_server.stop()
    chat_server.url = "http://elsewhere.invalid/v1"
    assert ask(chat_server, answers=tmp_path)[1].cached == 1
    (kept,) = tmp_path.rglob("*.json")
    assert "127.0.0.1" not in kept.read_text()


def test_a_question_that_is_too_long_says_so_and_a_re_ask_that_is_leaves_what_was_there(chat_server: Any) -> None:
    too_long = chat_server.reply(400, '{"error": {"message": "maximum context length is 10 tokens"}}')
    says(chat_server, too_long)
    with pytest.raises(ChatTooLongError):
        ask(chat_server)
    chat_server.received.clear()
    says(chat_server, GOOD, too_long)
    assert ask(chat_server, question(lambda _: ["a flaw"]))[0] == [Reply.model_validate_json(GOOD)]
    chat_server.received.clear()
    says(chat_server, "no", too_long)
    with pytest.raises(BadReplyError, match="not_json after 1 asks"):
        ask(chat_server)


def test_a_server_that_does_not_answer_is_no_bad_reply(chat_server: Any) -> None:
    says(chat_server, "no", chat_server.reply(503))
    with pytest.raises(ChatLostError):
        ask(chat_server)


def test_costs_add_up_over_questions(chat_server: Any) -> None:
    says(chat_server, "no", GOOD)
    _, count = ask(chat_server, times=3)
    assert count == TokenCount(requests=4, reasks=1, prompt_tokens=44, completion_tokens=28)
    assert str(count) == "4 requests (0 more cached, 1 re-asks), 44 + 28 tokens"


def test_a_key_that_a_server_repeats_is_in_no_error(chat_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-" + "very-secret" * 30
    monkeypatch.setenv("THE_KEY", key)
    for status in (401, 503, 400):
        chat_server.script = lambda _, status=status: chat_server.reply(status, json.dumps({"error": f"bad {key}!"}))
        with pytest.raises(Exception, match=r"bad \*\*\*!") as caught:
            ask(chat_server, api_key_env="THE_KEY")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("got", ["ab", "ba", "a", "", "abc", "aab", "abb", "xy", "abab", "xab"])
def test_ids_are_right_only_if_they_are_those_asked_for_in_their_order(got: str) -> None:
    assert (wrong_ids("ab", got) == []) == (got == "ab")


def test_answers_on_pictures_are_kept_by_the_picture_and_in_small_files(chat_server: Any, tmp_path: Path) -> None:
    def on(picture: bytes) -> Question[Reply]:
        shown = Message(role="user", content=(ImagePart.of_jpeg(picture), TextPart(text="a b")))
        return replace(question(), messages=(shown,))

    says(chat_server, GOOD)
    for picture, asked in ((b"one" * 99_999, 1), (b"one" * 99_999, 1), (b"two" * 99_999, 2)):
        ask(chat_server, on(picture), tmp_path)
        assert len(chat_server.received) == asked
    kept = list(tmp_path.rglob("*.json"))
    assert len(kept) == 2
    assert all(path.stat().st_size < 1000 for path in kept)
