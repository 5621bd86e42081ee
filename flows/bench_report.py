"""The page of a bench run: what ran, what is missing, and the tables."""

import re
from collections.abc import Mapping, Sequence

from benchmark.description_score import DescriptionScore
from benchmark.heuristic import HeuristicScore
from benchmark.judging import JudgeRun
from benchmark.published import Scorer, published
from benchmark.question_score import QuestionScore
from benchmark.report import cell, description_section, heuristic_section, question_section
from flows.bench_record import BenchResult, BenchRun, MissingItem

MAX_MISSING_SHOWN = 20
MIN_JUDGE_PARAMETERS = 7e9
_PUBLISHED_JUDGE = "gpt-4o"
"""How the names of the judges of all published figures begin; they tell no size."""
_UNITS = {"m": 1e6, "b": 1e9}
_SIZE = re.compile(r"(?<![a-z0-9.])(?:\d+x)?(\d+(?:\.\d+)?)([mb])(?![a-z0-9])")


def bench_report(result: BenchResult) -> str:
    """The whole page in Markdown."""
    run = result.run
    parts = [f"# Bench-{run.bench.upper()}: {run.model_name}", _facts(result), section({run.model_name: result})]
    if result.missing:
        parts.append(_missing(result.missing_by_reason, result.missing))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def section(results: Mapping[str, BenchResult]) -> str:
    """The tables of one result, or of several that are scored alike on the same items, each under its name."""
    run = next(iter(results.values())).run
    modes = {result.run.mode for result in results.values()}
    setting = run.setting if len(modes) == 1 else run.setting.model_copy(update={"mode": "unstated"})
    scores = {name: result.score for name, result in results.items()}
    if questions := {name: score for name, score in scores.items() if isinstance(score, QuestionScore)}:
        scorer: Scorer = "likelihood" if run.scored_by == "likelihood" else "letters"
        return question_section(questions, setting, scorer, published())
    if judged := {name: score for name, score in scores.items() if isinstance(score, DescriptionScore)}:
        judges = dict.fromkeys(score.judge for score in judged.values())
        remarks = [remark for judge in judges if (remark := judge_remark(judge))]
        return description_section(judged, setting, published(), remarks)
    return heuristic_section({name: score for name, score in scores.items() if isinstance(score, HeuristicScore)})


def judge_remark(judge: JudgeRun) -> str:
    """What is to be said before a judge's figures, by the names it was asked under and answers to; empty for nothing.

    The smallest size that a name tells counts.
    """
    names = [name.lower() for name in (judge.model_asked, *judge.models_answered)]
    told = [size for name in names for size in _SIZE.findall(name)]
    num_parameters, size = min(((float(n) * _UNITS[unit], n + unit.upper()) for n, unit in told), default=(None, ""))
    if num_parameters is None and not all(name.startswith(_PUBLISHED_JUDGE) for name in names):
        return (
            f"**Whether judge {judge.model_asked} can mark descriptions is not known here**: its name tells no size. "
            "The scores of a small model mean nothing; mark some items by hand before you trust these."
        )
    if num_parameters is None or num_parameters >= MIN_JUDGE_PARAMETERS:
        return ""
    return (
        f"**The scores of judge {judge.model_asked} mean nothing.** By its name it has {size} parameters; one so small "
        "cannot mark descriptions, and its figures show only that the way from items to scores works."
    )


def _facts(result: BenchResult) -> str:
    run = result.run
    facts = {
        "items": f"{run.num_items} of `{run.items_file}`, SHA-256 `{run.items_sha256}`{_made(run)}",
        "answered by": f"`{run.answered_by}`, {run.label}",
        "mode": f"{run.mode}{_off_frame(result)}",
        "longest answer": f"{run.max_new_tokens} tokens" if run.max_new_tokens else "nothing was generated here",
        "scored by": run.scored_by,
        "predictions": f"{result.num_predicted}, missing {len(result.missing)}",
        "versions": ", ".join(run.versions),
    }
    return "\n".join(["| | |", "|:--|:--|", *(f"| {name} | {cell(text)} |" for name, text in facts.items())])


def _made(run: BenchRun) -> str:
    if not run.num_machine_made:
        return ""
    return f"; {run.num_machine_made} machine-made, {run.num_checked} of these checked by hand"


def _off_frame(result: BenchResult) -> str:
    if not result.num_off_frame:
        return ""
    return f"; {result.num_off_frame} objects without a mask in the item's frame are shown on the nearest that has one"


def _missing(by_reason: dict[str, int], missing: Sequence[MissingItem]) -> str:
    lines = ["## Items without a prediction", ", ".join(f"{n} {reason}" for reason, n in by_reason.items()) + "."]
    shown = missing[:MAX_MISSING_SHOWN]
    lines.append("\n".join(f"- item {item.item_id}: {item.reason}, {item.said}" for item in shown))
    if len(missing) > len(shown):
        lines.append(f"{len(missing) - len(shown)} more.")
    return "\n\n".join(lines)
