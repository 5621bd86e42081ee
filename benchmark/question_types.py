"""The five official types of Bench-Q questions, and which fact a question asks for.

The official type of a sample follows from its own type, its number of objects and its topic. A topic is told by the
words of the question: an engine may ask for one fact in several phrasings, which share their answers.
"""

import re
from typing import Literal, NamedTuple, get_args

from benchmark.choices import question_of
from schemas.sample import Sample

OfficialType = Literal[
    "Basic Questions",
    "Sequential Questions",
    "Relationship Questions",
    "Reasoning Questions",
    "Future Predictions",
]
"""As `type` has it in the official file."""
OFFICIAL_TYPES: tuple[OfficialType, ...] = get_args(OfficialType)


class _Topic(NamedTuple):
    name: str
    words: re.Pattern[str]
    is_sequential: bool


def _topic(name: str, words: str, *, is_sequential: bool = False) -> _Topic:
    return _Topic(name, re.compile(words), is_sequential)


_ONE_OBJECT = (
    _topic("identity", r"\b(be told from other things|be recognised)\b"),
    _topic("path", r"\b(get from where|path of)\b", is_sequential=True),
    _topic("depth", r"\bcloser to the camera or farther\b"),
    _topic("motion_and_contact", r"\bon the move, and what\b"),
    _topic("contact", r"\btouch\b.*\bwhen\b", is_sequential=True),
    _topic("view", r"^When is .* in view|\bpart of the clip can .* be seen\b", is_sequential=True),
    _topic("start_place", r"\b(at first|first seen)\?", is_sequential=True),
    _topic("end_place", r"\b(last seen|end up|be at the end)\?", is_sequential=True),
    _topic("next", r"\b(do next|likely go on|rest of the clip)\?"),
    _topic("speed", r"^(How fast|At what speed)\b"),
    _topic("direction", r"^(In which direction|Which way)\b"),
    _topic("moves", r"^Does <region> (move|go anywhere)\?"),
    _topic("size", r"^How (large|much of the frame)\b"),
    _topic("colour", r"\bcolour(s|ing)\b"),
    _topic("name", r"^(What is <region>|What kind of object is <region>|Name the object)"),
)
_MORE_OBJECTS = (
    _topic("side", r"\bto the left or to the right of\b"),
    _topic("touch", r"\btouch\b"),
    _topic("same_heading", r"\bin the same direction\b"),
    _topic("leaves_first", r"\bout of view\b"),
    _topic("appears_first", r"\b(into view|seen) first\b"),
    _topic("faster", r"^Which object (moves|is) fast"),
    _topic("larger", r"\b(looks|fills the) larg"),
)


def topic_of(sample: Sample) -> str:
    """The fact asked for, such as `start_place`; the question itself where its words are not known."""
    known = _known_topic(sample)
    return known.name if known else question_of(sample)


def official_type(sample: Sample) -> OfficialType:
    """Future Predictions are of type `future`, and Relationship Questions mark two or more objects.

    Of the others, those on several moments of an object (its path, its place first and last, when it is in view or
    touches something) are Sequential Questions; the rest is Reasoning or Basic as the sample has it.
    """
    if sample.qa_type == "future":
        return "Future Predictions"
    if len(sample.objects) > 1:
        return "Relationship Questions"
    known = _known_topic(sample)
    if known and known.is_sequential:
        return "Sequential Questions"
    return "Reasoning Questions" if sample.qa_type == "reasoning" else "Basic Questions"


def _known_topic(sample: Sample) -> _Topic | None:
    # several objects are listed on a line of their own, and asked about on the next
    asked = question_of(sample).rpartition("\n")[2]
    topics = _ONE_OBJECT if len(sample.objects) == 1 else _MORE_OBJECTS
    return next((topic for topic in topics if topic.words.search(asked)), None)
