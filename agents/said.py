"""What a caption says of its nouns: colours, places, directions, actions, count, read from the dependency parse.

A claim is only read where the wording is plain, since the reviewer drops objects over it: directions need a verb of
motion ("looks left" says none), places must be of the frame ("in the middle of the road" says none), "the left dog" is
left of another dog and says none, and a negated verb says nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agents.vocabulary import (
    ADVERB_DIRECTIONS,
    BREAKING_VERBS,
    COLOUR_WORDS,
    COPULAS,
    FRAME_WORDS,
    GOAL_DIRECTIONS,
    LEFT_RIGHT,
    LEMMAS,
    MOTION_VERBS,
    NUMERALS,
    PLACE_WORDS,
    PLURAL_NOUNS,
    QUANTIFIERS,
    SIDE_WORDS,
    VERB_DIRECTIONS,
)
from schemas.mention import Number, Role, SaidAttributes
from schemas.words import Colour, Direction, Place

MODIFIERS = ("det", "amod", "nummod", "poss")
"""Arcs of the words that a noun chunk starts with."""


@dataclass(frozen=True)
class Nominal:
    """One noun chunk: `[start, end)` tokens of the parse, and the noun token that heads it.

    `quantifier` is "pair" in "a pair of birds"; `left_out` tells that the parse has the noun in no chunk of its own.
    """

    start: int
    end: int
    noun: Any
    quantifier: Any = None
    left_out: bool = False


def nominals(doc: Any) -> list[Nominal]:
    """Every noun chunk of a parse, in order; "a pair of birds" is one.

    Each noun is in one of them: those that the parse leaves out of its chunks ("walks past a bicycle", with "bicycle"
    read as an adverb) make chunks of their own.
    """
    found: list[Nominal] = []
    read = [Nominal(chunk.start, chunk.end, chunk.root) for chunk in doc.noun_chunks]
    chunked = {i for item in read for i in range(item.start, item.end)}
    read += [_left_out(token) for token in doc if token.pos_ in ("NOUN", "PROPN") and token.i not in chunked]
    for item in sorted(read, key=lambda item: item.start):
        before = found[-1] if found else None
        if before and lemma_of(before.noun) in QUANTIFIERS and _is_of(before.noun, item.noun):
            found[-1] = Nominal(before.start, item.end, item.noun, before.noun)
        else:
            found.append(item)
    return found


def said_of(item: Nominal) -> SaidAttributes:
    """What the caption claims of one noun."""
    verbs = [verb for verb in _verbs(item) if not _is_negated(verb)]
    return SaidAttributes(
        colours=_distinct(_colours(item, verbs)),
        places=_distinct(_places(item, verbs)),
        directions=_distinct(direction for verb in verbs for direction in _directions(verb)),
        actions=_distinct(lemma_of(verb) for verb in verbs if _is_action(verb)),
        count=_count(item),
    )


def lemma_of(token: Any) -> str:
    """The dictionary form of a word, lower case."""
    lemma = str(token.lemma_).lower()
    return LEMMAS.get(lemma, lemma)


def role_of(item: Nominal) -> Role:
    """`subject` for what does or is shown; `other` for what stands in relation to it."""
    token = item.quantifier or item.noun
    while token.dep_ in ("conj", "appos"):
        token = token.head
    return "subject" if token.dep_ in ("nsubj", "nsubjpass", "ROOT", "csubj", "attr") else "other"


def number_of(item: Nominal) -> Number:
    """Singular or plural, by the tag of the noun and the count."""
    count = _count(item)
    if count is not None:
        return "plural" if count > 1 else "singular"
    return "plural"


def is_denied(item: Nominal) -> bool:
    """Whether the caption says that there is none: "no dog", "without a dog"."""
    token = item.noun
    return any(child.lower_ == "no" for child in token.children) or (
        token.dep_ == "pobj" and token.head.lower_ == "without"
    )


def _left_out(noun: Any) -> Nominal:
    start = noun.i
    while start > 0 and (before := noun.nbor(start - 1 - noun.i)).head.i == noun.i and before.dep_ in MODIFIERS:
        start -= 1
    return Nominal(start, noun.i + 1, noun, left_out=True)


def _is_of(quantifier: Any, noun: Any) -> bool:
    return bool(noun.dep_ == "pobj" and noun.head.lower_ == "of" and noun.head.head.i == quantifier.i)


def _verbs(item: Nominal) -> list[Any]:
    """Verbs that the noun is subject of: its own, their conjuncts, participles and relative clauses on the noun."""
    token = item.quantifier or item.noun
    verbs = [child for child in token.children if _describes(child)]
    if token is not item.noun:
        verbs += [child for child in item.noun.children if _describes(child)]
    while token.dep_ == "conj" and token.head.pos_ in ("NOUN", "PROPN"):
        token = token.head
    if token.dep_ in ("nsubj", "nsubjpass"):
        verbs += [token.head]
    elif token.dep_ == "pobj" and token.head.dep_ == "agent":
        verbs += [token.head.head]
    return _distinct_tokens([v for verb in verbs for v in _chain(verb)])


def _describes(child: Any) -> bool:
    if child.dep_ == "acl":
        return child.tag_ in ("VBG", "VBN")
    return child.dep_ == "relcl" and any(
        part.dep_ in ("nsubj", "nsubjpass") and part.lower_ in ("who", "that", "which") for part in child.children
    )


def _chain(verb: Any) -> Iterator[Any]:
    """A verb and those that share its subject: "walks left, then turns", "starts to run"."""
    yield verb
    for child in verb.children:
        if (
            child.dep_ in ("conj", "advcl", "xcomp", "dep")
            and child.pos_ in ("VERB", "AUX")
            and not _has_subject(child)
        ):
            yield from _chain(child)
    if verb.dep_ in ("advcl", "conj", "ccomp") and verb.head.pos_ == "VERB" and not _has_subject(verb.head):
        yield verb.head


def _has_subject(verb: Any) -> bool:
    return any(child.dep_ in ("nsubj", "nsubjpass", "csubj", "expl") for child in verb.children)


def _is_passive(verb: Any) -> bool:
    if any(child.dep_ == "agent" for child in verb.children):
        return True
    return verb.tag_ == "VBN" and (verb.dep_ == "acl" or any(c.dep_ in ("auxpass", "nsubjpass") for c in verb.children))


def _is_action(verb: Any) -> bool:
    # "left" after a verb is often read as a form of "leave"
    return verb.lemma_ not in COPULAS and verb.lower_ not in ADVERB_DIRECTIONS and not _is_passive(verb)


def _is_negated(verb: Any) -> bool:
    if any(child.dep_ == "neg" or child.lower_ in ("never", "without") for child in verb.children if child.i < verb.i):
        return True
    if any(child.dep_ == "neg" for child in verb.children):
        return True
    if any(child.dep_ == "aux" and child.tag_ == "MD" and child.lower_ != "will" for child in verb.children):
        return True
    if verb.dep_ == "xcomp":
        return verb.head.lemma_ in BREAKING_VERBS or _is_negated(verb.head)
    # "does not move or turn": the second bare form shares the auxiliary, and its denial
    return verb.dep_ == "conj" and verb.tag_ == "VB" and _is_negated(verb.head)


def _colours(item: Nominal, verbs: list[Any]) -> Iterator[Colour]:
    noun = item.noun
    for child in noun.children:
        if child.dep_ in ("amod", "compound", "nmod") and item.start <= child.i < noun.i:
            yield from _colour_words(child)
    for verb in verbs:
        if verb.lemma_ in COPULAS:
            for child in verb.children:
                if child.dep_ == "acomp" or (child.dep_ == "attr" and child.lower_ in COLOUR_WORDS):
                    yield from _colour_words(child)


def _colour_words(token: Any) -> Iterator[Colour]:
    if token.lower_ in COLOUR_WORDS:
        yield COLOUR_WORDS[token.lower_]
    for child in token.children:
        if child.dep_ in ("conj", "amod", "compound"):
            yield from _colour_words(child)


def _directions(verb: Any) -> Iterator[Direction]:
    lemma = lemma_of(verb)
    if lemma not in MOTION_VERBS:
        return
    if lemma in VERB_DIRECTIONS:
        yield VERB_DIRECTIONS[lemma]
    for token in verb.doc[verb.i + 1 : verb.sent.end]:
        # an adverb at the verb is its own whatever the parse says ("goes left" is often read as a passive of "leave")
        if token.i == verb.i + 1 or (verb.is_ancestor(token) and _governing_verb(token) == verb.i):
            yield from _direction_at(token, lemma)


def _direction_at(token: Any, lemma: str) -> Iterator[Direction]:
    """The direction that a phrase starting at `token` states, read from the words since small parses waver here."""
    word, rest = token.lower_, [t.lower_ for t in token.doc[token.i + 1 : token.i + 8]]
    before = token.nbor(-1).lower_
    if word in ADVERB_DIRECTIONS and before not in ("the", "its", "to", "from", "toward", "towards", "on", "at"):
        takes_object = word in ("up", "down") and any(child.dep_ == "pobj" for child in token.children)
        if not takes_object and rest[:1] != ["of"] and _ends_phrase(word, rest):
            yield ADVERB_DIRECTIONS[word]
    elif word in ("to", "toward", "towards", "into") and (goal := _goal(rest)):
        yield goal
    elif lemma == "approach" and word in ("camera", "viewer"):
        yield "toward"


def _ends_phrase(word: str, rest: list[str]) -> bool:
    """Whether left or right stands alone: "the right hand", "left side" do not say where something goes."""
    return word not in LEFT_RIGHT or not rest or rest[0] not in SIDE_WORDS


def _goal(rest: list[str]) -> Direction | None:
    words = [word for word in rest if word not in ("the", "its", "far", "very")]
    if not words or words[0] not in GOAL_DIRECTIONS:
        return None
    after = words[1:3]
    if after[:1] and after[0] in SIDE_WORDS:
        after = words[2:4]
    if after[:1] == ["of"] and not set(FRAME_WORDS) & set(rest):
        return None
    return GOAL_DIRECTIONS[words[0]]


def _governing_verb(token: Any) -> int:
    """Index of the nearest verb above a token, or of the noun or other verb that claims it first."""
    for above in token.ancestors:
        if above.pos_ in ("VERB", "AUX") and above.lower_ not in ADVERB_DIRECTIONS:
            return int(above.i)
        if lemma_of(above) in MOTION_VERBS or (above.pos_ in ("NOUN", "PROPN") and above.lower_ not in PLACE_WORDS):
            return int(above.i)
    return -1


def _places(item: Nominal, verbs: list[Any]) -> Iterator[Place]:
    heads = {item.noun.i, *((item.quantifier.i,) if item.quantifier is not None else ())} | {verb.i for verb in verbs}
    for token in item.noun.sent:
        if token.lower_ in ("on", "at", "in") and token.dep_ == "prep" and token.head.i in heads:
            yield from _place_after(token)


def _place_after(preposition: Any) -> Iterator[Place]:
    """The places in "in the top left corner of the frame", none where the phrase is of something else."""
    doc = preposition.doc
    words: list[str] = []
    for token in doc[preposition.i + 1 : preposition.i + 8]:
        if token.lower_ in (*PLACE_WORDS, *SIDE_WORDS, "far", "very", "-") or (not words and token.lower_ == "the"):
            words.append(token.lower_)
            continue
        if token.lower_ == "of" and not set(FRAME_WORDS) & {t.lower_ for t in doc[token.i + 1 : token.i + 4]}:
            return
        if token.lower_ != "of" and token.pos_ in ("NOUN", "PROPN") and token.lower_ not in FRAME_WORDS:
            return
        break
    yield from (PLACE_WORDS[word] for word in words if word in PLACE_WORDS)


def _count(item: Nominal) -> int | None:
    noun = item.noun
    if item.quantifier is not None:
        return QUANTIFIERS[lemma_of(item.quantifier)]
    for child in noun.children:
        if child.dep_ == "nummod" and (value := _numeral(child.lower_)) is not None:
            return value
    if any(child.lower_ == "both" for child in noun.children):
        return 2
    plural = noun.tag_ in ("NNS", "NNPS") or noun.lower_ in PLURAL_NOUNS or noun.morph.get("Number") == ["Plur"]
    return None if plural else 1


def _numeral(word: str) -> int | None:
    if word in NUMERALS:
        return NUMERALS[word]
    return int(word) if word.isascii() and word.isdigit() and 0 < int(word) < 1000 else None


def _distinct(values: Any) -> Any:
    return tuple(dict.fromkeys(values))


def _distinct_tokens(tokens: list[Any]) -> list[Any]:
    return list({token.i: token for token in tokens}.values())
