"""Questions and answers about one object, from measured facts alone; those on more are in `agents.relations`.

Grammar of the official QA file (VideoRefer-700K `videorefer-qa-75k.json`): a question on one object holds `<region>`
and no `<object`; a question on more has a first line that begins with "There" and lists `<object0><region>, ...`, and
asks on the second line; answers call the objects `<objectN>`.

Types as in the paper (section 3.1): basic asks for one fact, reasoning joins facts or objects, future shows the first
part of the clip and asks for the rest.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from agents.wording import (
    Subject,
    at_place,
    colours_clause,
    contact_clause,
    direction_phrase,
    heading,
    motion_clause,
    sentence,
    size_clause,
    subject_of,
    view_clause,
    with_article,
)
from schemas.caption import MotionFacts, ObjectCaption
from schemas.clip import Clip
from schemas.record import short_id
from schemas.sample import REGION, QaType

BasicTopic = Literal[
    "name", "colour", "size", "start_place", "moves", "direction", "speed", "end_place", "view", "contact"
]
"""The single facts that a basic question may ask for."""
BASIC_TOPICS: tuple[BasicTopic, ...] = get_args(BasicTopic)


class QaPair(NamedTuple):
    """A question and its answer on `captions`, in the order of its regions; `topic` names the fact asked for."""

    qa_type: QaType
    topic: str
    captions: tuple[ObjectCaption, ...]
    question: str
    answer: str


TELLING_GROWTH = 1.1
"""Ratio of areas from which (or under its inverse) an answer on depth can point to them."""

Phrasings = Sequence[str]
Topic = tuple[str, Phrasings, str]


def basic(clip: Clip, caption: ObjectCaption) -> list[QaPair]:
    """One pair for each single fact known of an object, a `BasicTopic`."""
    return make_pairs(clip, "basic", (caption,), _basic_topics(clip, caption, subject_of(caption)), ask_one)


def reasoning(clip: Clip, caption: ObjectCaption) -> list[QaPair]:
    """Pairs that join two or more facts about one object."""
    return make_pairs(clip, "reasoning", (caption,), _reasoning_topics(clip, caption, subject_of(caption)), ask_one)


def future(clip: Clip, caption: ObjectCaption) -> list[QaPair]:
    """Pairs asked of the first part of the clip and answered from the rest; none for an object at rest throughout."""
    seen, rest = caption.seen_facts, caption.rest_facts
    if seen is None or rest is None or not (seen.moves or rest.moves):
        return []
    subject = subject_of(caption)
    topics: list[Topic] = [
        (
            "end_place",
            (
                f"Where in the frame is {REGION} likely to end up?",
                f"In which part of the frame will {REGION} most likely be at the end?",
            ),
            sentence(f"{subject.the} will most likely end up {at_place(rest.end_places)} of the frame"),
        ),
    ]
    if rest.moves or _slows(seen, rest):
        questions = (
            f"What is {REGION} most likely to do next?",
            f"How will {REGION} most likely go on?",
            f"What do you expect {REGION} to do in the rest of the clip?",
        )
        topics.append(("next", questions, sentence(f"{subject.the} will most likely {_continuation(seen, rest)}")))
    return make_pairs(clip, "future", (caption,), topics, ask_one)


def choose(pairs: Iterable[QaPair], number: int) -> list[QaPair]:
    """The first pairs in an order that a hash of objects and topic decides: even over topics, and stable."""
    return sorted(pairs, key=lambda pair: short_id(*_ids(pair.captions), pair.qa_type, pair.topic))[:number]


def make_pairs(
    clip: Clip,
    qa_type: QaType,
    captions: tuple[ObjectCaption, ...],
    topics: Iterable[Topic],
    ask: Callable[[str, int], str],
) -> list[QaPair]:
    """One pair per topic (name, phrasings, answer); a hash of clip, topic and objects picks the phrasing."""
    return [
        QaPair(
            qa_type=qa_type,
            topic=topic,
            captions=captions,
            question=ask(pick(phrasings, clip.clip_id, topic, *_ids(captions)), len(captions)),
            answer=answer,
        )
        for topic, phrasings, answer in topics
    ]


def ask_one(question: str, num_objects: int) -> str:
    """The question as it is; it holds the one `<region>`."""
    assert num_objects == 1
    return question


def ask_many(question: str, num_objects: int) -> str:
    """The line that lists the objects, then the question."""
    listed = ", ".join(f"<object{i}>{REGION}" for i in range(num_objects))
    return f"There are {num_objects} objects in the video: {listed}.\n{question}"


def one_in_four(*ids: str) -> bool:
    """A quarter of all, by hash: how often an answer that is true of most objects is asked for.

    Asked of all, it could be guessed from the question. Of four options, one in four is right by chance.
    """
    return int(short_id("one in four", *ids), 16) % 4 == 0


def pick(phrasings: Phrasings, *ids: str) -> str:
    """One of the phrasings, by a hash of the ids."""
    return phrasings[int(short_id("phrasing", *ids), 16) % len(phrasings)]


def _ids(captions: Sequence[ObjectCaption]) -> tuple[str, ...]:
    return tuple(caption.track_id for caption in captions)


def _basic_topics(clip: Clip, caption: ObjectCaption, subject: Subject) -> list[Topic]:
    look, motion = caption.appearance_facts, caption.motion_facts
    view = view_clause(caption.visible_from_s, caption.visible_to_s, clip.start_s, clip.end_s)
    topics: list[Topic] = [
        (
            "name",
            (f"What is {REGION}?", f"What kind of object is {REGION}?", f"Name the object {REGION}."),
            f"It is {with_article(subject.noun)}.",
        ),
        (
            "colour",
            (
                f"What colours does {REGION} show?",
                f"Which colours can be seen on {REGION}?",
                f"What is the colouring of {REGION}?",
            ),
            sentence(colours_clause(subject, look)),
        ),
        (
            "size",
            (f"How much of the frame does {REGION} fill?", f"How large does {REGION} look in the frame?"),
            sentence(f"{subject.the} {size_clause(look)}, filling about {percent(look.area_share)} of it"),
        ),
        (
            "start_place",
            (f"Where in the frame is {REGION} at first?", f"In which part of the frame is {REGION} first seen?"),
            sentence(f"at first, {subject.the} is {at_place(motion.start_places)} of the frame"),
        ),
        *_movement_topics(motion, subject),
    ]
    if not view.endswith("whole clip") or one_in_four("view", caption.track_id):
        questions = (f"When is {REGION} in view?", f"During which part of the clip can {REGION} be seen?")
        topics.append(("view", questions, sentence(f"{subject.the} {view}")))
    if caption.contacts:
        answer = f"in the frame, {subject.the} {contact_clause(caption.noun, caption.contacts, clip.start_s)}"
        topics.append(
            (
                "contact",
                (f"What does {REGION} touch in the frame, and when?", f"Which objects does {REGION} touch, and when?"),
                sentence(answer),
            )
        )
    return topics


def _movement_topics(motion: MotionFacts, subject: Subject) -> list[Topic]:
    """What is asked of moving objects alone would tell that they move, so the first two are asked of all."""
    where = f"{subject.it} stays {at_place(motion.start_places)} of the frame"
    moves, way = f"no, {subject.the} hardly moves; {where}", f"{subject.the} goes nowhere; {where}"
    if motion.moves:
        way = f"{subject.the} moves {direction_phrase(motion.direction)}"
        moves = f"yes, {way}"
    topics: list[Topic] = [
        ("moves", (f"Does {REGION} move?", f"Does {REGION} go anywhere?"), sentence(moves)),
        ("direction", (f"In which direction does {REGION} move?", f"Which way does {REGION} go?"), sentence(way)),
    ]
    if not motion.moves:
        return topics
    return [
        *topics,
        (
            "speed",
            (f"How fast does {REGION} move?", f"At what speed does {REGION} move?"),
            sentence(f"{subject.the} moves {_at_speed(motion)}"),
        ),
        (
            "end_place",
            (f"Where in the frame is {REGION} last seen?", f"Where in the frame does {REGION} end up?"),
            sentence(f"{subject.the} is last seen {at_place(motion.end_places)} of the frame"),
        ),
    ]


def _reasoning_topics(clip: Clip, caption: ObjectCaption, subject: Subject) -> list[Topic]:
    look, motion = caption.appearance_facts, caption.motion_facts
    topics: list[Topic] = [
        (
            "identity",
            (
                f"How can {REGION} be told from other things by its look and its motion?",
                f"By which colours and which movement can {REGION} be recognised?",
            ),
            f"{sentence(colours_clause(subject, look))} {sentence(f'{subject.it} {motion_clause(motion)}')}",
        )
    ]
    if motion.moves and motion.start_places != motion.end_places:
        answer = (
            f"{subject.the} starts {at_place(motion.start_places)} of the frame, moves {heading(motion)} "
            f"and ends up {at_place(motion.end_places)}"
        )
        question = f"How does {REGION} get from where it is first seen to where it is last seen?"
        topics.append(("path", (question, f"Describe the path of {REGION} through the frame."), sentence(answer)))
    if _shows_depth(motion):
        way, change = (
            ("closer to the camera", "grows")
            if motion.direction == "toward"
            else ("farther from the camera", "shrinks")
        )
        answer = (
            f"{subject.the} seems to get {way}: over the clip, its area in the frame {change} "
            f"to about {motion.growth:.1f} times what it was"
        )
        question = f"Does {REGION} get closer to the camera or farther away, and how can you tell?"
        topics.append(("depth", (question,), sentence(answer)))
    if caption.contacts:
        touches = contact_clause(caption.noun, caption.contacts, clip.start_s)
        question = f"Is {REGION} on the move, and what does it touch in the frame?"
        verdict = "yes" if motion.moves else "no"
        moves = f"{verdict}, {subject.the} {motion_clause(motion)}"
        topics.append(("motion_and_contact", (question,), f"{sentence(moves)} {sentence(f'{subject.it} {touches}')}"))
    return topics


def _shows_depth(motion: MotionFacts) -> bool:
    """Whether the object comes or goes, and its area tells so; where a border cuts it, the area may tell otherwise."""
    growing = {"toward": motion.growth, "away": 1 / motion.growth}
    return growing.get(motion.direction, 0.0) >= TELLING_GROWTH


def _slows(seen: MotionFacts, rest: MotionFacts) -> bool:
    """Whether travel and growth both fell under half their rate; a short rest alone may hide a slow motion."""
    growths = [abs(math.log(facts.growth)) / (facts.end_s - facts.start_s) for facts in (seen, rest)]
    return rest.speed_diag_per_s <= 0.5 * seen.speed_diag_per_s and growths[1] <= max(0.5 * growths[0], 0.05)


def _continuation(seen: MotionFacts, rest: MotionFacts) -> str:
    """An infinitive for what comes after `seen`."""
    if not rest.moves:
        return f"stop moving and stay {at_place(rest.end_places)} of the frame"
    if not seen.moves:
        return f"start to move {heading(rest)} and end up {at_place(rest.end_places)} of the frame"
    verb = "keep moving" if seen.direction == rest.direction else "turn and move"
    return f"{verb} {heading(rest)} and end up {at_place(rest.end_places)} of the frame"


def _at_speed(motion: MotionFacts) -> str:
    return heading(motion).replace(direction_phrase(motion.direction), "").strip()


def percent(share: float) -> str:
    """A share of the frame as read in a sentence: 23 %, 4.5 %, 0.8 %; at least 0.1 %."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{max(value, 0.1):.1f} %".replace(".0 ", " ")
