"""The page of a bench run: what ran, what is missing, and the tables."""

from collections.abc import Sequence

from benchmark.description_score import DescriptionScore
from benchmark.heuristic import HeuristicScore
from benchmark.published import Scorer, published
from benchmark.question_score import QuestionScore
from benchmark.report import description_section, heuristic_section, question_section
from flows.bench_record import BenchResult, BenchRun, MissingItem
from flows.bench_score import judge_remarks

MAX_MISSING_SHOWN = 20


def bench_report(result: BenchResult) -> str:
    """The whole page in Markdown."""
    run = result.run
    parts = [f"# Bench-{run.bench.upper()}: {run.model_name}", _facts(result), _section(result)]
    if result.missing:
        parts.append(_missing(result.missing_by_reason, result.missing))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _section(result: BenchResult) -> str:
    name, run = result.run.model_name, result.run
    match result.score:
        case QuestionScore() as questions:
            scorer: Scorer = "likelihood" if run.scored_by == "likelihood" else "letters"
            return question_section({name: questions}, run.setting, scorer, published())
        case DescriptionScore() as descriptions:
            remarks = judge_remarks(descriptions.judge.model_asked)
            return description_section({name: descriptions}, run.setting, published(), remarks)
        case HeuristicScore() as heuristic:
            return heuristic_section({name: heuristic})


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
    return "\n".join(["| | |", "|:--|:--|", *(f"| {name} | {_cell(text)} |" for name, text in facts.items())])


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


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
