"""The two steps of a bench run without an orchestrator: predictions, then scores; the folder is the only memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmark.predictions import read_predictions, write_predictions
from flows.bench_answers import Answered, AnswerLog, answer_items
from flows.bench_plan import Bench
from flows.bench_progress import BenchSink
from flows.bench_record import (
    ANSWERS_FILE,
    PREDICTIONS_FILE,
    REPORT_FILE,
    SCORES_FILE,
    BenchAsked,
    BenchError,
    BenchResult,
    GivenAnswers,
    MissingItem,
    Questions,
    kept_in,
    require_same,
)
from flows.bench_report import bench_report
from flows.bench_score import score_predictions
from flows.out_folder import alone_in
from infra.whole_file import write_whole


@contextmanager
def alone(asked: BenchAsked, bench: Bench) -> Iterator[Path]:
    """The run's folder, held by this process alone and against what ran there; raises BenchError."""
    out = Path(asked.out)
    taken = BenchError(f"another bench run is at work in {out}; wait for it, or choose another --out")
    with alone_in(out, taken):
        require_same(out, bench.run)
        yield out


def predict(asked: BenchAsked, bench: Bench, out: Path, sinks: tuple[BenchSink, ...]) -> Answered:
    """Answers from the model, as far as the folder has none yet, or from the file; written as a file of predictions.

    Raises BenchError, TrainingError, and BenchFileError where the file was changed meanwhile or cannot be written.
    """
    scorer = asked.scoring.scorer if isinstance(asked.scoring, Questions) else "letters"
    if isinstance(asked.answers, GivenAnswers):
        answered = _given(asked.answers, bench)
    else:
        answered = answer_items(bench, asked.answers, asked.mode, scorer, AnswerLog(out / ANSWERS_FILE), sinks)
    write_predictions(out / PREDICTIONS_FILE, bench.items, answered.predictions)
    return answered


def score(asked: BenchAsked, bench: Bench, answered: Answered, out: Path, sinks: tuple[BenchSink, ...]) -> BenchResult:
    """Scores and report, written into the folder; raises BenchError and WeightError."""
    result = BenchResult(
        run=bench.run,
        asked=answered.asked,
        num_predicted=len(answered.predictions),
        num_off_frame=answered.num_off_frame,
        missing=answered.missing,
        score=score_predictions(bench.items, answered.predictions, asked.scoring, out, sinks),
        predictions=str(out / PREDICTIONS_FILE),
        report=str(out / REPORT_FILE),
    )
    with kept_in(out):
        write_whole(out / REPORT_FILE, bench_report(result).encode())
        write_whole(out / SCORES_FILE, result.model_dump_json(indent=2).encode())
    return result


def _given(answers: GivenAnswers, bench: Bench) -> Answered:
    predictions = read_predictions(Path(answers.predictions), bench.items)
    there = {prediction.item_id for prediction in predictions}
    missing = [
        MissingItem(item_id=item.item_id, reason="not_in_file", said="the file of predictions has none")
        for item in bench.items
        if item.item_id not in there
    ]
    return Answered(predictions=predictions, missing=tuple(missing), asked=0, num_off_frame=0)
