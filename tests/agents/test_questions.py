"""Question grammar, answers against their facts, and the choice among questions."""

import re
from collections import Counter
from itertools import pairwise

import pytest

from agents.questions import basic, choose, future, percent, reasoning
from agents.relations import MAX_GROUP, group, relation
from schemas.caption import AppearanceFacts, ColourShare, Contact, MotionFacts, ObjectCaption
from schemas.clip import Clip

CLIP = Clip(
    clip_id="clip",
    source_id="source",
    video="a.mp4",
    video_sha256="ab" * 32,
    license="CC0-1.0",
    start_s=10.0,
    end_s=20.0,
    start_frame=100,
    end_frame=200,
    fps=10.0,
    height_px=240,
    width_px=320,
    caption="A car and a man.",
)


def motion(direction="right", speed="moderate", start="left", end="right", pace=0.1, growth=1.0, span=(10.0, 20.0)):
    return MotionFacts(
        start_s=span[0],
        end_s=span[1],
        start_places=(start,),
        end_places=(end,),
        direction=direction,
        speed=speed,
        displacement_x_diag=0.3,
        displacement_y_diag=0.0,
        speed_diag_per_s=pace,
        growth=growth,
    )


STILL = motion("none", "still", "middle", "middle", pace=0.0)


def caption(number=0, noun="car", facts=None, area=0.1, view=(10.0, 19.9), contacts=(), seen=None, rest=None):
    facts = facts or motion()
    return ObjectCaption(
        track_id=f"t{number}",
        mention_id=f"m{number}",
        noun=noun,
        visible_from_s=view[0],
        visible_to_s=view[1],
        visible_until_s=16.0,
        appearance_facts=AppearanceFacts(
            detector_class="person" if noun == "man" else noun,
            colours=(ColourShare(colour="red", share=0.6), ColourShare(colour="white", share=0.2)),
            size="medium",
            area_share=area,
        ),
        motion_facts=facts,
        seen_facts=seen,
        rest_facts=rest,
        contacts=contacts,
        appearance="The car is red.",
        motion="The car moves.",
        moving=facts.moves,
    )


TOUCH = Contact(track_id="t1", noun="man", start_s=12.0, end_s=13.5)
CAR = caption(contacts=(TOUCH,), seen=motion(end="middle"), rest=motion(start="middle"))
MAN = caption(
    1,
    "man",
    STILL,
    area=0.02,
    view=(11.0, 15.0),
    contacts=(TOUCH.model_copy(update={"track_id": "t0", "noun": "car"}),),
)
DOG = caption(2, "dog", motion("left", "slow", "right", "middle", pace=0.03), area=0.01)
ALL = [
    *basic(CLIP, CAR),
    *basic(CLIP, MAN),
    *reasoning(CLIP, CAR),
    *reasoning(CLIP, MAN),
    *future(CLIP, CAR),
    *relation(CLIP, CAR, MAN, apart=False),
    *relation(CLIP, MAN, DOG, apart=True),
    *group(CLIP, [CAR, MAN, DOG]),
]


def answers(pairs):
    return {pair.topic: pair.answer for pair in pairs}


@pytest.mark.parametrize("pair", ALL, ids=lambda pair: f"{pair.topic}-{len(pair.captions)}")
def test_every_question_follows_the_official_grammar(pair):
    assert pair.question.count("<region>") == len(pair.captions)
    assert "<region>" not in pair.answer
    assert "<video>" not in pair.question
    if len(pair.captions) == 1:
        assert "\n" not in pair.question
        assert "<object" not in pair.question + pair.answer
    else:
        first, second = pair.question.split("\n")
        assert first.startswith("There")
        assert ", ".join(f"<object{i}><region>" for i in range(len(pair.captions))) in first
        assert "<region>" not in second
        known = {f"<object{i}>" for i in range(len(pair.captions))}
        assert set(re.findall(r"<object\d+>", second + pair.answer)) <= known
    assert pair.question.rstrip()[-1] in "?."
    assert pair.answer[-1] == "."


def test_basic_answers_tell_one_fact_each():
    told = answers(basic(CLIP, CAR))
    assert told["name"] == "It is a car."
    assert told["colour"] == "The car is mostly red, with some white."
    assert told["size"] == "The car looks medium-sized in the frame, filling about 10 % of it."
    assert told["direction"] == "The car moves to the right."
    assert told["speed"] == "The car moves at moderate speed."
    assert told["contact"] == "In the frame, the car touches the man from 2.0 s to 3.5 s."
    assert answers(basic(CLIP, MAN))["moves"] == "No, the man hardly moves; he stays in the middle of the frame."
    assert answers(basic(CLIP, MAN))["view"] == "The man is in view from 1.0 s to 5.0 s."


def test_reasoning_on_one_object_joins_facts():
    told = answers(reasoning(CLIP, CAR))
    assert told["path"] == (
        "The car starts on the left of the frame, moves to the right at moderate speed and ends up on the right."
    )
    assert told["motion_and_contact"].endswith("It touches the man from 2.0 s to 3.5 s.")
    near = caption(facts=motion("toward", "slow", "middle", "middle", growth=2.31))
    assert "grows to about 2.3 times" in answers(reasoning(CLIP, near))["depth"]


@pytest.mark.parametrize(
    ("direction", "growth", "asked"),
    [
        ("toward", 1.1, True),
        ("toward", 1.05, False),
        ("toward", 0.7, False),
        ("away", 0.9, True),
        ("away", 0.95, False),
        ("away", 1.4, False),
    ],
)
def test_depth_is_asked_only_where_the_area_tells_the_same(direction, growth, asked):
    facts = motion(direction, "slow", "middle", "middle", growth=growth)
    assert ("depth" in answers(reasoning(CLIP, caption(facts=facts)))) == asked


def test_relations_name_the_clear_winner():
    told = answers(relation(CLIP, CAR, MAN, apart=False))
    assert told["larger"] == (
        "<object0>, the car, looks larger, filling about 10 % of the frame; <object1> fills about 2 %."
    )
    assert told["faster"] == (
        "<object0>, the car, is faster: <object0> moves to the right at moderate speed, while <object1> hardly moves."
    )
    assert told["appears_first"] == (
        "<object0>, the car, comes into view first, at 0.0 s; <object1> is first seen at 1.0 s."
    )
    assert told["leaves_first"] == (
        "<object1>, the man, goes out of view first, at 5.0 s; <object0> is last seen at 9.9 s."
    )
    assert told["touch"] == "Yes, they touch in the frame from 2.0 s to 3.5 s."
    assert told["same_heading"] == "No: <object0> moves to the right, while <object1> hardly moves."
    assert "side" not in told


def test_relations_stay_silent_where_objects_are_alike():
    twin = caption(1, area=0.12)
    told = answers(relation(CLIP, CAR.model_copy(update={"contacts": ()}), twin, apart=True))
    told.pop("touch", None)
    assert told == {"same_heading": "Yes, both move to the right."}


def test_what_is_true_of_most_objects_is_asked_of_one_in_four():
    whole = [caption(i, view=(10.0, 19.9)) for i in range(200)]
    viewed = [told["view"] for item in whole if "view" in (told := answers(basic(CLIP, item)))]
    assert 30 <= len(viewed) <= 70
    assert set(viewed) == {"The car is in view for the whole clip."}
    apart = [item.model_copy(update={"contacts": ()}) for item in whole]
    touches = [answers(relation(CLIP, one, two, apart=True)).get("touch") for one, two in pairwise(apart)]
    assert 30 <= touches.count("No, they stay apart in the frame.") <= 70
    assert set(touches) == {"No, they stay apart in the frame.", None}
    brushing = [answers(relation(CLIP, one, two, apart=False)).get("touch") for one, two in pairwise(apart)]
    assert set(brushing) == {None}


def test_whether_and_where_an_object_moves_is_asked_of_all():
    moving, still = answers(basic(CLIP, CAR)), answers(basic(CLIP, caption(2, "car", STILL)))
    assert (moving["moves"], moving["direction"]) == ("Yes, the car moves to the right.", "The car moves to the right.")
    assert still["moves"] == "No, the car hardly moves; it stays in the middle of the frame."
    assert still["direction"] == "The car goes nowhere; it stays in the middle of the frame."


def test_objects_never_seen_together_are_not_asked_whether_they_touch():
    early, late = caption(0, view=(10.0, 12.0)), caption(1, view=(15.0, 19.0))
    assert "touch" not in answers(relation(CLIP, early, late, apart=True))


def test_sides_are_those_of_the_first_sight():
    told = answers(relation(CLIP, caption(0), caption(1, "dog", motion("left", start="right", end="left")), apart=True))
    assert told["side"] == (
        "To the left: at first, <object0> is on the left of the frame and <object1> is on the right."
    )


def test_a_group_needs_three_and_takes_five():
    assert group(CLIP, [CAR, MAN]) == []
    many = [caption(i, area=0.5 / (i + 1) ** 2) for i in range(8)]
    assert {len(pair.captions) for pair in group(CLIP, many)} == {MAX_GROUP}


@pytest.mark.parametrize(
    ("seen", "rest", "told"),
    [
        (motion(), motion(end="right"), "keep moving to the right at moderate speed and end up on the right"),
        (motion(), motion("up", "fast", end="top"), "turn and move quickly up and end up at the top"),
        (STILL, motion("left", end="left"), "start to move to the left at moderate speed and end up on the left"),
        (motion(pace=0.1), STILL, "stop moving and stay in the middle"),
    ],
)
def test_future_answers_come_from_the_rest(seen, rest, told):
    pairs = answers(future(CLIP, caption(seen=seen, rest=rest)))
    assert pairs["next"] == f"The car will most likely {told} of the frame."


def test_a_slow_object_is_not_said_to_stop_because_the_rest_is_short():
    drift = motion("none", "still", "middle", "middle", pace=0.02)
    assert set(answers(future(CLIP, caption(seen=motion(pace=0.03), rest=drift)))) == {"end_place"}


def test_no_future_without_both_sides_or_any_motion():
    assert future(CLIP, caption(seen=motion(), rest=None)) == []
    assert future(CLIP, caption(seen=None, rest=motion())) == []
    assert future(CLIP, caption(seen=STILL, rest=STILL)) == []


def test_choice_and_phrasing_are_stable_and_spread():
    captions = [caption(i) for i in range(60)]
    chosen = [choose(basic(CLIP, item), 1)[0] for item in captions]
    assert chosen == [choose(reversed(basic(CLIP, item)), 1)[0] for item in captions]
    topics = Counter(pair.topic for pair in chosen)
    assert set(topics) >= {pair.topic for pair in basic(CLIP, CAR)} - {"contact"}
    assert max(topics.values()) < 20
    assert len({pair.question for item in captions for pair in basic(CLIP, item) if pair.topic == "colour"}) == 3


def test_choosing_none_or_more_than_there_are():
    pairs = basic(CLIP, CAR)
    assert choose(pairs, 0) == []
    assert {pair.topic for pair in choose(pairs, 99)} == {pair.topic for pair in pairs}


def test_percentages_keep_small_shares_apart():
    assert [percent(share) for share in (0.0001, 0.008, 0.013, 0.04, 0.234)] == [
        "0.1 %",
        "0.8 %",
        "1.3 %",
        "4 %",
        "23 %",
    ]
