"""Micro-batches of one rank, made by worker processes; bad samples are counted, named and left out, never replaced.

Nothing is kept between steps but a step's number: position, item and draw follow from it.
"""

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
from model.training.feed import BadItem, MicroBatch

E = TypeVar("E")


class Encoder(Protocol[E]):
    """What is needed of `model.processing.VideoReferProcessor`."""

    def encode(self, request: Request, with_labels: bool) -> E: ...  # noqa: D102 - told by the class

    def collate(  # noqa: D102 - told by the class
        self, samples: Sequence[E], /, padding_side: Literal["left", "right"]
    ) -> Mapping[str, Any]: ...


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
    start_method: Literal["forkserver", "spawn", "fork"] = "forkserver"


class DataFeed:
    """A `model.training.feed.Loader` over weighted sources.

    `bad` holds the bad samples of the micro-batch given last, and `waited_s` is how long it was waited for. The same
    `seed`, sources and weights give the same samples to a step, whatever the number of ranks.
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
        self.bad: tuple[BadItem, ...] = ()
        self.waited_s = 0.0

    @property
    def num_samples(self) -> int:
        """Samples of one epoch over all ranks."""
        return self._order.num_positions

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """What this rank gets from optimiser step `step` on, without end."""
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
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own, or starting a loader would move the caller's chance on
            worker_init_fn=_with_one_thread if config.num_workers else None,
        )
        batches = iter(loader)
        while True:
            start = time.monotonic()
            inputs, num_good, bad = next(batches)
            self.waited_s, self.bad = time.monotonic() - start, bad
            yield MicroBatch(inputs, num_good, len(bad), bad)


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
