"""The job in `docs/` that another team would write: it learns from a build's shards without this package."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "docs" / "downstream_job.py"
OURS = {"schemas", "infra", "agents", "model", "benchmark", "flows"}


def test_the_job_learns_from_the_latest_build(lake_by_hand: Any, tmp_path: Path) -> None:
    lake_by_hand.publish()
    env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    line = (sys.executable, "-P", SCRIPT, lake_by_hand.lake.root)
    run = subprocess.run(line, capture_output=True, text=True, check=False, env=env, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    losses = [float(text) for text in re.findall(r"loss ([\d.]+)", run.stdout)]
    assert len(losses) >= 3
    assert losses[-1] < losses[0] - 0.1


def test_the_job_imports_nothing_of_ours() -> None:
    nodes = list(ast.walk(ast.parse(SCRIPT.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {"torch", "datasets"} <= {name.split(".")[0] for name in names}
    assert not OURS & {name.split(".")[0] for name in names}
