"""Questions that relate two objects or single one out of several, from measured facts alone.

An answer that names a first, a largest or a fastest is only given where the facts are clearly apart.
"""

from collections.abc import Sequence

from agents.questions import QaPair, Topic, ask_many, make_pairs, one_in_four, percent
from agents.wording import at_place, direction_phrase, escape_tags, heading, listing, seconds
from schemas.caption import MotionFacts, ObjectCaption
from schemas.clip import Clip

CLEARLY_MORE = 1.5
"""Ratio of areas or speeds from which one object is called bigger or faster than another."""
CLEARLY_LATER_S = 0.5
"""Difference from which one object is said to appear or leave before another."""
MAX_GROUP = 5
"""Objects in one question; public loaders of the official files skip items with more."""


def relation(clip: Clip, first: ObjectCaption, second: ObjectCaption, *, apart: bool) -> list[QaPair]:
    """Reasoning pairs that compare or relate two objects; `apart`: their masks touch in no frame."""
    topics = [
        *_size_topics((first, second)),
        *_speed_topics((first, second)),
        *_order_topics(clip, (first, second)),
        *_side_topics(first, second),
        *_touch_topics(clip, first, second, apart=apart),
        *_heading_topics(first, second),
    ]
    return make_pairs(clip, "reasoning", (first, second), topics, ask_many)


def group(clip: Clip, captions: Sequence[ObjectCaption]) -> list[QaPair]:
    """Reasoning pairs that single out one of three to `MAX_GROUP` objects."""
    captions = tuple(captions[:MAX_GROUP])
    if len(captions) < 3:
        return []
    topics = [*_size_topics(captions), *_speed_topics(captions), *_order_topics(clip, captions)]
    return make_pairs(clip, "reasoning", captions, topics, ask_many)


def _size_topics(captions: Sequence[ObjectCaption]) -> list[Topic]:
    """Which looks largest, where the largest is clearly so."""
    shares = [caption.appearance_facts.area_share for caption in captions]
    best, second = _top_two(shares)
    if shares[best] < CLEARLY_MORE * shares[second]:
        return []
    word = "larger" if len(captions) == 2 else "largest"
    others = [f"<object{i}> fills about {percent(shares[i])}" for i in range(len(captions)) if i != best]
    share = percent(shares[best])
    answer = f"{_named(best, captions)} looks {word}, filling about {share} of the frame; {listing(others)}."
    return [
        (
            "larger",
            (f"Which object looks {word} in the frame?", f"Which object fills the {word} part of the frame?"),
            answer,
        )
    ]


def _speed_topics(captions: Sequence[ObjectCaption]) -> list[Topic]:
    """Which moves fastest, where the fastest is clearly so. Motion in depth has no comparable speed."""
    motions = [caption.motion_facts for caption in captions]
    if any(motion.direction in ("toward", "away") for motion in motions):
        return []
    speeds = [motion.speed_diag_per_s if motion.moves else 0.0 for motion in motions]
    best, second = _top_two(speeds)
    if not motions[best].moves or speeds[best] < CLEARLY_MORE * speeds[second]:
        return []
    word = "faster" if len(captions) == 2 else "fastest"
    others = [f"<object{i}> {_moves(motions[i])}" for i in range(len(captions)) if i != best]
    answer = f"{_named(best, captions)} is {word}: <object{best}> {_moves(motions[best])}, while {listing(others)}."
    return [("faster", (f"Which object moves {word}?", f"Which object is {word} in the frame?"), answer)]


def _order_topics(clip: Clip, captions: Sequence[ObjectCaption]) -> list[Topic]:
    """Which is seen first and which leaves first, where it is clearly so."""
    topics: list[Topic] = []
    from_s = [caption.visible_from_s for caption in captions]
    to_s = [caption.visible_to_s for caption in captions]
    for topic, verb, seen, asked, times_s in (
        ("appears_first", "comes into view first", "first seen", "Which object can be seen first?", from_s),
        ("leaves_first", "goes out of view first", "last seen", "Which object is the first to go out of view?", to_s),
    ):
        early, next_one = _top_two([-time_s for time_s in times_s])
        if times_s[next_one] - times_s[early] < CLEARLY_LATER_S:
            continue
        times = [seconds(time_s, clip.start_s) for time_s in times_s]
        others = [f"<object{i}> is {seen} at {times[i]}" for i in range(len(captions)) if i != early]
        answer = f"{_named(early, captions)} {verb}, at {times[early]}; {listing(others)}."
        topics.append((topic, (f"Which object {verb}?", asked), answer))
    return topics


def _side_topics(first: ObjectCaption, second: ObjectCaption) -> list[Topic]:
    """Left or right of one another when first seen, where they are first seen together and in different thirds."""
    if abs(first.visible_from_s - second.visible_from_s) >= CLEARLY_LATER_S:
        return []
    columns = [_column(caption.motion_facts) for caption in (first, second)]
    if columns[0] == columns[1]:
        return []
    side = "left" if columns[0] < columns[1] else "right"
    places = [at_place(caption.motion_facts.start_places) for caption in (first, second)]
    answer = f"To the {side}: at first, <object0> is {places[0]} of the frame and <object1> is {places[1]}."
    questions = (
        "At first, is <object0> to the left or to the right of <object1>?",
        "Is <object0> first seen to the left or to the right of <object1>?",
    )
    return [("side", questions, answer)]


def _touch_topics(clip: Clip, first: ObjectCaption, second: ObjectCaption, *, apart: bool) -> list[Topic]:
    """Whether they touch, for objects seen at the same time; of most pairs they do not, and few of these are asked.

    Of those that touch for too short a time to be told as a contact, nothing is asked.
    """
    if min(first.visible_to_s, second.visible_to_s) <= max(first.visible_from_s, second.visible_from_s):
        return []
    spans = [contact for contact in first.contacts if contact.track_id == second.track_id]
    if not spans and not (apart and one_in_four("touch", first.track_id, second.track_id)):
        return []
    when = [f"from {seconds(c.start_s, clip.start_s)} to {seconds(c.end_s, clip.start_s)}" for c in spans[:3]]
    answer = f"Yes, they touch in the frame {listing(when)}." if spans else "No, they stay apart in the frame."
    questions = (
        "Do <object0> and <object1> touch in the frame?",
        "Does <object0> ever touch <object1> in the frame?",
    )
    return [("touch", questions, answer)]


def _heading_topics(first: ObjectCaption, second: ObjectCaption) -> list[Topic]:
    """Whether both go the same way, where at least one of them moves."""
    motions = [caption.motion_facts for caption in (first, second)]
    if not any(motion.moves for motion in motions):
        return []
    question = "Do <object0> and <object1> move in the same direction?"
    if motions[0].direction == motions[1].direction:
        return [("same_heading", (question,), f"Yes, both move {direction_phrase(motions[0].direction)}.")]
    told = [
        f"<object{i}> moves {direction_phrase(motion.direction)}" if motion.moves else f"<object{i}> hardly moves"
        for i, motion in enumerate(motions)
    ]
    return [("same_heading", (question,), f"No: {told[0]}, while {told[1]}.")]


def _moves(motion: MotionFacts) -> str:
    return f"moves {heading(motion)}" if motion.moves else "hardly moves"


def _top_two(values: Sequence[float]) -> tuple[int, int]:
    """Indices of the largest and the second largest value."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return order[0], order[1]


def _named(index: int, captions: Sequence[ObjectCaption]) -> str:
    """<object0>, the car,: for the object an answer singles out."""
    return f"<object{index}>, the {escape_tags(captions[index].noun)},"


def _column(motion: MotionFacts) -> int:
    return 0 if "left" in motion.start_places else 2 if "right" in motion.start_places else 1
