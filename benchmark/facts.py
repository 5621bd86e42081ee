"""Facts that a description states, read from its words: colours, objects, counts, directions, speeds, places.

No parser takes part. Facts are not tied to one another ("a red car beside a man" states red, car and man), negated
ones are left out ("no dog", "without a hat"), and a place or direction must be one of the frame ("on the left of a
car", "her right hand" and "down the street" are none). Words that are two things are told apart by their neighbours
where that is easy: verbs that look like nouns ("the man leaves"), "orange", "still" and "right".
"""

import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, get_args

from schemas.words import COLOURS, Direction, Place, Speed

Kind = Literal["colour", "object", "count", "direction", "speed", "place"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Fact(NamedTuple):
    """One thing stated: a word of `schemas.words`, an object's name, or a count like "2 dog"."""

    kind: Kind
    value: str


_COLOURS: dict[str, str] = {name: name for name in COLOURS} | {
    "grey": "gray",
    "silver": "gray",
    "crimson": "red",
    "scarlet": "red",
    "reddish": "red",
    "navy": "blue",
    "bluish": "blue",
    "greenish": "green",
    "violet": "purple",
    "whitish": "white",
    "brownish": "brown",
}
_PLACES: dict[str, Place] = {
    "left": "left",
    "right": "right",
    "top": "top",
    "upper": "top",
    "bottom": "bottom",
    "lower": "bottom",
    "middle": "middle",
    "center": "middle",
    "centre": "middle",
}
_GOALS: dict[str, Direction] = {"left": "left", "right": "right", "top": "up", "bottom": "down"}
_NUMERALS = {word: n for n, word in enumerate(["two", "three", "four", "five", "six", "seven", "eight", "nine"], 2)}
_IRREGULAR = {"men": "man", "women": "woman", "people": "person", "children": "child", "mice": "mouse", "feet": "foot"}
_COUNT_REACH = 3
"""Words from a numeral within which its noun stands ("two small black dogs")."""
_ENDS_REACH = re.compile(
    "and|or|of|on|in|at|with|by|from|to|near|behind|beside|under|over|between|next|is|are|was|were|has|have"
)
"""Behind these stands another noun ("two on a bench")."""
_SUBJECT = re.compile("he|she|it|they|who|which|then|to")
_VERB_TOO = re.compile("bear|dance|drink|duck|face|fish|hand|head|lea(?:f|ve)|pedal|ride|sink|skateboard|ski|tie|train")
"""Nouns that are verbs behind their subject ("the man faces the camera")."""
_MAX_CLAUSE_WORDS = 60
"""Longer stretches without punctuation are cut: some patterns take time quadratic in a clause's length."""


def _forms(verbs: str) -> str:
    """A pattern for the verbs in "-s", "-ed" and "-ing"."""
    stems = {form for verb in verbs.split() for form in (verb, verb.removesuffix("e"), verb + verb[-1])}
    return rf"(?:{'|'.join(sorted(stems, key=len, reverse=True))})(?:e?s|e?d|ing)?"


_MOVES = (
    r"(?:go|goes|going|went|ran|rode|flew|flies|swam|slid|come|comes|coming|came"
    rf"|{_forms('move walk run ride drive fly swim travel head roll slide crawl drift sail race jog skate ski')}"
    rf"|{_forms('cycle march gallop trot stroll wander glide dash rush sprint advance proceed hop jump leap shift')}"
    rf"|{_forms('turn float climb rise ascend descend')})"
)
_FRAME = r"(?:frame|screen|image|picture|video|shot|view|scene)"
_SIDE = r"(?:side|half|edge|corner|third|part|portion|area|section)"
_PLACE = rf"(?:{'|'.join(_PLACES)})"
_BODY = r"(?:hand|arm|leg|foot|eye|ear|shoulder|wing|paw|knee|cheek|wheel|shoe|glove|sleeve|wrist|hoof|lane)s?"
_THE = r"(?:(?:the|its|his|her|their) )?(?:(?:far|very|extreme) )?"
_OF_FRAME = rf"(?: {_SIDE})?(?: of (?:the )?{_FRAME}\b|(?! of\b)(?! {_BODY}\b))"
"""After a place word: nothing more, or the frame; "left of the car" and "left hand" are not places in the frame."""

_KEEPS = (
    r"(?:stands?|stood|stays?|stayed|remains?|remained|keeps?|kept|holds?|held|sits?|sat|lies|lay|\w+ing"
    r"|perfectly|completely|entirely|mostly|almost|nearly|very)"
)
_STILL = re.compile(
    rf"\b(?:{_KEEPS} still|(?:is|are|was|were) still(?=$| (?:and|while)\b)"
    r"|stationary|motionless|at rest|parked|(?:hardly|barely|scarcely) mov(?:es?|ed|ing)"
    r"|(?:not|n't) (?:move|moving)(?! (?:to|toward|left|right|up|down|away|forward)))\b"
)
_SPEEDS: tuple[tuple[Speed, re.Pattern[str]], ...] = (
    ("slow", re.compile(r"\b(?:slow|slowly|leisurely|gradually)\b")),
    ("moderate", re.compile(r"\b(?:moderate|moderately|medium (?:speed|pace))\b")),
    ("fast", re.compile(r"\b(?:fast|quick|quickly|rapid|rapidly|swift|swiftly|speedily)\b")),
)
_DENIED = re.compile(
    r"\b(?:no|not|n't|cannot|none|never|without|neither|nor)\b(?! only)(?: (?!and\b|but\b)[\w']+){0,5}"
)
_TO_CAMERA = re.compile(
    r"\b(?:(?<!away )(?:to|towards?|at) the (?:camera|viewer)|approach(?:es|ed|ing)? the (?:camera|viewer))\b"
)
_FROM_CAMERA = re.compile(
    rf"\b(?:away from the (?:camera|viewer)|(?:in)?to the (?:distance|background|horizon)|reced(?:es?|ed|ing)"
    rf"|{_MOVES}(?: \w+ly)? away)\b"
)
_VERTICAL: tuple[tuple[Direction, re.Pattern[str]], ...] = (
    ("up", re.compile(rf"\b(?:upwards?|(?:ris|ascend)(?:es?|s|ing)|{_MOVES}(?: \w+ly)? up(?! (?:the|a|an|to)\b))\b")),
    ("down", re.compile(rf"\b(?:downwards?|descend(?:s|ed|ing)?|{_MOVES}(?: \w+ly)? down(?! (?:the|a|an|to)\b))\b")),
)
_VERY = r"(?! (?:behind|past|up|next|beside|away|by|between|under|beneath|before|through|after|over|in front|on top)\b)"
"""Not before these: "right behind" says how near, not where to."""
_SIDEWAYS = re.compile(rf"\b(?:(left|right)wards?\b|{_MOVES}(?: \w+ly)? (left|right{_VERY})\b{_OF_FRAME})")
_TO_SIDE = re.compile(rf"\b{_MOVES}\b(?: [\w']+)*? (?:to|towards?|into) {_THE}({'|'.join(_GOALS)})\b{_OF_FRAME}")
_AT_PLACE = re.compile(
    rf"\b(?:(?:on|at|in|from|near|to|towards?|of) {_THE}({_PLACE}(?: {_PLACE})*)\b{_OF_FRAME}"
    rf"|({_PLACE}(?: {_PLACE})*) {_SIDE}\b(?! of (?!(?:the )?{_FRAME}\b)))"
)


_FRUIT = re.compile(
    r"\b(?:an|the|one|another|this|each) orange"
    r"(?=$| (?:(?:and|or) (?:an?|the|some|two)|is|are|on|in|at|with|by|from|to|near|of)\b)"
)
"""An orange; "the orange car" and "an orange and white cat" are not."""


class FactReader:
    """Reads the facts of texts; `nouns` are the objects that it knows, each with the name under which it counts.

    Names are singular and lower case; plurals are found by the usual endings. What is not among the nouns states no
    object.
    """

    def __init__(self, nouns: Mapping[str, str]) -> None:
        if not nouns:
            raise ValueError("got no nouns; a reader of facts needs those of the objects that descriptions may name")
        # of a colour's name only the plural is a thing; the singular is told apart by _FRUIT
        self._names = {
            tuple(_words(f"{noun}s" if noun.lower() in _COLOURS else noun)): name for noun, name in nouns.items()
        }
        self._longest = max(map(len, self._names))
        self._singular = {key[-1] for key in self._names} - _IRREGULAR.keys()

    def facts(self, text: str) -> frozenset[Fact]:
        """Everything that the text states, once each."""
        return frozenset(fact for clause in _clauses(text) for fact in self._facts_of(clause))

    def _facts_of(self, clause: str) -> Iterator[Fact]:
        if _STILL.search(clause):
            yield Fact("speed", "still")
            clause = _STILL.sub("|", clause)
        clause = _DENIED.sub("|", clause)
        if ("oranges",) in self._names:
            clause = _FRUIT.sub("oranges", clause)
        words = [word.strip("|") for word in clause.split()]
        yield from (Fact("colour", _COLOURS[word]) for word in words if word in _COLOURS)
        yield from self._objects(words)
        yield from (Fact("speed", speed) for speed, pattern in _SPEEDS if pattern.search(clause))
        yield from _directions_and_places(clause)

    def _objects(self, words: list[str]) -> Iterator[Fact]:
        named: dict[int, str] = {}
        at, after_noun = 0, False
        while at < len(words):
            length, name = (0, "") if self._is_verb(words, at, after_noun) else self._noun_at(words, at)
            if length:
                named[at] = name
                yield Fact("object", name)
            at, after_noun = at + max(length, 1), length > 0
        for at, word in enumerate(words):
            number = _number(word)
            reach = range(at + 1, min(at + 2 + _COUNT_REACH, len(words)))
            end = next((place for place in reach if place in named or _ENDS_REACH.fullmatch(words[place])), -1)
            if number and end in named:
                yield Fact("count", f"{number} {named[end]}")

    def _is_verb(self, words: list[str], at: int, after_noun: bool) -> bool:
        """Whether a word that may be a verb follows a subject, and agrees with it where that is a noun."""
        word, before = words[at], words[at - 1] if at else ""
        if not any(map(_VERB_TOO.fullmatch, _singulars(word))):
            return False
        agrees = (before in self._singular) != bool(_VERB_TOO.fullmatch(word))
        return bool(_SUBJECT.fullmatch(before)) or (after_noun and agrees)

    def _noun_at(self, words: list[str], at: int) -> tuple[int, str]:
        """How many words a noun that starts here has, and its name; the longest one, and 0 without one."""
        for length in range(min(self._longest, len(words) - at), 0, -1):
            *before, last = words[at : at + length]
            for form in _singulars(last):
                if (*before, form) in self._names:
                    return length, self._names[(*before, form)]
        return 0, ""


def _directions_and_places(clause: str) -> Iterator[Fact]:
    """Directions first: what they use up is no place any more."""
    for direction, pattern in (("toward", _TO_CAMERA), ("away", _FROM_CAMERA), *_VERTICAL):
        if pattern.search(clause):
            yield Fact("direction", direction)
    for sideways in _SIDEWAYS.finditer(clause):
        yield Fact("direction", sideways[1] or sideways[2])
    clause = _SIDEWAYS.sub("|", clause)
    while goal := _TO_SIDE.search(clause):
        yield Fact("direction", _GOALS[goal[1]])
        # what stands between the verb and its goal may be a place ("from the left to the right")
        clause = f"{clause[: goal.start(1)]}|{clause[goal.end(1) :]}"
    for place in _AT_PLACE.finditer(clause):
        yield from (Fact("place", _PLACES[word]) for word in (place[1] or place[2]).split())


def _clauses(text: str) -> list[str]:
    """Lower-case words with one blank between, in the parts that commas, full stops and the like divide."""
    parts = re.split(r"[,;:!?]|\.(?!\d)", text.lower().replace("’", "'"))
    return [
        " ".join(words[start : start + _MAX_CLAUSE_WORDS])
        for words in map(_words, parts)
        for start in range(0, len(words), _MAX_CLAUSE_WORDS)
    ]


def _words(text: str) -> list[str]:
    plain = re.sub(r"n't\b", " n't", text.lower())
    return re.findall(r"\d+(?:\.\d+)?|n't|'s\b|[^\W\d_]+", plain)


def _singulars(word: str) -> Iterator[str]:
    yield word
    if word in _IRREGULAR:
        yield _IRREGULAR[word]
    for ending, singular in (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", "")):
        if len(word) > len(ending) + 1 and word.endswith(ending):
            yield word.removesuffix(ending) + singular


def _number(word: str) -> int | None:
    """A whole number from 2, in words or digits; "one" is left out, since it is mostly a pronoun."""
    if word in _NUMERALS:
        return _NUMERALS[word]
    return int(word) if word.isascii() and word.isdigit() and 2 <= int(word) < 1000 else None
