"""What is said of a noun, on hand-made parses; real parses are in `test_analyzer.py`."""

import pytest
import spacy
from spacy.tokens import Doc

from agents.said import is_denied, nominals, number_of, role_of, said_of
from schemas.mention import SaidAttributes

VOCAB = spacy.blank("en").vocab


def parse(*rows: str) -> Doc:
    """A parsed sentence from "word tag dep head-index [lemma]" rows."""
    columns = [row.split() for row in rows]
    coarse = {"NN": "NOUN", "VB": "VERB", "JJ": "ADJ", "RB": "ADV", "IN": "ADP", "DT": "DET", "CD": "NUM", "PR": "PRON"}
    return Doc(
        VOCAB,
        words=[c[0] for c in columns],
        tags=[c[1] for c in columns],
        pos=[coarse.get(c[1][:2], "X") for c in columns],
        deps=[c[2] for c in columns],
        heads=[int(c[3]) for c in columns],
        lemmas=[c[4] if len(c) > 4 else c[0].lower() for c in columns],
    )


def only(doc: Doc) -> SaidAttributes:
    return said_of(nominals(doc)[0])


def moving(*tail: str) -> Doc:
    return parse("A DT det 1", "car NN nsubj 2", "moves VBZ ROOT 2 move", *tail)


@pytest.mark.parametrize(
    ("tail", "directions"),
    [
        (("to IN prep 2", "the DT det 5", "left NN pobj 3"), ("left",)),
        (("to IN prep 2", "the DT det 6", "left JJ amod 6", "side NN pobj 3"), ("left",)),
        (("right RB advmod 2",), ("right",)),
        (("toward IN prep 2", "the DT det 5", "camera NN pobj 3"), ("toward",)),
        (("into IN prep 2", "the DT det 5", "distance NN pobj 3"), ("away",)),
        (("up RB prt 2",), ("up",)),
        (("up IN prep 2", "the DT det 5", "street NN pobj 3"), ()),
        (("to IN prep 2", "the DT det 5", "left NN pobj 3", "of IN prep 5", "it PRP pobj 6"), ()),
        (("from IN prep 2", "left JJ pcomp 3", "to IN prep 2", "right JJ pobj 5"), ("right",)),
    ],
)
def test_a_verb_of_motion_takes_directions(tail, directions):
    assert only(moving(*tail)).directions == directions


def test_a_verb_that_is_no_motion_takes_none():
    doc = parse(
        "A DT det 1", "cat NN nsubj 2", "looks VBZ ROOT 2 look", "to IN prep 2", "the DT det 5", "left NN pobj 3"
    )
    assert only(doc).directions == ()


def test_a_denied_verb_says_nothing():
    doc = parse(
        "The DT det 1", "car NN nsubj 4", "does VBZ aux 4 do", "not RB neg 4", "move VB ROOT 4", "left RB advmod 4"
    )
    assert only(doc) == SaidAttributes(count=1)


def test_what_one_stops_doing_is_not_said():
    doc = parse("A DT det 1", "man NN nsubj 2", "stops VBZ ROOT 2 stop", "walking VBG xcomp 2 walk", "left RB advmod 3")
    assert only(doc).directions == ()
    assert only(doc).actions == ("stop",)


def test_a_noun_that_the_parse_has_in_no_chunk_makes_its_own():
    doc = parse(
        "walks VBZ ROOT 0 walk",
        "past IN prep 0",
        "a DT det 4",
        "parked VBN amod 4",
        "bicycle NN npadvmod 0",
        ". . punct 0",
    )
    (item,) = nominals(doc)
    assert (doc[item.start : item.end].text, item.left_out, role_of(item)) == ("a parked bicycle", True, "other")


def test_a_shirts_colour_is_not_its_wearers():
    doc = parse("man NN ROOT 0", "in IN prep 0", "a DT det 4", "red JJ amod 4", "shirt NN pobj 1")
    man, shirt = nominals(doc)
    assert said_of(man).colours == ()
    assert said_of(shirt).colours == ("red",)


def test_predicate_and_joined_colours_are_said():
    doc = parse(
        "The DT det 1", "cat NN nsubj 2", "is VBZ ROOT 2 be", "black JJ acomp 2", "and CC cc 3", "grey JJ conj 3"
    )
    assert only(doc).colours == ("black", "gray")


@pytest.mark.parametrize(
    ("rows", "count", "number"),
    [
        (("a DT det 1", "dog NN ROOT 1"), 1, "singular"),
        (("Two CD nummod 1", "dogs NNS ROOT 1 dog"), 2, "plural"),
        (("12 CD nummod 1", "dogs NNS ROOT 1 dog"), 12, "plural"),
        (("dogs NNS ROOT 0 dog",), None, "plural"),
        (("several JJ amod 1", "people NNS ROOT 1"), None, "plural"),
        (("both DT det 1", "dogs NNS ROOT 1 dog"), 2, "plural"),
        (("a DT det 1", "pair NN ROOT 1", "of IN prep 1", "birds NNS pobj 2 bird"), 2, "plural"),
        (("a DT det 1", "herd NN ROOT 1", "of IN prep 1", "cows NNS pobj 2 cow"), None, "plural"),
    ],
)
def test_numbers(rows, count, number):
    (item,) = nominals(parse(*rows))
    assert (said_of(item).count, number_of(item)) == (count, number)


@pytest.mark.parametrize(
    ("tail", "places"),
    [
        (("on IN prep 1", "the DT det 4", "left NN pobj 2"), ("left",)),
        (("in IN prep 1", "the DT det 6", "top JJ amod 6", "right JJ amod 6", "corner NN pobj 2"), ("top", "right")),
        (
            ("in IN prep 1", "the DT det 4", "middle NN pobj 2", "of IN prep 4", "the DT det 7", "frame NN pobj 5"),
            ("middle",),
        ),
        (("in IN prep 1", "the DT det 4", "middle NN pobj 2", "of IN prep 4", "the DT det 7", "road NN pobj 5"), ()),
    ],
)
def test_places_are_of_the_frame(tail, places):
    assert only(parse("A DT det 1", "car NN ROOT 1", *tail)).places == places


def test_denied_nouns_are_told():
    (item,) = nominals(parse("no DT det 1", "dog NN ROOT 1"))
    assert is_denied(item)
