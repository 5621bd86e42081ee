"""`videorefer deploy` and `build --submit`: what is refused in one line, and which server is meant."""

import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from typer.testing import CliRunner

from flows.cli import app
from flows.deploy import CronError, cron_schedule, next_start
from flows.doctor import fetch_weights
from flows.started import Server, Started, note
from flows.work_pool import POOL
from infra.processes import ProcessMark
from infra.settings import settings

NO_SERVER = "no server runs here: first videorefer up, or name one in PREFECT_API_URL"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server of `up`, none named, and the weights of the machine."""
    files = settings().cache_dir / "files"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "files").symlink_to(files)
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.fixture
def submit(two_videos: Path, tmp_path: Path) -> list[str]:
    """A command."""
    fetch_weights("painted", say=print)
    return [
        "build", "--source", str(two_videos), "--lake", str(tmp_path / "lake"), "--profile", "painted", "--submit",
    ]  # fmt: skip


@pytest.mark.parametrize("cron", ["", "every night", "61 2 * * *", "30 2 * *", "0 0 31 2 *"])
def test_a_bad_cron_line_is_one_line_with_an_example(cron: str) -> None:
    with pytest.raises(CronError, match=r"^no schedule: .*--cron '30 2 \* \* 1-5'.*$"):
        cron_schedule(cron, "UTC")


def test_an_unknown_time_zone_is_the_same_error() -> None:
    with pytest.raises(CronError, match="Vienna/Europe"):
        cron_schedule("0 0 * * *", "Vienna/Europe")


def test_the_next_start_is_in_the_zone_that_was_asked_for() -> None:
    start = next_start(cron_schedule("30 2 * * *", "Asia/Kolkata"))
    assert (start.hour, start.minute) == (2, 30)
    assert start.astimezone(UTC).minute == 0
    assert start > datetime.now(UTC)


def test_without_a_server_deploy_says_what_to_do() -> None:
    result = CliRunner().invoke(app, ["deploy", "--remove"])
    assert result.exit_code == 1
    assert NO_SERVER in result.stderr


@pytest.mark.weights
def test_without_a_server_so_does_submit(submit: list[str]) -> None:
    result = CliRunner().invoke(app, submit)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert NO_SERVER in result.stderr


def test_submit_refuses_what_a_build_refuses(tmp_path: Path) -> None:
    command = ["build", "--source", str(tmp_path / "nowhere"), "--lake", str(tmp_path / "lake")]
    here, submitted = (CliRunner().invoke(app, [*command, *more]) for more in ((), ("--submit",)))
    assert "nowhere does not exist" in here.stderr
    assert (submitted.exit_code, submitted.stderr) == (here.exit_code, here.stderr) == (2, here.stderr)


def test_submit_does_something_and_a_dry_run_does_not(submit: list[str]) -> None:
    result = CliRunner().invoke(app, [*submit, "--dry-run"])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "give one of them" in result.stderr


def test_a_server_that_is_named_and_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}/api")
        result = CliRunner().invoke(app, ["deploy", "--remove"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "does not answer" in result.stderr


@pytest.mark.slow
@pytest.mark.weights
def test_a_server_of_others_takes_a_build_that_waits_for_a_worker(
    submit: list[str], two_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.testing.utilities import prefect_test_harness  # takes seconds

    with prefect_test_harness(server_startup_timeout=120):
        api_url = PREFECT_API_URL.value()
        monkeypatch.setenv("PREFECT_API_URL", api_url)
        result = CliRunner().invoke(app, submit)
        assert result.exit_code == 0, result.output
        name, page, waits = result.stdout.splitlines()
        assert waits == "it waits: no worker of its pool reports: prefect worker start --pool videorefer"
        with get_client(sync_client=True) as client:
            (run,) = client.read_flow_runs()
            pool = client.read_work_pool(POOL)
    assert (pool.type, pool.concurrency_limit, run.work_pool_name) == ("process", 1, POOL)
    assert name == f"build {two_videos.parent.name}/{two_videos.name} is submitted: run {run.id}"
    assert page == f"see it: {api_url.removesuffix('/api')}/runs/flow-run/{run.id}"
    assert run.state_name == "Scheduled"
    assert run.job_variables == {"working_dir": str(Path.cwd())}
    assert run.parameters == {
        "source": str(two_videos), "lake": str(tmp_path / "lake"), "root": None, "profile": "painted", "limit": None,
        "ray_address": None,
    }  # fmt: skip


def test_what_ended_is_told_by_status() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        mark = ProcessMark.of(1)
        note(Started(server=Server(pid=mark.pid, began=f"not {mark.began}", url=url)))
        result = CliRunner().invoke(app, ["status"])
    assert result.stdout.splitlines() == [
        "Prefect server: not running (videorefer up)",
        "Ray: not running (videorefer up)",
        "Prefect worker: not running (videorefer up)",
    ]
