"""The parts of a pipeline that are its own: items that stay the same from run to run, models by name, and the gate."""

from collections.abc import Mapping
from pathlib import Path

from benchmark.bench_folder import QUESTIONS_FILE, write_bench
from benchmark.building import BenchBuildError, BenchPlan, new_bench
from benchmark.gate import GateRule, Rival, decide
from benchmark.items import question_items
from benchmark.predictions import read_predictions
from benchmark.question_score import official_letters
from flows.bench_record import BenchResult
from flows.pipeline_record import (
    GATE_FILE,
    ITEMS_FOLDER,
    MODELS_FOLDER,
    Gate,
    Latest,
    PipelineError,
    write_latest,
)
from flows.train_record import TrainRun
from infra.lake import Lake
from infra.video_index import file_sha256
from infra.whole_file import write_whole
from schemas.record import short_id

_DIGITS = 8


class NoItemsError(RuntimeError):
    """A build gives no items to hold models against; says why in one line."""


def frozen_items(out: Path, lake: str, build_id: str) -> Path:
    """The questions on which all models of this folder are held against one another.

    They are drawn once, from the held-out clips of the folder's first build that has any, and stay. Raises NoItemsError
    where they are still to be drawn and this build gives none.
    """
    path = out / ITEMS_FOLDER / QUESTIONS_FILE
    if not path.exists():
        try:
            made = new_bench(Lake(lake), build_id, BenchPlan(min_clips=1))
        except BenchBuildError as error:
            raise NoItemsError(str(error)) from error
        if not made.questions:
            raise NoItemsError(f"build {build_id}: its held_out samples give no question with four options")
        write_bench(made, Lake(out.absolute() / ITEMS_FOLDER))
    return path


def require_same_items(items: Path, latest: Latest | None) -> None:
    """Raises PipelineError where the items are not those on which the latest model was accepted."""
    if latest is not None and (found := file_sha256(items)) != latest.items_sha256:
        raise PipelineError(
            f"{items} was changed: its SHA-256 is {found[:12]}, and {latest.model} was accepted on "
            f"{latest.items_sha256[:12]}; put the old file back, or begin with another --out"
        )


def model_name(run: TrainRun) -> str:
    """The folder of a training among the models: the same for the same build, profile, base and data."""
    return f"{run.build_id}-{short_id(run.model_dump_json())[:_DIGITS]}"


def judge_model(
    out: Path, items: Path, new: tuple[str, BenchResult], other: tuple[Rival, BenchResult], rule: GateRule
) -> Gate:
    """Hold a model's answers against its rival's and put it in the place where it wins; kept in its folder either way.

    Raises PipelineError for answers to other items than `items`.
    """
    (name, scored), (rival, rival_scored) = new, other
    sha256 = file_sha256(items)
    if {scored.run.items_sha256, rival_scored.run.items_sha256} != {sha256}:
        raise PipelineError(f"{name} and the {rival} model did not answer {items}; choose another --out")
    asked = question_items(items)
    letters: list[Mapping[str, str | None]] = [
        official_letters(read_predictions(Path(result.predictions), asked)) for result in (scored, rival_scored)
    ]
    decision = decide(asked, letters[0], letters[1], rival, rule)
    gate = Gate(model=name, outcome=decision.verdict, reason=decision.reason, decisions=(decision,))
    keep_gate(out, gate)
    if gate.outcome == "accepted":
        write_latest(out, Latest(model=name, items_sha256=sha256))
    return gate


def keep_gate(out: Path, gate: Gate) -> None:
    """Write down beside a model what became of it; `unchanged` leaves what stands there."""
    if gate.outcome != "unchanged":
        write_whole(out / MODELS_FOLDER / gate.model / GATE_FILE, gate.model_dump_json(indent=2).encode())
