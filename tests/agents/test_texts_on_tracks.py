"""Texts on mentions meet tracks: the same samples as behind an annotator that needs tracks, and nothing lost."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from agents.annotator import Annotator, AnnotatorConfig
from agents.chat_annotator import ChatAnnotator, ChatAnnotatorConfig
from agents.chat_annotator_by_noun import ChatAnnotatorByNoun
from agents.chat_refiner import ChatRefiner, ChatRefinerConfig
from agents.refiner import Refiner, RefinerConfig
from agents.texts_on_tracks import ChatRefinerOfTexts, RefinerOfTexts, label_with_facts
from infra.chat import ChatSettings
from infra.structured_chat import StructuredChat
from infra.video import Frames
from schemas.caption import CaptionSet, MentionText, MentionTextSet
from schemas.clip import Clip
from schemas.jobs import AnnotatorJob, RefinerJob, SegmenterJob, TextRefinerJob
from schemas.label import AgentLabel
from schemas.mask import encode
from schemas.mention import Mention, MentionSet, Role, SaidAttributes
from schemas.quarantine import QuarantineEntry
from schemas.sample import SampleSet
from schemas.track import ObjectMasks, Track, TrackSet
from schemas.verdict import Check, Verdict, VerdictSet

HEIGHT, WIDTH, NUM, FPS = 90, 160, 20, 10.0
CLIP = Clip(
    clip_id="clip", source_id="source", video="a.mp4", video_sha256="ab" * 32, license="CC0-1.0", start_s=0.0,
    end_s=2.0, start_frame=0, end_frame=20, fps=FPS, height_px=HEIGHT, width_px=WIDTH,
    caption="A dog and two cats pass a man.",
)  # fmt: skip
CHECK = Check(name="same_object", outcome="agrees", score=1.0, detail="it looks so")
Mask = npt.NDArray[np.bool_]
Object = tuple[Mention, list[Track]]


class Plain:
    """A frame source of frames in one colour."""

    def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        return np.full((len(frame_idx), HEIGHT, WIDTH, 3), (150, 90, 40), np.uint8)

    def times_s(self, clip: Clip, frame_idx: Sequence[int]) -> tuple[float, ...]:
        return tuple(index / FPS for index in frame_idx)


def square(left_px: int, top_px: int) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[top_px : top_px + 20, left_px : left_px + 20] = True
    return mask


def object_of(
    noun: str, starts_px: Sequence[int], role: Role = "subject", num_seen: int = NUM, step_px: int = 5
) -> Object:
    """A mention and a track for each start, one below the other, each moving to the right."""
    tracks = [
        Track(
            track_id=f"t-{noun}-{nth}", clip_id="clip", mention_id=f"m-{noun}", noun=noun,
            masks=ObjectMasks(
                detector_class=noun, frame_idx=tuple(range(NUM)), frame_time_s=tuple(i / FPS for i in range(NUM)),
                rle=tuple(encode(square(start + step_px * i, 30 * nth)) if i < num_seen else None for i in range(NUM)),
                height_px=HEIGHT, width_px=WIDTH, score=0.9,
            ),
        )
        for nth, start in enumerate(starts_px)
    ]  # fmt: skip
    count = len(starts_px)
    mention = Mention(
        mention_id=f"m-{noun}", clip_id="clip", noun=noun, phrase=f"{count} {noun}", start_char=0, end_char=1,
        role=role, number="singular" if count == 1 else "plural", detector_class=noun, class_similarity=1.0,
        said=SaidAttributes(count=count),
    )  # fmt: skip
    return mention, tracks


DOG, CATS, MAN = object_of("dog", [10]), object_of("cat", [0, 40]), object_of("man", [60], "other", step_px=0)


def text_on(noun: str) -> MentionText:
    return MentionText(
        mention_id=f"m-{noun}", noun=noun, appearance=f"The {noun} is shaggy.", motion=f"The {noun} trots past.",
        moving=True,
    )  # fmt: skip


def dropped(noun: str) -> QuarantineEntry:
    return QuarantineEntry(
        subject_id=f"m-{noun}", source_id="source", clip_id="clip", noun=noun, stage="annotator",
        reason="static_subject", evidence="it sits",
    )  # fmt: skip


def parts_of(objects: Sequence[Object], out: Sequence[str] = ()) -> dict[str, Any]:
    """All of a job but captions or texts; `out` are tracks that the reviewer drops."""
    tracks = tuple(track for _, of_mention in objects for track in of_mention)
    verdicts = tuple(
        Verdict(
            track_id=track.track_id, keep=track.track_id not in out, score=0.9, checks=(CHECK,),
            reason="other_object" if track.track_id in out else None,
        )
        for track in tracks
    )  # fmt: skip
    return {
        "clip": CLIP,
        "mentions": MentionSet(clip_id="clip", mentions=tuple(mention for mention, _ in objects), rejected=()),
        "tracks": TrackSet(clip_id="clip", tracks=tracks, rejected=()),
        "verdicts": VerdictSet(clip_id="clip", verdicts=verdicts, rejected=()),
    }


def job_of(*objects: Object, without: Sequence[str] = (), out: Sequence[str] = ()) -> TextRefinerJob:
    nouns = [mention.noun for mention, _ in objects]
    texts = tuple(text_on(noun) for noun in nouns if noun not in without)
    told = MentionTextSet(clip_id="clip", texts=texts, rejected=tuple(map(dropped, without)))
    return TextRefinerJob(texts=told, **parts_of(objects, out))


LABEL = AgentLabel(agent="annotator", engine="chat:seer", weights=(), config_json="{}", prompt_hash="", revision=1)
FACTS = Annotator(AnnotatorConfig(), Plain())


def refine(job: TextRefinerJob, **config: Any) -> SampleSet:
    (output,) = RefinerOfTexts(Refiner(RefinerConfig(**config), None, (LABEL,)), FACTS).process([job])
    return output


def basics(output: SampleSet) -> list[str]:
    """The answers to basic questions."""
    return [one.conversations[1].value for one in output.samples if one.qa_type == "basic"]


def kinds_of(output: SampleSet, track_id: str) -> set[str]:
    return {one.kind for one in output.samples if track_id in {item.object_id for item in one.objects}}


def answers(output: SampleSet, kind: str) -> dict[str, str]:
    return {one.objects[0].object_id: one.conversations[1].value for one in output.samples if one.kind == kind}


def reply(payload: dict[str, Any]) -> dict[str, Any]:
    """The same texts whichever annotator asks; the refiner's notes as they are."""
    user = next(turn["content"] for turn in payload["messages"] if turn["role"] == "user")
    asked = json.loads(user if isinstance(user, str) else user[-1]["text"].rsplit("\n\n", 1)[1])
    wants = payload["response_format"]["json_schema"]["schema"]["properties"]
    if "objects" in wants:
        return {"objects": [{"id": one["id"], "text": one["notes"]} for one in asked["objects"]]}
    if "acts" in wants:
        return {"id": asked["id"], "text": f"The {asked['noun']} trots past.", "acts": True}
    return {"id": asked["id"], "text": f"The {asked['noun']} is shaggy."}


def through_chat(server: Any, objects: Sequence[Object]) -> tuple[CaptionSet, MentionTextSet, StructuredChat]:
    """What both annotators say of the same clip, asked of the same model."""
    server.script = lambda payload: server.said(json.dumps(reply(payload)))
    chat = StructuredChat(ChatSettings(base_url=server.url, model="seer", max_attempts=1), None, 2)
    parts = parts_of(objects)

    async def run() -> tuple[CaptionSet, MentionTextSet]:
        after, beside = (kind(ChatAnnotatorConfig(), chat, Plain()) for kind in (ChatAnnotator, ChatAnnotatorByNoun))
        await chat.start()
        try:
            told = await after.process_one(AnnotatorJob(**{name: parts[name] for name in AnnotatorJob.model_fields}))
            return told, await beside.process_one(SegmenterJob(clip=CLIP, mentions=parts["mentions"]))
        finally:
            await chat.close()

    return (*asyncio.run(run()), chat)


def test_the_same_texts_give_the_same_samples_as_behind_an_annotator_that_needs_tracks(chat_server: Any) -> None:
    objects = (DOG, CATS, MAN)
    captions, texts, _ = through_chat(chat_server, objects)
    (after,) = Refiner(RefinerConfig(), None, (LABEL,)).process([RefinerJob(captions=captions, **parts_of(objects))])
    (beside,) = RefinerOfTexts(Refiner(RefinerConfig(), None, (LABEL,)), FACTS).process(
        [TextRefinerJob(texts=texts, **parts_of(objects))]
    )
    assert beside == after
    assert {sample.kind for sample in after.samples} == {"short_caption", "detailed_caption", "qa"}


def test_so_does_the_refiner_behind_a_chat_server(chat_server: Any) -> None:
    objects = (DOG, CATS, MAN)
    _, texts, chat = through_chat(chat_server, objects)
    job = TextRefinerJob(texts=texts, **parts_of(objects))

    async def run() -> SampleSet:
        agent = ChatRefinerOfTexts(ChatRefiner(ChatRefinerConfig(), chat, (LABEL,)), FACTS)
        await agent.setup()
        try:
            return await agent.process_one(job)
        finally:
            await agent.close()

    worded, plain = asyncio.run(run()), refine(job)
    assert answers(worded, "detailed_caption") == answers(plain, "detailed_caption")
    assert [sample.sample_id for sample in worded.samples] == [sample.sample_id for sample in plain.samples]
    assert worded.rejected == plain.rejected
    wording = {sample.provenance.wording for sample in worded.samples if sample.kind == "detailed_caption"}
    assert wording == {"chat:seer"}


def test_each_track_of_a_counted_mention_bears_its_texts_and_facts_of_its_own() -> None:
    output = refine(job_of(CATS), basic_per_object=9, basic_topics=("start_place",))
    text = "The cat is shaggy. It trots past."
    assert answers(output, "detailed_caption") == {"t-cat-0": text, "t-cat-1": text}
    assert len(set(basics(output))) == 2


def test_a_track_without_a_text_gives_no_sample_and_says_why() -> None:
    job = job_of(DOG, CATS, MAN, without=["cat"])
    output = refine(job, paper_short=True)
    assert kinds_of(output, "t-cat-0") == kinds_of(output, "t-cat-1") == set()
    assert kinds_of(output, "t-dog-0") == {"short_caption", "detailed_caption", "qa"}
    entries = [(one.subject_id, one.noun, one.stage, one.reason) for one in output.rejected]
    assert entries == [(f"t-cat-{nth}", "cat", "refiner", "no_sample") for nth in (0, 1)]
    assert all("m-cat: static_subject" in one.evidence for one in output.rejected)


def test_it_is_still_there_for_others_to_touch() -> None:
    output = refine(job_of(DOG, object_of("hen", [18]), without=["hen"]), basic_per_object=9, basic_topics=("contact",))
    (touches,) = basics(output)
    assert "touches the hen from 0.0 s" in touches


def test_a_track_too_short_to_be_measured_is_said_to_be() -> None:
    output = refine(job_of(DOG, object_of("bee", [0], num_seen=1), object_of("wasp", [0], num_seen=1, role="other")))
    assert kinds_of(output, "t-bee-0") == {"short_caption"}
    assert kinds_of(output, "t-wasp-0") == set()
    reasons = [(one.subject_id, one.stage, one.reason) for one in output.rejected]
    assert sorted(reasons) == [
        ("t-bee-0", "refiner", "track_too_short"),
        ("t-wasp-0", "refiner", "no_sample"),
        ("t-wasp-0", "refiner", "track_too_short"),
    ]


def test_what_the_reviewer_drops_stays_dropped() -> None:
    output = refine(job_of(DOG, CATS, out=["t-cat-1"]))
    assert kinds_of(output, "t-cat-1") == set()
    assert "detailed_caption" in kinds_of(output, "t-cat-0")


def test_the_label_is_the_refiners_with_what_shapes_the_facts() -> None:
    def label(**facts: Any) -> AgentLabel:
        refiner = Refiner(RefinerConfig(), None, ())
        return RefinerOfTexts(refiner, Annotator(AnnotatorConfig(**facts), Plain())).label()

    plain = Refiner(RefinerConfig(), None, ()).label()
    assert label().model_copy(update={"config_json": ""}) == plain.model_copy(update={"config_json": ""})
    assert len({label(), label(future_share=0.5), label(long_side_px=64), plain}) == 4


def test_samples_say_who_wrote_the_texts_and_who_measured() -> None:
    told = label_with_facts(LABEL, FACTS)
    assert (told.agent, told.engine) == ("annotator", "chat:seer+measured-facts")
    assert told.model_copy(update={"engine": LABEL.engine}) == LABEL


def test_parts_of_different_clips_are_refused() -> None:
    job = job_of(DOG)
    mixed = job.model_copy(update={"verdicts": job.verdicts.model_copy(update={"clip_id": "another"})})
    with pytest.raises(ValueError, match="about one clip"):
        refine(mixed)
