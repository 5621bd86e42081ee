"""A judge's reply read: JSON, or the lines `N. <Dimension>: <score>` of the official text format in all its variants.

The official reader takes any number after `N. words:`; so bold names, brackets and missing spaces lose scores, 4/5 is
read by luck, numbers inside explanations become keys of their own, and nothing checks the range. Here only the four
dimensions count, a score stands right behind its name, and what cannot be read as one number from 0 to 5 is told, not
guessed. A fraction such as 3.5 is kept as it is, as the official reader does.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal

from schemas.record import Record

Dimension = Literal["SC", "AD", "TD", "HD"]
DIMENSIONS: dict[Dimension, str] = {
    "SC": "Subject Correspondence",
    "AD": "Appearance Description",
    "TD": "Temporal Description",
    "HD": "Hallucination Detection",
}
"""In the order of the official rubric, with its names."""

MIN_SCORE, MAX_SCORE = 0.0, 5.0

Reason = Literal[
    "no_prediction",  # nothing to judge; the judge is not asked
    "too_long",  # the question does not fit the judge's context
    "no_reply",  # the server gave no answer to any attempt
    "refused",  # the judge declined
    "empty",
    "truncated",  # cut off at max_tokens
    "unreadable",  # none of the four dimensions is in it
    "missing",  # others are, this one is not
    "not_one_number",  # a word, a range, a share
    "other_scale",  # out of something else than 5
    "out_of_range",
    "contradictory",  # two different scores for one dimension
]
"""Why a dimension of an item has no score."""


class ReplyScores(Record):
    """Each of the four dimensions is in one of the two; `detail` says what was got for those without a score."""

    scores: dict[Dimension, float]
    unscored: dict[Dimension, Reason]
    detail: str

    @property
    def complete(self) -> bool:
        """Whether all four dimensions have a score."""
        return not self.unscored


def read_reply(text: str, finish_reason: str = "stop") -> ReplyScores:
    """The scores of a reply; never raises.

    A reply cut off at the token limit (`length`) gives none, whatever stands in it. What a reasoning model thinks
    before its answer is passed over. JSON counts where an object has one of the dimensions as a key (their official
    names, abbreviations or snake case, also one level down), else the text's lines do.
    """
    if finish_reason == "length":
        return without_scores("truncated", f"the reply was cut off after {len(text)} characters")
    if finish_reason == "content_filter":
        return without_scores("refused", "the server's content filter stopped the reply")
    text = _answer(text)
    if not text.strip():
        return without_scores("empty", "the reply is empty")
    found = _in_objects(text) or _in_lines(text)
    if not found:
        return without_scores("unreadable", f"none of the four dimensions is in {_short(text)}")
    scores: dict[Dimension, float] = {}
    unscored: dict[Dimension, Reason] = {}
    details = []
    for dimension, name in DIMENSIONS.items():
        got = [value for key, value in found if key == dimension]
        score = _agreed([_read(value) for value in got])
        if isinstance(score, float):
            scores[dimension] = score
            continue
        unscored[dimension] = score
        details.append(_told(name, score, got))
    return ReplyScores(scores=scores, unscored=unscored, detail="; ".join(details))


def without_scores(reason: Reason, detail: str) -> ReplyScores:
    """All four dimensions unscored for one reason."""
    return ReplyScores(scores={}, unscored=dict.fromkeys(DIMENSIONS, reason), detail=detail)


def _told(name: str, reason: Reason, got: Sequence[object]) -> str:
    if reason == "missing":
        return f"{name} has no score"
    return f"{name}: got {', '.join(map(_short, got))}; wanted one number from 0 to 5 ({reason})"


def _short(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _answer(text: str) -> str:
    """The reply without the thoughts before it; thoughts that never end leave nothing."""
    _, ended, after = text.rpartition("</think>")
    if ended:
        return after
    return "" if text.lstrip().startswith("<think>") else text


def _agreed(values: Sequence[float | Reason]) -> float | Reason:
    """The one score of a dimension.

    A rubric or an explanation may repeat a dimension's name with words behind it: those count only where no number is.
    """
    firm = list(dict.fromkeys(value for value in values if value not in ("missing", "not_one_number")))
    if len(firm) == 1:
        return firm[0]
    return "contradictory" if firm else next(iter(values), "missing")


# one value

_BLANK = " \t\r\n*_`[](){}<>'\"|~"
_MARKS = r"[\s*_`\[\](){}<>'\"|~]*"
_VALUE = re.compile(
    rf"""{_MARKS}(?:(?:score|rating)\b{_MARKS}[:=]?{_MARKS})?
    (?P<number>[-+−]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+))
    (?![0-9A-Za-z%]|[.,][0-9]|\s*%|\s*[-–—~]\s*[0-9]|\s+(?:to|or|and)\s+[0-9])
    (?:{_MARKS}(?:/|⁄|(?:out\s+)?of\b){_MARKS}(?P<scale>[0-9]+(?:\.[0-9]+)?)(?![0-9A-Za-z%/]|\.[0-9]))?
    (?P<rest>.*)""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_FOLLOWS = re.compile(r"\s*(?:$|[^a-z\s/⁄%]|(?:explanation|reason(?:ing)?|because|since|as|points?|stars?)\b)")
"""What may stand behind a score: not the rest of a sentence, as in `4 of the details are right`."""


def _read(value: object) -> float | Reason:
    """A score from JSON or from the text behind a dimension's name."""
    if isinstance(value, _Pairs):
        inner = [part for key, part in value if _plain(key) in ("score", "rating", "value")]
        return _agreed([_read(part) for part in inner if not isinstance(part, _Pairs)])
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return "missing" if value is None else "not_one_number"
    if not isinstance(value, str):
        return _in_range(float(value) if isinstance(value, float) or abs(value) < 1e9 else math.inf)
    if not value.strip(_BLANK):
        return "missing"
    match = _VALUE.match(value)
    if not match or not _FOLLOWS.match(match["rest"]):
        return "not_one_number"
    if match["scale"] and float(match["scale"]) != MAX_SCORE:
        return "other_scale"
    return _in_range(float(match["number"].replace("−", "-")))


def _in_range(score: float) -> float | Reason:
    if math.isnan(score):
        return "not_one_number"
    return score + 0.0 if MIN_SCORE <= score <= MAX_SCORE else "out_of_range"


# JSON


class _Pairs(list[tuple[str, object]]):
    """A JSON object that keeps keys given twice."""


_MAX_OBJECTS = 100
_DECODER = json.JSONDecoder(object_pairs_hook=_Pairs)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalpha())


_KEYS: dict[str, Dimension] = {
    _plain(name): dimension for dimension, full in DIMENSIONS.items() for name in (full, dimension)
}


def _in_objects(text: str) -> list[tuple[Dimension, object]]:
    return [pair for found in _objects(text) for pair in _of_object(found)]


def _objects(text: str) -> Iterator[_Pairs]:
    """The JSON objects of a text, wherever they stand in it."""
    start = text.find("{")
    for _ in range(_MAX_OBJECTS):
        if start < 0:
            return
        try:
            found, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield found
        start = text.find("{", end)


def _of_object(found: _Pairs) -> list[tuple[Dimension, object]]:
    here = [(_KEYS[_plain(key)], value) for key, value in found if _plain(key) in _KEYS]
    if here:
        return here
    inner = [value for _, value in found if isinstance(value, _Pairs)]
    return [(_KEYS[_plain(key)], part) for value in inner for key, part in value if _plain(key) in _KEYS]


# lines

_NAME = "|".join(full.replace(" ", r"[\s_-]*") for full in DIMENSIONS.values())
_HEADING = re.compile(
    rf"""[\s>\#*_•+|`~\[(-]*(?:[0-9]{{1,2}}\s*[.):]?[\s*_`\[(]*)?
    (?:(?P<name>(?i:{_NAME}))|(?P<short>{"|".join(DIMENSIONS)})\b)
    [\s*_`\])]*(?:\((?:{"|".join(DIMENSIONS)})\))?[\s*_`\])]*(?i:score|rating)?[\s*_`\])]*
    (?:$|(?:[:=|]|\s[-–—]|[-–—]\s)(?P<value>.*))""",
    re.VERBOSE,
)
_BESIDE = re.compile(rf"(?i)(?=\b[1-4][.)][\s*_`]*(?:{_NAME}))")
_BULLET = re.compile(r"\s*(?:[-•*]\s+)?")
_EXPLANATION = re.compile(r"(?i)[\s*_`>#-]*(?:explanation|reason)")


def _in_lines(text: str) -> list[tuple[Dimension, object]]:
    """What stands behind each dimension's name at the start of a line, or alone on the line below it.

    In a reply of one line, a numbered name is taken for the start of one.
    """
    text = unicodedata.normalize("NFKC", text).strip()
    lines = text.splitlines()
    if len(lines) == 1:
        lines = _BESIDE.split(text)
    lines = [line for line in lines if line.strip()]
    found: list[tuple[Dimension, object]] = []
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        match = _HEADING.match(line)
        if not match:
            continue
        value = match["value"] or ""
        if not value.strip(_BLANK) and not _EXPLANATION.match(below):
            below = _BULLET.sub("", below, count=1)
            value = below if (alone := _VALUE.match(below)) and not alone["rest"].strip(_BLANK + ".") else ""
        found.append((_KEYS[_plain(match["name"] or match["short"])], value))
    return found
