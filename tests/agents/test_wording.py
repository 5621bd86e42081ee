"""Sentences from facts, and the check that a rewrite keeps them."""

import pytest

from agents.wording import (
    Subject,
    added_words,
    at_place,
    colours_clause,
    contact_clause,
    escape_tags,
    facts_of,
    facts_survive,
    lost_facts,
    merge,
    motion_clause,
    view_clause,
)
from schemas.caption import AppearanceFacts, ColourShare, Contact, MotionFacts, ObjectCaption

CAR = Subject("car", is_person=False)
WOMAN = Subject("woman", is_person=True)


def looks(*colours, detector_class="car", size="large"):
    return AppearanceFacts(
        detector_class=detector_class,
        colours=tuple(ColourShare(colour=name, share=share) for name, share in colours),
        size=size,
        area_share=0.2,
    )


def motion(direction="right", speed="moderate", start=("left",), end=("middle",)):
    return MotionFacts(
        start_s=10.0,
        end_s=14.0,
        start_places=start,
        end_places=end,
        direction=direction,
        speed=speed,
        displacement_x_diag=0.3,
        displacement_y_diag=0.0,
        speed_diag_per_s=0.1,
        growth=1.0,
    )


def caption(contacts=()):
    return ObjectCaption(
        track_id="t0",
        mention_id="m0",
        noun="car",
        visible_from_s=10.0,
        visible_to_s=13.2,
        visible_until_s=12.4,
        appearance_facts=looks(("red", 0.6), ("white", 0.3)),
        motion_facts=motion(),
        seen_facts=None,
        rest_facts=None,
        contacts=contacts,
        appearance="The car is mostly red, with some white. It looks large in the frame.",
        motion="The car moves to the right.",
        moving=True,
    )


CONTACTS = (
    Contact(track_id="t1", noun="man", start_s=10.4, end_s=12.1),
    Contact(track_id="t2", noun="dog", start_s=11.0, end_s=13.0),
)
SOURCE = (
    "The car is mostly red, with some white. It looks large in the frame. "
    "It moves to the right at moderate speed, from the left to the middle of the frame. "
    "In the frame, it touches the man from 0.4 s to 2.1 s and the dog from 1.0 s to 3.0 s. "
    "It is in view from 0.0 s to 3.2 s."
)
REWRITE = (
    "The car is mostly red, with some white, and looks large in the frame. "
    "It moves to the right at moderate speed, from the left to the middle of the frame, "
    "touching the man from 0.4 s to 2.1 s and the dog from 1.0 s to 3.0 s. "
    "It is in view from 0.0 s to 3.2 s."
)


def test_colours_read_by_their_share():
    assert colours_clause(CAR, looks(("red", 0.6), ("black", 0.3))) == "the car is mostly red, with some black"
    assert colours_clause(CAR, looks(("red", 0.4), ("black", 0.3))) == "the car is red and black"
    assert colours_clause(CAR, looks()) == "the car has no dominant colour"


def test_a_persons_colours_are_not_said_of_the_person():
    text = colours_clause(WOMAN, looks(("black", 0.6), ("blue", 0.2), detector_class="person"))
    assert text == "the main colours seen on the woman, clothing included, are black and blue"
    text = colours_clause(WOMAN, looks(("black", 0.9), detector_class="person"))
    assert text == "the main colour seen on the woman, clothing included, is black"


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (motion(), "moves to the right at moderate speed, from the left to the middle of the frame"),
        (
            motion("toward", "slow", ("left", "top"), ("left", "top")),
            "moves slowly toward the camera, staying at the top left of the frame",
        ),
        (motion("up", "fast", ("bottom",), ("top",)), "moves quickly up, from the bottom to the top of the frame"),
        (motion("none", "still", ("middle",)), "hardly moves and stays in the middle of the frame"),
    ],
)
def test_motion_reads_as_a_predicate(facts, text):
    assert motion_clause(facts) == text


def test_places_take_their_prepositions():
    assert [at_place(p) for p in (("left",), ("top",), ("right", "bottom"))] == [
        "on the left",
        "at the top",
        "at the bottom right",
    ]


def test_contacts_count_from_the_clips_start_and_namesakes_are_other():
    assert contact_clause("man", CONTACTS, 10.0) == (
        "touches the other man from 0.4 s to 2.1 s and the dog from 1.0 s to 3.0 s"
    )


def test_a_view_short_of_the_clips_ends_by_little_is_the_whole_clip():
    assert view_clause(10.1, 13.9, 10.0, 14.0) == "is in view for the whole clip"
    assert view_clause(10.0, 13.2, 10.0, 14.0) == "is in view from 0.0 s to 3.2 s"


def test_merging_says_the_noun_once_and_no_sentence_twice():
    merged = merge(
        "The car is red. It is in view for the whole clip.",
        "The car moves up, from 0.5 s on. It is in view for the whole clip.",
        CAR,
    )
    assert merged == "The car is red. It is in view for the whole clip. It moves up, from 0.5 s on."
    assert merge("The woman is tall.", "The woman waves.", WOMAN) == "The woman is tall. She waves."


def test_reserved_tags_of_foreign_text_are_no_tags_any_more():
    assert escape_tags("a <region> and <Object12>, <b> stays") == "a ‹region› and ‹Object12›, <b> stays"


def test_a_faithful_rewrite_survives():
    facts = facts_of(caption(CONTACTS), 10.0)
    assert lost_facts(REWRITE, SOURCE, facts) == []
    assert added_words(REWRITE, SOURCE) == []
    assert facts_survive(REWRITE, SOURCE, facts)
    assert facts_survive(SOURCE, SOURCE, facts)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("The car", "It"),
        ("The car", "The man and the car"),
        ("mostly red, with some white", "mostly red"),
        ("mostly red, with some white", "mostly white, with some red"),
        ("mostly red, with some white", "mostly red, with some white and blue"),
        ("looks large", "looks small"),
        ("looks large in the frame", "is in the frame"),
        ("to the right at", "to the left at"),
        ("to the right at", "at"),
        ("at moderate speed", "quickly"),
        ("from the left to the middle", "from the middle to the left"),
        ("from the left to the middle", "from the left to the middle left"),
        ("touching the man", "touching the dog"),
        ("the man from 0.4 s to 2.1 s and the dog", "the man and the dog"),
        (" and the dog from 1.0 s to 3.0 s", ""),
        ("0.4 s", "0.8 s"),
        ("from 0.0 s to 3.2 s", "for the whole clip"),
        ("It moves", "It never moves"),
        ("It moves", "Driven by a tourist, it moves"),
        ("3.2 s.", "3.2"),
    ],
)
def test_a_rewrite_that_changes_a_fact_does_not_survive(old, new):
    assert old in REWRITE
    assert not facts_survive(REWRITE.replace(old, new, 1), SOURCE, facts_of(caption(CONTACTS), 10.0))


def test_clothes_must_not_become_the_person():
    source = "The main colour seen on the child, clothing included, is black. The child hardly moves."
    child = caption().model_copy(update={"noun": "child", "appearance_facts": looks(("black", 0.9))})
    assert not facts_survive(
        "The child, clothing included, is black. The child hardly moves.", source, facts_of(child, 10.0)
    )
