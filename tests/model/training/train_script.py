"""One rank of a training run for the tests: `train_script.py JOB.json RANK`, several of which make a group.

The job names a model's folder, micro-batches by their size, settings, the run's folder, the number of ranks and, to die
as by kill -9, `die_at_step`. Rank 0 leaves whole weights in `weights.pt` and what `fit` gave in `result.json`.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from model.modeling import VideoReferForConditionalGeneration
from model.training.export import whole_state
from model.training.feed import MicroBatch
from model.training.loop import fit
from model.training.metrics import StepMetrics
from model.training.settings import TrainSettings


class Saved:
    """Micro-batches from a file, around and around: those of one step lie together, rank after rank."""

    def __init__(self, batches: list[MicroBatch], rank: int, accumulation: int, per_step: int) -> None:
        self.batches, self.num_samples = batches, sum(batch.num_samples + batch.num_bad for batch in batches)
        self.rank, self.accumulation, self.per_step = rank, accumulation, per_step

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        while True:
            first = step * self.per_step + self.rank * self.accumulation
            for place in range(first, first + self.accumulation):
                yield self.batches[place % len(self.batches)]
            step += 1


def main() -> None:
    job, rank = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    torch.set_num_threads(1)
    run_dir, world = Path(job["run_dir"]), job["world"]
    settings = TrainSettings.model_validate(job["settings"])
    dist.init_process_group("gloo", init_method=f"file://{job['store']}", rank=rank, world_size=world)
    model = VideoReferForConditionalGeneration.from_pretrained(job["model"])
    stored = torch.load(job["batches"], weights_only=False)[settings.micro_batch_size]
    accumulation = settings.accumulation(world)
    loader = Saved(stored, rank, accumulation, accumulation * world)

    def report(metrics: StepMetrics) -> None:
        if metrics.step == job.get("die_at_step"):
            os.kill(os.getpid(), signal.SIGKILL)

    result = fit(model, loader, settings, run_dir, report, lambda: False)
    weights = whole_state(model)
    if rank == 0:
        torch.save(weights, run_dir / "weights.pt")
        (run_dir / "result.json").write_text(result.progress.model_dump_json())
    dist.barrier()
    dist.destroy_process_group()


main()
