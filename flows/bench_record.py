"""What a bench run is asked for, what its folder says that ran there, and what came of it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, ValidationError

from benchmark.description_score import DescriptionScore
from benchmark.heuristic import HeuristicScore
from benchmark.judging import JudgeSettings
from benchmark.published import Mode, Scorer, Setting
from benchmark.question_score import QuestionScore
from infra.whole_file import write_whole
from schemas.record import Record

RECORD_FILE = "bench.json"
ANSWERS_FILE = "answers.jsonl"
PREDICTIONS_FILE = "predictions_0.json"
"""So named for the official VideoLLaMA3 scorers, which are given `predictions.json`; those of v1 take any name."""
SCORES_FILE = "scores.json"
REPORT_FILE = "report.md"
JUDGE_FOLDER = "judge"
_RESULTS = (ANSWERS_FILE, PREDICTIONS_FILE, SCORES_FILE, REPORT_FILE)
JUDGE_KEY = "VIDEOREFER_JUDGE_KEY"
"""The environment variable that holds the judge's key, where it wants one."""
JUDGE_TIMEOUT_S = 120.0

BenchName = Literal["d", "q"]
Replies = Literal["explained", "scores", "text"]
"""JSON with explanations, JSON of four numbers alone (for small judges), or the official text format."""
REPLIES: Mapping[Replies, JudgeSettings] = {
    "explained": JudgeSettings(),
    "scores": JudgeSettings(explained=False),
    "text": JudgeSettings(reply_format="text"),
}


class BenchError(RuntimeError):
    """A bench run that cannot begin or go on, in one line."""


class BenchUsageError(BenchError):
    """What was asked for cannot be, in one line."""


class ModelAnswers(Record):
    """A model folder is asked, `batch_size` items at a time; videos lie under the folder `videos`."""

    kind: Literal["model"] = "model"
    model: str
    videos: str
    batch_size: Annotated[int, Field(ge=1)]
    max_new_tokens: Annotated[int, Field(ge=1)]


class GivenAnswers(Record):
    """A file of predictions, or what its shards are named together."""

    kind: Literal["file"] = "file"
    predictions: str


class Questions(Record):
    """Bench-Q: how an option is chosen."""

    bench: Literal["q"] = "q"
    scorer: Scorer


class Heuristic(Record):
    """Bench-D's descriptions without a judge."""

    bench: Literal["d"] = "d"
    by: Literal["heuristic"] = "heuristic"


class Judged(Record):
    """Bench-D's descriptions put to a judge; `prompt_file` is empty for our own rubric.

    `timeout_s` is how long one reply may take before it is asked for again.
    """

    bench: Literal["d"] = "d"
    by: Literal["judge"] = "judge"
    base_url: str
    model: str
    prompt_file: str
    replies: Replies
    max_tokens: Annotated[int, Field(ge=1)]
    concurrency: Annotated[int, Field(ge=1)]
    timeout_s: Annotated[float, Field(gt=0)] = JUDGE_TIMEOUT_S


class BenchAsked(Record):
    """One command, its paths absolute."""

    items: str
    out: str
    mode: Mode
    answers: ModelAnswers | GivenAnswers
    scoring: Questions | Heuristic | Judged


class BenchRun(Record):
    """What ran in a folder; a command that asks for anything else there is refused.

    `answered_by` is a model's weights or a file of predictions, each with a digest, `label` that of the model's
    training. `max_new_tokens` is 0 where nothing is generated. `scored_by` names the scorer, or the judge with its
    prompt's hash and settings. Of `num_items`, `num_machine_made` come from `bench new`, and of these `num_checked` are
    marked as checked by hand.
    """

    bench: BenchName
    items_file: str
    items_sha256: str
    num_items: int
    num_machine_made: int
    num_checked: int
    answered_by: str
    label: str
    mode: Mode
    max_new_tokens: int
    scored_by: str
    versions: tuple[str, ...]

    @property
    def setting(self) -> Setting:
        """How the result came about, as the published figures want to know."""
        return Setting(mode=self.mode, machine_made=self.num_machine_made > 0)

    @property
    def model_name(self) -> str:
        """What stands in the tables: who answered, and the label that says what it is."""
        return f"{self.answered_by} ({self.label})"


class MissingItem(Record):
    """An item without a prediction: `reason` is one word to count by, `said` what was found."""

    item_id: str
    reason: str
    said: str


Score: TypeAlias = QuestionScore | DescriptionScore | HeuristicScore


class BenchResult(Record):
    """A run's end: `asked` items went to the model in this command, and `num_predicted` have a prediction by now.

    `num_off_frame` counts the objects that single mode shows on another frame than the item's.
    """

    run: BenchRun
    asked: int
    num_predicted: int
    num_off_frame: int
    missing: tuple[MissingItem, ...]
    score: Score
    predictions: str
    report: str

    @property
    def missing_by_reason(self) -> dict[str, int]:
        """How many items lack a prediction for what reason, the most frequent first."""
        return dict(Counter(item.reason for item in self.missing).most_common())

    def summary(self) -> str:
        """A few lines for a terminal."""
        made = ", machine-made items" if self.run.num_machine_made else ""
        lines = [f"Bench-{self.run.bench.upper()}{made}, {self.run.model_name}, {headline(self.score)}"]
        if self.missing:
            told = ", ".join(f"{n} {reason}" for reason, n in self.missing_by_reason.items())
            first = self.missing[0]
            lines.append(f"missing: {told}; the first is item {first.item_id}: {first.said}")
        return "\n".join([*lines, f"predictions: {self.predictions}", f"report:      {self.report}"])


def headline(score: Score) -> str:
    """The figure that people look for, with what it is over, in one line."""
    match score:
        case QuestionScore(micro=micro):
            accuracy, error = 100 * micro.accuracy, 100 * micro.standard_error
            return (
                f"{accuracy:.1f} % ± {error:.1f} of {micro.n} right (no option {micro.num_no_option}, "
                f"unparsed {micro.num_unparsed}, missing {micro.num_missing})"
            )
        case DescriptionScore(total=total, judge=judge):
            mean = "no score" if total.mean is None else f"mean {total.mean:.2f}"
            return f"{mean} by judge {judge.model_asked}, {total.n_scored} of {total.n_items} items scored in full"
        case HeuristicScore(fact_recall=recall):
            told = "no fact to recall" if recall is None else f"fact recall {100 * recall.mean:.1f} %"
            return f"heuristic (no judge): {told}, {score.num_items} items, missing {score.missing}"


def require_same(out: Path, now: BenchRun) -> None:
    """Let a folder hold this run alone; its record is written there.

    Raises BenchError where another run has answers there, naming what differs, and for files that no run left but that
    this one would write over.
    """
    path = out / RECORD_FILE
    try:
        before = BenchRun.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        if foreign := [name for name in (*_RESULTS, JUDGE_FOLDER) if (out / name).exists()]:
            raise BenchError(f"{out / foreign[0]} is of no bench run and would be lost; choose another --out") from None
        write_whole(path, now.model_dump_json(indent=2).encode())
        return
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise BenchError(f"{path} is no record of a bench run: {said}; choose another --out") from error
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    changed = [
        f"{name} was {json.dumps(old[name])} and is {json.dumps(new[name])}"
        for name in old
        if old[name] != new[name] and name != "items_file"
    ]
    if changed and not _has_answers(out):
        write_whole(path, now.model_dump_json(indent=2).encode())
    elif changed:
        raise BenchError(
            f"{out} holds another run: {'; '.join(changed)}. Choose another --out; to score the same answers another "
            f"way, give it --predictions {out / PREDICTIONS_FILE}"
        )


@contextmanager
def kept_in(out: Path) -> Iterator[None]:
    """Write there meanwhile; raises BenchError where the disk does not take it."""
    try:
        yield
    except OSError as error:
        raise BenchError(
            f"cannot write in {out}: {error}; make room, and the same command goes on from here"
        ) from error


def _has_answers(out: Path) -> bool:
    scored = any((out / name).exists() for name in (ANSWERS_FILE, SCORES_FILE))
    return scored or any((out / JUDGE_FOLDER).rglob("*.json"))
