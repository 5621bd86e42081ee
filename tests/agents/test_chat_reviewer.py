"""The chat reviewer: what the captioner sees, what is matched with what, and what every answer comes to."""

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

from agents.chat_reviewer import REVISION, ChatRegionCaptioner, ChatReviewer, ChatReviewerConfig, best_position
from infra.chat import ChatSettings, JsonObject
from infra.structured_chat import BadReplyError, StructuredChat
from infra.video import Frames
from schemas.caption import AppearanceFacts, CaptionSet, MentionText, MentionTextSet, MotionFacts, ObjectCaption
from schemas.clip import Clip
from schemas.jobs import ReviewerJob, TextReviewerJob
from schemas.mask import encode
from schemas.mention import Mention, MentionSet, SaidAttributes
from schemas.track import ObjectMasks, Track, TrackSet
from schemas.verdict import VerdictSet

HEIGHT, WIDTH, NUM = 120, 160, 12
CLIP = Clip(
    clip_id="clip", source_id="source", video="a.mp4", video_sha256="ab" * 32, license="CC0-1.0", start_s=0.0,
    end_s=1.2, start_frame=0, end_frame=12, fps=10.0, height_px=HEIGHT, width_px=WIDTH, caption="A dog and a cat.",
)  # fmt: skip
LEFT_PX = {"dog": 20, "cat": 90}
Mask = npt.NDArray[np.bool_]


def mask_of(noun: str, side_px: int = 30) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[40 : 40 + side_px, LEFT_PX[noun] : LEFT_PX[noun] + side_px] = True
    return mask


class Numbered:
    """A frame source of grey frames, each a little lighter than the one before; it notes who reads what."""

    def __init__(self) -> None:
        self.reads: list[list[int]] = []
        self.threads: set[str] = set()

    def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        self.reads.append(list(frame_idx))
        self.threads.add(threading.current_thread().name)
        return np.stack([np.full((HEIGHT, WIDTH, 3), 60 + 10 * index, np.uint8) for index in frame_idx])

    def times_s(self, clip: Clip, frame_idx: Sequence[int]) -> tuple[float, ...]:
        return tuple(index / 10 for index in frame_idx)


def track_of(noun: str, sides_px: Sequence[int] = (20,) * 5 + (30,) * 2 + (20,) * 5) -> Track:
    """A square whose side is given for each frame; 0 where it is out of sight."""
    masks = ObjectMasks(
        detector_class=noun, frame_idx=tuple(range(NUM)), frame_time_s=tuple(i / 10 for i in range(NUM)),
        rle=tuple(encode(mask_of(noun, side)) if side else None for side in sides_px), height_px=HEIGHT,
        width_px=WIDTH, score=0.9,
    )  # fmt: skip
    return Track(track_id=f"t-{noun}", clip_id="clip", mention_id=f"m-{noun}", noun=noun, masks=masks)


def caption_of(noun: str) -> ObjectCaption:
    motion = MotionFacts(
        start_s=0.0, end_s=1.2, start_places=("left",), end_places=("left",), direction="none", speed="still",
        displacement_x_diag=0.0, displacement_y_diag=0.0, speed_diag_per_s=0.0, growth=1.0,
    )  # fmt: skip
    return ObjectCaption(
        track_id=f"t-{noun}", mention_id=f"m-{noun}", noun=noun, visible_from_s=0.0, visible_to_s=1.1,
        visible_until_s=0.7, appearance_facts=AppearanceFacts(
            detector_class=noun, colours=(), size="small", area_share=0.05
        ), motion_facts=motion, seen_facts=None, rest_facts=None, contacts=(), appearance=f"The {noun} is brown.",
        motion=f"The {noun} yawns.", moving=True,
    )  # fmt: skip


def job_of(*nouns: str, told: Sequence[str] = ("dog", "cat")) -> ReviewerJob:
    mentions = tuple(
        Mention(
            mention_id=f"m-{noun}", clip_id="clip", noun=noun, phrase=f"a sleepy {noun}", start_char=0, end_char=1,
            role="subject", number="singular", detector_class=noun, class_similarity=1.0, said=SaidAttributes(count=1),
        )
        for noun in nouns
    )  # fmt: skip
    return ReviewerJob(
        clip=CLIP,
        mentions=MentionSet(clip_id="clip", mentions=mentions, rejected=()),
        tracks=TrackSet(clip_id="clip", tracks=tuple(map(track_of, nouns)), rejected=()),
        captions=CaptionSet(clip_id="clip", captions=tuple(caption_of(n) for n in nouns if n in told), rejected=()),
    )


def asked_in(payload: dict[str, Any]) -> dict[str, Any]:
    """What is asked, of the captioner in the last part after its picture, of the other in a turn of its own."""
    content = next(turn["content"] for turn in payload["messages"] if turn["role"] == "user")
    text = content if isinstance(content, str) else content[-1]["text"].rsplit("\n\n", 1)[1]
    asked = json.loads(text)
    assert isinstance(asked, dict)
    return asked


def picture_of(payload: dict[str, Any]) -> npt.NDArray[np.int64]:
    picture, _ = payload["messages"][0]["content"]
    data = base64.b64decode(picture["image_url"]["url"].split(",")[1])
    return np.asarray(Image.open(io.BytesIO(data))).astype(np.int64)


def says(server: Any, answer_of: Callable[[str, int], JsonObject], seen: str = "A brown animal.") -> None:
    """`seen` by the captioner; an answer by noun and the number of the ask; the ids are echoed unless it has one."""

    def script(payload: dict[str, Any]) -> Any:
        if "response_format" not in payload:
            return server.said("yes")  # to the probe
        asked = asked_in(payload)
        if "noun" not in asked:
            return server.said(json.dumps({"id": asked["id"], "text": seen}))
        return server.said(json.dumps({"id": asked["id"]} | answer_of(asked["noun"], len(payload["messages"]) // 2)))

    server.script = script


def yes(noun: str, asks: int) -> JsonObject:
    return {"reason": "Both are brown.", "answer": "yes"}


def agent_for(url: str, frames: Any, matcher: str = "matcher", seer: str = "seer", **config: Any) -> ChatReviewer:
    def chat(model: str) -> StructuredChat:
        return StructuredChat(ChatSettings(base_url=url, model=model, max_attempts=1, api_key_env=""), None, 2)

    return ChatReviewer(ChatReviewerConfig(**config), ChatRegionCaptioner(chat(seer)), chat(matcher), frames)


def review(server: Any, job: ReviewerJob | TextReviewerJob, frames: Any = None) -> VerdictSet:
    async def run() -> VerdictSet:
        agent = agent_for(server.url, frames or Numbered())
        await agent.setup()
        try:
            await agent.probe()
            del server.received[:]
            return await agent.process_one(job)
        finally:
            await agent.close()

    return asyncio.run(run())


def test_the_captioner_sees_one_ringed_frame_and_is_told_nothing_else(chat_server: Any) -> None:
    says(chat_server, yes)
    frames = Numbered()
    review(chat_server, job_of("dog", "cat"), frames)
    first, _, second, _ = chat_server.received
    assert [payload["model"] for payload in chat_server.received] == ["seer", "matcher"] * 2
    assert frames.reads == [[5], [5]]
    assert threading.main_thread().name not in frames.threads
    for payload, noun in ((first, "dog"), (second, "cat")):
        assert asked_in(payload).keys() == {"id"}
        words = payload["messages"][0]["content"][1]["text"]
        assert not any(word in words for word in ("yawns", "sleepy", "cat"))
        picture = picture_of(payload)
        red = (picture[..., 0] > 170) & (picture[..., 1] < 90)
        rows, columns = np.nonzero(red)
        centre_x = LEFT_PX[noun] + 15
        assert abs(columns.mean() - centre_x) < 2
        assert abs(rows.mean() - 55) < 2
        assert not red[mask_of(noun)].any()
    assert asked_in(first)["id"] != asked_in(second)["id"]


def test_what_was_seen_is_matched_as_text_with_what_the_annotator_wrote(chat_server: Any) -> None:
    says(chat_server, yes, seen=" A brown\nanimal. ")
    review(chat_server, job_of("dog", "cat", told=["dog"]))
    asked = [asked_in(payload) for payload in chat_server.received[1::2]]
    assert [{key: one[key] for key in ("noun", "text", "seen")} for one in asked] == [
        {"noun": "dog", "text": "The dog is brown. The dog yawns.", "seen": "A brown animal."},
        {"noun": "cat", "text": "a sleepy cat", "seen": "A brown animal."},
    ]
    assert all(isinstance(turn["content"], str) for turn in chat_server.received[1]["messages"])
    assert len({asked_in(payload)["id"] for payload in chat_server.received}) == 4


def test_of_texts_on_mentions_each_is_matched_with_all_tracks_of_its_own_and_others_are_not_looked_at(
    chat_server: Any,
) -> None:
    says(chat_server, yes)
    whole = job_of("dog", "cat")
    twin = track_of("dog").model_copy(update={"track_id": "t-dog-2"})
    text = MentionText(mention_id="m-dog", noun="dog", appearance="It is wet.", motion="It shakes.", moving=True)
    job = TextReviewerJob(
        clip=CLIP,
        mentions=whole.mentions,
        tracks=whole.tracks.model_copy(update={"tracks": (*whole.tracks.tracks, twin)}),
        texts=MentionTextSet(clip_id="clip", texts=(text,), rejected=()),
    )
    frames = Numbered()
    found = review(chat_server, job, frames)
    assert [(one.track_id, one.keep) for one in found.verdicts] == [("t-dog", True), ("t-dog-2", True)]
    assert [asked_in(one)["text"] for one in chat_server.received[1::2]] == ["It is wet. It shakes."] * 2
    assert len(frames.reads) == 2


@pytest.mark.parametrize(
    ("answer", "keep", "score", "reason", "outcome"),
    [
        ("yes", True, 1.0, None, "agrees"),
        ("no", False, 0.0, "other_object", "disagrees"),
        ("unsure", False, 0.5, "unsure_match", "cannot_tell"),
    ],
)
def test_what_is_no_yes_is_dropped_with_its_reason(
    chat_server: Any, answer: str, keep: bool, score: float, reason: str | None, outcome: str
) -> None:
    says(
        chat_server, lambda noun, asks: {"reason": "So it is.", "answer": answer} if noun == "dog" else yes(noun, asks)
    )
    found = review(chat_server, job_of("dog", "cat"))
    dog, cat = found.verdicts
    assert (dog.track_id, dog.keep, dog.score, dog.reason) == ("t-dog", keep, score, reason)
    assert (cat.track_id, cat.keep) == ("t-cat", True)
    (check,) = dog.checks
    assert (check.name, check.outcome, check.score) == ("same_object", outcome, score)
    assert check.detail == "seen as 'A brown animal.': So it is."
    entries = [] if keep else [("t-dog", "dog", "reviewer", reason)]
    assert [(one.subject_id, one.noun, one.stage, one.reason) for one in found.rejected] == entries
    assert all(check.detail in one.evidence for one in found.rejected)


def test_a_region_of_which_nothing_is_said_is_matched_with_nothing(chat_server: Any) -> None:
    says(chat_server, yes, seen="  ")
    found = review(chat_server, job_of("dog"))
    assert [(one.keep, one.reason) for one in found.verdicts] == [(False, "unsure_match")]
    assert {payload["model"] for payload in chat_server.received} == {"seer"}
    assert "the text is empty" in chat_server.received[-1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"reason": "So.", "answer": "maybe"}, "wrong_shape"),
        ({"answer": "yes"}, "wrong_shape"),
        ({"id": "ffffffff", "reason": "So.", "answer": "yes"}, "wrong_ids"),
    ],
)
def test_a_bad_answer_is_asked_again_and_in_the_end_fails_the_clip(
    chat_server: Any, bad: JsonObject, reason: str
) -> None:
    says(chat_server, lambda noun, asks: bad if asks == 1 else yes(noun, asks))
    assert [one.keep for one in review(chat_server, job_of("dog")).verdicts] == [True]
    assert len(chat_server.received) == 3
    says(chat_server, lambda noun, asks: bad)
    with pytest.raises(BadReplyError) as caught:
        review(chat_server, job_of("dog"))
    assert caught.value.reason == reason


def test_another_objects_answer_counts_for_nothing(chat_server: Any) -> None:
    ids: list[str] = []

    def answer(noun: str, asks: int) -> JsonObject:
        ids.append(asked_in(chat_server.received[-1])["id"])
        return {"id": ids[0], "reason": "So.", "answer": "yes"}

    says(chat_server, answer)
    with pytest.raises(BadReplyError, match="wrong_ids after 3 asks"):
        review(chat_server, job_of("dog", "cat"))
    assert len(ids) == 4


def test_the_frame_is_that_of_the_largest_mask_in_the_middle_of_what_is_seen() -> None:
    assert best_position(track_of("dog").masks) == 5
    assert best_position(track_of("dog", [30, 10, 10, 20, 22, 21, 20, 20, 10, 10, 10, 30]).masks) == 4
    assert best_position(track_of("dog", [0] * 7 + [30, 20, 22, 0, 30]).masks) == 9
    assert best_position(track_of("dog", [0] * 9 + [10, 0, 0]).masks) == 9


def test_the_label_names_both_models_and_all_that_shapes_them_and_no_address() -> None:
    found = agent_for("http://gpu-7:8000/v1", Numbered()).label()
    assert (found.agent, found.engine, found.revision) == ("reviewer", "chat:seer+chat:matcher", REVISION)
    assert len(found.prompt_hash) == 64
    config = json.loads(found.config_json)
    assert config["chat"]["model"] == "matcher"
    assert config["captioner"]["model"] == "seer"
    assert len(config["captioner"]["prompt_hash"]) == 64
    assert "gpu-7" not in found.model_dump_json()
    assert agent_for("http://gpu-8:8000/v1", Numbered()).label() == found
    assert agent_for("http://gpu-7:8000/v1", Numbered(), seer="other").label() != found
    assert agent_for("http://gpu-7:8000/v1", Numbered(), picture_px=320).label() != found


class Oracle:
    """A captioner that is no chat model: it says where in the image the mask lies."""

    name = "oracle"

    def weights(self) -> tuple[str, ...]:
        return ()

    def settings(self) -> JsonObject:
        return {"words": 3}

    async def setup(self) -> None: ...

    async def describe(self, image: npt.NDArray[np.uint8], mask: Mask, region_id: str) -> str:
        assert image.shape[:2] == mask.shape
        return f"{region_id} at {int(np.nonzero(mask)[1].min())}"

    async def probe(self) -> None: ...

    async def close(self) -> None: ...


def test_any_captioner_will_do(chat_server: Any) -> None:
    says(chat_server, yes)
    chat = StructuredChat(ChatSettings(base_url=chat_server.url, model="matcher"), None, 2)
    agent = ChatReviewer(ChatReviewerConfig(), Oracle(), chat, Numbered())
    assert agent.label().engine == "oracle+chat:matcher"

    async def run() -> VerdictSet:
        await agent.setup()
        try:
            return await agent.process_one(job_of("dog", "cat"))
        finally:
            await agent.close()

    assert [one.keep for one in asyncio.run(run()).verdicts] == [True, True]
    assert [asked_in(payload)["seen"] for payload in chat_server.received] == ["t-dog at 20", "t-cat at 90"]


def test_the_same_replies_give_the_outputs_of_this_revision(chat_server: Any, request: pytest.FixtureRequest) -> None:
    """New output asks for a new REVISION, which is part of the keys of stored outputs."""
    answers = {"dog": "yes", "cat": "no"}
    says(chat_server, lambda noun, _: {"reason": f"It is a {noun}.", "answer": answers[noun]})
    told = review(chat_server, job_of("dog", "cat")).model_dump(mode="json")
    path = Path(__file__).parent / "golden" / f"chat_reviewer-r{REVISION}.json"
    text = json.dumps(told, indent=1) + "\n"
    if not path.exists() and request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text
