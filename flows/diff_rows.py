"""Samples of two builds side by side, without their masks: which row of the one is which of the other.

Ids are hashes of everything that made a sample, so they change with its row. What stays is its place: the source row,
the kind, the type of question and the nouns spoken of, in order. Within a place two samples are the same one if their
ids are equal, else if their whole text is, else the question, else the answer; what then is left of captions is paired
in the order of time. A question of which neither the question nor the answer stayed is another one.
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from infra.builds import read_columns
from infra.lake import Lake
from schemas.sample import Kind

_TEXT = "conversations"
_COLUMNS = (
    "sample_id", "kind", "qa_type", "split", "clip_id", "source_id", "video", "license", "start_s", "end_s",
    "visible_until_s", _TEXT, "objects.list.element.object_id", "objects.list.element.noun",
)  # fmt: skip


class TextRow(NamedTuple):
    """A sample without masks and, to be held by the million, without its text: `facts`, `question` and `answer` are
    hashes that mean something in this process only.
    """

    sample_id: str
    clip_id: str
    source_id: str
    kind: Kind
    qa_type: str
    nouns: tuple[str, ...]
    start_s: float
    facts: int
    question: int
    answer: int

    @property
    def content(self) -> tuple[int, int, int]:
        """Equal where nothing that is compared differs."""
        return self.facts, self.question, self.answer


class Pair(NamedTuple):
    """One sample in the old build and in the new; None where it is not there, never both."""

    old: TextRow | None
    new: TextRow | None

    @property
    def row(self) -> TextRow:
        """The sample in the build that has it, the new one if both do."""
        row = self.new or self.old
        assert row is not None
        return row


def rows_of(lake: Lake, build_id: str, kind: Kind) -> Iterator[TextRow]:
    """The samples of one kind in the order of their clips, one row group in memory at a time."""
    for table in read_columns(lake, build_id, kind, _COLUMNS):
        for row in table.to_pylist():
            yield TextRow(
                sample_id=row["sample_id"],
                clip_id=row["clip_id"],
                source_id=row["source_id"],
                kind=kind,
                qa_type=row["qa_type"],
                nouns=tuple(item["noun"] for item in row["objects"]),
                start_s=row["start_s"],
                facts=hash(tuple(row[name] for name in ("split", "video", "license", "start_s", "end_s"))),
                question=hash(_said_by("human", row)),
                answer=hash((_said_by("gpt", row), row["visible_until_s"])),
            )


def text_of(lake: Lake, build_id: str, rows: Iterable[TextRow]) -> dict[str, tuple[str, str]]:
    """Question and answer of some samples, by sample id."""
    wanted: dict[Kind, set[str]] = defaultdict(set)
    clips: dict[Kind, set[str]] = defaultdict(set)
    for row in rows:
        wanted[row.kind].add(row.sample_id)
        clips[row.kind].add(row.clip_id)
    return {
        row["sample_id"]: (_said_by("human", row), _said_by("gpt", row))
        for kind, sample_ids in wanted.items()
        for table in read_columns(lake, build_id, kind, ("sample_id", _TEXT), frozenset(clips[kind]))
        for row in table.to_pylist()
        if row["sample_id"] in sample_ids
    }


def side_by_side(old: Iterable[TextRow], new: Iterable[TextRow]) -> Iterator[tuple[str, list[TextRow], list[TextRow]]]:
    """Clip by clip, what each of two builds has of it; both must come in the order of their clips, as they rest."""
    both = heapq.merge(
        ((row.clip_id, 0, row) for row in old), ((row.clip_id, 1, row) for row in new), key=itemgetter(0)
    )
    for clip_id, group in groupby(both, key=itemgetter(0)):
        sides: tuple[list[TextRow], list[TextRow]] = ([], [])
        for _, side, row in group:
            sides[side].append(row)
        yield clip_id, *sides


def paired(old: Sequence[TextRow], new: Sequence[TextRow]) -> Iterator[Pair]:
    """Every sample of both once, the same ones together; see the top of this file for what that means."""
    rest_old = sorted(old, key=_in_time)
    rest_new = sorted(new, key=_in_time)
    for key in _KEYS:
        found, rest_old, rest_new = _matched(rest_old, rest_new, key)
        yield from found
    yield from (Pair(row, None) for row in rest_old)
    yield from (Pair(None, row) for row in rest_new)


def _matched(
    old: list[TextRow], new: list[TextRow], key: Callable[[TextRow], Hashable]
) -> tuple[list[Pair], list[TextRow], list[TextRow]]:
    waiting: dict[Hashable, deque[TextRow]] = defaultdict(deque)
    for row in old:
        waiting[key(row)].append(row)
    pairs: list[Pair] = []
    rest: list[TextRow] = []
    for row in new:
        same = waiting[key(row)]
        if same:
            pairs.append(Pair(same.popleft(), row))
        else:
            rest.append(row)
    left = {row.sample_id for rows in waiting.values() for row in rows}
    return pairs, [row for row in old if row.sample_id in left], rest


def _place(row: TextRow) -> tuple[Hashable, ...]:
    return row.source_id, row.kind, row.qa_type, row.nouns


_KEYS: tuple[Callable[[TextRow], Hashable], ...] = (
    lambda row: row.sample_id,
    lambda row: (_place(row), row.content),
    lambda row: (_place(row), row.question),
    lambda row: (_place(row), row.answer),
    lambda row: (_place(row), row.sample_id if row.kind == "qa" else None),
)


def _in_time(row: TextRow) -> tuple[float, str]:
    return row.start_s, row.sample_id


def _said_by(speaker: str, row: dict[str, Any]) -> str:
    return "\n".join(turn["value"] for turn in row[_TEXT] if turn["from"] == speaker)
