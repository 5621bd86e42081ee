"""The chat refiner: its wording stands where all facts survive, each with its own object; elsewhere the template."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.chat_prompt import tag_of
from agents.chat_refiner import REVISION, ChatRefiner, ChatRefinerConfig
from agents.refiner import REVISION as SAMPLES_REVISION
from agents.refiner import Refiner, RefinerConfig
from infra.chat import ChatSettings
from infra.structured_chat import BadReplyError, StructuredChat
from schemas.caption import AppearanceFacts, CaptionSet, ColourShare, MotionFacts, ObjectCaption
from schemas.clip import Clip
from schemas.jobs import RefinerJob
from schemas.label import AgentLabel
from schemas.mask import encode
from schemas.mention import Mention, MentionSet, SaidAttributes
from schemas.sample import Sample, SampleSet
from schemas.track import ObjectMasks, Track, TrackSet
from schemas.verdict import Check, Verdict, VerdictSet

CLIP = Clip(
    clip_id="clip", source_id="source", video="a.mp4", video_sha256="ab" * 32, license="CC0-1.0", start_s=0.0,
    end_s=4.0, start_frame=0, end_frame=40, fps=10.0, height_px=24, width_px=32, caption="Things move.",
)  # fmt: skip
UPSTREAM = AgentLabel(agent="analyzer", engine="e", weights=(), config_json="{}", prompt_hash="", revision=1)
FRAMES = range(0, 40, 4)


def object_of(noun: str, moves: bool = True) -> tuple[Mention, Track, ObjectCaption]:
    masks = ObjectMasks(
        detector_class=noun, frame_idx=tuple(FRAMES), frame_time_s=tuple(i / 10 for i in FRAMES),
        rle=(encode(np.eye(24, 32, dtype=bool)),) * len(FRAMES), height_px=24, width_px=32, score=0.9,
    )  # fmt: skip
    motion = MotionFacts(
        start_s=0.0, end_s=4.0, start_places=("left",), end_places=("right",), direction="right" if moves else "none",
        speed="slow" if moves else "still", displacement_x_diag=0.3, displacement_y_diag=0.0, speed_diag_per_s=0.05,
        growth=1.0,
    )  # fmt: skip
    mention = Mention(
        mention_id=f"m-{noun}", clip_id="clip", noun=noun, phrase=noun, start_char=0, end_char=1, role="subject",
        number="singular", detector_class=noun, class_similarity=1.0, said=SaidAttributes(count=1),
    )  # fmt: skip
    look = AppearanceFacts(
        detector_class=noun, colours=(ColourShare(colour="red", share=0.8),), size="large", area_share=0.2
    )
    caption = ObjectCaption(
        track_id=f"t-{noun}", mention_id=f"m-{noun}", noun=noun, visible_from_s=0.0, visible_to_s=3.9,
        visible_until_s=4.0, appearance_facts=look, motion_facts=motion, seen_facts=None, rest_facts=None, contacts=(),
        appearance=f"The {noun} is mostly red.",
        motion=f"The {noun} moves slowly to the right, from the left to the right of the frame.", moving=moves,
    )  # fmt: skip
    return mention, Track(track_id=f"t-{noun}", clip_id="clip", mention_id=f"m-{noun}", noun=noun, masks=masks), caption


def job_of(*nouns: str, moves: bool = True) -> RefinerJob:
    objects = [object_of(noun, moves) for noun in nouns]
    check = Check(name="colour", outcome="agrees", score=1.0, detail="red")
    kept = [Verdict(track_id=f"t-{noun}", keep=True, score=0.9, reason=None, checks=(check,)) for noun in nouns]
    return RefinerJob(
        clip=CLIP,
        mentions=MentionSet(clip_id="clip", mentions=tuple(item[0] for item in objects), rejected=()),
        tracks=TrackSet(clip_id="clip", tracks=tuple(item[1] for item in objects), rejected=()),
        captions=CaptionSet(clip_id="clip", captions=tuple(item[2] for item in objects), rejected=()),
        verdicts=VerdictSet(clip_id="clip", verdicts=tuple(kept), rejected=()),
    )


def merged(noun: str) -> str:
    return f"The {noun} is mostly red. It moves slowly to the right, from the left to the right of the frame."


def worded(noun: str) -> str:
    return f"The {noun} is mostly red and moves slowly to the right, from the left to the right of the frame."


def says(server: Any, text_of: Callable[[str, int], str]) -> None:
    """A text for each object by its noun and the number of the question."""

    def script(payload: dict[str, Any]) -> Any:
        asked = json.loads(payload["messages"][1]["content"])
        texts = [
            {"id": item["id"], "text": text_of(item["notes"].split()[1], len(server.received))}
            for item in asked["objects"]
        ]
        return server.said(json.dumps({"objects": texts}))

    server.script = script


def refine(server: Any, job: RefinerJob) -> SampleSet:
    async def run() -> SampleSet:
        settings = ChatSettings(base_url=server.url, model="asked", max_attempts=1)
        agent = ChatRefiner(ChatRefinerConfig(), StructuredChat(settings, None, 2), (UPSTREAM,))
        await agent.setup()
        try:
            return await agent.process_one(job)
        finally:
            await agent.close()

    return asyncio.run(run())


def detailed(samples: SampleSet) -> dict[str, tuple[str, str]]:
    """By noun, the answer and who worded it."""
    found = [sample for sample in samples.samples if sample.kind == "detailed_caption"]
    return {item.objects[0].noun: (item.conversations[1].value, item.provenance.wording) for item in found}


def test_all_objects_of_a_clip_are_worded_in_one_question(chat_server: Any) -> None:
    says(chat_server, lambda noun, _: f"  {worded(noun)}\n")
    found = refine(chat_server, job_of("car", "bus", "dog"))
    assert detailed(found) == {noun: (worded(noun), "chat:asked") for noun in ("car", "bus", "dog")}
    (sent,) = chat_server.received
    asked = json.loads(sent["messages"][1]["content"])
    assert [item["id"] for item in asked["objects"]] == [tag_of(f"t-{noun}") for noun in ("car", "bus", "dog")]
    assert [item["notes"] for item in asked["objects"]] == [merged(noun) for noun in ("car", "bus", "dog")]


def test_all_but_the_wording_is_as_the_other_refiner_has_it(chat_server: Any) -> None:
    says(chat_server, lambda noun, _: worded(noun))
    job = job_of("car", "dog")
    (plain,) = Refiner(RefinerConfig(), None, (UPSTREAM,)).process([job])

    def without_wording(sample: Sample) -> Sample:
        made = sample.provenance.model_copy(update=dict.fromkeys(("engines", "prompt_hashes", "revisions"), ()))
        if sample.kind == "detailed_caption":
            made = made.model_copy(update={"wording": ""})
            sample = sample.model_copy(update={"conversations": sample.conversations[:1]})
        return sample.model_copy(update={"provenance": made})

    found = refine(chat_server, job)
    assert [without_wording(one) for one in found.samples] == [without_wording(one) for one in plain.samples]
    assert found.rejected == plain.rejected
    engines = {sample.provenance.engines for sample in found.samples}
    assert engines == {("analyzer=e", "refiner=chat:asked")}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("The car moves slowly to the right, from the left to the right of the frame.", "leaves out: mostly red, red"),
        (f"{worded('car')[:-1]} past a tree.", "adds the words: past, tree"),
        (worded("car")[:-1], "does not end with a full stop"),
        (worded("dog"), "leaves out: noun car and adds the words: dog"),
        ("", "leaves out: noun car"),
    ],
)
def test_a_lost_or_added_fact_is_shown_to_the_model_and_never_gets_into_a_sample(
    chat_server: Any, bad: str, said: str
) -> None:
    says(chat_server, lambda noun, number: bad if noun == "car" else worded(noun))
    found = detailed(refine(chat_server, job_of("car", "bus")))
    assert found == {"car": (merged("car"), "template"), "bus": (worded("bus"), "chat:asked")}
    assert len(chat_server.received) == 3
    assert f"the text of {tag_of('t-car')} {said}" in chat_server.received[1]["messages"][-1]["content"]
    chat_server.received.clear()
    says(chat_server, lambda noun, number: bad if number == 1 and noun == "car" else worded(noun))
    assert detailed(refine(chat_server, job_of("car", "bus")))["car"] == (worded("car"), "chat:asked")
    assert len(chat_server.received) == 2


def test_texts_under_swapped_ids_are_no_reply(chat_server: Any) -> None:
    def script(payload: dict[str, Any]) -> Any:
        asked = json.loads(payload["messages"][1]["content"])["objects"]
        ids = [item["id"] for item in reversed(asked)] if len(asked) > 1 else [tag_of("t-other")]
        return chat_server.said(json.dumps({"objects": [{"id": name, "text": "x."} for name in ids]}))

    chat_server.script = script
    with pytest.raises(BadReplyError, match=f"wrong_ids after 3 asks: the id '{tag_of('t-car')}' is missing"):
        refine(chat_server, job_of("car", "bus"))
    asked_again = [sent["messages"][-1]["content"] for sent in chat_server.received if len(sent["messages"]) > 2]
    assert f"these ids, in this order: {tag_of('t-car')}, {tag_of('t-bus')}" in asked_again[0]


def test_objects_that_the_model_mixes_up_are_asked_for_one_by_one(chat_server: Any) -> None:
    def script(payload: dict[str, Any]) -> Any:
        asked = json.loads(payload["messages"][1]["content"])["objects"]
        texts = [{"id": item["id"], "text": worded(item["notes"].split()[1])} for item in asked]
        return chat_server.said(json.dumps({"objects": texts[-1:]}))

    chat_server.script = script
    found = detailed(refine(chat_server, job_of("car", "bus", "dog")))
    assert found == {noun: (worded(noun), "chat:asked") for noun in ("car", "bus", "dog")}
    asked = [json.loads(sent["messages"][1]["content"])["objects"] for sent in chat_server.received]
    assert [len(objects) for objects in asked] == [3, 3, 3, 1, 1, 1]


def test_a_clip_without_detailed_captions_asks_nothing(chat_server: Any) -> None:
    found = refine(chat_server, job_of("car", moves=False))
    assert chat_server.received == []
    assert detailed(found) == {}
    assert {sample.kind for sample in found.samples} == {"short_caption", "qa"}


def test_the_same_replies_give_the_outputs_of_this_revision(chat_server: Any, request: pytest.FixtureRequest) -> None:
    """New output asks for a new REVISION, of this refiner or, where both change, of the other."""
    says(chat_server, lambda noun, _: worded(noun) if noun == "car" else "It is a dog.")
    samples = refine(chat_server, job_of("car", "dog"))
    told = [
        {
            "kind": sample.kind,
            "wording": sample.provenance.wording,
            "text": [turn.value for turn in sample.conversations],
        }
        for sample in samples.samples
    ]
    path = Path(__file__).parent / "golden" / f"chat_refiner-r{REVISION}-r{SAMPLES_REVISION}.json"
    text = json.dumps(told, indent=1) + "\n"
    if not path.exists() and request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text
