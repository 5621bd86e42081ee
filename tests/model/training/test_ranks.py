"""Ranks that do not hold or see the same."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


def test_ranks_that_see_another_folder_or_hold_other_weights_are_all_told(
    tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    checkpoint = tmp_path / "run-0" / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").touch()
    script = [sys.executable, str(Path(__file__).with_name("disagree_script.py")), str(tmp_path)]
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*script, str(rank)], cwd=ROOT, env=env) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    for rank in range(2):
        blind, different = json.loads((tmp_path / f"said-{rank}.json").read_text())
        assert "rank 0 goes on from step-00000002, which 1 of 2 ranks do not see" in blind
        assert different.startswith("1 weights differ between ranks, connector.")
