"""Which nouns of a referring expression name the objects that it means.

"The dog that chases a cat" means the dog. Expressions are headings rather than sentences, so what is meant is the first
noun that does or is shown something, with the nouns coordinated with it; "moving left" names nothing.
"""

from collections.abc import Sequence
from typing import Any

from agents.said import Nominal, lemma_of, role_of
from agents.vocabulary import ING_FORMS

UNNAMED = "object"
"""Stands for what an expression does not name, or names by several nouns at once."""

_PLACEHOLDERS = frozenset({"it", "this", "that", "there", "these", "those", "which", "who"})
"""Subjects behind which the noun comes ("it is a cat"), or came before ("a dog that runs")."""

_PARTS = frozenset({"one", "each", "both", "all", "some", "any", "none", "two", "three", "four"})
"""Heads of "one of the dogs"."""


def meant(items: Sequence[Nominal]) -> list[Nominal]:
    """The first subject of an expression and what is coordinated with it; empty where nothing is named.

    A pronoun that stands for the object itself ("someone on a bike", "the one that jumps") is among them.
    """
    first = next((item for item in items if _is_shown(item)), None)
    if first is None:
        return []
    return [first, *(item for item in items if item is not first and _is_coordinated(item.noun, first.noun))]


def is_unnamed(item: Nominal) -> bool:
    """Whether a nominal stands for an object without naming it: "the one", "someone", "what he holds"."""
    return item.noun.pos_ in ("PRON", "NUM") or lemma_of(item.noun) == "one"


def name_of(item: Nominal) -> str:
    """What an expression calls its object; for "turtle swimming" that the parse has as one noun, "turtle"."""
    if is_unnamed(item):
        return UNNAMED
    noun = item.noun
    if noun.lower_ not in ING_FORMS:
        return lemma_of(noun).strip() or str(noun.text)
    before = noun.nbor(-1) if noun.i > item.start else None
    return lemma_of(before) if before is not None and before.pos_ in ("NOUN", "PROPN") else UNNAMED


def part_of(item: Nominal) -> str:
    """The word before "of the dogs" in "one of the dogs", empty for other nominals."""
    noun = item.noun
    if noun.dep_ != "pobj" or noun.head.lower_ != "of" or item.quantifier is not None:
        return ""
    whole = str(noun.head.head.lower_)
    return whole if whole in _PARTS else ""


def _is_shown(item: Nominal) -> bool:
    if part_of(item) or item.noun.lower_ == "what":
        return True
    has_of = any(child.lower_ == "of" for child in item.noun.children)
    is_part = item.noun.lower_ in _PARTS and has_of
    return role_of(item) == "subject" and item.noun.lower_ not in _PLACEHOLDERS and not is_part


def _is_coordinated(noun: Any, first: Any) -> bool:
    while noun.dep_ == "conj":
        noun = noun.head
        if noun.i == first.i:
            return True
    return False
