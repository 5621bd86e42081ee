"""What each rank of a training does: base model and data as the profile says, the loop, and the model's folder."""

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from flows.train_profile import TrainProfile
from flows.train_record import MODEL_FOLDER
from flows.train_workers import STOP_FILE
from infra.lake import Lake
from infra.settings import settings
from model.training.feed import BadItem, MicroBatch
from model.training.metrics import StepMetrics
from schemas.record import Record

BAD_FOLDER = "bad_samples"
DONE_FILE = "fit.json"


class RankTask(Record):
    """What all ranks of a training share; `out` and `videos_root` are folders that every node sees."""

    lake: str
    build_id: str
    videos_root: str
    out: str
    profile: TrainProfile


class BadLine(Record):
    """One line of `bad_samples/rank-N.jsonl`: a sample that was left out, and why."""

    item_id: str
    source: str
    reason: str
    said: str


class FitDone(Record):
    """What rank 0 leaves for the driver once the model is written."""

    num_steps: int
    num_samples: int
    num_bad_samples: int
    num_skipped_steps: int
    num_parameters: int
    num_trained: int
    versions: tuple[str, ...]
    finished_at: str


def train_rank(config: dict[str, Any]) -> None:
    """Train and export; `config` is a `RankTask` as plain values.

    Runs in a worker of Ray Train, inside its process group. Raises what `model.training.loop.fit` raises, LakeError,
    and ValueError for data or a base that cannot be used.
    """
    import ray
    import torch
    import torch.distributed as dist
    import transformers

    from flows.train_base import load_base
    from model.training.export import export_pretrained
    from model.training.loop import fit
    from model.training.parts import COMPUTE_DTYPE

    task = RankTask.model_validate(config)
    out = Path(task.out)
    model, processor = load_base(task.profile.base, task.profile.settings.seed)
    loader = _NamedBad(_feed(task, processor, dist.get_rank(), dist.get_world_size()), out, dist.get_rank())
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    # only rank 0 looks: that one rank wants to stop is enough, and a shared folder is slow to ask
    stop = out / STOP_FILE if dist.get_rank() == 0 else None
    result = fit(
        model,
        loader,
        task.profile.settings,
        out,
        report=_told_by_file,
        should_stop=lambda: stop is not None and stop.exists(),
    )
    if not result.finished:
        return
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    export_pretrained(model, processor, out / MODEL_FOLDER, COMPUTE_DTYPE[task.profile.settings.precision])
    if dist.get_rank() == 0:
        done = FitDone(
            num_steps=result.progress.step,
            num_samples=result.progress.samples,
            num_bad_samples=result.progress.bad_samples,
            num_skipped_steps=result.progress.skipped_steps,
            num_parameters=num_parameters,
            num_trained=num_trained,
            versions=tuple(f"{module.__name__} {module.__version__}" for module in (torch, transformers, ray)),
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        (out / DONE_FILE).write_text(done.model_dump_json())


def _told_by_file(_metrics: StepMetrics) -> None:
    """The driver follows the metrics file; Ray needs no report."""


def _feed(task: RankTask, processor: Any, rank: int, world_size: int) -> Any:
    from model.data.loader import DataFeed, LoaderConfig
    from model.data.scene import CachedReader, read_plainly, scene_config
    from model.data.sources import FileSource, ShardSource, Source

    data, chosen = task.profile.data, task.profile.settings
    sources: list[tuple[Source, float]] = []
    if data.kinds:
        root = Path(task.videos_root)
        shards = ShardSource(Lake(task.lake), task.build_id, root=root, kinds=data.kinds, max_rounds=data.max_rounds)
        sources.append((shards, 1.0))
    sources += [(FileSource(Path(extra.path), Path(extra.root)), extra.weight) for extra in data.extra]
    cache_bytes = data.decode_cache_mib * 2**20
    return DataFeed(
        sources,
        processor,
        scene_config(processor, data.single_frame_share, data.max_masks),
        LoaderConfig(
            global_batch=chosen.global_batch_size,
            micro_batch=chosen.micro_batch_size,
            seed=chosen.seed,
            rank=rank,
            world_size=world_size,
            num_workers=data.loader_processes,
        ),
        CachedReader(settings().cache_dir / "frames", cache_bytes) if cache_bytes else read_plainly,
    )


class _NamedBad:
    """A loader that writes each bad sample of its rank down, in `bad_samples/rank-N.jsonl`."""

    def __init__(self, feed: Any, out: Path, rank: int) -> None:
        self._feed = feed
        self._path = out / BAD_FOLDER / f"rank-{rank}.jsonl"

    @property
    def num_samples(self) -> int:
        """Samples of one epoch over all ranks."""
        return int(self._feed.num_samples)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """Those of the feed; its bad samples are on disk before the loop counts them, and may find them too many."""
        for batch in self._feed.micro_batches(step):
            if batch.bad:
                self._write_down(batch.bad)
            yield batch

    def _write_down(self, bad: Sequence[BadItem]) -> None:
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("ab+") as file:
            if file.tell() and not _ends_a_line(file):
                file.write(b"\n")
            file.write("".join(BadLine(**one._asdict()).model_dump_json() + "\n" for one in bad).encode())


def _ends_a_line(file: BinaryIO) -> bool:
    """A rank that was killed may have left half a line."""
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
