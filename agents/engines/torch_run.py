"""Where torch models run, in which number format, and what is done when a GPU has no room for a batch."""

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import Field

from schemas.record import Record

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


class Sliceable(Protocol):
    """A list, a tuple or an array of items."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> Any: ...


BatchT = TypeVar("BatchT", bound=Sliceable)
OutT = TypeVar("OutT")

_NO_OUTPUT = frozenset(
    {"model", "device", "frames_per_batch", "frames_per_window", "boxes_per_batch", "objects_per_batch"}
)
"""Fields of engines' configurations that say where and how, not what: the folder's content is in the weights' label."""


class CheckpointConfig(Record):
    """Which model folder an engine loads, and where it runs."""

    model: str = Field(min_length=1)
    """A folder that `save_pretrained` wrote, or the hub name of one that the hub's cache on this machine holds."""
    device: str = "auto"
    """`auto` is the GPU that the worker was given, the processor without one; else torch's own name for it."""
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Number format; on a GPU bfloat16 is faster and takes less memory. It does not follow from the device, since it
    shapes the output, whose label is written where no GPU may be.
    """

    def shaping(self) -> dict[str, Any]:
        """What shapes the output, ready for JSON: where the model lies and runs, and in which batches, does not."""
        return self.model_dump(mode="json", exclude=set(_NO_OUTPUT))


def placement(config: CheckpointConfig) -> "tuple[torch.device, torch.dtype]":
    """The device and number format that a configuration means on this machine."""
    import torch

    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name), getattr(torch, config.dtype)


class Halving:
    """Runs items in batches; where CUDA is out of memory the batch is halved, for that item and all that follow.

    The halved size is kept, since the next batch of that size would fail as well. An item that does not fit alone
    raises torch's error.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def batches(self, items: BatchT, run: Callable[[BatchT], OutT]) -> Iterator[OutT]:
        """What `run` made of each batch, in order; the next one is run when it is asked for."""
        import torch

        start = 0
        while start < len(items):
            batch = items[start : start + self.batch_size]
            try:
                result = run(batch)
            except torch.cuda.OutOfMemoryError:
                if len(batch) == 1:
                    raise
            else:
                yield result
                start += len(batch)
                continue
            # only here, as the error being handled held the failed batch's tensors
            torch.cuda.empty_cache()
            self.batch_size = len(batch) // 2
            _log.warning("CUDA out of memory with a batch of %d; going on with %d", len(batch), self.batch_size)
