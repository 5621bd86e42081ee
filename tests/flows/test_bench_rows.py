"""Where the bench meets other rooms: agents' questions have their topics, and the model's reader reads its rows."""

from collections import defaultdict
from itertools import product

import numpy as np
import pytest

from agents.questions import QaPair, basic, future, reasoning
from agents.relations import group, relation
from benchmark.building import marked
from benchmark.question_types import official_type, topic_of
from model.data.masks import mask_of
from model.data.official import official_item
from schemas.caption import AppearanceFacts, ColourShare, Contact, MotionFacts, ObjectCaption
from schemas.clip import Clip
from schemas.mask import decode, encode
from schemas.sample import Provenance, Sample, SampleObject, Turn

PROVENANCE = Provenance(engines=(), weights=(), prompt_hashes=(), revisions=(), verdict="", wording="template")
SEQUENTIAL = {"path", "contact", "view", "start_place", "end_place"}


def facts(direction: str, start: str, end: str, pace: float, growth: float = 1.0) -> MotionFacts:
    return MotionFacts.model_validate(
        {
            "start_s": 0, "end_s": 4, "start_places": [start], "end_places": [end], "direction": direction,
            "speed": "still" if direction == "none" else "moderate", "displacement_x_diag": 0.2,
            "displacement_y_diag": 0, "speed_diag_per_s": pace, "growth": growth,
        }
    )  # fmt: skip


def caption(number: int, motion: MotionFacts, area: float, view: tuple[float, float]) -> ObjectCaption:
    contact = Contact(track_id=f"t{1 - number}", noun="cup", start_s=1, end_s=2)
    return ObjectCaption(
        track_id=f"t{number}", mention_id="m", noun="dog", visible_from_s=view[0], visible_to_s=view[1],
        visible_until_s=2.5,
        appearance_facts=AppearanceFacts(
            detector_class="dog", colours=(ColourShare(colour="red", share=1),), size="medium", area_share=area
        ),
        motion_facts=motion, seen_facts=motion, rest_facts=motion, contacts=(contact,) if number < 2 else (),
        appearance="It is red.", motion="It moves.", moving=True,
    )  # fmt: skip


def all_pairs() -> list[QaPair]:
    """What the agents ask of many clips: the clip's id picks the phrasing."""
    motions = (
        facts("right", "left", "right", 0.2),
        facts("toward", "right", "middle", 0.01, growth=2.0),
        facts("none", "right", "right", 0.0),
    )
    pairs: list[QaPair] = []
    for number, (first, second) in product(range(20), product(motions, motions)):
        clip = Clip(
            clip_id=f"clip{number}", source_id="s", video="a.mp4", video_sha256="0" * 64, license="", start_s=0,
            end_s=4, start_frame=0, end_frame=40, fps=10, height_px=10, width_px=10, caption="A dog.",
        )  # fmt: skip
        two = (caption(0, first, 0.3, (0.0, 3.9)), caption(1, second, 0.1, (0.2, 2.0)))
        three = caption(2, motions[2], 0.05, (2.5, 3.0))
        pairs += [*basic(clip, two[0]), *basic(clip, two[1]), *reasoning(clip, two[0]), *future(clip, two[0])]
        pairs += [*relation(clip, *two, apart=False), *relation(clip, two[0], three, apart=True)]
        pairs += group(clip, [*two, three])
    return pairs


def sample_of(qa_type: str, question: str, objects: tuple[SampleObject, ...]) -> Sample:
    return Sample.model_validate(
        {
            "sample_id": "s", "kind": "qa", "qa_type": qa_type, "split": "held_out", "clip_id": "c", "source_id": "r",
            "video": "v/a.mp4", "video_sha256": "0" * 64, "license": "", "start_s": 0, "end_s": 4,
            "visible_until_s": 4, "fps": 10, "height": 10, "width": 14, "objects": objects, "provenance": PROVENANCE,
            "conversations": [Turn(speaker="human", value=f"<video>\n{question}"), Turn(speaker="gpt", value="Yes.")],
        }
    )  # fmt: skip


def an_object(number: int, frames: tuple[int, ...]) -> SampleObject:
    rng = np.random.default_rng(number)
    rle = tuple(encode(rng.random((10, 14)) < 0.5) for _ in frames)
    times = tuple(frame / 10 for frame in frames)
    return SampleObject(object_id=f"t{number}", noun="dog", frame_idx=frames, frame_time_s=times, rle=rle)


def test_every_phrasing_of_the_agents_has_the_topic_that_they_gave_it() -> None:
    phrasings: dict[str, set[str]] = defaultdict(set)
    for pair in {(pair.topic, pair.question): pair for pair in all_pairs()}.values():
        objects = tuple(an_object(number, (0,)) for number in range(len(pair.captions)))
        sample = sample_of(pair.qa_type, pair.question, objects)
        phrasings[pair.topic].add(pair.question.rpartition("\n")[2])
        assert topic_of(sample) == pair.topic
        expected = (
            "Future Predictions" if pair.qa_type == "future"
            else "Relationship Questions" if len(objects) > 1
            else "Sequential Questions" if pair.topic in SEQUENTIAL
            else "Reasoning Questions" if pair.qa_type == "reasoning"
            else "Basic Questions"
        )  # fmt: skip
        assert official_type(sample) == expected
    assert len(phrasings) == 22
    assert {len(phrasings[topic]) for topic in ("name", "colour", "next")} == {3}
    assert phrasings["end_place"] >= {"Where in the frame does <region> end up?"}


@pytest.mark.parametrize("frames", [((0, 4, 8), (4, 6)), ((0, 2), (6, 8))], ids=["together", "apart"])
def test_the_model_reads_the_masks_of_a_row(frames: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    question = "There are 2 objects in the video: <object0><region>, <object1><region>.\nDo they touch?"
    sample = sample_of("reasoning", question, tuple(an_object(i, frames[i]) for i in range(2)))
    row = {"id": 7, "video": sample.video, **marked(sample, {})}
    asked = {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "(A)"}]}
    item = official_item(row | asked, 0, "bench-q.json")
    single = int(row["frame_idx"])
    for of_sample, read in zip(sample.objects, item.objects, strict=True):
        truth = dict(zip(of_sample.frame_idx, of_sample.rle, strict=True))
        assert set(read.frame_idx) == {*of_sample.frame_idx, single}
        for frame, stored in zip(read.frame_idx, read.masks, strict=True):
            if (counts := truth.get(frame)) is None:
                assert stored is None
            else:
                mask = mask_of(stored, (10, 14))
                assert mask is not None
                assert np.array_equal(mask, decode(counts, 10, 14))
