"""The rules that hold over the whole tree, each as a ratchet."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("schemas", "infra", "agents", "model", "benchmark", "flows")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

ORCHESTRATORS = ("ray", "prefect")
HEAVY_MODELS = ("onnxruntime", "spacy", "torch", "transformers", "xllamacpp", "ai_edge_litert")
FORBIDDEN_IMPORTS = {
    "schemas": ("torch", "cv2", *ORCHESTRATORS),
    "infra.lake": ORCHESTRATORS,
    "infra.video": ORCHESTRATORS,
    "agents": (*ORCHESTRATORS, *HEAVY_MODELS),
    "benchmark": ORCHESTRATORS,
}

MACHINE_PATH = re.compile(r"(?<![\w.~*-])/(?:work|root|home)/")
REGISTRY = re.compile(
    r"(?:pypi|pythonhosted|npmjs|yarnpkg|conda|anaconda|debian)\.(?:org|com)\b|\b(?:extra-)?index-url\b"
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(path: Path) -> str:
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def tracked_files() -> list[Path]:
    """Files that git tracks or would track; none where this is not a checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def text_of(path: Path) -> str:
    """The file's text, empty for a binary one."""
    content = path.read_bytes()
    return "" if b"\0" in content else content.decode("utf-8", errors="replace")


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    return tracked_files() or pytest.skip("not a git checkout")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_owns_our_import_names(package: str) -> None:
    owners = importlib.metadata.packages_distributions().get(package, [])
    assert set(owners) <= {"videorefer"}, f"{package} also comes from {owners}: uninstall the other distribution"


@pytest.mark.parametrize("package", FORBIDDEN_IMPORTS)
def test_imports_are_light(package: str) -> None:
    names = [name for name in map(dotted, MODULES) if name == package or name.startswith(f"{package}.")]
    assert names, f"no module {package}"
    script = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & set(FORBIDDEN_IMPORTS[package])


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_says_what_it_is_and_stays_small(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert ast.get_docstring(tree), "no module docstring"
    assert len(text.splitlines()) <= MAX_FILE_LINES
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_no_module_hides_one_of_the_standard_library() -> None:
    assert [relative(path) for path in MODULES if path.stem in sys.stdlib_module_names] == []


def test_no_module_of_flows_is_named_like_a_package() -> None:
    # Prefect loads `flows/x.py:flow` as module `x`, which would then stand for the package
    assert [relative(path) for path in MODULES if path.parts[-2] == "flows" and path.stem in PACKAGES] == []


def test_tests_are_no_packages() -> None:
    # tests/agents/__init__.py would make `import agents` find the tests
    assert [relative(path) for path in (ROOT / "tests").rglob("__init__.py")] == []


def test_no_file_names_a_place_on_one_machine(tracked: list[Path]) -> None:
    assert hits(tracked, MACHINE_PATH) == []


def test_no_file_names_a_registry_address(tracked: list[Path]) -> None:
    assert hits([path for path in tracked if path.name != Path(__file__).name], REGISTRY) == []


def hits(paths: list[Path], pattern: re.Pattern[str]) -> list[str]:
    """`file:line` of each match."""
    return [
        f"{relative(path)}:{number}: {line.strip()[:100]}"
        for path in paths
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if pattern.search(line)
    ]


PROFILES = sorted((ROOT / "flows" / "profiles").glob("*.toml"))


def test_profiles_are_shipped() -> None:
    assert "embedded" in {path.stem for path in PROFILES}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_shipped_profile_loads(path: Path) -> None:
    from flows.profile_config import load_profile  # pulls every agent's configuration

    assert load_profile(path.stem).name == path.stem
    assert load_profile(str(path)) == load_profile(path.stem)


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"])
def test_the_front_matter_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0
