"""The command line: help, one JSON object where one is asked for, and one line on stderr for what users cause."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from click import Option
from typer.testing import CliRunner

from flows.cli import app
from flows.cli_common import BAD_USAGE, FAILED
from flows.profile_config import load_profile
from flows.server import HOST
from flows.wiring import agent_labels, required_weights
from infra.weights import CATALOGUE, FETCH_COMMAND

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own: no weights, and no server but those that the test starts."""
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "cache"


def invoke(*args: object) -> Any:
    """A command in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def one_error(result: Any, code: int) -> str:
    """What a command said of an error; it must be one line on stderr and nothing on stdout."""
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return str(lines[0])


@pytest.fixture
def built(lake_by_hand: Any) -> Any:
    """The lake made by hand, published."""
    made = lake_by_hand
    made.publish()
    return made


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_tells_what_it_does_and_each_option(name: str) -> None:
    options = [param for param in COMMANDS[name].params if isinstance(param, Option)]
    result = invoke(name, "--help")
    assert result.exit_code == 0
    for option in options:
        assert option.help
        assert option.opts[0] in result.stdout
        assert option.help.split()[0].strip("`") in result.stdout


def test_without_a_command_all_are_listed() -> None:
    said = invoke("--help").stdout
    assert all(name in said for name in COMMANDS)
    assert {"demo", "build", "status", "show", "diff", "quarantine", "doctor", "up", "down"} <= set(COMMANDS)


def test_an_unknown_option_is_bad_usage() -> None:
    result = invoke("status", "--lakes", "x")
    assert (result.exit_code, result.stdout) == (BAD_USAGE, "")


@pytest.mark.parametrize("command", [("build", "--source", "x", "--lake", "y"), ("doctor",)])
def test_a_bad_profile_is_bad_usage_in_one_line(command: tuple[str, ...]) -> None:
    said = one_error(invoke(*command, "--profile", "nope"), BAD_USAGE)
    assert "'nope'" in said
    assert "embedded" in said


def test_status_as_json_is_one_object_and_nothing_else(built: Any) -> None:
    alone = invoke("status", "--json")
    places = ("server", "server_pid", "ray", "ray_dashboard", "ray_pid", "worker_pid", "latest")
    nothing = dict.fromkeys(places) | {"builds": []}
    assert json.loads(alone.stdout) == nothing
    assert (alone.stdout.count("\n"), alone.stderr) == (1, "")
    told = json.loads(invoke("status", "--lake", built.lake.root, "--json").stdout)
    assert [manifest["build_id"] for manifest in told["builds"]] == [told["latest"]]


def test_status_lists_builds_with_their_figures(built: Any, tmp_path: Path) -> None:
    said = invoke("status", "--lake", built.lake.root).stdout
    assert "Prefect server: not running (videorefer up)" in said
    row = next(line for line in said.splitlines() if line.rstrip().endswith("latest"))
    assert row.split()[-3:] == ["12", "5", "latest"]
    assert "No build in" in invoke("status", "--lake", tmp_path / "empty").stdout


def test_show_prints_what_was_asked_for(built: Any) -> None:
    clip_id = built.plan.clips[0].clip_id
    said = invoke("show", "--lake", built.lake.root, clip_id, "-n", 1)
    assert said.exit_code == 0
    assert f"{clip_id}-short_caption-1" in said.stdout
    told = json.loads(invoke("show", "--lake", built.lake.root, "not_found", "--json").stdout)
    assert ([entry["reason"] for entry in told["quarantine"]], told["samples"]) == (["not_found"] * 2, [])


def test_show_says_in_one_line_what_it_does_not_find(built: Any, tmp_path: Path) -> None:
    assert "'zebra'" in one_error(invoke("show", "--lake", built.lake.root, "zebra"), FAILED)
    assert "no build yet" in one_error(invoke("show", "--lake", tmp_path / "empty"), FAILED)


def test_an_error_is_printed_word_for_word(tmp_path: Path) -> None:
    folder = tmp_path / "[/b] [x]"
    assert str(folder) in one_error(invoke("show", "--lake", folder), FAILED)


def test_a_bad_setting_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOREFER_OFFLINE", "maybe")
    assert "offline" in one_error(invoke("status"), BAD_USAGE).lower()


def test_the_doctor_fails_where_something_is_missing_and_names_the_command() -> None:
    plain = invoke("doctor", "--profile", "painted")
    assert plain.exit_code == FAILED
    assert f"-> {FETCH_COMMAND}" in plain.stdout
    as_json = invoke("doctor", "--profile", "painted", "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)["ok"]) == (FAILED, False)


def test_down_says_where_nothing_runs() -> None:
    result = invoke("down")
    assert (result.exit_code, result.stdout) == (0, "nothing was running\n")


def test_up_on_a_taken_port_is_one_line() -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert f"port {port} is taken" in one_error(invoke("up", "--port", port), FAILED)


def test_a_rival_distribution_stops_the_console_script_before_anything_of_ours_is_loaded(tmp_path: Path) -> None:
    rival = tmp_path / "rival"
    (rival / "agents").mkdir(parents=True)
    (rival / "agents" / "__init__.py").touch()
    info = rival / "rival-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "RECORD").write_text("agents/__init__.py,,\n")
    (info / "top_level.txt").write_text("agents\n")
    code = "import sys; from flows.names import main; main()"
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(rival), root))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert "the import package 'agents' is also installed by rival" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def one_clip(make_video: Any) -> Path:
    """A folder of one captioned video."""
    video: Path = make_video("source/a.mp4")
    video.with_suffix(".txt").write_text("A cat.")
    return video.parent


@pytest.fixture
def with_weights(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of the test's own seems to hold every weight; what is refused here is refused before any is loaded."""
    for weight in required_weights(agent_labels(load_profile("painted"))):
        CATALOGUE[weight].path.parent.mkdir(parents=True, exist_ok=True)
        CATALOGUE[weight].path.touch()


def build(source: Path, lake: Path) -> Any:
    return invoke("build", "--profile", "painted", "--source", source, "--lake", lake)


def test_an_empty_source_is_bad_usage_in_one_line(with_weights: None, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is empty" in one_error(build(tmp_path / "empty", tmp_path / "lake"), BAD_USAGE)
    assert "does not exist" in one_error(build(tmp_path / "nowhere", tmp_path / "lake"), BAD_USAGE)


def test_a_lake_that_cannot_be_written_is_one_line(with_weights: None, tmp_path: Path, one_clip: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write to the lake" in one_error(build(one_clip, tmp_path / "file" / "lake"), FAILED)


def test_missing_weights_are_said_with_the_command_that_fetches_them(tmp_path: Path, one_clip: Path) -> None:
    said = one_error(build(one_clip, tmp_path / "lake"), FAILED)
    assert "is missing" in said
    assert FETCH_COMMAND in said


def test_what_is_refused_is_refused_before_prefect_and_ray_are_loaded(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom flows.cli import main\n"
        "try:\n    main()\nfinally:\n    print(sorted({'prefect', 'ray'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script, "build", "--source", str(tmp_path / "nowhere"), "--lake", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (BAD_USAGE, "[]\n")
    assert len(done.stderr.splitlines()) == 1
