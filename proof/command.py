"""The command line of the engine, as proofs call it."""

import subprocess
import sys
from pathlib import Path


def videorefer(*words: str | Path | int) -> None:
    """Run a command and pass on what it prints; raises CalledProcessError where it fails."""
    command = Path(sys.executable).with_name("videorefer")
    subprocess.run([command, *map(str, words)], check=True)
