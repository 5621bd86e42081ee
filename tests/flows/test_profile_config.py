"""Profiles load, and what is wrong with one is said in one line that names the place."""

from pathlib import Path

import pytest

from flows.profile_config import ROLES, load_profile, shipped_profiles
from flows.profile_files import ProfileError

WHOLE = """
name = "mine"
description = "For a test."
[analyzer]
engine = "spacy-chunks+minilm"
[segmenter]
engine = "painted-truth"
[annotator]
engine = "measured-facts"
[reviewer]
engine = "second-look+efficientnet-lite3+minilm"
[refiner]
engine = "template"
"""


def message(tmp_path: Path, text: str | bytes) -> str:
    """What is said of a profile of this text; it must be one line that names the file."""
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ProfileError) as raised:
        load_profile(str(path))
    said = str(raised.value)
    assert "\n" not in said
    assert "mine.toml" in said
    return said


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_profile_loads_under_its_own_name(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert all(profile.workers(role) >= 1 for role in ROLES)


def test_the_small_profiles_are_shipped() -> None:
    assert {"embedded", "painted"} <= set(shipped_profiles())


def test_a_file_of_ones_own_loads_with_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(WHOLE)
    profile = load_profile(str(path))
    assert (profile.name, profile.segmenter.engine, profile.clips_per_unit) == ("mine", "painted-truth", 8)


def test_an_unknown_profile_lists_the_allowed() -> None:
    with pytest.raises(ProfileError) as raised:
        load_profile("embeded")
    assert "'embeded'" in str(raised.value)
    assert all(name in str(raised.value) for name in shipped_profiles())


@pytest.mark.parametrize(
    ("old", "new", "unknown", "nearest"),
    [
        (
            'engine = "painted-truth"',
            'engine = "painted-truth"\ntrakcer = {}',
            "segmenter.trakcer",
            "segmenter.tracker",
        ),
        (
            'engine = "painted-truth"',
            'engine = "painted-truth"\nresources = { worker = 2 }',
            "segmenter.resources.worker",
            "segmenter.resources.workers",
        ),
        ("[refiner]", "[refiner]\nconfig = { papershort = true }", "refiner.config.papershort", "paper_short"),
        ('name = "mine"', 'name = "mine"\nclips_per_units = 2', "clips_per_units", "clips_per_unit"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(
    tmp_path: Path, old: str, new: str, unknown: str, nearest: str
) -> None:
    said = message(tmp_path, WHOLE.replace(old, new))
    assert f"unknown key {unknown!r}" in said
    assert said.endswith(f"{nearest}'")


@pytest.mark.parametrize(
    ("old", "new", "where", "got"),
    [
        ('engine = "painted-truth"', 'engine = "sam2"', "segmenter.engine", "'sam2'"),
        ('name = "mine"', 'name = "mine"\nmax_units = 0', "max_units", "0"),
        ("[refiner]", "[refiner]\nresources = { batch_size = 33 }", "refiner.resources.batch_size", "33"),
        ("[refiner]", "[refiner]\nresources = 3", "refiner.resources", "3"),
    ],
)
def test_a_bad_value_says_where_and_what(tmp_path: Path, old: str, new: str, where: str, got: str) -> None:
    said = message(tmp_path, WHOLE.replace(old, new))
    assert f"{where}: " in said
    assert said.endswith(f"got {got}")


def test_a_missing_section_is_named_without_the_rest_of_the_file(tmp_path: Path) -> None:
    said = message(tmp_path, WHOLE.replace('[refiner]\nengine = "template"', ""))
    assert "refiner: Field required" in said
    assert "painted-truth" not in said


@pytest.mark.parametrize("text", ["name = ", "[analyzer\n", b"name = '\xff'"])
def test_what_is_not_toml_is_said_in_one_line(tmp_path: Path, text: str | bytes) -> None:
    assert "not TOML" in message(tmp_path, text)


def test_a_misspelt_required_key_is_what_is_said(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "flows" / "profiles" / "painted.toml"
    path = tmp_path / "typo.toml"
    path.write_text(shipped.read_text().replace('engine = "template"', 'engin = "template"'))
    with pytest.raises(ProfileError, match=r"unknown key 'refiner\.engin'; the nearest valid one is 'refiner\.engine'"):
        load_profile(str(path))
