"""What ranks leave for their driver: bad samples by name, and how they failed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError

from flows.train_plan import _bad_counts
from flows.train_rank import BAD_FOLDER, _NamedBad
from flows.train_workers import _failure
from model.training.checkpoint import CheckpointError
from model.training.feed import BadItem, MicroBatch


class Feed:
    """One bad sample in each micro-batch."""

    num_samples = 10

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        while True:
            yield MicroBatch(None, 0, 1, (BadItem(f"s{step}", "rows.json", "bad_mask", "é"),))
            step += 1


def test_bad_samples_are_on_disk_before_the_loop_counts_them(tmp_path: Path) -> None:
    batches = _NamedBad(Feed(), tmp_path, rank=0).micro_batches(3)
    next(batches)
    (count,) = _bad_counts(tmp_path)
    assert (count.reason, count.n, count.examples) == ("bad_mask", 1, ("rows.json, s3: é",))


def test_half_a_line_of_a_killed_rank_is_passed_over(tmp_path: Path) -> None:
    next(_NamedBad(Feed(), tmp_path, rank=0).micro_batches(0))
    path = tmp_path / BAD_FOLDER / "rank-0.jsonl"
    path.write_bytes(path.read_bytes() + '{"item_id": "s1", "said": "é'.encode()[:-1])
    next(_NamedBad(Feed(), tmp_path, rank=0).micro_batches(2))
    assert [count.examples for count in _bad_counts(tmp_path)] == [("rows.json, s0: é", "rows.json, s2: é")]


GLOO = "[pair.cc:534] Connection closed by peer [127.0.0.1]:40001"


@pytest.mark.parametrize(
    ("error", "is_alone", "how"),
    [
        (ActorDiedError(), False, "died"),
        (ActorDiedError(), True, "died"),
        (RuntimeError(GLOO), False, "died"),
        (RuntimeError(GLOO), True, "raised"),
        (RuntimeError("NCCL communicator was aborted on rank 1"), False, "died"),
        (dist.DistBackendError("watchdog"), False, "died"),
        (dist.DistNetworkError("the client socket has failed"), False, "died"),
        (torch.OutOfMemoryError("CUDA out of memory"), False, "raised"),
        (RuntimeError("size mismatch for connector.readout.0.weight"), False, "raised"),
        (CheckpointError(f"could not write: {GLOO}"), False, "raised"),
        (ValueError("Socket"), False, "raised"),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Any, is_alone: bool, how: str) -> None:
    assert _failure(1, error, is_alone).how == how
