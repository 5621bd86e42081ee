"""The chat analyzer: nouns only where the caption has them, places exact, each other one rejected with its reason."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agents.chat_analyzer import REVISION, ChatAnalyzer, ChatAnalyzerConfig
from agents.chat_prompt import tag_of
from infra.chat import ChatSettings
from infra.structured_chat import BadReplyError, StructuredChat
from schemas.clip import Clip
from schemas.mention import MentionSet


def clip(caption: str, name: str = "clip", **changes: Any) -> Clip:
    return Clip(
        clip_id=name, source_id="s", video="a.mp4", video_sha256="0" * 64, license="CC0", start_s=0, end_s=1,
        start_frame=0, end_frame=30, fps=30, height_px=4, width_px=4, caption=caption, **changes,
    )  # fmt: skip


def thing(phrase: str, noun: str = "", singular: str = "", number: str = "singular") -> dict[str, str]:
    noun = noun or phrase.split()[-1]
    return {"phrase": phrase, "noun": noun, "singular": singular or noun.lower(), "number": number}


def analyzer(server: Any, **chat: Any) -> ChatAnalyzer:
    settings = {"base_url": server.url, "model": "asked", "max_attempts": 1, "first_wait_s": 0} | chat
    return ChatAnalyzer(ChatAnalyzerConfig(), StructuredChat(ChatSettings(**settings), None, 2))


def analyze(server: Any, *clips: Clip) -> list[MentionSet]:
    async def run() -> list[MentionSet]:
        agent = analyzer(server)
        await agent.setup()
        try:
            return list(await asyncio.gather(*(agent.process_one(one) for one in clips)))
        finally:
            await agent.close()

    return asyncio.run(run())


def says(server: Any, *replies: dict[str, Any]) -> None:
    """The replies in turn, the last one for ever, each with the id that was asked for."""

    def script(payload: dict[str, Any]) -> Any:
        asked = json.loads(payload["messages"][1]["content"])
        reply = replies[min(len(server.received), len(replies)) - 1]
        return server.said(json.dumps({"id": asked["id"]} | reply))

    server.script = script


CAPTION = "A tall man 🐕 in a Blue coat walks two dogs past another man."


def test_mentions_are_in_the_order_of_the_text_at_their_exact_places(chat_server: Any) -> None:
    subjects = [thing("A tall man")]
    others = [thing("two dogs", "dogs", "dog", "plural"), thing("another man"), thing("a blue coat")]
    says(chat_server, {"subjects": subjects, "others": others})
    (found,) = analyze(chat_server, clip(CAPTION))
    assert found.rejected == ()
    told = [
        (m.noun, m.phrase, m.role, m.number, CAPTION[m.start_char : m.end_char], m.said.colours, m.said.count)
        for m in found.mentions
    ]
    assert told == [
        ("man", "A tall man", "subject", "singular", "A tall man", (), 1),
        ("coat", "a Blue coat", "other", "singular", "a Blue coat", ("blue",), 1),
        ("dog", "two dogs", "other", "plural", "two dogs", (), 2),
        ("man", "another man", "other", "singular", "another man", (), 1),
    ]
    assert all((m.detector_class, m.class_similarity) == (m.noun, 1.0) for m in found.mentions)
    assert len({m.mention_id for m in found.mentions}) == 4


def test_phrases_that_begin_alike_give_mentions_of_their_own(chat_server: Any) -> None:
    caption = "A dog behind another dog runs."
    says(chat_server, {"subjects": [thing("A dog", "dog")], "others": [thing("A dog behind another dog", "dog")]})
    (found,) = analyze(chat_server, clip(caption))
    assert [mention.phrase for mention in found.mentions] == ["A dog", "A dog behind another dog"]
    assert len({mention.mention_id for mention in found.mentions}) == 2


FLAWS = {
    "a noun that is not there": (thing("a cat"), "'a cat' does not stand in the caption"),
    "part of a word": (thing("a coa", "coa"), "'a coa' does not stand in the caption"),
    "a noun outside its phrase": (thing("A tall man", "coat"), "does not hold the noun 'coat'"),
    "a nobler word": (thing("two dogs", "dogs", "hound", "plural"), "'hound' is not the singular of 'dogs'"),
    "one that is several": (
        thing("two dogs", "dogs", "dog"),
        "'dog' is not the singular of 'dogs', which you call sin",
    ),
    "nothing": ({"phrase": " ", "noun": "", "singular": "", "number": "plural"}, "'' does not stand"),
    "one thing twice": (thing("A tall man"), "'A tall man' is listed more often than it stands in the caption"),
    "one noun under two phrases": (thing("tall man"), "'tall man' is listed more often"),
}


@pytest.mark.parametrize("kind", FLAWS)
def test_a_noun_that_the_caption_lacks_is_shown_to_the_model_then_rejected(chat_server: Any, kind: str) -> None:
    flawed, said = FLAWS[kind]
    says(chat_server, {"subjects": [thing("A tall man")], "others": [flawed]})
    (found,) = analyze(chat_server, clip(CAPTION))
    assert len(chat_server.received) == 3
    assert said in chat_server.received[1]["messages"][-1]["content"]
    assert [mention.phrase for mention in found.mentions] == ["A tall man"]
    (entry,) = found.rejected
    assert (entry.stage, entry.reason, entry.retryable) == ("analyzer", "not_in_caption", False)
    assert said in entry.evidence


def test_a_model_that_mends_its_reply_leaves_no_trace(chat_server: Any) -> None:
    bad, good = [thing("a cat")], [thing("A tall man")]
    says(chat_server, {"subjects": bad, "others": []}, {"subjects": good, "others": []})
    (found,) = analyze(chat_server, clip(CAPTION))
    assert (len(found.mentions), found.rejected, len(chat_server.received)) == (1, (), 2)


@pytest.mark.parametrize(
    ("noun", "singular", "is_right"),
    [("people", "person", True), ("mice", "mouse", True), ("Dogs", "dog", True), ("geese", "geese", True),
     ("cars", "vehicle", False), ("cars", "", False), ("cats", "catastrophe", False)],
)  # fmt: skip
def test_a_plural_may_be_irregular_but_its_singular_is_no_other_word(
    chat_server: Any, noun: str, singular: str, is_right: bool
) -> None:
    item = {"phrase": noun, "noun": noun, "singular": singular, "number": "plural"}
    says(chat_server, {"subjects": [item], "others": []})
    (found,) = analyze(chat_server, clip(f"Some {noun} move."))
    assert [mention.noun for mention in found.mentions] == ([singular] if is_right else [])


def test_the_same_words_twice_are_two_things(chat_server: Any) -> None:
    says(chat_server, {"subjects": [thing("a dog")], "others": [thing("a dog")]})
    (found,) = analyze(chat_server, clip("There a dog chases a dog."))
    assert [(mention.start_char, mention.role) for mention in found.mentions] == [(6, "subject"), (19, "other")]


def test_colours_of_skin_are_no_claim(chat_server: Any) -> None:
    says(chat_server, {"subjects": [thing("a black man")], "others": [thing("an orange and white cat")]})
    (found,) = analyze(chat_server, clip("There a black man holds an orange and white cat."))
    assert [mention.said.colours for mention in found.mentions] == [(), ("orange", "white")]


def test_a_caption_without_nouns_says_so(chat_server: Any) -> None:
    says(chat_server, {"subjects": [], "others": []})
    (found,) = analyze(chat_server, clip("Slowly and quietly."))
    assert [(entry.reason, entry.subject_id) for entry in found.rejected] == [("no_mention", "clip")]
    assert len(chat_server.received) == 1


def test_answers_swapped_between_clips_never_get_through(chat_server: Any) -> None:
    def script(payload: dict[str, Any]) -> Any:
        asked = json.loads(payload["messages"][1]["content"])
        other = "y" if asked["id"] == tag_of("x") else "x"
        return chat_server.said(json.dumps({"id": tag_of(other), "subjects": [thing("a dog")], "others": []}))

    chat_server.script = script
    with pytest.raises(BadReplyError, match="wrong_ids"):
        analyze(chat_server, clip("There a dog runs.", "x"), clip("There a dog sits.", "y"))


GIVEN = {"given_sha256": "ab" * 32}


def test_an_expression_whose_masks_are_given_has_one_mention(chat_server: Any) -> None:
    says(chat_server, thing("the brown dogs", "dogs", "dog", "plural"))
    (found,) = analyze(chat_server, clip("the brown dogs behind the cat", **GIVEN))
    (mention,) = found.mentions
    assert (mention.noun, mention.phrase, mention.role, mention.number) == (
        "dog",
        "the brown dogs",
        "subject",
        "plural",
    )
    assert (mention.said.colours, mention.said.count, found.rejected) == (("brown",), None, ())


@pytest.mark.parametrize("reply", [thing("the wolf"), dict.fromkeys(("phrase", "noun", "singular"), "")])
def test_an_expression_that_names_nothing_means_an_object(chat_server: Any, reply: dict[str, str]) -> None:
    says(chat_server, reply | {"number": "singular"})
    (found,) = analyze(chat_server, clip("moving to the left", **GIVEN))
    (mention,) = found.mentions
    assert (mention.noun, mention.phrase, mention.end_char) == ("object", "moving to the left", 18)
    assert len(chat_server.received) == (3 if reply["phrase"] else 1)


def test_the_same_replies_give_the_outputs_of_this_revision(chat_server: Any, request: pytest.FixtureRequest) -> None:
    """New output asks for a new REVISION, which is part of the keys of stored outputs."""
    things = [thing("A tall man"), thing("a Blue coat"), thing("two dogs", "dogs", "dog", "plural"), thing("a cat")]
    says(chat_server, {"subjects": things[:1], "others": things[1:]})
    outputs = analyze(chat_server, clip(CAPTION), clip("Slowly, a cat, a cat and a tall man.", "other"))
    says(chat_server, thing("two brown dogs", "dogs", "dog", "plural"))
    outputs += analyze(chat_server, clip("two brown dogs behind a cat", "given", **GIVEN))
    path = Path(__file__).parent / "golden" / f"chat_analyzer-r{REVISION}.json"
    told = json.dumps([output.model_dump(mode="json") for output in outputs], indent=1) + "\n"
    if not path.exists() and request.config.getoption("--update-golden"):
        path.write_text(told)
    assert path.read_text() == told


def test_the_label_names_model_and_sampling_and_neither_address_nor_key(
    chat_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-secret")
    label = analyzer(chat_server, api_key_env="THE_KEY").label()
    assert (label.engine, label.weights) == ("chat:asked", ())
    for word in ("127.0.0.1", "sk-secret", "THE_KEY"):
        assert word not in label.model_dump_json()
    same = {"base_url": "https://elsewhere/v1", "concurrency": 99, "timeout_s": 1.0, "max_attempts": 9}
    assert analyzer(chat_server, **same).label() == label
    for other in ({"model": "another"}, {"temperature": 0.7}, {"max_tokens": 9}, {"frequency_penalty": 0.3}):
        assert analyzer(chat_server, **other).label() != label
