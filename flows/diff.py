"""What changed between two builds of a lake, sample by sample, and which change did it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, zip_longest
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.diff_causes import AgentChange, Causes
from flows.diff_rows import Pair, TextRow, paired, rows_of, side_by_side, text_of
from infra.builds import KINDS, Manifest, chosen_manifest, list_builds, read_manifest
from infra.lake import Lake, LakeError
from schemas.record import Record
from schemas.sample import Kind

Change = Literal["added", "changed", "dropped"]

_Loose = dict[tuple[Kind, str], tuple[list[TextRow], list[TextRow]]]
"""By kind and source row, samples of clips that only the old build has, and of those that only the new one has."""


class RowCount(Record):
    """How many rows of the source were added, removed or changed, and how."""

    change: str
    n: int


class DiffCount(Record):
    """How many samples of a kind were added, changed or dropped because of one change."""

    change: Change
    kind: Kind
    cause: str
    n: int


class DiffExample(Record):
    """One such sample: question and answer, None in the build that does not have it."""

    change: Change
    kind: Kind
    qa_type: str
    cause: str
    source_id: str
    nouns: tuple[str, ...]
    old_id: str | None
    new_id: str | None
    old: tuple[str, str] | None
    new: tuple[str, str] | None


class Diff(Record):
    """Two builds compared. Masks are not: `unchanged` samples ask and say the same of the same nouns."""

    old_build: str
    new_build: str
    agents: tuple[AgentChange, ...]
    rows: tuple[RowCount, ...]
    unchanged: int
    counts: tuple[DiffCount, ...]
    examples: tuple[DiffExample, ...]

    def summary(self) -> list[str]:
        """What differs, in three lines."""
        agents = ", ".join(change.describe() for change in self.agents)
        rows = ", ".join(f"{count.change} {count.n:,}" for count in self.rows)
        num: Counter[Change] = Counter()
        for count in self.counts:
            num[count.change] += count.n
        said = ", ".join(f"{num[change]:,} {change}" for change in ("added", "changed", "dropped"))
        return [
            f"agents:  {agents or 'the same'}",
            f"source:  {rows or 'the same clips'}",
            f"samples: {said}, {self.unchanged:,} unchanged",
        ]


def two_builds(lake: Lake, old: str | None, new: str | None) -> tuple[Manifest, Manifest]:
    """The builds meant: `new` is the latest if not named, `old` the one that was made before it.

    Raises LakeError where there are no two.
    """
    after = chosen_manifest(lake, new)
    if old is not None:
        return read_manifest(lake, old), after
    builds = list_builds(lake)
    before = builds[: [manifest.build_id for manifest in builds].index(after.build_id)]
    if not before:
        raise LakeError(
            f"the lake {lake.root} has no build from before {after.build_id}; `videorefer status --lake ...` lists "
            "those it has, and any two can be named"
        )
    return before[-1], after


def compare(lake: Lake, old: Manifest, new: Manifest, num_examples: int) -> Diff:
    """What became of every sample, and why.

    Shards are walked in step, text columns alone; what is held in memory are ids, and rows of clips that only one of
    the builds has. The cause is the first of: the source row came, went or changed; an agent failed on the clip in one
    of the builds; an agent's label changed, in the order of the chain.
    """
    why = Causes(lake, old, new)
    tally = _Tally(num_examples)
    loose: _Loose = defaultdict(lambda: ([], []))
    for kind in KINDS:
        walk = side_by_side(rows_of(lake, old.build_id, kind), rows_of(lake, new.build_id, kind))
        for clip_id, old_rows, new_rows in walk:
            if why.both_have(clip_id):
                tally.add(paired(old_rows, new_rows), why.of_same_clip)
            else:
                place = loose[kind, (old_rows or new_rows)[0].source_id]
                place[0].extend(old_rows)
                place[1].extend(new_rows)
    for old_rows, new_rows in loose.values():
        tally.add(paired(old_rows, new_rows), why.of_row)
    counts = sorted(tally.counts.items(), key=lambda item: (item[0][0], -item[1], item[0]))
    return Diff(
        old_build=old.build_id,
        new_build=new.build_id,
        agents=why.agents,
        rows=tuple(RowCount(change=change, n=n) for change, n in why.row_counts()),
        unchanged=tally.unchanged,
        counts=tuple(DiffCount(change=change, kind=kind, cause=cause, n=n) for (change, kind, cause), n in counts),
        examples=tuple(_examples(lake, old.build_id, new.build_id, tally.spread())),
    )


def print_diff(diff: Diff, console: Console) -> None:
    """The summary, a table by change, kind and cause, and the examples."""
    say = partial(console.print, highlight=False, emoji=False, soft_wrap=True)
    say(f"build {diff.old_build} -> {diff.new_build}")
    for line in diff.summary():
        say(escape(line))
    table = Table("samples", "kind", box=None, header_style="dim")
    table.add_column("n", justify="right")
    table.add_column("because of")
    for count in diff.counts:
        table.add_row(count.change, count.kind, f"{count.n:,}", escape(count.cause))
    if diff.counts:
        console.print(table)
    for example in diff.examples:
        kind = example.kind if example.qa_type == "none" else f"{example.kind} {example.qa_type}"
        nouns = ", ".join(example.nouns)
        say(f"\n[bold]{example.change}[/] {kind} of {escape(example.source_id)} ({escape(nouns)}): {example.cause}")
        for mark, text in (("-", example.old), ("+", example.new)):
            for part in text or ():
                say(f"  {mark} {escape(' '.join(part.split()))}")


_Place = tuple[Change, Kind, str]


@dataclass
class _Tally:
    """Counts by change, kind and cause, and the first pairs of each."""

    num_examples: int
    unchanged: int = 0
    counts: Counter[_Place] = field(default_factory=Counter)
    pairs: dict[_Place, list[Pair]] = field(default_factory=lambda: defaultdict(list))

    def add(self, pairs: Iterator[Pair], cause_of: Callable[[Pair], str]) -> None:
        """Take in pairs; those that are equal are only counted."""
        for pair in pairs:
            if pair.old and pair.new and pair.old.content == pair.new.content:
                self.unchanged += 1
                continue
            change: Change = "added" if pair.old is None else "dropped" if pair.new is None else "changed"
            place = (change, pair.row.kind, cause_of(pair))
            self.counts[place] += 1
            if len(self.pairs[place]) < self.num_examples:
                self.pairs[place].append(pair)

    def spread(self) -> list[tuple[_Place, Pair]]:
        """Examples of as many places as there is room for, the most frequent first."""
        places = sorted(self.pairs, key=lambda place: (-self.counts[place], place))
        rounds = zip_longest(*([(place, pair) for pair in self.pairs[place]] for place in places))
        return list(islice((item for round_ in rounds for item in round_ if item), self.num_examples))


def _examples(lake: Lake, old_build: str, new_build: str, chosen: list[tuple[_Place, Pair]]) -> Iterator[DiffExample]:
    old_texts = text_of(lake, old_build, (pair.old for _, pair in chosen if pair.old))
    new_texts = text_of(lake, new_build, (pair.new for _, pair in chosen if pair.new))
    for (change, kind, cause), pair in chosen:
        yield DiffExample(
            change=change,
            kind=kind,
            qa_type=pair.row.qa_type,
            cause=cause,
            source_id=pair.row.source_id,
            nouns=pair.row.nouns,
            old_id=pair.old.sample_id if pair.old else None,
            new_id=pair.new.sample_id if pair.new else None,
            old=old_texts[pair.old.sample_id] if pair.old else None,
            new=new_texts[pair.new.sample_id] if pair.new else None,
        )
