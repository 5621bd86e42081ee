"""Published results of VideoRefer-Bench, and which of them may share a table with ours.

The figures and their sources stand in `published.toml`. A Bench-D figure compares only where items, mode and all that
is known of the judge are ours; no source gives the hash of its judge's prompt, so that none does until one is known.
Bench-Q needs no judge: a figure compares where items and mode are ours and letters are read by the official rule.
"""

import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated, Generic, Literal, NamedTuple, TypeVar

from pydantic import Field, ValidationError, model_validator

from benchmark.judging import JudgeRun
from schemas.record import Record

Mode = Literal["single", "multi", "blind", "unstated"]
"""The mask of one frame, those of all annotated frames, neither masks nor video, or not told by the source."""
Scorer = Literal["letters", "likelihood"]
"""How options are chosen: by the official rule from an answer's text, or by the likelihood of each option."""
UNKNOWN = "unknown"
"""What no source gives; equal to nothing."""
NUM_QUESTION_TYPES = 5
NUM_DIMENSIONS = 4
SCORE_STEP = 0.01
PERCENT_STEP = 0.1
"""The last digit that is printed: rounding alone moves a figure by half of it."""

Score = Annotated[float, Field(ge=0, le=5)]
Percent = Annotated[float, Field(ge=0, le=100)]
Counts = Annotated[tuple[int, ...], Field(min_length=NUM_QUESTION_TYPES, max_length=NUM_QUESTION_TYPES)]


class PublishedError(ValueError):
    """The file of published figures is not as it must be."""


class PublishedJudge(Record):
    """What is known of the judge behind published scores; what is not is `UNKNOWN`.

    `model` is what was asked for, `version` what the server said, `settings` is one line,
    as `benchmark.judging.JudgeRun` writes them.
    """

    model: str
    version: str
    prompt_hash: str
    settings: str

    def differences(self, ours: JudgeRun) -> tuple[str, ...]:
        """The fields in which our judge differs or, for want of knowledge of either, may differ."""
        fields = {
            "model": (self.model, ours.model_asked),
            "version": (self.version, ours.version),
            "prompt hash": (self.prompt_hash, ours.prompt_hash),
            "settings": (self.settings, ours.settings),
        }
        return tuple(name for name, (theirs, own) in fields.items() if theirs != own or theirs == UNKNOWN)


class DescriptionFigures(Record):
    """One row of Bench-D: SC, AD, TD and HD, or none where only the average is published; all 0 to 5."""

    model: str
    source: str
    mode: Mode
    judge: PublishedJudge
    scores: tuple[Score, ...] = ()
    average: Score
    note: str = ""

    @model_validator(mode="after")
    def _all_or_none(self) -> "DescriptionFigures":
        _check_columns(self.model, self.scores, NUM_DIMENSIONS)
        return self

    @property
    def recomputed(self) -> tuple[float, ...]:
        """The mean of the four columns; nothing without them."""
        return (sum(self.scores) / NUM_DIMENSIONS,) if self.scores else ()

    @property
    def average_agrees(self) -> bool:
        """Whether rounding can explain what lies between the printed average and that of the printed columns."""
        return _agrees(self.average, self.recomputed, SCORE_STEP)


class QuestionFigures(Record):
    """One row of Bench-Q: percentages of the five types in the official order, or none; the average is over items.

    `type_counts` are the splits of the items into types that the average is recomputed with.
    """

    model: str
    source: str
    mode: Mode
    percentages: tuple[Percent, ...] = ()
    average: Percent
    type_counts: tuple[Counts, ...]
    note: str = ""

    @model_validator(mode="after")
    def _all_or_none(self) -> "QuestionFigures":
        _check_columns(self.model, self.percentages, NUM_QUESTION_TYPES)
        return self

    @property
    def recomputed(self) -> tuple[float, ...]:
        """The share over items that the columns give, one for each split into types; nothing without columns."""
        if not self.percentages:
            return ()
        return tuple(
            sum(share * n for share, n in zip(self.percentages, counts, strict=True)) / sum(counts)
            for counts in self.type_counts
        )

    @property
    def average_agrees(self) -> bool:
        """As for Bench-D, with the split into types that fits best."""
        return _agrees(self.average, self.recomputed, PERCENT_STEP)


class Published(Record):
    """All published figures; `question_types` are the names that the official file has, in the order of its table."""

    question_types: Annotated[tuple[str, ...], Field(min_length=NUM_QUESTION_TYPES, max_length=NUM_QUESTION_TYPES)]
    num_description_items: int = Field(gt=0)
    inferred_question_counts: tuple[Counts, ...] = Field(min_length=1)
    descriptions: tuple[DescriptionFigures, ...]
    questions: tuple[QuestionFigures, ...]


class Setting(Record):
    """How a result of ours came about, apart from its judge."""

    mode: Mode
    machine_made: bool


FiguresT = TypeVar("FiguresT", DescriptionFigures, QuestionFigures)


class Split(NamedTuple, Generic[FiguresT]):
    """Published rows beside ours, and those that are not comparable, each with the reasons."""

    comparable: tuple[FiguresT, ...]
    not_comparable: tuple[tuple[FiguresT, str], ...]


def published() -> Published:
    """The figures that are shipped."""
    return load_published(files("benchmark") / "published.toml")


def load_published(source: Traversable) -> Published:
    """The figures of a TOML file; raises PublishedError with one line on what is wrong in it."""
    try:
        content = tomllib.loads(source.read_text(encoding="utf-8"))
        counts = content["inferred_question_counts"]
        return Published(
            question_types=content["question_types"],
            num_description_items=content["num_description_items"],
            inferred_question_counts=counts,
            descriptions=tuple(
                DescriptionFigures.model_validate(row | {"judge": content["judge"][block["judge"]]})
                for block in content["description"]
                for row in _rows(block, content["source"])
            ),
            questions=tuple(
                QuestionFigures.model_validate(row | {"type_counts": counts})
                for block in content["question"]
                for row in _rows(block, content["source"])
            ),
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise PublishedError(f"{source.name}: {place} {first['msg']}, got {first['input']!r}") from error
    except KeyError as error:
        raise PublishedError(
            f"{source.name}: {error} is missing, or names no [source] or [judge] of the file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PublishedError(f"{source.name} is no TOML: {error}") from error


def split_descriptions(figures: Published, ours: Setting, judge: JudgeRun, num_items: int) -> Split[DescriptionFigures]:
    """Bench-D's rows of the same items, mode and judge as ours, and the others.

    The official file's hash is not published: it is told by its number of items.
    """
    official = num_items == figures.num_description_items
    items = _item_reasons(ours, official, f"{num_items}, the official file has {figures.num_description_items}")
    reasons = [
        [*items, *_mode_reasons(row.mode, ours.mode), *_judge_reasons(row.judge.differences(judge))]
        for row in figures.descriptions
    ]
    return _split(figures.descriptions, reasons)


def split_questions(
    figures: Published, ours: Setting, scorer: Scorer, counts: Mapping[str, int]
) -> Split[QuestionFigures]:
    """Bench-Q's rows of the same items, mode and scorer as ours, and the others; no judge takes part.

    All published rows are scored by letters. `counts` are our items of each type: the official file, whose hash is not
    published, is told by these, which must be one of the splits inferred from the figures.
    """
    types = {name: counts.get(name, 0) for name in figures.question_types}
    official = tuple(types.values()) in figures.inferred_question_counts and len(counts) == len(types)
    items = _item_reasons(ours, official, f"{', '.join(f'{n} {name}' for name, n in counts.items())}")
    rule = [] if scorer == "letters" else [f"scored by letters, ours by {scorer}"]
    return _split(
        figures.questions, [[*items, *rule, *_mode_reasons(row.mode, ours.mode)] for row in figures.questions]
    )


def _rows(block: Mapping[str, object], sources: Mapping[str, str]) -> list[dict[str, object]]:
    rows = block["rows"]
    assert isinstance(rows, list)
    return [row | {"mode": block["mode"], "source": sources[str(block["source"])]} for row in rows]


def _split(rows: Sequence[FiguresT], reasons: Sequence[Sequence[str]]) -> Split[FiguresT]:
    paired = list(zip(rows, reasons, strict=True))
    return Split(
        comparable=tuple(row for row, why in paired if not why),
        not_comparable=tuple((row, "; ".join(why)) for row, why in paired if why),
    )


def _item_reasons(ours: Setting, official: bool, seen: str) -> list[str]:
    if ours.machine_made:
        return ["other items (ours are machine-made)"]
    return [] if official else [f"other items ({seen})"]


def _mode_reasons(theirs: Mode, ours: Mode) -> list[str]:
    if theirs == ours == "unstated":
        return ["neither says its mode"]
    if theirs == "unstated":
        return [f"its mode is not stated, ours is {ours}"]
    if ours == "unstated":
        return [f"mode {theirs}, ours is not stated"]
    return [] if theirs == ours else [f"mode {theirs}, ours {ours}"]


def _judge_reasons(fields: Sequence[str]) -> list[str]:
    return [f"judge: {', '.join(fields)} differ or are unknown"] if fields else []


def _check_columns(model: str, columns: Sequence[float], wanted: int) -> None:
    if len(columns) not in (0, wanted):
        raise ValueError(f"{model} has {len(columns)} columns; there are {wanted}, or none with an average alone")


def _agrees(average: float, recomputed: Sequence[float], step: float) -> bool:
    # half a step for the average and half for the columns; the rest is floating point
    return not recomputed or min(abs(average - value) for value in recomputed) <= step + 1e-9
