"""Several bench runs of the same items in one table."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from flows.bench_record import SCORES_FILE, BenchResult, BenchUsageError
from flows.bench_report import section


def read_results(folders: Sequence[Path]) -> dict[str, BenchResult]:
    """The results of finished runs, each named by its folder, who answered and the mode.

    Raises BenchUsageError for a folder without a result, and for runs that no table can hold: over other items, or
    scored another way.
    """
    results: dict[str, BenchResult] = {}
    for folder in folders:
        result = _read(folder)
        results[f"{folder.absolute().name}: {result.run.model_name}, {result.run.mode}"] = result
    if len(results) < len(folders):
        raise BenchUsageError("a run is named twice; name each folder once")
    _require_alike(folders, [result.run.items_sha256 for result in results.values()], "items (SHA-256)")
    _require_alike(folders, [_way(result) for result in results.values()], "way of scoring")
    return results


def bench_table(results: dict[str, BenchResult]) -> str:
    """The page in Markdown."""
    run = next(iter(results.values())).run
    made = f"; {run.num_machine_made} machine-made, {run.num_checked} of these checked by hand"
    items = f"{run.num_items} items of `{run.items_file}`{made if run.num_machine_made else ''}."
    return f"# Bench-{run.bench.upper()}: {len(results)} runs\n\n{items}\n\n{section(results)}"


def _way(result: BenchResult) -> str:
    """Scores of several judges have a table each; those of a judge and of the heuristic say different things."""
    run = result.run
    return f"{run.bench} by a judge" if run.scored_by.startswith("judge ") else f"{run.bench} by {run.scored_by}"


def _read(folder: Path) -> BenchResult:
    path = folder / SCORES_FILE
    try:
        return BenchResult.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise BenchUsageError(
            f"{folder} holds no {SCORES_FILE}; name folders that `videorefer bench q` or `d` wrote with --out, and let "
            "unfinished runs finish"
        ) from None
    except (ValidationError, OSError) as error:
        raise BenchUsageError(f"{path} is no result of a bench run: {' '.join(str(error).split())[:200]}") from error


def _require_alike(folders: Sequence[Path], values: Sequence[str], what: str) -> None:
    for folder, value in zip(folders, values, strict=True):
        if value != values[0]:
            raise BenchUsageError(
                f"{folders[0]} and {folder} share no table: their {what} are {values[0][:40]} and {value[:40]}; "
                "name runs of one items file, scored one way"
            )
