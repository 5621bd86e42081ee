"""The Job that fetches the packaged weights, run here as its pod would: with its variables, and nothing of a build."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.doctor import fetch_weights
from flows.profile_config import load_profile
from flows.train_base import EMBEDDED_WEIGHTS
from flows.wiring import packaged_weights
from infra.settings import settings
from infra.weights import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "infra/deploy/kubernetes"
AS_INSTALLED = (sys.executable, "-c", "from flows.names import main; main()")


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    job = yaml.safe_load((KUBERNETES / "weights-job.yaml").read_text())
    spec: dict[str, Any] = job["spec"]["template"]["spec"]
    return spec


@pytest.mark.weights
def test_it_ends_well_in_a_pod_without_gpus_models_keys_and_servers(pod: dict[str, Any], tmp_path: Path) -> None:
    (fetch,) = pod["containers"]
    program, *words = fetch["command"]
    ((name, cache),) = [(variable["name"], variable["value"]) for variable in fetch["env"]]
    assert (program, name) == ("videorefer", "VIDEOREFER_CACHE")
    assert [mount["mountPath"] for mount in fetch["volumeMounts"]] == [cache]
    fetch_weights("embedded", say=print)
    (tmp_path / "files").symlink_to(settings().cache_dir / "files")  # so that nothing is fetched
    known = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), name: str(tmp_path)}
    ended = subprocess.run(
        [*AS_INSTALLED, *words], cwd=tmp_path, env=known, check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_it_fetches_what_the_profile_of_the_build_and_a_scheduled_training_take(pod: dict[str, Any]) -> None:
    words = pod["containers"][0]["command"]
    fetched = {*packaged_weights(load_profile(words[words.index("--profile") + 1])), *EMBEDDED_WEIGHTS.values()}
    needed = packaged_weights(load_profile(str(KUBERNETES / "profiles/64-gpus.toml")))
    assert needed
    assert set(needed) <= fetched


def test_pods_mount_the_folder_that_it_writes(pod: dict[str, Any]) -> None:
    cluster = yaml.safe_load((KUBERNETES / "ray-cluster.yaml").read_text())["spec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    (claim,) = pod["volumes"]
    assert next(it for it in head["volumes"] if it["name"] == "weights") == claim
    mount = next(it for it in head["containers"][1]["volumeMounts"] if it["name"] == "weights")
    (written,) = {entry.path.relative_to(settings().cache_dir).parts[0] for entry in CATALOGUE.values()}
    assert mount == {"name": "weights", "mountPath": f"/cache/{written}", "subPath": written, "readOnly": True}
