"""Tags cost a run nothing, whatever the server makes of them; that they are there is told by test_build.py."""

import logging
import socket
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.run_tags import last_name, tag_run


def test_a_server_that_is_gone_costs_the_tags_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(uuid4()))
    with socket.socket() as taken:  # bound but not listening: whoever calls is refused
        taken.bind(("127.0.0.1", 0))
        gone = {
            PREFECT_API_URL: f"http://127.0.0.1:{taken.getsockname()[1]}/api",
            PREFECT_CLIENT_MAX_RETRIES: 0,
        }
        with temporary_settings(gone), caplog.at_level(logging.WARNING, logger="flows"):
            tag_run(build="b1")
    assert "the run's page lacks something" in caplog.text


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("lake", "lake"),
        ("/lakes/nightly/", "nightly"),
        ("s3://bucket/teams/lake/", "lake"),
        ("embedded", "embedded"),
        ("profiles/tiny.toml", "tiny"),
    ],
)
def test_places_are_called_by_their_last_name(place: str, name: str) -> None:
    assert last_name(place) == name
