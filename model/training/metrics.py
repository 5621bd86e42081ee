"""What a run tells while it goes on: one record per logged step, kept as lines of JSON."""

import os
import resource
import time
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError

from model.training.flops import Peak
from schemas.record import Record

METRICS_FILE = "metrics.jsonl"


class StepMetrics(Record):
    """One logged optimiser step, over all ranks.

    `step` counts finished steps, `epoch` passes over the data. `loss` is the mean over the step's answer tokens,
    `grad_norm` the one before clipping; both are None where the step was skipped for not being finite. Rates and shares
    are of the time since the line before: `tokens_per_s` counts text and visual tokens without padding, `data_wait` is
    the share in which rank 0 waited for its loader, `mfu` the share of what the devices could do (`peak` says where
    that figure is from; the formula stands in `model.training.flops`). `memory_peak_bytes` is rank 0's, of the GPU or
    else of the process. `bad_samples` and `skipped_steps` count from the beginning of the run.
    """

    step: int
    num_steps: int
    epoch: float
    loss: float | None
    learning_rate: float
    grad_norm: float | None
    tokens_per_s: float
    samples_per_s: float
    data_wait: float
    mfu: float
    peak: str
    memory_peak_bytes: int
    bad_samples: int
    skipped_steps: int
    eta_s: float


class StepTotals(NamedTuple):
    """What one step took, summed over the ranks."""

    tokens: float
    samples: float
    flops: float


class Meter:
    """Rates since the last reading, from what steps report; wall time of this rank."""

    def __init__(self, peak: Peak, world_size: int) -> None:
        self._peak_flops_per_s = peak.flops_per_s * world_size
        self._begun_s = time.perf_counter()
        self._steps = 0
        self._reset()

    def add(self, step: StepTotals, waited_s: float) -> None:
        """One finished step, and how long its data were waited for."""
        self._steps += 1
        self._waited_s += waited_s
        self._tokens += step.tokens
        self._samples += step.samples
        self._flops += step.flops

    def read(self, steps_left: int) -> dict[str, float]:
        """The rates of `StepMetrics` and the time left at this run's mean pace; begins the next span."""
        now_s = time.perf_counter()
        span_s = now_s - self._since_s
        rates = {
            "tokens_per_s": self._tokens / span_s,
            "samples_per_s": self._samples / span_s,
            "data_wait": min(self._waited_s / span_s, 1.0),
            "mfu": self._flops / span_s / self._peak_flops_per_s,
            "eta_s": (now_s - self._begun_s) / self._steps * steps_left,
        }
        self._reset()
        return rates

    def _reset(self) -> None:
        self._since_s = time.perf_counter()
        self._waited_s = self._tokens = self._samples = self._flops = 0.0


def memory_peak_bytes(device: torch.device) -> int:
    """The most memory used so far: allocated on a GPU, else resident in the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class MetricsLog:
    """Appends to `METRICS_FILE` of a run, whole lines at once, so that another process can follow."""

    def __init__(self, run_dir: Path, last_step: int) -> None:
        path = run_dir / METRICS_FILE
        cut_after(path, last_step)
        self._file = path.open("a", buffering=1)

    def write(self, metrics: StepMetrics) -> None:
        """Adds one line."""
        self._file.write(metrics.model_dump_json() + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def cut_after(path: Path, last_step: int) -> None:
    """Drops lines of steps after `last_step`, which a resumed run does again, and a line that a kill left half done."""
    if not path.exists():
        return
    kept = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n") or _step(line) > last_step:
                break
            kept += len(line)
    os.truncate(path, kept)


def _step(line: bytes) -> float:
    try:
        return StepMetrics.model_validate_json(line).step
    except ValidationError:
        return float("inf")
