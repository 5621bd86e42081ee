"""What chat models are sent, word for word, against golden files: a prompt changes on purpose or not at all.

The hash is part of the keys of outputs, so a changed prompt has its agent's outputs made anew. To accept a change,
delete the golden file and run with `--update-golden`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from agents.chat_analyzer import GIVEN_PROMPT, AnalyzerReply, GivenReply
from agents.chat_analyzer import PROMPT as ANALYZE
from agents.chat_annotator import LOOKS_PROMPT, MOTION_PROMPT
from agents.chat_annotator_by_noun import LOOKS_PROMPT as NOUN_LOOKS
from agents.chat_annotator_by_noun import MOTION_PROMPT as NOUN_MOTION
from agents.chat_prompt import ChatPrompt, prompt_hash, read_prompt, tag_of
from agents.chat_refiner import PROMPT as REFINE
from agents.chat_refiner import RefinerReply
from agents.chat_reviewer import DESCRIBE_PROMPT, MATCH_PROMPT, MatchReply, RegionReply
from agents.two_questions import LooksReply, MotionReply
from infra.chat import ImagePart, JsonObject, Message
from infra.structured_chat import schema_of

GOLDEN = Path(__file__).parent / "golden"
PROMPTS: dict[str, tuple[Callable[[], ChatPrompt], JsonObject]] = {
    "chat_analyze": (
        lambda: read_prompt(ANALYZE, AnalyzerReply),
        {"id": "0a1b2c3d", "caption": 'A dog "runs"\nto the left \N{DOG}.'},
    ),
    "chat_analyze_given": (
        lambda: read_prompt(GIVEN_PROMPT, GivenReply),
        {"id": "0a1b2c3d", "expression": "the dog on the left"},
    ),
    "chat_refine": (
        lambda: read_prompt(REFINE, RefinerReply),
        {"objects": [{"id": "4e5f6a7b", "notes": "The dog is mostly brown. It hardly moves."}]},
    ),
    "chat_match": (
        lambda: read_prompt(MATCH_PROMPT, MatchReply),
        {"id": "0a1b2c3d", "noun": "dog", "text": "The dog is brown. The dog runs.", "seen": "A brown dog."},
    ),
    "chat_annotate_motion": (
        lambda: read_prompt(MOTION_PROMPT, MotionReply),
        {"id": "0a1b2c3d", "noun": "dog", "times_s": [0.4, 1.2]},
    ),
    "chat_annotate_looks": (
        lambda: read_prompt(LOOKS_PROMPT, LooksReply),
        {"id": "0a1b2c3d", "noun": "dog", "times_s": [0.4, 1.2]},
    ),
    "chat_annotate_noun_motion": (
        lambda: read_prompt(NOUN_MOTION, MotionReply),
        {"id": "0a1b2c3d", "noun": "dog", "phrase": "a brown dog", "times_s": [0.4, 1.2]},
    ),
    "chat_annotate_noun_looks": (
        lambda: read_prompt(NOUN_LOOKS, LooksReply),
        {"id": "0a1b2c3d", "noun": "dog", "phrase": "a brown dog", "times_s": [0.4, 1.2]},
    ),
    "chat_describe_region": (lambda: read_prompt(DESCRIBE_PROMPT, RegionReply), {"id": "0a1b2c3d"}),
}
ON_PICTURES = (
    *("chat_annotate_motion", "chat_annotate_looks"),
    *("chat_annotate_noun_motion", "chat_annotate_noun_looks"),
    "chat_describe_region",
)
PICTURES = tuple(ImagePart(data_uri=f"data:image/jpeg;base64,{picture}") for picture in ("AAAA", "BBBB"))


def turns_of(name: str, prompt: ChatPrompt, asked: JsonObject) -> tuple[Message, ...]:
    return prompt.shown(PICTURES, asked) if name in ON_PICTURES else prompt.messages(asked)


def ids_in(told: JsonObject) -> list[Any]:
    return [item["id"] for item in ([told] if "id" in told else cast("Any", told["objects"]))]


def rendered(turn: Message) -> str:
    if isinstance(turn.content, str):
        return turn.content
    return "\n".join(part.data_uri if isinstance(part, ImagePart) else part.text for part in turn.content)


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_and_its_hash_are_those_of_the_golden_file(name: str, request: pytest.FixtureRequest) -> None:
    make, asked = PROMPTS[name]
    prompt = make()
    turns = (*turns_of(name, prompt, asked), *prompt.ask_again('{"id": "0a1b"}', "the id '0a1b2c3d' is missing"))
    text = "".join(f"=== {turn.role}\n{rendered(turn)}\n" for turn in turns)
    schema = json.dumps(schema_of(prompt.reply), indent=1, sort_keys=True)
    whole = f"{prompt_hash([prompt])}\n{text}=== schema\n{schema}\n"
    path = GOLDEN / f"{name}.txt"
    if not path.exists() and request.config.getoption("--update-golden"):
        path.write_text(whole, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == whole


@pytest.mark.parametrize("name", sorted(PROMPTS.keys() - ON_PICTURES))
def test_all_but_the_last_turn_is_the_same_for_every_clip(name: str) -> None:
    make, asked = PROMPTS[name]
    first, second = make().messages(asked), make().messages(asked | {"id": "ffffffff"})
    assert first[:-1] == second[:-1]
    assert first[-1] != second[-1]
    assert first[0].role == "system"


def test_questions_on_the_same_pictures_share_all_up_to_the_instructions() -> None:
    contents = [turns_of(name, PROMPTS[name][0](), {"id": "a"})[0].content for name in ON_PICTURES]
    assert {len(content) for content in contents} == {3}
    assert {content[:2] for content in contents} == {PICTURES}
    assert len({content[2] for content in contents}) == len(ON_PICTURES)


@pytest.mark.parametrize("name", PROMPTS)
def test_the_example_in_a_prompt_is_a_reply_that_counts(name: str) -> None:
    prompt = PROMPTS[name][0]()
    asked, replied = (
        json.loads(line) for line in prompt.system.splitlines() if line.startswith('{"') and "..." not in line
    )
    reply = prompt.reply.model_validate(replied)
    assert ids_in(replied) == ids_in(asked)
    assert reply.model_dump(mode="json") == replied


def test_any_change_of_words_or_shape_changes_the_hash() -> None:
    prompts = [make() for make, _ in PROMPTS.values()]
    prompt = prompts[0]
    others = [
        ChatPrompt(prompt.system + " ", prompt.again, prompt.reply),
        ChatPrompt(prompt.system, prompt.again + " ", prompt.reply),
        ChatPrompt(prompt.system, prompt.again, GivenReply),
    ]
    hashes = [prompt_hash([one]) for one in (*prompts, *others)] + [prompt_hash(prompts), prompt_hash(prompts[::-1])]
    assert len(set(hashes)) == len(hashes)


def test_tags_are_short_and_tell_ids_apart() -> None:
    tags = {tag_of(f"clip-{i}") for i in range(2000)}
    assert len(tags) == 2000
    assert {len(tag) for tag in tags} == {8}
