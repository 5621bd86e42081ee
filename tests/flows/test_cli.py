"""The command line: help, one JSON object where one is asked for, and one line on stderr for what users cause."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from click import Option
from typer.testing import CliRunner

from flows import cli, names
from flows.cli import BAD_USAGE, FAILED, app
from flows.profile_config import load_profile
from flows.publish import publish_build
from flows.server import HOST, start_server, stop_server
from flows.wiring import agent_labels, required_weights
from infra.settings import settings
from infra.weights import FETCH_COMMAND, fetch

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
    publish_build(made.plan, made.chain, (), str(made.source), made.lake, made.profile, made.site)
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
    assert {"demo", "build", "status", "show", "doctor", "up", "down"} <= set(COMMANDS)


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
    assert json.loads(alone.stdout) == {"server": None, "latest": None, "builds": []}
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
    assert "offline" in one_error(invoke("status"), FAILED).lower()


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


def test_a_rival_distribution_stops_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(names, "packages_distributions", lambda: {"schemas": ["rival"]})
    with pytest.raises(SystemExit) as raised:
        cli.main()
    assert raised.value.code == FAILED
    assert "'schemas' is also installed by rival" in capsys.readouterr().err


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a machine with all weights and a Prefect server that runs."""
    weights = required_weights(agent_labels(load_profile("painted")))
    fetch(weights, print)
    folder = tmp_path_factory.mktemp("served")
    (folder / "cache").mkdir()
    (folder / "cache" / "files").symlink_to(settings().cache_dir / "files")
    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    os.environ.update(VIDEOREFER_CACHE=str(folder / "cache"), PREFECT_HOME=str(folder / "prefect"))
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    start_server(port)
    yield dict(os.environ)
    stop_server()
    os.environ.clear()
    os.environ.update(before)


class Ended:
    """What a command in a process of its own ended with."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        self.exit_code, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr


def run_build(env: dict[str, str], source: Path, lake: Path) -> Ended:
    command = ["-c", "from flows.cli import main; main()", "build", "--profile", "painted"]
    return Ended(
        subprocess.run(
            [sys.executable, *command, "--source", str(source), "--lake", str(lake)],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
    )


@pytest.mark.weights
def test_an_empty_source_is_bad_usage_in_one_line(served: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = one_error(run_build(served, tmp_path / "empty", tmp_path / "lake"), BAD_USAGE)
    assert "is empty" in said


@pytest.mark.weights
def test_a_lake_that_cannot_be_written_is_one_line(served: dict[str, str], tmp_path: Path, make_video: Any) -> None:
    make_video("source/a.mp4").with_suffix(".txt").write_text("A cat.")
    (tmp_path / "file").touch()
    said = one_error(run_build(served, tmp_path / "source", tmp_path / "file" / "lake"), FAILED)
    assert "cannot write to the lake" in said


@pytest.mark.weights
def test_missing_weights_are_said_with_the_command_that_fetches_them(served: dict[str, str], tmp_path: Path) -> None:
    bare = served | {"VIDEOREFER_CACHE": str(tmp_path / "bare"), "PREFECT_API_URL": ""}
    bare["PREFECT_API_URL"] = json.loads(Path(served["VIDEOREFER_CACHE"], "prefect-server.json").read_text())["url"]
    bare["PREFECT_API_URL"] += "/api"
    said = one_error(run_build(bare, tmp_path, tmp_path / "lake"), FAILED)
    assert "is missing" in said
    assert FETCH_COMMAND in said
