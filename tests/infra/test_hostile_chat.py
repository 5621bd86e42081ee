"""A server that does everything wrong, over HTTP and in process: nothing mis-assigned, every failure with its reason.

The server and what each of its manners must end with are those of `perf/chat.py`, which asks far more of it.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "perf" / "chat.py"


@pytest.fixture(scope="module")
def perf() -> Any:
    spec = importlib.util.spec_from_file_location("perf_chat", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["perf_chat"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("way", ["over_http", "in_process"])
def test_no_answer_goes_to_another_job_and_every_failure_says_why(perf: Any, way: str) -> None:
    tally = getattr(perf, way)(500)
    assert tally.jobs == 500
    assert tally.wrong == []
    assert tally.misassigned == 0
    assert tally.count.reasks > 20


@pytest.mark.slow
def test_each_manner_of_a_server_ends_with_a_reason_of_its_own(perf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf, "SLOW_S", 0.6)
    wanted = dict.fromkeys(perf.EXPECTED)
    for job in perf.clips(200_000):
        kind = perf.doom_of(perf.tag_of(job))
        if kind and wanted[kind] is None:
            wanted[kind] = job
            if all(wanted.values()):
                break
    beside = list(perf.clips(64))
    settings = perf.settings_for("http://127.0.0.1:9/v1", 64)
    tally = perf.hold([*wanted.values(), *beside], settings, perf.transport_in_process())
    assert tally.wrong == []
    assert set(tally.failed) >= set(perf.EXPECTED)


def test_without_the_check_of_ids_answers_do_go_astray(perf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.structured_chat.wrong_ids", lambda expected, got: [])
    tally = perf.in_process(500)
    assert tally.misassigned > 0  # so the counts above can fail
