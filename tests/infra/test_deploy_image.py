"""The images: hadolint reads their files, pods run as their users, and what goes into the engine's is in the repository
and what must not go into it does not."""

import json
import re
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.vllm.process import command, environment
from infra.vllm.settings import VERSION, VllmSettings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "infra" / "deploy"
DOCKERFILES = {name: (DEPLOY / f"{name}.Dockerfile").read_text() for name in ("engine", "vllm")}
GUIDE = (ROOT / "docs" / "cluster.md").read_text()
COMPOSE_FILES = ("compose.yaml", "compose.gpu.yaml")
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"


def faults(name: str, dockerfile: str) -> list[str]:
    found = read_by_hadolint(dockerfile)
    if name == "engine":
        copied = {path for paths in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE) for path in paths.split()}
        found += [f"COPY {path}: is not there" for path in copied if not (ROOT / path).exists()]
        found += [f"{path}: the image lacks it" for path in needed() - copied]
        found += [f"{path}: let in by .dockerignore or copied, not both" for path in let_in() ^ copied]
    users, pods = re.findall(r"^USER (\S+)$", dockerfile, re.MULTILINE), pod_users(f"videorefer-{name}:")
    return found + [f"runs as {users}, pods as {pods}"] * ({*users[-1:]} != pods or "0" in users[-1].split(":")[:1])


def read_by_hadolint(dockerfile: str) -> list[str]:
    """What it does not read, as Docker would not, and what it advises against."""
    words = [str(HADOLINT), "--no-color", "--config", "/dev/null", "-"]
    return subprocess.run(words, input=dockerfile, capture_output=True, text=True, check=False).stdout.splitlines()


def needed() -> set[str]:
    """What the wheel is built from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    files = {project["project"]["readme"], *project["project"]["license-files"]}
    return {*packages, *files, "pyproject.toml", "constraints.txt"}


def let_in() -> set[str]:
    lines = (DEPLOY / "engine.Dockerfile.dockerignore").read_text().splitlines()
    return {line[1:] for line in lines if line.startswith("!")}


def pod_users(image: str) -> set[str]:
    """Whom pods run an image as, user:group."""
    documents = [it for path in (DEPLOY / "kubernetes").glob("*.yaml") for it in yaml.safe_load_all(path.read_text())]
    ours = [pod for pod in pods(documents) for it in pod["containers"] if it["image"].startswith(image)]
    return {"{runAsUser}:{runAsGroup}".format_map(pod["securityContext"]) for pod in ours}


def pods(found: Any) -> Iterator[dict[str, Any]]:
    if isinstance(found, dict) and "containers" in found:
        yield found
    elif isinstance(found, dict | list):
        for item in found.values() if isinstance(found, dict) else found:
            yield from pods(item)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_image_is_without_fault(name: str) -> None:
    assert faults(name, DOCKERFILES[name]) == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("engine", "COPY flows flows", "COPY flow flow"),
        ("engine", "COPY flows flows", ""),
        ("engine", "USER 1000:1000", "USER root"),
        ("engine", "USER 1000:1000", ""),
        ("engine", "COPY README.md", "COPY .gitignore README.md"),
        ("vllm", "USER 2000:0", "USER 1000:1000"),
    ],
)
def test_a_fault_is_found(name: str, old: str, new: str) -> None:
    assert old in DOCKERFILES[name]
    assert faults(name, DOCKERFILES[name].replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("engine", "CMD", "START"),
        ("engine", "COPY flows", "COPY --form=base flows"),
        ("engine", "WORKDIR /lake", "WORKDIR lake"),
        ("vllm", "FROM", "FORM"),
        ("vllm", ":v0.32.0", ""),
    ],
    ids=["no instruction", "no flag", "no absolute folder", "no base", "no version"],
)
def test_hadolint_finds_a_fault(name: str, old: str, new: str) -> None:
    assert old in DOCKERFILES[name]
    assert read_by_hadolint(DOCKERFILES[name].replace(old, new))


def test_vllm_is_told_what_a_run_tells_its_own(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()  # looked for, not into
    dockerfile, chat = DOCKERFILES["vllm"], VllmSettings(name="chat", model=str(tmp_path))
    *_, always = " ".join(command(chat, ["chat"], "0.0.0.0", 8000)).partition(" --tensor-parallel-size 1 ")
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)
    assert " ".join(json.loads(entrypoint)).replace("=", " ") == f"vllm serve {always}"
    variables = dict(re.findall(r"^(?:ENV|   ) ([A-Z_]+)=(\S+)", dockerfile, re.MULTILINE))
    assert variables
    assert variables.items() <= environment(chat, "").items()
    assert f"FROM vllm/vllm-openai:v{VERSION}\n" in dockerfile


def test_secrets_stay_out_of_the_image() -> None:
    rules = (DEPLOY / "engine.Dockerfile.dockerignore").read_text().splitlines()
    assert rules.index("infra/deploy") > rules.index("!infra")  # the last that fits counts


@pytest.mark.parametrize(
    ("name", "is_ignored"),
    [
        (".env", True),
        ("kubernetes/secrets.env", True),
        ("env.example", False),
        ("kubernetes/secrets.env.example", False),
    ],
)
def test_secrets_stay_out_of_git(name: str, is_ignored: bool) -> None:
    words = ["git", "check-ignore", "--no-index", "--quiet", f"infra/deploy/{name}"]
    code = subprocess.run(words, cwd=ROOT, check=False, stderr=subprocess.DEVNULL).returncode
    if code == 128:
        pytest.skip("not a git checkout")
    assert (code == 0) == is_ignored


def test_examples_hold_no_secret() -> None:
    for name in ("env.example", "kubernetes/secrets.env.example"):
        lines = (DEPLOY / name).read_text().splitlines()
        values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        assert {value for key, value in values.items() if key != "COMPOSE_FILE"} == {""}


def test_the_files_that_compose_joins_are_there() -> None:
    said = re.findall(r"^COMPOSE_FILE=(.*)$", (DEPLOY / "env.example").read_text(), re.MULTILINE)
    assert [(DEPLOY / name).is_file() for name in said[0].split(":")] == [True, True]


def test_what_may_be_left_out_without_a_gpu_is_asked_for_with_one_alone() -> None:
    ((files, models),) = re.findall(r"Without a GPU leave `(\w+)` and `(\w+)` out of `.env`", GUIDE)
    must = {name: set(re.findall(r"\$\{(\w+):\?", (DEPLOY / name).read_text())) for name in COMPOSE_FILES}
    assert files == "COMPOSE_FILE"
    assert must["compose.yaml"] == {"POSTGRES_PASSWORD", "PREFECT_AUTH", "VIDEOS_FOLDER"}
    assert must["compose.gpu.yaml"] == {models, "VLLM_API_KEY"}


@pytest.mark.parametrize(
    ("name", "file", "context"), [("engine", "compose.yaml", ROOT), ("vllm", "compose.gpu.yaml", DEPLOY)]
)
def test_compose_builds_the_image(name: str, file: str, context: Path) -> None:
    build = yaml.safe_load((DEPLOY / file).read_text())["services"][name]["build"]
    assert (DEPLOY / build["context"]).resolve() == context
    assert (context / build["dockerfile"]).read_text() == DOCKERFILES[name]
