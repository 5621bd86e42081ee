"""`train.json`: what a training in a folder is, which no later command may change, and how it ended."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.train_profile import TrainProfile
from model.training.settings import FREE_ON_RESUME
from schemas.record import Record
from schemas.sample import Kind

RECORD_FILE = "train.json"
MODEL_FOLDER = "model"


class TrainingError(RuntimeError):
    """A training that cannot begin or go on, in one line."""


class BaseLabel(Record):
    """Something that the training began with: weights as `name@` with the start of a SHA-256, and their licence."""

    role: str
    weights: str
    license: str


class KindCount(Record):
    """How many samples of a kind a build offers to training."""

    kind: Kind
    n: int


class DataFile(Record):
    """A file of `data.extra` as it was when the training began: its samples are drawn by their place in it.

    `changed_at` is ISO 8601 text.
    """

    path: str
    size_bytes: int
    changed_at: str


class TrainRun(Record):
    """What is trained, on what, and from what: the same for every command that goes on with it.

    `samples` are those of the build's split `train`; `build_profile` made it, by `build_engines` (`agent=engine`).
    """

    build_id: str
    build_source: str
    build_profile: str
    build_engines: tuple[str, ...]
    samples: tuple[KindCount, ...]
    data_files: tuple[DataFile, ...] = ()
    base: tuple[BaseLabel, ...]
    profile: TrainProfile


class BadCount(Record):
    """Samples left out for one reason, `n` of them different, some by name."""

    reason: str
    n: int
    examples: tuple[str, ...]


class TrainOutcome(Record):
    """How a training ended: steps done, samples drawn (again in each epoch; conversations where samples are joined),
    bad ones and steps without an update among them, the loss of the last logged step, and what it ran on. `label`
    stands on everything that comes of it. `finished_at` is ISO 8601 text.
    """

    label: str
    finished_at: str
    num_steps: int
    num_samples: int
    num_bad_samples: int
    num_skipped_steps: int
    last_loss: float | None
    bad: tuple[BadCount, ...]
    num_parameters: int
    num_trained: int
    versions: tuple[str, ...]


class TrainRecord(Record):
    """The file: `lake` and `videos_root` are where data lay when it was last begun; no outcome while it goes on."""

    lake: str
    videos_root: str
    run: TrainRun
    outcome: TrainOutcome | None = None

    def summary(self, out: Path) -> str:
        """A few lines for a terminal."""
        assert self.outcome is not None
        loss = "" if self.outcome.last_loss is None else f", last loss {self.outcome.last_loss:.4f}"
        bad = f", {self.outcome.num_bad_samples} bad" if self.outcome.num_bad_samples else ""
        return "\n".join(
            [
                f"trained on build {self.run.build_id} ({self.outcome.label}): "
                f"{self.outcome.num_samples} {self.run.profile.data.drawn()} drawn{bad}{loss}",
                f"model:   {out / MODEL_FOLDER}",
                f"curves:  tensorboard --logdir {out / 'tensorboard'}",
            ]
        )


def read_record(out: Path) -> TrainRecord | None:
    """The record in a folder, None where there is none; raises TrainingError for a file that is none."""
    path = out / RECORD_FILE
    try:
        return TrainRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise TrainingError(
            f"{path} is no record of a training: {error.errors()[0]['msg']}; choose another --out"
        ) from error


def write_record(out: Path, record: TrainRecord) -> None:
    """Put the record into its folder, whole or not at all."""
    partial = out / f".{RECORD_FILE}.partial"
    partial.write_text(record.model_dump_json(indent=2))
    partial.replace(out / RECORD_FILE)


def require_same(out: Path, before: TrainRun, now: TrainRun) -> None:
    """Raises TrainingError, naming what differs, where a folder holds another training than the one asked for."""
    if changed := list(_differences(_lasting(before), _lasting(now))):
        raise TrainingError(
            f"{out} holds another training: {'; '.join(changed)}. Ask for the same again, or choose another --out"
        )


def _lasting(run: TrainRun) -> dict[str, Any]:
    """What a continuation must share: not names, nor what leaves the result the same."""
    whole = run.model_dump(mode="json")
    profile = whole.pop("profile")
    settings = {name: value for name, value in profile["settings"].items() if name not in FREE_ON_RESUME}
    data = {name: value for name, value in profile["data"].items() if name not in _FREE_OF_DATA}
    base = {name: value for name, value in profile["base"].items() if name not in ("path", "vision", "language")}
    files = {file.path: f"{file.size_bytes} bytes, changed at {file.changed_at}" for file in run.data_files}
    kept = {"build_id": whole["build_id"], "weights": [label["weights"] for label in whole["base"]], "files": files}
    return kept | {"base": base, "settings": settings, "data": data}


_FREE_OF_DATA = ("loader_processes", "decode_cache_mib")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} was {json.dumps(old)} and is {json.dumps(new)}"
