"""The proof that object tokens carry what the paper says of them: run by `make proof`.

Synthetic clips of two to five objects go through the engine with their exact masks; a small model is trained on the
`train` shards and asked about `held_out` clips with at least three objects whose answers differ. The same model answers
with its object tokens, with these zeroed, with those of another object of the clip, and from the text alone; so the
difference is what the tokens carry. Exits 1 where identity or colour gain less than 20 points over the better of zeroed
tokens and text alone, are asked of fewer than 200 items, gain nothing at the lower end of the interval, or stay right
with another object's tokens.

Clips are held out, the six pictures that their objects are cut from are not; colours are drawn at random, so that no
noun tells a colour.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from clips import NUM_HELD_OUT, NUM_TRAIN, write_source
from command import videorefer
from items import MIN_ANSWERS, TOPICS, Item, Topic, held_out_items, train_prior
from rich.console import Console
from rich.table import Table
from scoring import ARMS, Answerer, Arm, Figure, figure

from infra.builds import chosen_manifest
from infra.lake import Lake
from schemas.record import Record

NEEDED_POINTS, NEEDED_ITEMS = 20.0, 200
MAX_ITEMS = 210
"""Items of a topic that are asked, the first by clip: more would take longer than the hour that a proof may."""
PROVEN: tuple[Topic, ...] = ("identity", "colour")
HERE = Path(__file__).parent
ASKED: dict[str, tuple[Topic, ...]] = {"without_position": TOPICS, "with_position": ("direction",)}
"""Topics by model. Identity and colour are asked of the model whose object tokens are pooled features alone: with box
and time, another could find the object among the scene's tokens.
"""
PLACES = tuple(ASKED)
LOOK_EVERY_S = 30
console = Console(width=200)


class Row(Record):
    """How one model answers the items of one topic; `gain` is over the better of zeroed and none."""

    model: str
    topic: Topic
    num_items: int
    num_clips: int
    chance: float
    right: dict[str, Figure]
    gain: Figure


class Proof(Record):
    """What was found, and from what."""

    build_id: str
    models: tuple[str, ...]
    minutes: float
    rows: tuple[Row, ...]


def main() -> int:
    """Prepare, train, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("proof-out"), help="where everything goes and is found again")
    out: Path = parser.parse_args().out
    start_s = time.monotonic()
    if out.exists():
        parser.error(f"{out} is there already; a proof starts from nothing: remove it, or name another folder")
    manifest = write_source(out / "source", NUM_TRAIN, NUM_HELD_OUT)
    lake = out / "lake"
    videorefer("build", "--source", manifest, "--lake", lake, "--profile", HERE / "build.toml")
    _train(lake, out)
    proof = _asked(out, start_s)
    (out / "proof.json").write_text(proof.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _print(proof)
    return 1 if _failures(proof) else 0


def _asked(out: Path, start_s: float) -> Proof:
    """Both models' answers on the held-out clips."""
    place = Lake(str(out / "lake"))
    build_id = chosen_manifest(place, None).build_id
    items = held_out_items(place, build_id)
    priors = train_prior(place, build_id, items)
    for topic in TOPICS:
        prior = np.mean([share for share, item in zip(priors, items, strict=True) if item.topic == topic])
        console.print(f"{topic}: commonest train answer right in {100 * prior:.1f} %", highlight=False)
    pairs = [(name, topic) for name, topics in ASKED.items() for topic in topics]
    torch.set_num_threads(1)
    # loaded before any thread asks: while it loads, transformers changes torch's number format for all of them
    answerers = [Answerer.load(out / name / "model", out / "source") for name, _ in pairs]
    with ThreadPoolExecutor(len(PLACES)) as pool:  # torch leaves Python while it works
        rows = tuple(pool.map(lambda pair, answerer: _ask(*pair, answerer, items), pairs, answerers))
    labels = tuple(_label(out / name / "model") for name in PLACES)
    return Proof(build_id=build_id, models=labels, minutes=(time.monotonic() - start_s) / 60, rows=rows)


def _train(lake: Path, out: Path) -> None:
    """Both models at once, each on a core of its own; what they say goes to a log, of which the last line is shown."""
    command = Path(sys.executable).with_name("videorefer")
    runs = {}
    for place in PLACES:
        words = ("train", "--lake", lake, "--out", out / place, "--profile", HERE / f"{place}.toml")
        with _log(out, place).open("w") as log:
            runs[place] = subprocess.Popen([command, *map(str, words)], stdout=log, stderr=subprocess.STDOUT)
    while any(run.poll() is None for run in runs.values()):
        time.sleep(LOOK_EVERY_S)
        for place in PLACES:
            lines = _log(out, place).read_text(encoding="utf-8").splitlines()
            console.print(f"{place}: {lines[-1].strip() if lines else 'starts'}", highlight=False, markup=False)
    for place, run in runs.items():
        if run.returncode:
            raise SystemExit(f"training {place} failed; the last lines of {_log(out, place)} say why")


def _log(out: Path, place: str) -> Path:
    return out / f"{place}.log"


def _ask(name: str, topic: Topic, answerer: Answerer, items: Sequence[Item]) -> Row:
    asked = [item for item in items if item.topic == topic][:MAX_ITEMS]
    if not asked:
        raise SystemExit(f"no held-out clip has {MIN_ANSWERS} objects whose answers on {topic} differ")
    clips = [item.sample.clip_id for item in asked]
    right: dict[Arm, np.ndarray[tuple[int], np.dtype[np.float64]]] = {}
    for arm in ARMS:
        right[arm] = np.array([answerer.is_right(item, arm) for item in asked], np.float64)
        console.print(f"{name}, {topic}, {arm}: {100 * right[arm].mean():.1f} % of {len(asked)}", highlight=False)
    blind = max(right["zeroed"], right["text only"], key=lambda values: float(values.mean()))
    return Row(
        model=name,
        topic=topic,
        num_items=len(asked),
        num_clips=len(set(clips)),
        chance=float(np.mean([1 / len(item.options) for item in asked])),
        right={arm: figure(values, clips) for arm, values in right.items()},
        gain=figure(right["object tokens"] - blind, clips),
    )


def _label(model_dir: Path) -> str:
    card = (model_dir / "README.md").read_text(encoding="utf-8")
    return f"{model_dir.parent.name}: {next(line for line in card.splitlines() if line.startswith('# '))[2:]}"


def _failures(proof: Proof) -> list[str]:
    """What of the goal was not reached."""
    wanted = [row for row in proof.rows if row.topic in PROVEN]
    return [
        f"{row.topic}: {row.gain.percent()} points on {row.num_items} items"
        for row in wanted
        if 100 * row.gain.mean < NEEDED_POINTS
        or row.gain.low <= 0
        or row.num_items < NEEDED_ITEMS
        or row.right["permuted"].mean > row.chance
    ]


def _print(proof: Proof) -> None:
    table = Table("model", "topic", "items / clips", "chance", *ARMS, "gain, points", box=None)
    for row in proof.rows:
        shares = [row.right[arm].percent() for arm in ARMS]
        counts = f"{row.num_items} / {row.num_clips}"
        table.add_row(row.model, row.topic, counts, f"{100 * row.chance:.1f}", *shares, row.gain.percent())
    console.print(f"build {proof.build_id}, {proof.minutes:.0f} minutes; per cent right, 95 % intervals over clips")
    console.print(table)
    for failure in _failures(proof):
        console.print(f"NOT REACHED: {failure}", style="red")


if __name__ == "__main__":
    sys.exit(main())
