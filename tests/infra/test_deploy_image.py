"""The engine's image: what goes into it is in the repository, what must not go into it does not."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "infra" / "deploy"
DOCKERFILE = (DEPLOY / "engine.Dockerfile").read_text()
INSTRUCTIONS = {"FROM", "RUN", "COPY", "WORKDIR", "USER", "ENV", "CMD"}
"""Those of Docker's that are used."""


def faults(dockerfile: str) -> list[str]:
    text = re.sub(r"^\s*#.*\n", "", dockerfile.replace("\\\n", " "), flags=re.MULTILINE)
    lines = [line.split() for line in text.splitlines() if line.strip()]
    found = [f"{line[0]}: no such instruction" for line in lines if line[0] not in INSTRUCTIONS]
    copied = {path for line in lines if line[0] == "COPY" for path in line[1:-1]}
    found += [f"COPY {path}: is not there" for path in copied if not (ROOT / path).exists()]
    found += [f"{path}: the image lacks it" for path in needed() - copied]
    found += [f"{path}: let in by .dockerignore or copied, not both" for path in let_in() ^ copied]
    users = [line[1].partition(":")[0] for line in lines if line[0] == "USER"]
    return found + [f"runs as {users}, pods as {pod_users()}"] * ({*users[-1:]} != pod_users() or "0" in pod_users())


def needed() -> set[str]:
    """What the wheel is built from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    files = {project["project"]["readme"], *project["project"]["license-files"]}
    return {*packages, *files, "pyproject.toml", "constraints.txt"}


def let_in() -> set[str]:
    lines = (DEPLOY / "engine.Dockerfile.dockerignore").read_text().splitlines()
    return {line[1:] for line in lines if line.startswith("!")}


def pod_users() -> set[str]:
    """Whom pods run our image as."""
    manifests = (DEPLOY / "kubernetes").glob("*.yaml")
    return {user for path in manifests for user in re.findall(r"runAs(?:User|Group): (\d+)", path.read_text())}


def test_the_image_is_without_fault() -> None:
    assert faults(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("COPY flows flows", "COPY flow flow"),
        ("COPY flows flows", ""),
        ("USER 1000:1000", "USER root"),
        ("USER 1000:1000", ""),
        ("CMD", "START"),
        ("COPY README.md", "COPY .gitignore README.md"),
    ],
)
def test_a_fault_is_found(old: str, new: str) -> None:
    assert old in DOCKERFILE
    assert faults(DOCKERFILE.replace(old, new))


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
    command = ["git", "check-ignore", "--no-index", "--quiet", f"infra/deploy/{name}"]
    code = subprocess.run(command, cwd=ROOT, check=False, stderr=subprocess.DEVNULL).returncode
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
    build = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["engine"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).read_text() == DOCKERFILE
