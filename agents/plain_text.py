"""Captions as a parser of English should see them: without emoji, invisible characters and tags.

A parser takes an emoji for a noun, and "cyclist 🚴 rides" for one compound; a tag at a word hides the word.
"""

import re
import unicodedata

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,80}>")
"""HTML, and what the format of samples reserves, `<region>` say."""

_MARKS = frozenset({"So", "Sk", "Co", "Cn", "Me"})
"""General categories (Unicode 15, table 4-4) of emoji and other pictures, skin tones, keycaps and unassigned code."""

_ARTICLES = frozenset({"a", "an", "the"})


def plain_text(text: str) -> tuple[str, list[int]]:
    """The words of a text, and for each character of them where it stands in the text.

    Marks and tags become a blank, invisible characters (joiners, soft hyphens, variation selectors) nothing, and runs
    of white space one blank. What stands for a noun ("a 🐕 runs") stays: without it the verb would be taken for one.
    """
    kept: list[tuple[str, int]] = []
    last_word = ""
    dropped = {at for tag in _TAG.finditer(text) for at in range(*tag.span())}
    dropped |= {at for at, char in enumerate(text) if unicodedata.category(char) in _MARKS and not char.isascii()}
    for word in re.finditer(r"\S+", text):
        seen = [(text[at], at) for at in range(*word.span()) if not _is_invisible(text[at])]
        plain = [(" " if at in dropped else char, at) for char, at in seen]
        is_noun = last_word in _ARTICLES and all(char == " " for char, _ in plain)
        kept += seen if is_noun else plain
        kept.append((" ", word.end()))
        last_word = word.group().lower()
    single = [kept[i] for i in range(len(kept)) if kept[i][0] != " " or (i and kept[i - 1][0] != " ")]
    if single and single[-1][0] == " ":
        single.pop()
    return "".join(char for char, _ in single), [at for _, at in single]


def _is_invisible(char: str) -> bool:
    return unicodedata.category(char) == "Cf" or "\ufe00" <= char <= "\ufe0f"
