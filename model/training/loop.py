"""The training loop of one rank: draw, pass, clip, update, log, checkpoint; and take up where a run was left."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW
from transformers import PreTrainedModel

from model.training.budget import BadTally, too_many_bad
from model.training.checkpoint import (
    CheckpointInfo,
    Progress,
    agreed_checkpoint,
    load_checkpoint,
    read_info,
    save_checkpoint,
)
from model.training.feed import Loader, MicroBatch, answer_tokens, num_tokens, stub_inputs
from model.training.flops import FlopCount, Peak, device_peak
from model.training.metrics import Meter, MetricsLog, StepMetrics, StepTotals, memory_peak_bytes
from model.training.parts import COMPUTE_DTYPE, prepare_parts, trained
from model.training.schedule import cosine_rate
from model.training.settings import TrainSettings
from model.training.sharding import process_group, shard, summed


class TrainingError(RuntimeError):
    """A run that cannot go on: too many bad samples, or no finite gradient for too long."""


class FitResult(NamedTuple):
    """How `fit` ended; `checkpoint` is the newest one, `finished` False where it was told to stop before the end."""

    progress: Progress
    finished: bool
    checkpoint: Path


class _Update(NamedTuple):
    """One update over all ranks; None for both figures where it was skipped for not being finite."""

    loss: float | None
    grad_norm: float | None
    flops: float


def fit(
    model: PreTrainedModel,
    loader: Loader,
    settings: TrainSettings,
    run_dir: Path,
    report: Callable[[StepMetrics], None],
    should_stop: Callable[[], bool],
) -> FitResult:
    """Trains `model` in place until the settings' end, from the newest checkpoint in `run_dir` if there is one.

    Runs in the process group that is there, on each rank with its own `loader` and the same model and folder, or else
    in one of this process alone, whose GPU or CPU it takes. Each rank holds the whole model in the host's memory until
    it is split (4 bytes per trained and 2 per frozen parameter, see `shard`). It comes out split over the ranks, with
    its adapter if there is one (`model.training.export` makes it plain). `report` is called on rank 0 with each logged
    step. `should_stop` is asked before each update on every rank; a True on one makes all write a checkpoint and leave.
    With the same number of ranks, a run that was stopped or killed and taken up again ends with the same bits.

    Raises TrainingError (see `TrainSettings`), CheckpointError (settings that changed, a full disk), ValueError (a
    batch that does not divide, weights that differ between ranks).
    """
    with process_group() as device:
        run = _Run(model, loader, settings, run_dir, device)
        try:
            return run.go(report, should_stop)
        finally:
            run.close()


class _Run:
    """The state of one rank's run."""

    def __init__(
        self, model: PreTrainedModel, loader: Loader, settings: TrainSettings, run_dir: Path, device: torch.device
    ) -> None:
        self.world_size, self.is_first = dist.get_world_size(), dist.get_rank() == 0
        self.accumulation = settings.accumulation(self.world_size)
        self.num_steps = settings.total_steps(loader.num_samples)
        self.model, self.loader, self.settings, self.run_dir, self.device = model, loader, settings, run_dir, device
        prepare_parts(model, settings)
        torch.manual_seed(settings.seed + dist.get_rank())
        self.flops = FlopCount(model)
        shard(model, settings, device)
        self.parameters = [parameter for _, parameter in trained(model)]
        self.optimiser = AdamW(self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.progress = Progress()
        self.bad = BadTally()
        self.checkpoint: Path | None = None
        self._resume()
        self.log = MetricsLog(run_dir, self.progress.step) if self.is_first else None

    def close(self) -> None:
        """Takes hooks off the model and closes the log."""
        self.flops.close()
        if self.log is not None:
            self.log.close()

    def go(self, report: Callable[[StepMetrics], None], should_stop: Callable[[], bool]) -> FitResult:
        """Steps until the end or a stop, with a checkpoint at it."""
        peak = device_peak(self.device, COMPUTE_DTYPE[self.settings.precision])
        meter = Meter(peak, self.world_size)
        feed = self.loader.micro_batches(self.progress.step)
        while self.progress.step < self.num_steps:
            begun_s = time.perf_counter()
            drawn = [next(feed) for _ in range(self.accumulation)]
            waited_s = time.perf_counter() - begun_s
            answers, tokens, good, bad, stops = self._sum_counts(drawn, should_stop())
            if stops:
                break
            for batch in drawn:
                self.bad.add(batch.bad)
            self._count_samples(int(good), int(bad))
            rate = cosine_rate(
                self.settings.learning_rate, self.progress.step, self.num_steps, self.settings.warmup_share
            )
            update = self._update(drawn, answers, rate)
            self._count_step(update)
            meter.add(StepTotals(tokens, good, update.flops), waited_s)
            if self._due(self.settings.log_every_steps) and self.log is not None:
                metrics = self._metrics(update, rate, meter, peak)
                self.log.write(metrics)
                report(metrics)
            if self._due(self.settings.checkpoint_every_steps):
                self._save()
        checkpoint = self.checkpoint or self._save()
        return FitResult(self.progress, self.progress.step >= self.num_steps, checkpoint)

    def _due(self, every_steps: int) -> bool:
        return self.progress.step % every_steps == 0 or self.progress.step == self.num_steps

    def _sum_counts(self, drawn: list[MicroBatch], stop: bool) -> list[float]:
        """Answer tokens, all tokens, good and bad samples of the step over all ranks, and how many ranks would stop."""
        there = [batch.inputs for batch in drawn if batch.inputs is not None]
        here = [
            sum(answer_tokens(inputs) for inputs in there),
            sum(num_tokens(inputs) for inputs in there),
            sum(batch.num_samples for batch in drawn),
            sum(batch.num_bad for batch in drawn),
            int(stop),
        ]
        return summed([float(value) for value in here], self.device)

    def _count_samples(self, good: int, bad: int) -> None:
        samples, bad_samples = self.progress.samples + good + bad, self.progress.bad_samples + bad
        if too_many_bad(bad_samples, samples, self.settings.max_bad_share):
            raise TrainingError(
                f"{bad_samples} of {samples} samples were bad, at most {self.settings.max_bad_share:.3g} of them may be"
                f" (max_bad_share){self.bad.commonest()}. The list is in bad_samples/ of the run's folder\n"
                "Mend these rows, give the root that holds their files, or allow more with max_bad_share"
            )
        self.progress = self.progress.model_copy(update={"samples": samples, "bad_samples": bad_samples})

    def _update(self, drawn: list[MicroBatch], answers: float, rate: float) -> _Update:
        """One optimiser step; the gradient is that of the loss's mean over all `answers` tokens of all ranks.

        The split model averages gradients over ranks, so each rank's loss is taken as many times.
        """
        loss = torch.zeros((), device=self.device)
        share = torch.tensor(max(answers, 1.0) / self.world_size, device=self.device)
        self.optimiser.zero_grad()
        # each pass reduces its gradients (no set_requires_gradient_sync(False)): held over, they would be whole on
        # every rank, which takes more memory than the communication is worth
        for batch in drawn:
            inputs = batch.inputs if batch.inputs is not None else stub_inputs()
            placed = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
            with self.flops.passing(inputs["attention_mask"]):
                part_loss = self.model(**placed, num_items_in_batch=share).loss
            part_loss.backward()
            loss += part_loss.detach() / self.world_size
        for parameter in self.parameters:
            if parameter.grad is None:  # a layer that is never computed; the optimiser's state is to know every weight
                parameter.grad = torch.zeros_like(parameter)
        norm = get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        total_loss, flops = summed([loss.item(), self.flops.take()], self.device)
        if answers == 0 or not torch.isfinite(norm) or not torch.isfinite(torch.tensor(total_loss)):
            return _Update(None, None, flops)
        clip_grads_with_norm_(self.parameters, self.settings.clip_norm, norm)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        return _Update(total_loss, norm.item(), flops)

    def _count_step(self, update: _Update) -> None:
        skipped = update.loss is None
        in_row = self.progress.skipped_in_row + 1 if skipped else 0
        self.progress = self.progress.model_copy(
            update={
                "step": self.progress.step + 1,
                "skipped_steps": self.progress.skipped_steps + skipped,
                "skipped_in_row": in_row,
            }
        )
        self.checkpoint = None
        if in_row > self.settings.max_skipped_in_row:
            raise TrainingError(
                f"{in_row} steps in a row had no finite loss and gradient, up to step {self.progress.step}"
                f" ({self.progress.bad_samples} of {self.progress.samples} samples so far were bad):"
                " lower learning_rate, or look for broken samples; the last checkpoint is from before"
            )

    def _metrics(self, update: _Update, rate: float, meter: Meter, peak: Peak) -> StepMetrics:
        rates = meter.read(self.num_steps - self.progress.step)
        return StepMetrics(
            step=self.progress.step,
            num_steps=self.num_steps,
            epoch=self.progress.step * self.settings.global_batch_size / max(self.loader.num_samples, 1),
            loss=update.loss,
            learning_rate=rate,
            grad_norm=update.grad_norm,
            peak=peak.label,
            memory_peak_bytes=memory_peak_bytes(self.device),
            bad_samples=self.progress.bad_samples,
            skipped_steps=self.progress.skipped_steps,
            **rates,
        )

    def _save(self) -> Path:
        info = CheckpointInfo.of(self.progress, self.num_steps, self.settings)
        self.checkpoint = save_checkpoint(
            self.run_dir, self.model, self.optimiser, info, self.settings.keep_checkpoints
        )
        return self.checkpoint

    def _resume(self) -> None:
        found = agreed_checkpoint(self.run_dir)
        if found is None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            return
        info = read_info(found)
        info.require_same_run(self.num_steps, self.settings)
        load_checkpoint(found, self.model, self.optimiser)
        self.progress, self.checkpoint = info.progress, found
