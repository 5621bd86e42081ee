"""Synthetic clips of which a set number are held out, in the proof's own source folder."""

import hashlib
import itertools
import json
import struct
from pathlib import Path

from infra.synthetic import write_clips
from schemas.clip import Split, split_of

SEED = 4242


def write_source(folder: Path, num_train: int, num_held_out: int) -> Path:
    """Clips of two to five objects each with their truth, and the manifest that lists them."""
    manifest = folder / "clips.jsonl"
    if not manifest.exists():
        rows = write_clips(folder / "clips", num_train + num_held_out, SEED, "crowd")
        for number, row in enumerate(rows):
            _put_in_split(folder / str(row["video"]), "train" if number < num_train else "held_out")
        manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return manifest


def _put_in_split(video: Path, split: Split) -> None:
    """Append an empty box, which players skip, whose number puts the file where it is wanted.

    The engine splits by the hash of a file's bytes: of clips as they come, one in ten would be held out.
    """
    data = video.read_bytes()
    for number in itertools.count():
        candidate = data + struct.pack(">I4sI", 12, b"free", number)
        if split_of(hashlib.sha256(candidate).hexdigest()) == split:
            video.write_bytes(candidate)
            return
