"""Which item stands at each position of training: a pure function, so that one step number is all that is resumed.

An epoch takes every source `weight` times over (a fraction: the rest follows in later epochs), spread evenly. Within a
source, row groups are permuted, and rows are shuffled within windows of several groups, so that a reader that keeps a
window's groups reads each once.
"""

import bisect
import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_BLOCK = 1024
"""About so many positions are shuffled among sources at a time."""
_WINDOW_GROUPS = 8


class Part(NamedTuple):
    """A source as the order sees it: rows of each of its groups, read together, and how often an epoch takes each."""

    groups: tuple[int, ...]
    weight: float = 1.0

    @property
    def size(self) -> int:
        """Rows in all."""
        return sum(self.groups)


class Place(NamedTuple):
    """Row `row` of source number `source`, taken for time number `epoch` (from 0)."""

    source: int
    row: int
    epoch: int


class Order:
    """An endless sequence of places: `place(p)` for p from 0 on, the same in every process for the same arguments.

    `num_positions` make one epoch. A look-up costs microseconds wherever it falls.
    """

    def __init__(self, parts: Sequence[Part], seed: int, window_groups: int = _WINDOW_GROUPS) -> None:
        if not parts:
            raise ValueError("an order needs at least one source, got none")
        for number, part in enumerate(parts):
            if min(part.groups, default=0) < 1 or not part.weight > 0:
                raise ValueError(f"source {number} needs rows and a weight above 0, got {part.size}, {part.weight}")
        self._seed = seed
        self._window_groups = window_groups
        self._parts = tuple(parts)
        self._takes = tuple(max(1, round(part.weight * part.size)) for part in parts)
        self.num_positions = sum(self._takes)
        self._num_blocks = -(-self.num_positions // _BLOCK)
        self._block_sources = functools.lru_cache(8)(self._shuffled_sources)
        self._group_order = functools.lru_cache(4 * len(parts))(self._permuted_groups)
        self._window = functools.lru_cache(4 * len(parts))(self._shuffled_window)

    def __reduce__(self) -> tuple[type["Order"], tuple[tuple[Part, ...], int, int]]:
        return Order, (self._parts, self._seed, self._window_groups)

    def place(self, position: int) -> Place:
        """What stands at a position; raises ValueError for one below 0."""
        if position < 0:
            raise ValueError(f"positions begin at 0, got {position}")
        epoch, within = divmod(position, self.num_positions)
        block = bisect.bisect_right(range(self._num_blocks), within, key=self._block_start) - 1
        sources, ranks = self._block_sources(epoch, block)
        at = within - self._block_start(block)
        source = int(sources[at])
        before = epoch * self._takes[source] + self._taken(source, block)
        source_epoch, ordinal = divmod(before + int(ranks[at]), self._parts[source].size)
        return Place(source, self._row(source, source_epoch, ordinal), source_epoch)

    def _taken(self, source: int, block: int) -> int:
        """Rows of a source in an epoch's blocks before this one."""
        return self._takes[source] * block // self._num_blocks

    def _block_start(self, block: int) -> int:
        return sum(self._taken(source, block) for source in range(len(self._parts)))

    def _shuffled_sources(self, epoch: int, block: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The source at each position of a block, and its how manieth there."""
        number = range(len(self._parts))
        counts = [self._taken(source, block + 1) - self._taken(source, block) for source in number]
        sources = self._rng("mix", epoch, block).permutation(np.repeat(np.arange(len(counts)), counts))
        ranks = np.empty(len(sources), np.int64)
        for source, count in enumerate(counts):
            ranks[sources == source] = np.arange(count)
        return sources, ranks

    def _row(self, source: int, epoch: int, ordinal: int) -> int:
        """The row that comes as number `ordinal` of one pass through a source."""
        _, ends = self._group_order(source, epoch)
        group = int(np.searchsorted(ends, ordinal, side="right"))
        window = group // self._window_groups
        first = window * self._window_groups
        start = int(ends[first - 1]) if first else 0
        return int(self._window(source, epoch, window)[ordinal - start])

    def _permuted_groups(self, source: int, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The groups in the order of one pass, and how many rows have come at the end of each."""
        sizes = np.array(self._parts[source].groups, np.int64)
        groups = self._rng("groups", source, epoch).permutation(len(sizes))
        return groups, np.cumsum(sizes[groups])

    def _shuffled_window(self, source: int, epoch: int, window: int) -> npt.NDArray[np.int64]:
        sizes = np.array(self._parts[source].groups, np.int64)
        starts = np.cumsum(sizes) - sizes
        groups, _ = self._group_order(source, epoch)
        chosen = groups[window * self._window_groups : (window + 1) * self._window_groups]
        rows = np.concatenate([np.arange(starts[group], starts[group] + sizes[group]) for group in chosen])
        return self._rng("window", source, epoch, window).permutation(rows)

    def _rng(self, *key: str | int) -> np.random.Generator:
        digest = hashlib.sha256(repr((self._seed, *key)).encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, np.uint32))


def local_positions(step: int, global_batch: int, rank: int, world_size: int) -> range:
    """The positions that one rank takes in an optimiser step: its slice of the step's, which do not depend on ranks.

    Raises ValueError where the ranks do not divide the global batch.
    """
    if global_batch % world_size or not 0 <= rank < world_size:
        raise ValueError(f"{world_size} ranks must divide the global batch of {global_batch}, and rank {rank} be one")
    share = global_batch // world_size
    first = step * global_batch + rank * share
    return range(first, first + share)
