import asyncio
import base64
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from infra.chat import (
    ChatDeclinedError,
    ChatLostError,
    ChatRefusedError,
    ChatSettings,
    ChatTooLongError,
    Completion,
    ImagePart,
    Message,
    TextPart,
)
from infra.chat_client import ChatClient, _retry_after_s, backoff_s

QUESTION = (Message(role="user", content="how are you? \N{DOG} {}"),)


def settings_for(server: Any, **changes: Any) -> ChatSettings:
    quick = {"first_wait_s": 0.01, "max_wait_s": 0.05, "timeout_s": 5.0, "max_attempts": 5}
    return ChatSettings(base_url=server.url, model="asked-judge", **(quick | changes))


def ask(settings: ChatSettings, times: int = 1) -> list[Completion]:
    async def run() -> list[Completion]:
        async with ChatClient(settings) as client:
            return await asyncio.gather(*(client.complete(QUESTION) for _ in range(times)))

    return asyncio.run(run())


def test_a_completion_says_what_the_server_told(chat_server: Any) -> None:
    (completion,) = ask(settings_for(chat_server))
    assert completion == Completion(
        text="hello",
        finish_reason="stop",
        prompt_tokens=11,
        completion_tokens=7,
        refusal="",
        model="served-judge",
        system_fingerprint="fp_1",
    )


def test_what_a_server_computes_with_tells_questions_apart_and_is_not_sent(chat_server: Any) -> None:
    async def run(weights: str) -> dict[str, Any]:
        async with ChatClient(settings_for(chat_server, weights=weights)) as client:
            await client.complete(QUESTION)
            return client.payload(QUESTION)

    payloads = [asyncio.run(run(weights)) for weights in ("", "of May", "of June")]
    assert chat_server.received == [payloads[0]] * 3
    assert payloads[1:] == [payloads[0] | {"weights": weights} for weights in ("of May", "of June")]


def test_what_is_sent_is_the_payload_at_temperature_0_with_a_strict_schema(chat_server: Any) -> None:
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}

    async def run() -> dict[str, Any]:
        async with ChatClient(settings_for(chat_server, max_tokens=77)) as client:
            await client.complete(QUESTION, schema)
            return client.payload(QUESTION, schema)

    payload = asyncio.run(run())
    assert chat_server.received == [payload]
    assert payload == {
        "model": "asked-judge",
        "messages": [{"role": "user", "content": QUESTION[0].content}],
        "temperature": 0.0,
        "max_tokens": 77,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": schema},
        },
    }


def test_a_penalty_is_sent_where_there_is_one_and_makes_another_question(chat_server: Any) -> None:
    async def run(**changes: float) -> dict[str, Any]:
        async with ChatClient(settings_for(chat_server, **changes)) as client:
            await client.complete(QUESTION)
            return client.payload(QUESTION)

    payloads = [asyncio.run(run(**changes)) for changes in ({}, {"frequency_penalty": 0.3})]
    assert chat_server.received == payloads
    assert payloads[1] == payloads[0] | {"frequency_penalty": 0.3}


def test_pictures_go_out_whole_and_in_place_and_identify_a_question_by_their_hash(chat_server: Any) -> None:
    def shown(picture: bytes) -> tuple[Message, ...]:
        return (Message(role="user", content=(ImagePart.of_jpeg(picture), TextPart(text="what is it?"))),)

    async def run() -> list[dict[str, Any]]:
        async with ChatClient(settings_for(chat_server)) as client:
            await client.complete(shown(b"\xff\xd8 one" * 9000))
            return [client.payload(shown(picture)) for picture in (b"\xff\xd8 one" * 9000, b"\xff\xd8 two" * 9000)]

    first, second = asyncio.run(run())
    (sent,) = chat_server.received
    picture, text = sent["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is it?"}
    assert picture["type"] == "image_url"
    head, data = picture["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(data, validate=True) == b"\xff\xd8 one" * 9000
    assert len(json.dumps(first)) < 500
    assert first != second
    first["messages"][0]["content"][0] = sent["messages"][0]["content"][0]
    assert first == sent


@pytest.mark.parametrize("address", ["http://gpu-7/a.jpg", "data:image/gif;base64,AAAA", "data:image/png;base64,"])
def test_only_pictures_that_travel_inside_the_request_are_sent(address: str) -> None:
    with pytest.raises(ValidationError, match="data_uri"):
        ImagePart(data_uri=address)


def test_a_key_goes_out_only_where_its_variable_is_named(chat_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("JUDGE_KEY", "sk-judge")
    ask(settings_for(chat_server))
    ask(settings_for(chat_server, api_key_env="JUDGE_KEY"))
    first, second = ({name.lower(): value for name, value in sent.items()} for sent in chat_server.headers)
    assert "authorization" not in first
    assert second["authorization"] == "Bearer sk-judge"


@pytest.mark.parametrize("key", [None, "", "sk-\N{DOG}", "a\nb"])
def test_a_key_that_cannot_be_sent_is_told_before_anything_is_asked(
    chat_server: Any, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(ChatRefusedError, match="environment variable JUDGE_KEY"):
        ask(settings_for(chat_server, api_key_env="JUDGE_KEY"))
    assert chat_server.received == []


@pytest.mark.parametrize("address", ["127.0.0.1:8000/v1", "ftp://a/v1", "http:///v1", "http://me:secret@host/v1", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="address"):
        ChatSettings(base_url=address, model="m")


def test_a_proxy_of_the_environment_is_not_asked_about_this_machine(
    chat_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert ask(settings_for(chat_server))[0].text == "hello"


FAILURES: dict[str, Callable[[Any], Any]] = {
    "429": lambda server: server.reply(429, '{"error": {"message": "slow down"}}', "0"),
    "500": lambda server: server.reply(500, "oops"),
    "503": lambda server: server.reply(503),
    "408": lambda server: server.reply(408),
    "reset": lambda server: server.reply(0),
    "a page": lambda server: server.reply(200, "<html>welcome to the proxy</html>"),
    "an error with status 200": lambda server: server.reply(200, '{"error": {"message": "upstream died"}}'),
    "no choices": lambda server: server.reply(200, '{"choices": []}'),
    "a list": lambda server: server.reply(200, "[]"),
    "odd choices": lambda server: server.reply(200, '{"choices": [{"message": "text"}]}'),
    "deep": lambda server: server.reply(200, "[" * 200_000),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_what_passes_by_itself_is_tried_again(chat_server: Any, kind: str) -> None:
    def script(_: object) -> Any:
        if len(chat_server.received) < 4:
            return FAILURES[kind](chat_server)
        return chat_server.said("at last")

    chat_server.script = script
    assert ask(settings_for(chat_server))[0].text == "at last"
    assert len(chat_server.received) == 4


@pytest.mark.parametrize("kind", FAILURES)
def test_attempts_are_bounded_and_the_last_failure_is_told(chat_server: Any, kind: str) -> None:
    chat_server.script = lambda _: FAILURES[kind](chat_server)
    with pytest.raises(ChatLostError, match=r"gave no answer in 3 attempts; the last: .+") as caught:
        ask(settings_for(chat_server, max_attempts=3))
    assert len(chat_server.received) == 3
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert ("ReadError" in str(caught.value)) == (kind == "reset")


def test_an_answer_that_does_not_come_in_time_is_tried_again(chat_server: Any) -> None:
    def script(_: object) -> Any:
        if len(chat_server.received) == 1:
            time.sleep(1.0)
        return chat_server.said("hello")

    chat_server.script = script
    assert ask(settings_for(chat_server, timeout_s=0.3))[0].text == "hello"
    assert len(chat_server.received) == 2


def test_a_server_that_is_not_there_is_told(chat_server: Any) -> None:
    settings = settings_for(chat_server, max_attempts=2)
    chat_server.stop()
    with pytest.raises(ChatLostError, match="ConnectError"):
        ask(settings)


def test_through_a_storm_of_429_and_resets_every_question_is_answered_within_the_window(chat_server: Any) -> None:
    counts = iter(range(10_000))

    def script(_: object) -> Any:
        count = next(counts)
        time.sleep(0.002)
        if count < 60 or count % 3 == 0:
            return chat_server.reply(429, "", "0.01") if count % 2 else chat_server.reply(0)
        return chat_server.said("hello")

    chat_server.script = script
    completions = ask(settings_for(chat_server, concurrency=6, max_attempts=40), times=50)
    assert len(completions) == len(chat_server.answered) == 50
    assert len(chat_server.received) >= 110
    assert 2 <= chat_server.most_at_once <= 6


REFUSALS = {
    400: '{"error": {"message": "response_format is not known"}}',
    401: '{"error": {"message": "wrong\\nkey", "code": "invalid_api_key"}}',
    403: "",
    404: '{"detail": "Not Found"}',
    501: "<html>Unsupported method</html>",
    505: "",
    422: '{"detail": [{"loc": ["body"], "msg": "field required"}]}',
    301: "",
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_is_told_at_once_in_one_line(chat_server: Any, status: int) -> None:
    chat_server.script = lambda _: chat_server.reply(status, REFUSALS[status])
    with pytest.raises(ChatRefusedError, match=f"refuses model 'asked-judge': HTTP {status}") as caught:
        ask(settings_for(chat_server))
    assert isinstance(caught.value, ChatDeclinedError) == (status in (400, 422))  # it may be this question alone
    assert len(chat_server.received) == 1
    assert "\n" not in str(caught.value)
    assert ("/v1" in str(caught.value).partition("HTTP")[2]) == (status == 404)
    assert ("; give the address of a server" in str(caught.value)) == (status in (501, 505))


def test_a_spent_credit_is_no_storm_to_wait_out(chat_server: Any) -> None:
    body = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
    chat_server.script = lambda _: chat_server.reply(429, body)
    with pytest.raises(ChatRefusedError, match="exceeded your quota"):
        ask(settings_for(chat_server))
    assert len(chat_server.received) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, '{"error": {"message": "too big", "code": "context_length_exceeded"}}'),
        (400, '{"object": "error", "message": "This model\'s maximum context length is 512 tokens.", "code": 400}'),
        (400, '{"error": {"message": "no room", "type": "exceed_context_size_error"}}'),
        (400, '{"error": {"message": "\'max_completion_tokens\' is too large: this model\'s context length is 512"}}'),
        (
            400,
            json.dumps({"message": "The decoder prompt (length 600) is longer than the maximum model length of 512."}),
        ),
        (400, json.dumps({"message": "The prompt does not fit; make sure that `max_model_len` is no smaller"})),
        (413, "payload"),
    ],
)
def test_a_question_too_long_for_the_server_is_told_apart(chat_server: Any, status: int, body: str) -> None:
    chat_server.script = lambda _: chat_server.reply(status, body)
    with pytest.raises(ChatTooLongError):
        ask(settings_for(chat_server))
    assert len(chat_server.received) == 1


def test_a_server_that_wants_the_newer_name_of_the_limit_gets_it_and_is_told_it_once(chat_server: Any) -> None:
    def script(payload: dict[str, Any]) -> Any:
        if "max_tokens" in payload:
            said = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return chat_server.reply(400, json.dumps({"error": {"message": said, "code": "unsupported_parameter"}}))
        return chat_server.said(f"{payload['max_completion_tokens']} it is")

    async def run() -> list[str]:
        async with ChatClient(settings_for(chat_server, max_tokens=77, max_attempts=1)) as client:
            assert "max_tokens" in client.payload(QUESTION)
            return [(await client.complete(QUESTION)).text for _ in range(2)]

    chat_server.script = script
    assert asyncio.run(run()) == ["77 it is"] * 2
    assert ["max_tokens" in payload for payload in chat_server.received] == [True, False, False]


def test_half_a_surrogate_pair_costs_no_reply_and_no_error(chat_server: Any) -> None:
    chat_server.script = lambda _: chat_server.said("fine \ud83d")
    assert ask(settings_for(chat_server))[0].text == "fine ?"
    chat_server.script = lambda _: chat_server.reply(400, '{"error": {"message": "no \\ud83d"}}')
    with pytest.raises(ChatRefusedError, match=r"no \?"):
        ask(settings_for(chat_server))


def test_a_reply_in_parts_a_refusal_and_a_cut_are_read(chat_server: Any) -> None:
    replies = iter(
        [
            chat_server.said([{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]),
            chat_server.said(None, refusal="I would rather not"),
            chat_server.said("cut of", "length"),
            chat_server.reply(200, '{"choices": [{"message": {"content": "bare"}}]}'),
        ]
    )
    chat_server.script = lambda _: next(replies)
    parts, refused, cut, bare = (ask(settings_for(chat_server))[0] for _ in range(4))
    assert parts.text == "two parts"
    assert (refused.text, refused.refusal) == ("", "I would rather not")
    assert (cut.text, cut.finish_reason) == ("cut of", "length")
    assert (bare.text, bare.model, bare.prompt_tokens) == ("bare", "", None)


def test_the_wait_grows_has_jitter_and_holds_to_what_the_server_asks(chat_server: Any) -> None:
    settings, random = settings_for(chat_server, first_wait_s=1.0, max_wait_s=10.0), np.random.default_rng()
    for attempt, most_s in [(1, 1.0), (2, 2.0), (4, 8.0), (9, 10.0), (5000, 10.0)]:
        waits = [backoff_s(settings, random, attempt) for _ in range(200)]
        assert 0 <= min(waits) < 0.1 * most_s < 0.9 * most_s < max(waits) <= most_s
    assert 3.0 <= backoff_s(settings, random, 1, 3.0) <= 4.0
    assert 10.0 <= backoff_s(settings, random, 1, 3600.0) <= 11.0


@pytest.mark.parametrize(
    ("told", "wait_s"),
    [("3", 3.0), ("0.5", 0.5), ("-4", 0.0), ("", 0.0), ("soon", 0.0), ("nan", 0.0), ("inf", 0.0)],
)
def test_a_retry_after_in_seconds_is_read(told: str, wait_s: float) -> None:
    assert _retry_after_s(answered_with(told)) == wait_s


def test_a_retry_after_as_a_date_is_read() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < _retry_after_s(answered_with(soon)) <= 30
    assert _retry_after_s(answered_with("Wed, 21 Oct 2015 07:28:00 GMT")) == 0


def answered_with(retry_after: str) -> Any:
    return httpx.Response(429, headers={"retry-after": retry_after})
