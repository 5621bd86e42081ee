"""Places within a sentence ("a cyclist on the left moves away"): found, left out for the parse, and put back after it.

The small pipeline reads "left moves" as one noun chunk, and "comes toward the camera and a man" as one goal. Without
such a phrase it reads the sentence right, so the phrase is taken out, and hung afterwards on the noun or the verb that
it was written behind; at the start of a clause ("on the left a dog runs") it is the verb's. Where the words are not of
a place in the frame ("on the left bench", "on the left of a car"), or whose it is is not plain, it stays where it is.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from agents.vocabulary import DEPTH_WORDS, FRAME_WORDS, PLACE_WORDS, SIDE_WORDS

_PREPOSITIONS = ("on", "in", "at")
_GOAL_PREPOSITIONS = ("to", "toward", "towards")
_GOALS = ("camera", "viewer")
_ARTICLES = ("the", "its", "this")
_DEGREES = ("far", "very", "extreme", "-")
_NOUNS = ("NOUN", "PROPN", "PRON")
_VERBS = ("VERB", "AUX")
_NOMINAL = ("NOUN", "PROPN", "ADJ", "NUM")
_CLAUSE_STARTS = ("and", "but", "while", "as", "then", ",", ";", ".")
_SENTENCE_ENDS = (".", "!", "?")
_RELATIVES = ("who", "that", "which")
_CARRYING = ("in", "with", "on")
"""What stands behind them is worn, held or ridden: a place behind it is that of the wearer."""


class PlacePhrase(NamedTuple):
    """Tokens `[start, end)` of a caption: "in the middle of the frame", or "toward the camera", which `is_goal`.

    `is_second` tells that its clause has a place before it ("the cat on the left sees a dog on the right").
    """

    start: int
    end: int
    is_goal: bool
    is_second: bool


class _Token(NamedTuple):
    """How a token stands in a parse, its head as an index."""

    lemma: str
    tag: str
    pos: str
    morph: str
    head: int
    dep: str


def place_phrases(words: Sequence[str]) -> list[PlacePhrase]:
    """The phrases that may be places, by their wording alone; `words` are lower case.

    At the end of a sentence the parse reads them right by itself, all but a second place.
    """
    found: list[PlacePhrase] = []
    at = 0
    clause_has_place = False
    while at < len(words):
        end = _end_of_place(words, at)
        if end is None:
            clause_has_place &= words[at] not in _CLAUSE_STARTS
            at += 1
            continue
        is_goal = words[at] in _GOAL_PREPOSITIONS
        if (clause_has_place and not is_goal) or (end < len(words) and words[end] not in _SENTENCE_ENDS):
            found.append(PlacePhrase(at, end, is_goal, clause_has_place))
        clause_has_place |= not is_goal
        at = end
    return found


def kept_tokens(phrases: Sequence[PlacePhrase], num_tokens: int) -> list[int]:
    """Indices of the tokens outside the phrases."""
    dropped = {i for phrase in phrases for i in range(phrase.start, phrase.end)}
    return [i for i in range(num_tokens) if i not in dropped]


def holder_of(phrase: PlacePhrase, kept: Sequence[int], read: Any) -> Any:
    """The token of `read` (the parse of the tokens `kept`) that the phrase belongs to; None where that is not plain."""
    after = sum(i < phrase.start for i in kept)
    before = read[after - 1] if after else None
    follows = read[after] if after < len(read) else None
    if before is None or before.lower_ in _CLAUSE_STARTS:
        return None if follows is None or phrase.is_goal else _verb_of_clause(follows)
    owner = before if phrase.is_goal else _owner(before)
    if owner is None or (follows is not None and follows.pos_ in _NOMINAL):
        return None
    if phrase.is_goal or _is_plain_verb(owner):
        return owner if _is_plain_verb(owner) else None
    is_plain = phrase.is_second or _is_subject(owner) or (follows is not None and _leads_to_verb(follows))
    return owner if is_plain else None


def put_back(doc: Any, phrases: Sequence[PlacePhrase], kept: Sequence[int], read: Any) -> Any:
    """The words of `doc` with the parse `read` of the tokens `kept`, and each phrase on what `holder_of` gives."""
    from spacy.tokens import Doc

    rows = {kept[t.i]: _Token(t.lemma_, t.tag_, t.pos_, str(t.morph), kept[t.head.i], t.dep_) for t in read}
    for phrase in phrases:
        rows |= _parsed(phrase, doc, kept[holder_of(phrase, kept, read).i])
    tokens = [rows[i] for i in range(len(doc))]
    return Doc(
        doc.vocab,
        [token.text for token in doc],
        [bool(token.whitespace_) for token in doc],
        lemmas=[token.lemma for token in tokens],
        tags=[token.tag for token in tokens],
        pos=[token.pos for token in tokens],
        morphs=[token.morph for token in tokens],
        heads=[token.head for token in tokens],
        deps=[token.dep for token in tokens],
    )


def _end_of_place(words: Sequence[str], start: int) -> int | None:
    """Where a place that starts here ends; None where there is none, or it is one of another thing."""
    is_goal = words[start] in _GOAL_PREPOSITIONS
    if not is_goal and words[start] not in _PREPOSITIONS:
        return None
    end = first = start + 1 + _is_at(words, start + 1, _ARTICLES)
    if is_goal and first == start + 1:
        return None
    while _is_at(words, end, (*PLACE_WORDS, *SIDE_WORDS, *_DEGREES)):
        end += 1
    if not any(word in PLACE_WORDS for word in words[first:end]):
        end = first + 1
        if not _is_at(words, first, _GOALS if is_goal else DEPTH_WORDS):
            return None
    if _is_at(words, end, ("of",)):
        named = end + 1 + _is_at(words, end + 1, _ARTICLES)
        return named + 1 if _is_at(words, named, FRAME_WORDS) else None
    return end


def _is_at(words: Sequence[str], at: int, wanted: Collection[str]) -> bool:
    return at < len(words) and words[at] in wanted


def _is_plain_verb(token: Any) -> bool:
    """Whether a token is a verb, and not the "left" that passes for a form of "leave"."""
    return token.pos_ in _VERBS and token.lower_ not in PLACE_WORDS


def _is_subject(noun: Any) -> bool:
    while noun.dep_ == "conj" and noun.head.pos_ in _NOUNS:
        noun = noun.head
    return noun.pos_ in _NOUNS and noun.dep_ in ("nsubj", "nsubjpass", "ROOT")


def _leads_to_verb(token: Any) -> bool:
    if token.pos_ in _VERBS:
        return True
    is_on_the_way = token.pos_ in ("ADV", "PART") or token.lower_ in _RELATIVES
    return is_on_the_way and token.head.pos_ in _VERBS and token.head.i > token.i


def _owner(token: Any) -> Any:
    """What a place behind this token belongs to: the nearest noun or verb that ends here."""
    last = token.i
    while True:
        if _is_carried(token):
            token = token.head.head
        elif token.pos_ in (*_NOUNS, *_VERBS) and token.dep_ != "compound":
            return token
        elif token.head.i > last or token.head.i == token.i:
            return None
        else:
            token = token.head


def _is_carried(token: Any) -> bool:
    """Whether a noun is "shirt" in "a man in a red shirt" or "a man who wears a shirt"."""
    if token.dep_ == "pobj":
        return token.head.lower_ in _CARRYING and token.head.head.pos_ in _NOUNS
    return token.dep_ == "dobj" and token.head.dep_ in ("acl", "relcl")


def _verb_of_clause(token: Any) -> Any:
    """The verb of the noun whose phrase starts here."""
    if token.dep_ not in ("det", "nummod", "poss") or token.head.dep_ != "nsubj":
        return None
    return token.head.head


def _parsed(phrase: PlacePhrase, doc: Any, holder: int) -> dict[int, _Token]:
    """The phrase as a parse has it: prepositions, and a noun behind each with what stands before it."""
    rows: dict[int, _Token] = {}
    heads = [i for i in range(phrase.start, phrase.end) if i == phrase.start or doc[i].lower_ == "of"]
    above = holder
    for start, stop in zip(heads, [*heads[1:], phrase.end], strict=True):
        noun = stop - 1
        rows[start] = _Token(doc[start].lower_, "IN", "ADP", "", above, "prep")
        rows[noun] = _Token(doc[noun].lower_, "NN", "NOUN", "Number=Sing", start, "pobj")
        for i in range(start + 1, noun):
            rows[i] = _modifier(doc[i].lower_, noun)
        above = noun
    return rows


def _modifier(word: str, noun: int) -> _Token:
    if word == "its":
        return _Token(word, "PRP$", "PRON", "", noun, "poss")
    if word in _ARTICLES:
        return _Token(word, "DT", "DET", "", noun, "det")
    if word == "-":
        return _Token(word, "HYPH", "PUNCT", "", noun, "punct")
    return _Token(word, "JJ", "ADJ", "Degree=Pos", noun, "amod")
