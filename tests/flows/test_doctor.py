"""The doctor names what is missing with the command that mends it; our six package names are guarded."""

from pathlib import Path

import pytest

from flows import names
from flows.doctor import demo_material, examine
from flows.names import PACKAGES, check_names
from flows.profile_config import load_profile, shipped_profiles
from flows.train_base import EMBEDDED_WEIGHTS
from flows.wiring import agent_labels, packaged_weights, required_checkpoints, required_weights
from infra.weights import CATALOGUE, FETCH_COMMAND


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing was fetched yet."""
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("flows.doctor_room._gpus_here", lambda: 0)  # torch takes seconds to load
    return tmp_path / "cache"


@pytest.mark.parametrize("name", shipped_profiles())
def test_on_a_new_machine_every_weight_is_missing_and_the_command_is_named(empty_cache: Path, name: str) -> None:
    profile = load_profile(name)
    findings = {finding.what: finding for finding in examine(profile)}
    needed, models = packaged_weights(profile), required_checkpoints(profile)
    assert needed or models
    for model in models:
        assert not findings[f"model {model}"].ok
        assert "hf download" in findings[f"model {model}"].mend
    for weight in needed:
        assert not findings[weight].ok
        assert FETCH_COMMAND in findings[weight].mend
        assert CATALOGUE[weight].license in findings[weight].detail
    assert (findings["demo"].ok, findings["demo"].mend) == (True, FETCH_COMMAND)
    assert findings["demo"].detail.startswith(f"0 of {len(demo_material())}")
    assert findings["Prefect"].ok  # a build needs no server that was started before
    assert str(empty_cache) in findings["disk"].detail


def test_the_painted_profile_needs_no_segmenter_and_no_chat_model() -> None:
    small, whole = (set(required_weights(agent_labels(load_profile(name)))) for name in ("painted", "embedded"))
    assert small < whole


def test_what_is_there_is_found(empty_cache: Path) -> None:
    profile = load_profile("painted")
    for weight in (*required_weights(agent_labels(profile)), *EMBEDDED_WEIGHTS.values(), *demo_material()):
        CATALOGUE[weight].path.parent.mkdir(parents=True, exist_ok=True)
        CATALOGUE[weight].path.touch()
    of_others = ("Python", "versions", "disk", "port")  # what else this machine has or runs
    assert all(not finding.mend for finding in examine(profile) if not finding.what.startswith(of_others))


def test_a_full_disk_is_said(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.doctor_checks.FREE_DISK_GIB", 10**9)
    disk = next(finding for finding in examine(load_profile("painted")) if finding.what == "disk")
    assert not disk.ok
    assert "VIDEOREFER_CACHE" in disk.mend


def test_without_npm_it_says_where_npm_comes_from(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_profile("embedded")
    monkeypatch.setattr("flows.doctor.shutil.which", lambda name: None)
    by_npm = {name for name in required_weights(agent_labels(profile)) if CATALOGUE[name].client == "npm"}
    assert by_npm
    for finding in examine(profile):
        assert ("Node.js" in finding.mend) == (finding.what in by_npm)


def test_offline_it_says_what_forbids_fetching(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOREFER_OFFLINE", "1")
    profile = load_profile("painted")
    mends = [finding.mend for finding in examine(profile) if not finding.ok and finding.what in CATALOGUE]
    assert mends
    assert all("unset VIDEOREFER_OFFLINE" in mend and FETCH_COMMAND in mend for mend in mends)


def test_our_names_are_our_own() -> None:
    assert check_names() is None


@pytest.mark.parametrize("name", PACKAGES)
def test_another_distribution_that_ships_one_of_our_names_is_said_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = {ours: ["videorefer"] for ours in PACKAGES} | {name: ["videorefer", "rival"], "numpy": ["numpy"]}
    monkeypatch.setattr(names, "packages_distributions", lambda: owners)
    said = check_names()
    assert said is not None
    assert f"{name!r} is also installed by rival" in said
    assert "\n" not in said
