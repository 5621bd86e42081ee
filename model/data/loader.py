"""Micro-batches of one rank, made by worker processes; bad samples are counted, named and left out, never replaced.

Nothing is kept between steps but a step's number: position, item and draw follow from it.
"""

import collections
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from infra.raw_rows import one_line
from infra.video import VideoError
from model.data.item import BadItemError
from model.data.order import Order, Part, local_positions
from model.data.scene import FrameReader, SceneConfig, read_plainly, request_of
from model.data.sources import Source
from model.request import Request, RequestError
from model.training.feed import MicroBatch

E = TypeVar("E")

_EXAMPLES = 5


class Encoder(Protocol[E]):
    """What is needed of `model.processing.VideoReferProcessor`."""

    def encode(self, request: Request, with_labels: bool) -> E: ...  # noqa: D102 - told by the class

    def collate(  # noqa: D102 - told by the class
        self, samples: Sequence[E], /, padding_side: Literal["left", "right"]
    ) -> Mapping[str, Any]: ...


class BadItem(NamedTuple):
    """A sample that was left out: `reason` is one word, `said` what was found."""

    item_id: str
    source: str
    reason: str
    said: str


class TooManyBadError(RuntimeError):
    """More samples were bad than a run may pass over."""


class BadBudget:
    """Counts a rank's samples and stops the run once more than `max_share` were bad, `min_bad` of them at least.

    `by_reason` counts the bad ones.
    """

    def __init__(self, max_share: float, min_bad: int = 10) -> None:
        self._max_share, self._min_bad = max_share, min_bad
        self.num_seen = 0
        self.by_reason: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, list[BadItem]] = {}

    @property
    def num_bad(self) -> int:
        """Bad samples so far."""
        return self.by_reason.total()

    def take(self, num_seen: int, bad: Sequence[BadItem]) -> None:
        """Count some samples, of which some were bad. Raises TooManyBadError."""
        self.num_seen += num_seen
        for one in bad:
            self.by_reason[one.reason] += 1
            examples = self._examples.setdefault(one.reason, [])
            if len(examples) < _EXAMPLES:
                examples.append(one)
        if self.num_bad >= self._min_bad and self.num_bad > self._max_share * self.num_seen:
            raise TooManyBadError(self._what_to_do())

    def _what_to_do(self) -> str:
        lines = [f"{self.num_bad} of {self.num_seen} samples were bad; at most {self._max_share:.1%} may be"]
        for reason, count in self.by_reason.most_common():
            lines.append(f"{reason}: {count}, such as")
            lines += [f"  {one.source}, {one.item_id}: {one.said}" for one in self._examples[reason]]
        lines.append("mend these rows or give the root that holds their files; or allow more with max_bad_share")
        return "\n".join(lines)


class LoaderConfig(NamedTuple):
    """How one rank loads: its slice of `global_batch` samples a step, `micro_batch` at a time.

    `num_workers` processes decode, each with one thread and `prefetch` micro-batches ahead; 0 decodes in the caller.
    They are started by `start_method`: the default shares nothing with the caller's threads, "fork" starts sooner.
    """

    global_batch: int
    micro_batch: int
    seed: int
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    prefetch: int = 2
    max_bad_share: float = 0.01
    min_bad: int = 10
    start_method: Literal["forkserver", "spawn", "fork"] = "forkserver"


class DataFeed:
    """A `model.training.feed.Loader` over weighted sources.

    `budget` counts bad samples, `bad` holds those of the micro-batch given last, and `waited_s` is how long it was
    waited for. The same `seed`, sources and weights give the same samples to a step, whatever the number of ranks.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, float]],
        encoder: Encoder[Any],
        scene: SceneConfig,
        config: LoaderConfig,
        reader: FrameReader = read_plainly,
    ) -> None:
        share = len(local_positions(0, config.global_batch, config.rank, config.world_size))
        if config.micro_batch < 1 or share % config.micro_batch:
            raise ValueError(f"micro-batches of {config.micro_batch} must divide a rank's {share} samples a step")
        self._order = Order([Part(source.groups, weight) for source, weight in sources], config.seed)
        self._samples = _Samples([source for source, _ in sources], self._order, encoder, scene, config.seed, reader)
        self._config = config
        self.budget = BadBudget(config.max_bad_share, config.min_bad)
        self.bad: tuple[BadItem, ...] = ()
        self.waited_s = 0.0

    @property
    def num_samples(self) -> int:
        """Samples of one epoch over all ranks."""
        return self._order.num_positions

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """What this rank gets from optimiser step `step` on, without end. Raises TooManyBadError."""
        config = self._config
        context = multiprocessing.get_context(config.start_method) if config.num_workers else None
        if config.start_method == "forkserver" and context is not None:
            context.set_forkserver_preload([__name__, type(self._samples.encoder).__module__])  # once, not per worker
        loader: DataLoader[Any] = DataLoader(
            self._samples,
            batch_sampler=_Positions(step, config),
            collate_fn=_Collate(self._samples.encoder.collate),
            num_workers=config.num_workers,
            prefetch_factor=config.prefetch if config.num_workers else None,
            multiprocessing_context=context,
            generator=torch.Generator(),  # its own, or starting a loader would move the caller's chance on
            worker_init_fn=_with_one_thread if config.num_workers else None,
        )
        batches = iter(loader)
        while True:
            start = time.monotonic()
            inputs, num_good, bad = next(batches)
            self.waited_s, self.bad = time.monotonic() - start, bad
            self.budget.take(num_good + len(bad), bad)
            yield MicroBatch(inputs, num_good, len(bad))


class _Samples(Dataset[Any]):
    """Encoded samples by position; a bad one comes as a BadItem."""

    def __init__(
        self,
        sources: Sequence[Source],
        order: Order,
        encoder: Encoder[Any],
        scene: SceneConfig,
        seed: int,
        reader: FrameReader,
    ) -> None:
        self._sources, self._order, self.encoder = sources, order, encoder
        self._scene, self._seed, self._reader = scene, seed, reader

    def __getitem__(self, position: int) -> Any:
        place = self._order.place(position)
        source = self._sources[place.source]
        item_id = f"row {place.row}"
        try:
            item = source.item(place.row)
            item_id = item.item_id
            request = request_of(item, source.root, self._scene, self._seed, place.epoch, self._reader)
            return self.encoder.encode(request, with_labels=True)
        except (BadItemError, VideoError, RequestError) as error:
            return BadItem(item_id, source.name, error.reason, one_line(error))


class _Positions:
    """The positions of each micro-batch, from a step on, without end."""

    def __init__(self, step: int, config: LoaderConfig) -> None:
        self._step, self._config = step, config

    def __iter__(self) -> Iterator[list[int]]:
        config = self._config
        for step in itertools.count(self._step):
            positions = local_positions(step, config.global_batch, config.rank, config.world_size)
            for first in range(0, len(positions), config.micro_batch):
                yield list(positions[first : first + config.micro_batch])


class _Collate:
    """Puts what is good of some samples together; None where nothing is."""

    def __init__(self, collate: Callable[..., Mapping[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, samples: Sequence[Any]) -> tuple[dict[str, Tensor] | None, int, tuple[BadItem, ...]]:
        good = [sample for sample in samples if not isinstance(sample, BadItem)]
        bad = tuple(sample for sample in samples if isinstance(sample, BadItem))
        return (dict(self._collate(good, padding_side="right")) if good else None), len(good), bad


def _with_one_thread(_worker: int) -> None:
    cv2.setNumThreads(1)  # torch sets itself to one thread in a worker
