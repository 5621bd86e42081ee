import math
from collections.abc import Sequence

import pytest
import torch

from agents.engines.grounding_dino import GroundingDinoConfig
from agents.engines.torch_run import CheckpointConfig, Halving, placement


class Crowded(torch.nn.Module):
    """Doubles its input, where there is room for a batch of it."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.tried = room, list[int]()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.tried.append(len(batch))
        if len(batch) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return batch * 2


@pytest.mark.parametrize(("batch_size", "room"), [(8, 8), (8, 7), (8, 3), (8, 1), (5, 2), (1, 1), (64, 6)])
def test_out_of_memory_halves_the_batch_and_no_item_is_lost_or_run_again(batch_size: int, room: int) -> None:
    items = torch.arange(19.0)
    model = Crowded(room)
    halving = Halving(batch_size)
    assert torch.equal(torch.cat(list(halving.batches(items, model))), items * 2)
    done = [size for size in model.tried if size <= room]
    assert sum(done) == len(items)
    assert len(model.tried) - len(done) <= math.log2(batch_size) + 1
    assert max(done) > min(room, batch_size, len(items)) / 2  # no more is given up than must be


def test_the_halved_size_is_kept_for_the_next_items() -> None:
    model = Crowded(room=2)
    halving = Halving(8)
    list(halving.batches(torch.zeros(8), model))
    assert halving.batch_size == 2
    model.tried.clear()
    list(halving.batches(torch.zeros(6), model))
    assert model.tried == [2, 2, 2]


def test_an_item_that_does_not_fit_alone_is_an_error_after_what_fitted() -> None:
    def run(batch: Sequence[int]) -> list[int]:
        if 3 in batch:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return list(batch)

    batches = Halving(4).batches([0, 1, 2, 3, 4], run)
    assert [next(batches), next(batches)] == [[0, 1], [2]]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        next(batches)


def test_other_errors_pass() -> None:
    def run(batch: Sequence[int]) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Halving(4).batches([0, 1], run))


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_what_a_label_says_of_the_number_format_holds_on_every_device(
    dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CheckpointConfig.model_validate({"model": "m"} | ({"dtype": dtype} if dtype else {}))
    named = getattr(torch, config.shaping()["dtype"])
    for on_cuda in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda on_cuda=on_cuda: on_cuda)
        assert placement(config) == (torch.device("cuda" if on_cuda else "cpu"), named)


def test_what_is_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert placement(CheckpointConfig(model="m", device="cpu")) == (torch.device("cpu"), torch.float32)
    config = CheckpointConfig(model="m", device="cuda:1", dtype="float32")
    assert placement(config) == (torch.device("cuda:1"), torch.float32)


def test_where_a_model_lies_and_in_which_batches_it_runs_is_no_part_of_what_shapes_its_output() -> None:
    one = GroundingDinoConfig(model="a", device="cpu", frames_per_batch=1)
    assert one.shaping() == GroundingDinoConfig(model="b", device="cuda:1", frames_per_batch=9).shaping()
    assert one.shaping() != GroundingDinoConfig(model="a", min_score=0.2).shaping()
    assert one.shaping() != GroundingDinoConfig(model="a", dtype="bfloat16").shaping()
