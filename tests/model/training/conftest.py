"""Micro-batches of a tiny model, settings, and runs of one or more ranks."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from model.configuration import VideoReferConfig
from model.request import Request
from model.training.feed import MicroBatch
from model.training.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = 8
ALL = ("connector", "object_encoder", "language_model")


class Repeated:
    """A loader of one rank over given micro-batches, around and around; `batches` may be changed between steps."""

    def __init__(self, batches: Sequence[MicroBatch], per_step: int) -> None:
        self.batches, self.per_step = list(batches), per_step
        self.num_samples = sum(batch.num_samples + batch.num_bad for batch in batches)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        place = step * self.per_step
        while True:
            yield self.batches[place % len(self.batches)]
            place += 1


@pytest.fixture
def repeated() -> type[Repeated]:
    return Repeated


@pytest.fixture
def micro_batches(
    tiny_config: Callable[..., VideoReferConfig],
    tiny_processor: Callable[..., Any],
    make_request: Callable[..., Request],
) -> Callable[[int], list[MicroBatch]]:
    """`micro_batches(size)`: eight samples of different lengths, one of text alone, in batches of `size`."""

    def build(size: int) -> list[MicroBatch]:
        processor = tiny_processor(tiny_config())
        requests = [
            make_request(
                object_frames=((0, 1), (1,))[: 1 + number % 2],
                num_frames=0 if number == 5 else 2 + number % 3,
                answer="yes " * (1 + number),
                seed=number,
            )
            for number in range(SAMPLES)
        ]
        encoded = [processor.encode(request, with_labels=True) for request in requests]
        return [
            MicroBatch(dict(processor.collate(encoded[first : first + size], "right")), size, 0)
            for first in range(0, SAMPLES, size)
        ]

    return build


@pytest.fixture
def make_settings() -> Callable[..., TrainSettings]:
    """Four samples a step, every step logged; other settings by name."""

    def build(**settings: Any) -> TrainSettings:
        usual: dict[str, Any] = {
            "parts": ALL,
            "learning_rate": 0.01,
            "global_batch_size": 4,
            "num_steps": 4,
            "warmup_share": 0.0,
            "precision": "fp32",
            "log_every_steps": 1,
            "checkpoint_every_steps": 2,
        }
        return TrainSettings.model_validate(usual | settings)

    return build


@pytest.fixture
def train_in_ranks(
    tmp_path: Path, tiny_model: Callable[..., Any], micro_batches: Callable[[int], list[MicroBatch]]
) -> Callable[..., list[int]]:
    """`train_in_ranks(settings, run_dir, world, batches=None, **job)`: exit codes of the ranks of one run."""

    def run(
        settings: TrainSettings, run_dir: Path, world: int, batches: list[MicroBatch] | None = None, **job: Any
    ) -> list[int]:
        if not (tmp_path / "model").exists():
            tiny_model().save_pretrained(tmp_path / "model")
        size = settings.micro_batch_size
        torch.save({size: batches or micro_batches(size)}, tmp_path / "batches.pt")
        run_dir.mkdir(exist_ok=True)
        for old in tmp_path.glob("store*"):
            old.unlink()
        job |= {"model": str(tmp_path / "model"), "batches": str(tmp_path / "batches.pt"), "run_dir": str(run_dir)}
        job |= {"world": world, "store": str(tmp_path / "store"), "settings": settings.model_dump(mode="json")}
        (tmp_path / "job.json").write_text(json.dumps(job))
        script = [sys.executable, str(Path(__file__).with_name("train_script.py")), str(tmp_path / "job.json")]
        ranks = [
            subprocess.Popen([*script, str(rank)], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
            for rank in range(world)
        ]
        if "die_at_step" in job:  # a rank whose peer was killed would wait for it: whoever starts ranks ends them all
            ranks[0].wait(120)
            for rank in ranks[1:]:
                rank.kill()
        return [rank.wait(120) for rank in ranks]

    return run
