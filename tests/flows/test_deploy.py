"""`videorefer deploy` refuses in one line what cannot run on a schedule."""

import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.deploy import CronError, cron_schedule, next_start
from flows.started import Server, Started, note
from infra.processes import ProcessMark


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))


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


def test_without_a_server_it_says_what_to_do() -> None:
    result = CliRunner().invoke(app, ["deploy", "--remove"])
    assert result.exit_code == 1
    assert "first videorefer up" in result.stderr


def test_what_ended_is_told_by_status() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        mark = ProcessMark.of(1)
        note(Started(server=Server(pid=mark.pid, began=f"not {mark.began}", url=url)))
        result = CliRunner().invoke(app, ["status"])
    assert result.stdout.splitlines() == [
        "Prefect server: not running (videorefer up)",
        "Prefect worker: not running (videorefer up)",
    ]
