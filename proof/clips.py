"""Synthetic clips whose objects have colours drawn at random, a set number of them held out."""

import json
from pathlib import Path

import numpy as np
from rich.progress import track

from infra.actors import Scene
from infra.cutouts import TINTS_RGB
from infra.synthetic import Plan, draw_plan, put_in_split, write_clip

SEED = 4242
SCENE = Scene(difficulty="crowd")
COLOURS = tuple(TINTS_RGB)
NUM_TRAIN, NUM_HELD_OUT = 220, 185


def write_source(folder: Path, num_train: int, num_held_out: int) -> Path:
    """Clips of two to five objects each with their truth, and the manifest that lists them."""
    (folder / "clips").mkdir(parents=True)
    rows = []
    for number in track(range(num_train + num_held_out), "clips"):
        video = folder / "clips" / f"proof-{number:03d}.mp4"
        rows.append(write_clip(video, _plan(np.random.default_rng([SEED, number])), SCENE))
        put_in_split(video, "train" if number < num_train else "held_out")
    manifest = folder / "clips.jsonl"
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return manifest


def _plan(rng: np.random.Generator) -> Plan:
    """A drawn crowd in which every object has a colour of its own, whatever it is: a noun tells no colour."""
    plan = draw_plan(rng, SCENE)
    colours = rng.permutation(COLOURS)[: len(plan.actors)]
    tinted = (
        actor.model_copy(update={"colour": str(colour)}) for actor, colour in zip(plan.actors, colours, strict=True)
    )
    return plan.model_copy(update={"actors": tuple(tinted)})
