"""Results of the benchmark as Markdown: one section for each kind of result, tables with numbers to the right.

Published figures stand in a table with ours only where they are comparable (`benchmark.published`), and else in a
block of their own, `not comparable`. What counts as wrong or stays without a score is shown beside every figure.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmark.description_score import DescriptionScore
from benchmark.heuristic import Estimate, HeuristicScore
from benchmark.judge_reply import DIMENSIONS
from benchmark.judging import JudgeRun
from benchmark.paired import ChangedAnswer, PairedScore
from benchmark.published import (
    DescriptionFigures,
    Published,
    QuestionFigures,
    Scorer,
    Setting,
    split_descriptions,
    split_questions,
)
from benchmark.question_score import QuestionFigure, QuestionScore

MAX_CHANGED_SHOWN = 20
NOTHING = "–"
DISAGREES = "†"
_OURS = "this run"
_MACHINE_MADE = "The items are machine-made."


class _Row(NamedTuple):
    """A table's row and the figure it is sorted by, None for last."""

    rank: float | None
    cells: tuple[str, ...]


def question_section(scores: Mapping[str, QuestionScore], setting: Setting, scorer: Scorer, figures: Published) -> str:
    """Bench-Q's accuracies by model, in percent with standard errors, best first; all by one scorer.

    Raises ValueError without scores, and for scores over different numbers of items, which no table can hold.
    """
    counts = _counts(scores)
    types = [
        *(name for name in figures.question_types if name in counts),
        *sorted(counts.keys() - set(figures.question_types)),
    ]
    split = split_questions(figures, setting, scorer, {name: counts[name] for name in types})
    header = ["Model", *(f"{_short(name)} (n {counts[name]})" for name in types), f"All (n {counts.total()})"]
    rows = [_question_row(model, score, types) for model, score in scores.items()]
    rows += [_published_question_row(row) for row in split.comparable]
    parts = [
        f"## Bench-Q, scored by {scorer}",
        _intro(
            "Accuracy in percent ± standard error, with items taken for independent; an unparsed or missing answer is "
            "wrong.",
            setting,
        ),
        _table(
            [*header, "No option", "Unparsed", "Missing", "Source"], _ranked(rows), text_columns=(0, len(header) + 3)
        ),
        _disagreements(split.comparable),
    ]
    if split.not_comparable:
        columns = ["Model", "Mode", *map(_short, figures.question_types), "Average", "Source", "Why not"]
        told = [
            _Row(row.average, (row.model, row.mode, *_percentages(row), row.source, why))
            for row, why in split.not_comparable
        ]
        parts += [
            "### Published, not comparable",
            "Percentages as printed. Bench-Q has no judge: a figure compares on the same items, told by their number "
            "in each type, in the same mode and scored by letters.",
            _table(columns, _ranked(told), text_columns=(0, 1, len(columns) - 2, len(columns) - 1)),
            _disagreements([row for row, _ in split.not_comparable]),
        ]
    return _joined(parts)


def paired_section(first: str, second: str, paired: PairedScore) -> str:
    """Two models' answers to the same questions; changed items beyond `MAX_CHANGED_SHOWN` are only counted."""
    table = _table(
        ["Items", "Both right", f"Only {first}", f"Only {second}", "Both wrong", "Changed", "McNemar p (exact)"],
        [
            (
                str(paired.n),
                str(paired.num_both_right),
                str(paired.num_only_first),
                str(paired.num_only_second),
                str(paired.num_both_wrong),
                str(len(paired.changed)),
                _p_value(paired.p_value),
            )
        ],
        text_columns=(),
    )
    parts = [f"## {cell(first)} against {cell(second)}", table]
    if paired.n < paired.num_items:
        left_out = paired.num_items - paired.n
        parts.append(f"Left out: {left_out} of the {paired.num_items} items, to which neither has an answer.")
    if paired.changed:
        shown = paired.changed[:MAX_CHANGED_SHOWN]
        parts.append(_table(["Item", "Right", first, second], map(_changed, shown), text_columns=(0, 1, 2, 3)))
    if len(paired.changed) > MAX_CHANGED_SHOWN:
        parts.append(f"{len(paired.changed) - MAX_CHANGED_SHOWN} more items changed.")
    return _joined(parts)


def description_section(
    scores: Mapping[str, DescriptionScore], setting: Setting, figures: Published, remarks: Sequence[str] = ()
) -> str:
    """Bench-D's scores by model, best first, a part for each judge: scores of two judges share no table.

    `remarks` are sentences that stand before all figures, on a judge too small to be taken seriously, say. Raises
    ValueError without scores, and for one judge's scores over different numbers of items.
    """
    if not scores:
        raise ValueError("got no Bench-D scores to report; one or more are needed")
    intro = _intro(
        "Scores from 0 to 5 as the judge named below gave them; the mean is that of the four means. A judge is only as "
        "good as its model: its figures mean nothing by themselves unless it is a judge that others have published "
        "figures of, or its marks have been checked against people's.",
        setting,
    )
    parts = ["## Bench-D", *remarks, intro]
    judges: dict[JudgeRun, dict[str, DescriptionScore]] = {}
    for model, score in scores.items():
        judges.setdefault(score.judge, {})[model] = score
    for judge, group in judges.items():
        parts += _judge_parts(judge, group, setting, figures)
    return _joined(parts)


def heuristic_section(scores: Mapping[str, HeuristicScore]) -> str:
    """The heuristic by model, in percent, highest fact recall first; a part for each embedder."""
    parts = [
        "## Heuristic (no judge)",
        "Words in common with the references: none of these is a score of Bench-D. Percent ± standard error, with the "
        "items that the mean is over; an answer that is missing recalls nothing and is similar to nothing.",
    ]
    for embedder in dict.fromkeys(score.embedder for score in scores.values()):
        rows = [_heuristic_row(model, score) for model, score in scores.items() if score.embedder == embedder]
        columns = ["Model", "fact_recall", "n", "fact_precision", "n", "embedding_similarity", "n", "Missing"]
        parts += [f"Embeddings: `{embedder}`.", _table(columns, _ranked(rows), text_columns=(0,))]
    return _joined(parts)


def cell(text: str) -> str:
    """A text as it may stand in a table or heading: on one line, its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def _judge_parts(
    judge: JudgeRun, scores: Mapping[str, DescriptionScore], setting: Setting, figures: Published
) -> list[str]:
    sizes = {score.total.n_items for score in scores.values()}
    if len(sizes) > 1:
        raise ValueError(f"the scores of one judge are over {sorted(sizes)} items; a table needs the same items in all")
    split = split_descriptions(figures, setting, judge, max(sizes))
    columns = ["Model", *DIMENSIONS, "Mean", "Scored", "Items", "Source"]
    rows = [_description_row(model, score) for model, score in scores.items()]
    rows += [_Row(row.average, (row.model, *_scores(row), NOTHING, NOTHING, row.source)) for row in split.comparable]
    parts = [
        f"### Judge {cell(judge.model_asked)}",
        _judge_line(judge),
        _table(columns, _ranked(rows), text_columns=(0, len(columns) - 1)),
        _disagreements(split.comparable),
        _sureness(scores),
    ]
    if split.not_comparable:
        columns = ["Model", "Mode", *DIMENSIONS, "Average", "Judge", "Source", "Why not"]
        told = [
            _Row(row.average, (row.model, row.mode, *_scores(row), row.judge.model, row.source, why))
            for row, why in split.not_comparable
        ]
        parts += [
            "#### Published, not comparable",
            "Other judges, prompts, settings, items or modes: figures as printed, not to be set against those above.",
            _table(columns, _ranked(told), text_columns=(0, 1, 7, 8, 9)),
            _disagreements([row for row, _ in split.not_comparable]),
        ]
    return parts


def _sureness(scores: Mapping[str, DescriptionScore]) -> str:
    """Every mean with its error, its interval, and what stayed without a score."""
    rows = []
    for model, score in sorted(scores.items(), key=lambda pair: -(pair[1].total.mean or 0)):
        for name, mean in (*score.dimensions.items(), ("Mean", score.total)):
            interval = f"{mean.spread.low:.2f} to {mean.spread.high:.2f}" if mean.spread else NOTHING
            rows.append(
                (
                    model,
                    name,
                    _two(mean.mean),
                    _two(mean.spread.standard_error if mean.spread else None),
                    interval,
                    str(mean.n_scored),
                    str(mean.n_items),
                    ", ".join(f"{n} {reason}" for reason, n in sorted(mean.unscored.items())) or NOTHING,
                    _two(mean.mean_unscored_as_0),
                )
            )
    columns = ["Model", "Score", "Mean", "s.e.", "95 % interval", "Scored", "Items", "Unscored", "With unscored as 0"]
    return _table(columns, rows, text_columns=(0, 1, 7))


def _judge_line(judge: JudgeRun) -> str:
    version = judge.version or "not told by the server"
    return (
        f"Judge: {cell(judge.model_asked)}; version {cell(version)}; rubric {cell(judge.rubric)}, "
        f"prompt hash `{judge.prompt_hash[:12]}`; {judge.settings}."
    )


def _counts(scores: Mapping[str, QuestionScore]) -> Counter[str]:
    counts = [{name: figure.n for name, figure in score.by_type.items()} for score in scores.values()]
    if not counts:
        raise ValueError("got no Bench-Q scores to report; one or more are needed")
    if any(other != counts[0] for other in counts):
        raise ValueError(f"the scores are over different items ({', '.join(scores)}); a table needs the same in all")
    return Counter(counts[0])


def _question_row(model: str, score: QuestionScore, types: Iterable[str]) -> _Row:
    micro = score.micro
    figures = [*(_accuracy(score.by_type[name]) for name in types), _accuracy(micro)]
    wrong = (str(micro.num_no_option), str(micro.num_unparsed), str(micro.num_missing))
    return _Row(100 * micro.accuracy, (model, *figures, *wrong, _OURS))


def _published_question_row(row: QuestionFigures) -> _Row:
    return _Row(row.average, (row.model, *_percentages(row), NOTHING, NOTHING, NOTHING, row.source))


def _description_row(model: str, score: DescriptionScore) -> _Row:
    means = [_two(score.dimensions[name].mean) for name in DIMENSIONS]
    total = score.total
    return _Row(total.mean, (model, *means, _two(total.mean), str(total.n_scored), str(total.n_items), _OURS))


def _heuristic_row(model: str, score: HeuristicScore) -> _Row:
    estimates = (score.fact_recall, score.fact_precision, score.embedding_similarity)
    cells = [text for estimate in estimates for text in _estimate(estimate)]
    return _Row(score.fact_recall.mean if score.fact_recall else None, (model, *cells, str(score.missing)))


def _estimate(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return NOTHING, "0"
    error = "" if estimate.standard_error is None else f" ± {100 * estimate.standard_error:.1f}"
    return f"{100 * estimate.mean:.1f}{error}", str(estimate.n)


def _accuracy(figure: QuestionFigure) -> str:
    return f"{100 * figure.accuracy:.1f} ± {100 * figure.standard_error:.1f}"


def _percentages(row: QuestionFigures) -> list[str]:
    columns = [f"{value:.1f}" for value in row.percentages] or [NOTHING] * 5
    return [*columns, f"{row.average:.1f}{'' if row.average_agrees else f' {DISAGREES}'}"]


def _scores(row: DescriptionFigures) -> list[str]:
    columns = [f"{value:.2f}" for value in row.scores] or [NOTHING] * len(DIMENSIONS)
    return [*columns, f"{row.average:.2f}{'' if row.average_agrees else f' {DISAGREES}'}"]


def _disagreements(rows: Sequence[DescriptionFigures] | Sequence[QuestionFigures]) -> str:
    """What the columns of marked rows give, and notes on rows."""
    told = []
    for row in rows:
        digits = 2 if isinstance(row, DescriptionFigures) else 1
        if not row.average_agrees:
            given = " or ".join(dict.fromkeys(f"{value:.{digits}f}" for value in row.recomputed))
            told.append(
                f"- {DISAGREES} {row.model}: the average is printed as {row.average}, the columns give {given}."
            )
        if row.note:
            told.append(f"- {row.model}: {row.note}.")
    return "\n".join(told)


def _changed(answer: ChangedAnswer) -> tuple[str, ...]:
    return (answer.item_id, answer.right, answer.first or NOTHING, answer.second or NOTHING)


def _intro(text: str, setting: Setting) -> str:
    mode = "" if setting.mode == "unstated" else f" Mode: {setting.mode}."
    return text + mode + (f" {_MACHINE_MADE}" if setting.machine_made else "")


def _two(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _short(qtype: str) -> str:
    return qtype.removesuffix(" Questions").removesuffix(" Predictions")


def _ranked(rows: Iterable[_Row]) -> list[tuple[str, ...]]:
    """Highest first, equal ones by name, those without a figure last."""
    return [row.cells for row in sorted(rows, key=lambda row: (row.rank is None, -(row.rank or 0), row.cells))]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int]) -> str:
    """A Markdown table, all but the text columns aligned to the right."""
    marks = [":--" if place in text_columns else "--:" for place in range(len(header))]
    return "\n".join(f"| {' | '.join(map(cell, cells))} |" for cells in (header, marks, *rows))


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
