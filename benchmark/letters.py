"""Which option an answer names, by the rule of the official Bench-Q scorer (`eval_videorefer_bench_q.py`).

The letter is the X of the first `(X)` anywhere in the answer, else that of the first `X)`, X being a capital A to Z;
else the first character that is no full stop. Case is ignored only when letters are compared: "b." is B, but "(b)"
names "(" and "The answer is C" names T, both wrong. No kinder rule stands beside it, so that figures can be compared.

It differs in one thing: the official scorer stops at an answer without any such character (empty, full stops alone,
no text at all); here such an answer is unparsed, which is None, and its item counts as wrong.
"""

import re
import string
from collections.abc import Sequence

_IN_BRACKETS = re.compile(r"\(([A-Z])\)")
_BEFORE_BRACKET = re.compile(r"([A-Z])\)")


def official_letter(pred: str | None) -> str | None:
    """The letter that an answer names, as a capital; another character as it stands; None where it is unparsed."""
    if pred is None:
        return None
    found = _IN_BRACKETS.search(pred) or _BEFORE_BRACKET.search(pred)
    if found:
        return found[1]
    first = pred.replace(".", "")[:1]
    return _capital(first) if first else None


def reference_letter(answer: str) -> str:
    """The letter of a reference such as "(A) A helmet", or of a bare "A"; raises ValueError for any other text."""
    found = _IN_BRACKETS.search(answer)
    letter = found[1] if found else _capital(answer)
    if len(letter) != 1 or letter not in string.ascii_uppercase:
        raise ValueError(f"the answer {answer[:80]!r} names no option; allowed is one like '(A) A helmet'")
    return letter


def option_letters(options: Sequence[str]) -> tuple[str, ...]:
    """The letters of options like "(A) A helmet", in order; raises ValueError where one has none or two agree."""
    found = [(option, _IN_BRACKETS.search(option)) for option in options]
    without = [option for option, match in found if match is None]
    if without:
        raise ValueError(f"the option {without[0][:80]!r} has no letter; allowed are options like '(A) A helmet'")
    letters = tuple(match[1] for _, match in found if match)
    if len(set(letters)) < len(letters):
        raise ValueError(f"the options have the letters {', '.join(letters)}; each may stand once")
    return letters


def _capital(text: str) -> str:
    """The capital of a single letter as the official comparison sees it; any other text as it stands."""
    small = text.lower()  # folded down, not up: capitals of some foreign letters are ASCII
    return small.upper() if len(small) == 1 and small in string.ascii_lowercase else text
