"""What a parser of English is handed of a caption, and that each character still knows its place in it."""

import pytest

from agents.plain_text import plain_text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("A plain caption, 2 cats & a dog's tail (left).", "A plain caption, 2 cats & a dog's tail (left)."),
        ("", ""),
        ("🐕", ""),
        ("A dog runs 🐕", "A dog runs"),
        ("A dog runs 🐕🐕!", "A dog runs !"),
        ("A cyclist 🚴🏽‍♂️ rides", "A cyclist rides"),
        ("It is 5\ufe0f\u20e3 o'clock", "It is 5 o'clock"),
        ("a d\u200bog and a ca\u00adt\ufeff", "a dog and a cat"),
        ("A dog™ runs", "A dog runs"),
        ("A dog<region> runs <b>fast</b>", "A dog runs fast"),
        ("<video> A dog runs <object0>", "A dog runs"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("Un café naît ici", "Un café naît ici"),
    ],
)
def test_marks_and_tags_go_and_words_stay(text: str, plain: str) -> None:
    assert plain_text(text)[0] == plain


@pytest.mark.parametrize("text", ["A 🐕 runs", "the 🐕 runs", "An <object1> moves"])
def test_what_stands_for_a_noun_stays(text: str) -> None:
    assert plain_text(text)[0] == text


@pytest.mark.parametrize("text", ["🐈‍⬛ A cat <b>and</b> a\u200bn owl.", "no marks", "a  🎉  b 🎉"])
def test_each_character_knows_its_place(text: str) -> None:
    plain, places = plain_text(text)
    assert places == sorted(set(places))
    assert len(places) == len(plain)
    assert all(char in (" ", text[place]) for char, place in zip(plain, places, strict=True))
    words = [place for char, place in zip(plain, places, strict=True) if char != " "]
    assert "".join(text[place] for place in words) == plain.replace(" ", "")
