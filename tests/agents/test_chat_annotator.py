"""The chat annotator: what it shows and asks, of which object, and what becomes of every kind of reply."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from agents.annotator import REVISION as FACTS_REVISION
from agents.annotator import Annotator, AnnotatorConfig
from agents.chat_annotator import REVISION, ChatAnnotator, ChatAnnotatorConfig
from infra.chat import ChatSettings
from infra.structured_chat import BadReplyError, StructuredChat
from infra.video import Frames
from schemas.caption import CaptionSet
from schemas.clip import Clip
from schemas.jobs import AnnotatorJob
from schemas.mask import encode
from schemas.mention import Mention, MentionSet, Role, SaidAttributes
from schemas.track import ObjectMasks, Track, TrackSet

HEIGHT, WIDTH, NUM, FPS = 180, 240, 30, 10.0
GROUND_RGB = (90, 120, 60)
DOG_RGB, MAN_RGB = (150, 90, 40), (30, 40, 200)
CLIP = Clip(
    clip_id="clip", source_id="source", video="a.mp4", video_sha256="ab" * 32, license="CC0-1.0", start_s=2.0,
    end_s=5.0, start_frame=20, end_frame=50, fps=FPS, height_px=HEIGHT, width_px=WIDTH, caption="A dog passes a man.",
)  # fmt: skip
Mask = npt.NDArray[np.bool_]


def square(left_px: int, top_px: int, side_px: int = 40) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[top_px : top_px + side_px, left_px : left_px + side_px] = True
    return mask


DOG = [square(20 + 5 * i, 30) for i in range(NUM)]
MAN = [square(100, 110)] * NUM


class Painted:
    """A frame source of the two squares, halved where a picture must be smaller; it notes who reads."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def image(self, place: int) -> npt.NDArray[np.uint8]:
        image = np.full((HEIGHT, WIDTH, 3), GROUND_RGB, np.uint8)
        image[DOG[place]], image[MAN[place]] = DOG_RGB, MAN_RGB
        return image

    def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        self.threads.add(threading.current_thread().name)
        step = -(-WIDTH // long_side_px)
        return np.stack([self.image(index - clip.start_frame)[::step, ::step] for index in frame_idx])

    def times_s(self, clip: Clip, frame_idx: Sequence[int]) -> tuple[float, ...]:
        return tuple(index / FPS for index in frame_idx)


def track_of(noun: str, masks: Sequence[Mask | None]) -> Track:
    return Track(
        track_id=f"t-{noun}", clip_id="clip", mention_id=f"m-{noun}", noun=noun,
        masks=ObjectMasks(
            detector_class=noun, frame_idx=tuple(range(20, 20 + NUM)),
            frame_time_s=tuple(2.0 + i / FPS for i in range(NUM)),
            rle=tuple(None if mask is None else encode(mask) for mask in masks),
            height_px=HEIGHT, width_px=WIDTH, score=0.9,
        ),
    )  # fmt: skip


def mention_of(noun: str, role: Role) -> Mention:
    return Mention(
        mention_id=f"m-{noun}", clip_id="clip", noun=noun, phrase=f"a {noun}", start_char=0, end_char=1, role=role,
        number="singular", detector_class=noun, class_similarity=1.0, said=SaidAttributes(count=1),
    )  # fmt: skip


def job_of(*tracks: Track, others: Sequence[str] = ()) -> AnnotatorJob:
    mentions = [mention_of(track.noun, "other" if track.noun in others else "subject") for track in tracks]
    return AnnotatorJob(
        clip=CLIP,
        mentions=MentionSet(clip_id="clip", mentions=tuple(mentions), rejected=()),
        tracks=TrackSet(clip_id="clip", tracks=tracks, rejected=()),
    )


BOTH = (track_of("dog", DOG), track_of("man", MAN))


def asked_in(payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which question it is, by the reply it wants, and what is asked."""
    asked = json.loads(payload["messages"][0]["content"][-1]["text"].rsplit("\n\n", 1)[1])
    wants = payload["response_format"]["json_schema"]["schema"]["properties"]
    return ("motion" if "acts" in wants else "looks"), asked


def good(kind: str, noun: str) -> dict[str, Any]:
    if kind == "motion":
        return {"text": f" The {noun} trots past\n the gate.", "acts": True}
    return {"text": f"The {noun} has a short coat."}


def says(server: Any, reply_of: Callable[[str, str, int], dict[str, Any]]) -> None:
    """A reply by question, noun and the number of the ask; the id is echoed unless the reply has one."""

    def script(payload: dict[str, Any]) -> Any:
        kind, asked = asked_in(payload)
        asks = (len(payload["messages"]) + 1) // 2
        return server.said(json.dumps({"id": asked["id"]} | reply_of(kind, asked["noun"], asks)))

    server.script = script


def annotate(server: Any, job: AnnotatorJob, frames: Painted | None = None, **config: Any) -> CaptionSet:
    async def run() -> CaptionSet:
        chat = StructuredChat(ChatSettings(base_url=server.url, model="seer", max_attempts=1), None, 2)
        agent = ChatAnnotator(ChatAnnotatorConfig(**config), chat, frames or Painted())
        await agent.setup()
        try:
            return await agent.process_one(job)
        finally:
            await agent.close()

    return asyncio.run(run())


def pictures_of(payload: dict[str, Any]) -> list[npt.NDArray[np.uint8]]:
    *pictures, _ = payload["messages"][0]["content"]
    data = [base64.b64decode(picture["image_url"]["url"].split(",")[1]) for picture in pictures]
    return [np.asarray(cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR_RGB)) for one in data]


def as_jpeg(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """What another writer of JPEG files makes of an image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90, subsampling=0)
    return np.asarray(Image.open(file)).astype(np.int64)


def test_two_questions_are_asked_of_each_object_on_the_same_pictures(chat_server: Any) -> None:
    says(chat_server, lambda kind, noun, _: good(kind, noun))
    annotate(chat_server, job_of(*BOTH), num_pictures=5)
    asked = [asked_in(payload) for payload in chat_server.received]
    assert [(kind, one["noun"]) for kind, one in asked] == [
        ("motion", "dog"), ("looks", "dog"), ("motion", "man"), ("looks", "man"),
    ]  # fmt: skip
    assert len({one["id"] for _, one in asked}) == 4
    contents = [payload["messages"][0]["content"] for payload in chat_server.received]
    assert {len(content) for content in contents} == {6}
    assert contents[0][:5] == contents[1][:5] != contents[2][:5] == contents[3][:5]
    times_s = asked[0][1]["times_s"]
    assert all(one["times_s"] == times_s for _, one in asked)
    assert len(times_s) == 5
    assert times_s == sorted(times_s)
    assert 0.0 <= times_s[0] < times_s[-1] < 3.0


@pytest.mark.parametrize("picture_px", [640, 120])
def test_in_each_picture_just_the_object_asked_about_is_ringed_in_red(chat_server: Any, picture_px: int) -> None:
    says(chat_server, lambda kind, noun, _: good(kind, noun))
    annotate(chat_server, job_of(*BOTH), num_pictures=3, picture_px=picture_px)
    frames = Painted()
    step = 1 if picture_px == 640 else 2
    for payload, masks in ((chat_server.received[0], DOG), (chat_server.received[2], MAN)):
        times_s = asked_in(payload)[1]["times_s"]
        for picture, time_s in zip(pictures_of(payload), times_s, strict=True):
            place = round(time_s * FPS)
            plain = as_jpeg(frames.image(place)[::step, ::step])
            rows, columns = np.nonzero(masks[place][::step, ::step])
            top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
            assert picture.shape == plain.shape
            changed = np.abs(picture.astype(int) - plain).max(axis=2) > 60
            ys, xs = np.nonzero(changed)
            assert top - 8 <= ys.min() < top <= bottom <= ys.max() < bottom + 8
            assert left - 8 <= xs.min() < left <= right <= xs.max() < right + 8
            assert not changed[top + 2 : bottom - 2, left + 2 : right - 2].any()
            red = (picture[..., 0] > 150) & (picture[..., 1] < 110) & (picture[..., 2] < 110)
            middle_y, middle_x = (top + bottom) // 2, (left + right) // 2
            for line in (
                red[top - 8 : top, middle_x], red[bottom : bottom + 8, middle_x],
                red[middle_y, left - 8 : left], red[middle_y, right : right + 8],
            ):  # fmt: skip
                assert line.any()


def test_only_frames_that_show_the_object_are_shown(chat_server: Any) -> None:
    says(chat_server, lambda kind, noun, _: good(kind, noun))
    late = track_of("dog", [*[None] * 26, *DOG[26:]])
    annotate(chat_server, job_of(late), num_pictures=8)
    payload = chat_server.received[0]
    assert asked_in(payload)[1]["times_s"] == [2.6, 2.7, 2.8, 2.9]
    assert len(pictures_of(payload)) == 4


def test_the_same_frames_give_the_same_bytes_and_are_read_outside_the_event_loop(chat_server: Any) -> None:
    says(chat_server, lambda kind, noun, _: good(kind, noun))
    frames = Painted()
    annotate(chat_server, job_of(*BOTH), frames)
    annotate(chat_server, job_of(*BOTH), frames)
    assert chat_server.received[:4] == chat_server.received[4:]
    assert frames.threads
    assert threading.main_thread().name not in frames.threads


def test_texts_are_the_models_and_facts_are_measured(chat_server: Any) -> None:
    says(chat_server, lambda kind, noun, _: good(kind, noun))
    found = annotate(chat_server, job_of(*BOTH))
    (measured,) = Annotator(AnnotatorConfig(), Painted()).process([job_of(*BOTH)])
    for caption, facts in zip(found.captions, measured.captions, strict=True):
        assert caption.motion == f"The {caption.noun} trots past the gate."
        assert caption.appearance == f"The {caption.noun} has a short coat."
        assert caption.moving
        texts = {"motion": facts.motion, "appearance": facts.appearance, "moving": facts.moving}
        assert caption.model_copy(update=texts) == facts
    assert [facts.moving for facts in measured.captions] == [True, False]
    assert found.rejected == ()


def test_a_subject_that_does_nothing_is_left_out_with_the_reason_and_what_it_meets_is_not(chat_server: Any) -> None:
    still = {"text": "The man stands.", "acts": False}
    says(chat_server, lambda kind, noun, _: still if (kind, noun) == ("motion", "man") else good(kind, noun))
    found = annotate(chat_server, job_of(*BOTH))
    assert [caption.noun for caption in found.captions] == ["dog"]
    (entry,) = found.rejected
    assert (entry.subject_id, entry.noun, entry.stage, entry.reason) == ("t-man", "man", "annotator", "static_subject")
    assert "The man stands." in entry.evidence
    assert len(chat_server.received) == 3
    met = annotate(chat_server, job_of(*BOTH, others=["man"]))
    assert [(caption.noun, caption.moving) for caption in met.captions] == [("dog", True), ("man", False)]


def test_a_track_seen_once_is_asked_nothing(chat_server: Any) -> None:
    says(chat_server, lambda kind, noun, _: good(kind, noun))
    found = annotate(chat_server, job_of(track_of("dog", [*DOG[:1], *[None] * 29])))
    assert (found.captions, [entry.reason for entry in found.rejected]) == ((), ["track_too_short"])
    assert chat_server.received == []


@pytest.mark.parametrize("text", ["  ", "The dog outlined in red runs.", "Inside the red contour a dog runs."])
@pytest.mark.parametrize("bad", ["motion", "looks"])
def test_a_text_of_no_use_is_asked_again_and_costs_its_object_only(chat_server: Any, bad: str, text: str) -> None:
    def until(last: int) -> Callable[[str, str, int], dict[str, Any]]:
        def reply(kind: str, noun: str, asks: int) -> dict[str, Any]:
            slips = (kind, noun) == (bad, "dog") and asks <= last
            return good(kind, noun) | ({"text": text} if slips else {})

        return reply

    says(chat_server, until(1))
    assert [caption.noun for caption in annotate(chat_server, job_of(*BOTH)).captions] == ["dog", "man"]
    fault = "is empty" if not text.strip() else "tells of the mark"
    told = [payload["messages"][-1]["content"] for payload in chat_server.received if len(payload["messages"]) == 3]
    assert len(told) == 1
    assert f"the text {fault}" in told[0]
    says(chat_server, until(99))
    found = annotate(chat_server, job_of(*BOTH))
    assert [caption.noun for caption in found.captions] == ["man"]
    assert [(entry.subject_id, entry.reason) for entry in found.rejected] == [("t-dog", "unusable_text")]
    assert fault in found.rejected[0].evidence


def test_an_answer_to_the_other_question_or_object_counts_for_nothing(chat_server: Any) -> None:
    ids: list[str] = []

    def swapped(payload: dict[str, Any]) -> Any:
        kind, asked = asked_in(payload)
        ids.append(asked["id"])
        return chat_server.said(json.dumps({"id": ids[0]} | good(kind, asked["noun"])))

    chat_server.script = swapped
    with pytest.raises(BadReplyError, match="wrong_ids after 3 asks") as caught:
        annotate(chat_server, job_of(*BOTH))
    assert caught.value.reason == "wrong_ids"
    assert len(ids) == 4


def test_the_label_says_who_worded_and_who_measured_and_no_address() -> None:
    def label(url: str = "http://gpu-7:8000/v1", model: str = "seer", **config: Any) -> Any:
        chat = StructuredChat(ChatSettings(base_url=url, model=model, api_key_env="SECRET"), None, 2)
        return ChatAnnotator(ChatAnnotatorConfig(**config), chat, Painted()).label()

    found = label()
    assert (found.agent, found.engine, found.revision) == ("annotator", "chat:seer+measured-facts", REVISION)
    assert len(found.prompt_hash) == 64
    config = json.loads(found.config_json)
    assert config["facts_revision"] == FACTS_REVISION
    assert config["chat"]["model"] == "seer"
    assert "gpu-7" not in found.model_dump_json()
    assert "SECRET" not in found.model_dump_json()
    assert label("http://gpu-8:8000/v1") == found
    assert len({label(num_pictures=4).config_json, label(future_share=0.5).config_json, found.config_json}) == 3


def test_the_same_replies_give_the_outputs_of_this_revision(chat_server: Any, request: pytest.FixtureRequest) -> None:
    """New output asks for a new REVISION, of this annotator or, where facts change, of the measuring one."""
    still = {"text": "The cat sits.", "acts": False}
    says(chat_server, lambda kind, noun, _: still if (kind, noun) == ("motion", "cat") else good(kind, noun))
    cat = track_of("cat", MAN)
    found = annotate(chat_server, job_of(*BOTH, cat, track_of("bee", [*DOG[:1], *[None] * 29]), others=["man"]))
    texts = {"track_id", "appearance", "motion", "moving"}
    told = {
        "asked": [asked_in(payload)[1] for payload in chat_server.received],
        "captions": [caption.model_dump(mode="json", include=texts) for caption in found.captions],
        "rejected": [entry.model_dump(mode="json") for entry in found.rejected],
    }
    path = Path(__file__).parent / "golden" / f"chat_annotator-r{REVISION}-r{FACTS_REVISION}.json"
    text = json.dumps(told, indent=1) + "\n"
    if not path.exists() and request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text
