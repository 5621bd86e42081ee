"""What a pipeline run leaves in its folder: frozen items, models, which of them is the latest, and what was decided."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from benchmark.gate import GateDecision, GateRule
from benchmark.published import Mode, Scorer
from flows.result import BuildResult
from flows.train_record import TrainRecord
from infra.whole_file import write_whole
from schemas.record import Record

ITEMS_FOLDER = "items"
MODELS_FOLDER = "models"
BENCH_FOLDER = "bench"
UNTRAINED_FOLDER = "untrained"
GATE_FILE = "gate.json"
REPORT_FILE = "report.html"
LATEST_FILE = "latest.json"

Outcome = Literal["accepted", "rejected", "undecided", "unchanged"]
"""What became of a run's model; `unchanged` is one that is the latest already."""


class PipelineError(RuntimeError):
    """A pipeline that cannot begin or go on, in one line."""


class PipelineAsked(Record):
    """One command, its paths absolute; the fields are the parameters of the flow, which explains them."""

    source: str
    lake: str
    out: str
    root: str | None = None
    profile: str = "embedded"
    train_profile: str = "embedded"
    limit: int | None = None
    num_steps: int | None = None
    mode: Mode = "multi"
    scorer: Scorer = "likelihood"
    rule: GateRule = GateRule()
    ray_address: str | None = None


class Latest(Record):
    """The file that names the accepted model, and the items (by SHA-256 of their file) on which it was accepted."""

    model: str
    items_sha256: str


class Gate(Record):
    """What became of a model and why; `decisions` holds the figures, and is empty where nothing could be compared."""

    model: str
    outcome: Outcome
    reason: str
    decisions: tuple[GateDecision, ...] = ()


class PipelineResult(Record):
    """A run's end. `latest` is the model that holds the place now, empty where none was accepted yet."""

    build: BuildResult
    train: TrainRecord
    gate: Gate
    latest: str
    folder: str
    report_uri: str

    def summary(self) -> str:
        """A few lines for a terminal."""
        return "\n".join(
            [
                self.build.summary(),
                self.train.summary(Path(self.folder) / MODELS_FOLDER / self.gate.model),
                f"gate:    {self.gate.outcome}, {self.gate.reason}",
                f"latest:  {self.latest or 'none was accepted yet'}",
                f"report:  {self.report_uri}",
            ]
        )


def read_latest(out: Path) -> Latest | None:
    """The accepted model, None where there is none; raises PipelineError for a file that names none."""
    path = out / LATEST_FILE
    try:
        latest = Latest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise PipelineError(f"{path} names no model: {said}; mend it, or choose another --out") from error
    if not (out / MODELS_FOLDER / latest.model).is_dir():
        raise PipelineError(f"{path} names model {latest.model}, which is not in {out / MODELS_FOLDER}; put it back")
    return latest


def write_latest(out: Path, latest: Latest) -> None:
    """Put a model in the place; the file is replaced whole."""
    write_whole(out / LATEST_FILE, latest.model_dump_json(indent=2).encode())
