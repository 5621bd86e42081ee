"""Evidence of failures, fit to be kept: two processes that fail alike say the same."""

import re

_VARYING = (
    (re.compile(r'File "[^"]*?([^"/]+/[^"/]+)"'), r'File "\1"'),  # where a program is installed tells nothing
    (re.compile(r"\b0x[0-9a-fA-F]+\b"), "0x…"),
    (re.compile(r"\bsession_\d[\d_-]+"), "session_…"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[ T_]\d\d[:-]\d\d[:-]\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"), "…"),
    (re.compile(r"(?<= [IWEF]) \d+ \d+(?=\])"), " …"),  # glog: process and thread
    (re.compile(r"(?<= received at time=)\d+ on cpu \d+"), "… on cpu …"),  # Abseil's line of a fatal signal
    (re.compile(r"(?<= PID )\d+\b"), "…"),  # glog's
    (re.compile(r"\b(pid|ip|port)(\s*[=:]\s*)[\d.:]*\d\b"), r"\1\2…"),  # Ray's
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"), "…"),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "…"),
    (re.compile(r"\b[0-9a-f]{32,56}\b"), "…"),  # Ray's ids; ours are of 16 digits, a SHA-256 of 64
)


def steady(text: str) -> str:
    """The text with `…` for what differs from one process to the next: addresses in memory and on the network, process
    ids, times of day, folders of an installation or session, random ids.

    Figures that an agent gives, line numbers, clip ids and SHA-256 sums stay.
    """
    for pattern, instead in _VARYING:
        text = pattern.sub(instead, text)
    return text
