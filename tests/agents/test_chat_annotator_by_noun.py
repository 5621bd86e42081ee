"""The chat annotator beside the segmenter: what it shows and asks of each mention, and what becomes of the replies."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from agents.chat_annotator import ChatAnnotatorConfig
from agents.chat_annotator_by_noun import REVISION, ChatAnnotatorByNoun
from infra.chat import ChatSettings
from infra.structured_chat import BadReplyError, StructuredChat
from infra.video import Frames
from schemas.caption import MentionTextSet
from schemas.clip import Clip
from schemas.jobs import SegmenterJob
from schemas.mention import Mention, MentionSet, Role, SaidAttributes

NUM, FPS, HEIGHT, WIDTH = 30, 10.0, 48, 64
CLIP = Clip(
    clip_id="clip", source_id="source", video="a.mp4", video_sha256="ab" * 32, license="CC0-1.0", start_s=2.0,
    end_s=5.0, start_frame=20, end_frame=50, fps=FPS, height_px=HEIGHT, width_px=WIDTH,
    caption="A red car passes a blue car.",
)  # fmt: skip


class Lightening:
    """A frame source of grey frames, each lighter than the one before; it notes what is read, how large and where."""

    def __init__(self) -> None:
        self.reads: list[tuple[list[int], int]] = []
        self.threads: set[str] = set()

    def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        self.reads.append((list(frame_idx), long_side_px))
        self.threads.add(threading.current_thread().name)
        return np.stack([np.full((HEIGHT, WIDTH, 3), 4 * index, np.uint8) for index in frame_idx])

    def times_s(self, clip: Clip, frame_idx: Sequence[int]) -> tuple[float, ...]:
        return tuple(index / FPS for index in frame_idx)


def mention_of(phrase: str, role: Role = "subject", count: int = 1) -> Mention:
    noun = phrase.split()[-1]
    return Mention(
        mention_id=f"m-{phrase}", clip_id="clip", noun=noun, phrase=phrase, start_char=0, end_char=1, role=role,
        number="singular" if count == 1 else "plural", detector_class=noun, class_similarity=1.0,
        said=SaidAttributes(count=count),
    )  # fmt: skip


def job_of(*mentions: Mention) -> SegmenterJob:
    return SegmenterJob(clip=CLIP, mentions=MentionSet(clip_id="clip", mentions=mentions, rejected=()))


RED, BLUE = mention_of("A red car"), mention_of("a blue car", "other")


def asked_in(payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which question it is, by the reply it wants, and what is asked."""
    asked = json.loads(payload["messages"][0]["content"][-1]["text"].rsplit("\n\n", 1)[1])
    wants = payload["response_format"]["json_schema"]["schema"]["properties"]
    return ("motion" if "acts" in wants else "looks"), asked


def good(kind: str, phrase: str) -> dict[str, Any]:
    colour, noun = phrase.split()[-2:]
    if kind == "motion":
        return {"text": f" The {noun} rolls\n past. ", "acts": True}
    return {"text": f"The {noun} is {colour}."}


def says(server: Any, reply_of: Callable[[str, str, int], dict[str, Any]]) -> None:
    """A reply by question, phrase and the number of the ask; the id is echoed unless the reply has one."""

    def script(payload: dict[str, Any]) -> Any:
        kind, asked = asked_in(payload)
        asks = (len(payload["messages"]) + 1) // 2
        return server.said(json.dumps({"id": asked["id"]} | reply_of(kind, asked["phrase"], asks)))

    server.script = script


def annotate(server: Any, job: SegmenterJob, frames: Lightening | None = None, **config: Any) -> MentionTextSet:
    async def run() -> MentionTextSet:
        chat = StructuredChat(ChatSettings(base_url=server.url, model="seer", max_attempts=1), None, 2)
        agent = ChatAnnotatorByNoun(ChatAnnotatorConfig(**config), chat, frames or Lightening())
        await agent.setup()
        try:
            return await agent.process_one(job)
        finally:
            await agent.close()

    return asyncio.run(run())


def greys_of(payload: dict[str, Any]) -> list[npt.NDArray[np.uint8]]:
    *pictures, _ = payload["messages"][0]["content"]
    data = [base64.b64decode(picture["image_url"]["url"].split(",")[1]) for picture in pictures]
    return [np.asarray(Image.open(io.BytesIO(one))) for one in data]


def test_two_questions_are_asked_of_each_mention_by_noun_and_phrase(chat_server: Any) -> None:
    says(chat_server, lambda kind, phrase, _: good(kind, phrase))
    found = annotate(chat_server, job_of(RED, BLUE))
    asked = [asked_in(payload) for payload in chat_server.received]
    assert [(kind, one["noun"], one["phrase"]) for kind, one in asked] == [
        ("motion", "car", "A red car"), ("looks", "car", "A red car"),
        ("motion", "car", "a blue car"), ("looks", "car", "a blue car"),
    ]  # fmt: skip
    assert len({one["id"] for _, one in asked}) == 4
    assert [(text.mention_id, text.noun, text.motion, text.appearance, text.moving) for text in found.texts] == [
        ("m-A red car", "car", "The car rolls past.", "The car is red.", True),
        ("m-a blue car", "car", "The car rolls past.", "The car is blue.", True),
    ]
    assert (found.clip_id, found.rejected) == ("clip", ())


def test_every_question_on_a_clip_comes_after_the_same_unmarked_pictures_of_all_of_it(chat_server: Any) -> None:
    says(chat_server, lambda kind, phrase, _: good(kind, phrase))
    frames = Lightening()
    annotate(chat_server, job_of(RED, BLUE), frames, num_pictures=5, picture_px=320)
    ((chosen, long_side_px),) = frames.reads
    assert long_side_px == 320
    assert len(chosen) == 5
    assert 20 <= chosen[0] < 26
    assert 44 < chosen[-1] < 50
    steps = np.diff(chosen)
    assert steps.max() - steps.min() <= 1
    contents = [payload["messages"][0]["content"] for payload in chat_server.received]
    assert len(contents) == 4
    assert all(content[:5] == contents[0][:5] for content in contents)
    assert [int(np.ptp(picture)) for picture in greys_of(chat_server.received[0])] == [0] * 5
    assert [int(picture[0, 0, 0]) for picture in greys_of(chat_server.received[0])] == [4 * index for index in chosen]
    assert asked_in(chat_server.received[0])[1]["times_s"] == [round(index / FPS - 2.0, 1) for index in chosen]
    assert threading.main_thread().name not in frames.threads


def test_a_clip_shorter_than_its_pictures_is_shown_whole_and_one_without_mentions_not_at_all(chat_server: Any) -> None:
    says(chat_server, lambda kind, phrase, _: good(kind, phrase))
    frames = Lightening()
    annotate(chat_server, job_of(RED), frames, num_pictures=64)
    assert frames.reads == [(list(range(20, 50)), 640)]
    chat_server.received.clear()
    assert annotate(chat_server, job_of(), frames) == MentionTextSet(clip_id="clip", texts=(), rejected=())
    assert (len(frames.reads), chat_server.received) == (1, [])


def test_a_subject_that_does_nothing_is_left_out_with_the_reason_and_what_it_meets_is_not(chat_server: Any) -> None:
    still = {"text": "The car stands there.", "acts": False}
    says(chat_server, lambda kind, phrase, _: still if kind == "motion" else good(kind, phrase))
    found = annotate(chat_server, job_of(RED, BLUE))
    assert [(text.mention_id, text.moving) for text in found.texts] == [("m-a blue car", False)]
    (entry,) = found.rejected
    assert (entry.subject_id, entry.noun, entry.stage) == ("m-A red car", "car", "annotator")
    assert (entry.reason, entry.clip_id, entry.source_id) == ("static_subject", "clip", "source")
    assert "The car stands there." in entry.evidence
    assert len(chat_server.received) == 3


@pytest.mark.parametrize("bad", ["motion", "looks"])
def test_an_empty_text_is_asked_again_and_costs_its_mention_only(chat_server: Any, bad: str) -> None:
    def until(last: int) -> Callable[[str, str, int], dict[str, Any]]:
        def reply(kind: str, phrase: str, asks: int) -> dict[str, Any]:
            slips = (kind, phrase) == (bad, "A red car") and asks <= last
            return good(kind, phrase) | ({"text": " \n "} if slips else {})

        return reply

    says(chat_server, until(1))
    assert len(annotate(chat_server, job_of(RED, BLUE)).texts) == 2
    told = [payload["messages"][-1]["content"] for payload in chat_server.received if len(payload["messages"]) == 3]
    assert len(told) == 1
    assert "the text is empty" in told[0]
    says(chat_server, until(99))
    found = annotate(chat_server, job_of(RED, BLUE))
    assert [text.mention_id for text in found.texts] == ["m-a blue car"]
    assert [(entry.subject_id, entry.reason) for entry in found.rejected] == [("m-A red car", "unusable_text")]


def test_an_outline_may_be_told_of_where_none_was_drawn(chat_server: Any) -> None:
    looks = {"text": "The car bears an outlined star."}
    says(chat_server, lambda kind, phrase, _: looks if kind == "looks" else good(kind, phrase))
    (text,) = annotate(chat_server, job_of(RED)).texts
    assert text.appearance == "The car bears an outlined star."


def test_an_answer_to_the_other_question_or_mention_counts_for_nothing(chat_server: Any) -> None:
    ids: list[str] = []

    def swapped(payload: dict[str, Any]) -> Any:
        kind, asked = asked_in(payload)
        ids.append(asked["id"])
        return chat_server.said(json.dumps({"id": ids[0]} | good(kind, asked["phrase"])))

    chat_server.script = swapped
    with pytest.raises(BadReplyError, match="wrong_ids after 3 asks"):
        annotate(chat_server, job_of(RED, BLUE))
    assert len(ids) == 4


def test_the_label_says_what_shapes_the_texts_and_nothing_of_facts_or_addresses() -> None:
    def label(url: str = "http://gpu-7:8000/v1", model: str = "seer", **config: Any) -> Any:
        chat = StructuredChat(ChatSettings(base_url=url, model=model, api_key_env="SECRET"), None, 2)
        return ChatAnnotatorByNoun(ChatAnnotatorConfig(**config), chat, Lightening()).label()

    found = label()
    assert (found.agent, found.engine, found.revision) == ("annotator", "chat:seer", REVISION)
    assert len(found.prompt_hash) == 64
    assert "gpu-7" not in found.model_dump_json()
    assert "SECRET" not in found.model_dump_json()
    assert label("http://gpu-8:8000/v1") == label(future_share=0.5, long_side_px=64) == found
    assert len({label(num_pictures=4), label(picture_px=320), label(model="other"), found}) == 4


def test_the_same_replies_give_the_outputs_of_this_revision(chat_server: Any, request: pytest.FixtureRequest) -> None:
    """New output asks for a new REVISION, which is part of the keys of stored outputs."""
    still, dogs = mention_of("a still cat"), mention_of("two brown dogs", count=2)
    says(
        chat_server,
        lambda kind, phrase, _: (
            good(kind, phrase) | {"acts": False} if "cat" in phrase and kind == "motion" else good(kind, phrase)
        ),
    )
    found = annotate(chat_server, job_of(RED, still, dogs, BLUE), num_pictures=3)
    told = {
        "asked": [asked_in(payload)[1] for payload in chat_server.received],
        "found": found.model_dump(mode="json"),
    }
    path = Path(__file__).parent / "golden" / f"chat_annotator_by_noun-r{REVISION}.json"
    text = json.dumps(told, indent=1) + "\n"
    if not path.exists() and request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text
