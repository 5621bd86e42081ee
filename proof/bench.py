"""A trained model, an untrained one and one that is blind on machine-made Bench-Q items: run by `make proof-bench`.

Synthetic clips with their exact masks go through the engine with all the questions of the default refiner. A small
model is trained on `train` and asked items that are drawn from `held_out` clips. Exits 1 where there are fewer than 60
items, one of the five types has none, or the trained model is not above the blind one.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

from clips import NUM_HELD_OUT, NUM_TRAIN, write_source
from command import videorefer
from rich.console import Console

from benchmark.question_score import QuestionScore
from benchmark.question_types import OFFICIAL_TYPES
from flows.bench_record import BenchResult
from flows.bench_table import bench_table, read_results

NUM_ITEMS, NEEDED_ITEMS = 200, 60
HERE = Path(__file__).parent
console = Console()


class Arm(NamedTuple):
    """A row of the table: which model of the output folder, in which mode."""

    model: str
    mode: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.model}-{self.mode}"


TRAINED, BLIND = Arm("trained", "multi"), Arm("trained", "blind")
ARMS = (TRAINED, Arm("trained", "single"), BLIND, Arm("untrained", "multi"))


def main() -> int:
    """Prepare, train, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("proof-bench-out"), help="where everything goes")
    out: Path = parser.parse_args().out
    start_s = time.monotonic()
    if out.exists():
        parser.error(f"{out} is there already; a proof starts from nothing: remove it, or name another folder")
    lake = out / "lake"
    manifest = write_source(out / "source", NUM_TRAIN, NUM_HELD_OUT)
    videorefer("build", "--source", manifest, "--lake", lake, "--profile", HERE / "bench.toml")
    train = ("train", "--lake", lake, "--profile", HERE / "with_position.toml", "--out")
    videorefer(*train, out / "untrained", "--steps", 0)
    videorefer(*train, out / "trained")
    videorefer("bench", "new", "--lake", lake, "--out", out / "items", "--num", NUM_ITEMS)
    for arm in ARMS:
        asked = ("--items", out / "items" / "bench-q.json", "--videos", out / "source", "--mode", arm.mode)
        model = ("--model", out / arm.model, "--scorer", "likelihood")
        videorefer("bench", "q", *asked, *model, "--out", out / arm.name)
    results = read_results([out / arm.name for arm in ARMS])
    page = bench_table(results)
    (out / "table.md").write_text(page, encoding="utf-8")
    console.print(page, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{(time.monotonic() - start_s) / 60:.0f} minutes", highlight=False)
    failures = _failures(list(results.values()))
    for failure in failures:
        console.print(f"NOT REACHED: {failure}", style="red")
    return 1 if failures else 0


def _failures(results: list[BenchResult]) -> list[str]:
    """What of the goal was not reached; `results` are in the order of the arms."""
    trained, blind = (results[ARMS.index(arm)].score for arm in (TRAINED, BLIND))
    assert isinstance(trained, QuestionScore)
    assert isinstance(blind, QuestionScore)
    found = []
    if trained.micro.n < NEEDED_ITEMS:
        found.append(f"{trained.micro.n} items, at least {NEEDED_ITEMS} are needed")
    if absent := [name for name in OFFICIAL_TYPES if name not in trained.by_type]:
        found.append(f"no item of {', '.join(absent)}")
    if trained.micro.accuracy <= blind.micro.accuracy:
        found.append(f"trained {trained.micro.accuracy:.3f}, blind {blind.micro.accuracy:.3f}")
    return found


if __name__ == "__main__":
    sys.exit(main())
