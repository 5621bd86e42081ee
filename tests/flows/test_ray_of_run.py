"""Which Ray a run uses, what is noted of what `videorefer up` started, and why its Ray did not start."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.local_ray import LocalRayError, running_ray, start_local_ray
from flows.ray_of_run import shared_ray, use_ray
from flows.started import Ray, Server, Started, Worker, note, note_file, note_part, noted
from infra.processes import began
from infra.ray_cluster import RayStartError

HOST = "127.0.0.1"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def listener() -> Iterator[tuple[str, int]]:
    """Something that listens on loopback: its address and its port."""
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        listening.listen()
        port = int(listening.getsockname()[1])
        yield f"{HOST}:{port}", port


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind((HOST, 0))
        other.bind(("", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


def this_process(address: str, num_cpus: int = 4) -> Ray:
    """A note of a Ray that this very process would hold."""
    me = os.getpid()
    return Ray(pid=me, began=began(me) or "", address=address, dashboard_url="", num_cpus=num_cpus)


def test_a_run_shares_the_ray_of_up_where_that_answers_and_has_room(own_cache: Path, listener: tuple[str, int]) -> None:
    assert shared_ray(1) is None
    noted_ray = this_process(listener[0])
    note_part("ray", noted_ray)
    assert [shared_ray(num) for num in (1, 4)] == [noted_ray] * 2
    assert shared_ray(5) is None
    note_part("ray", noted_ray.model_copy(update={"began": "1"}))  # its number is another's by now
    assert shared_ray(1) is None
    closed = f"{HOST}:{free_ports()[0]}"
    note_part("ray", this_process(closed))
    assert shared_ray(1) is None


def test_the_cluster_that_the_user_names_comes_before_the_ray_of_up(own_cache: Path, listener: tuple[str, int]) -> None:
    note_part("ray", this_process(listener[0]))
    named = f"{HOST}:{free_ports()[0]}"
    with pytest.raises(RayStartError, match=f"cannot join the Ray cluster at {named}"):
        use_ray(named, 1)


def test_status_says_where_ray_and_its_dashboard_are(own_cache: Path, listener: tuple[str, int]) -> None:
    told = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)
    assert [told[key] for key in ("ray", "ray_dashboard", "ray_pid")] == [None] * 3
    assert "Ray: not running (videorefer up)" in CliRunner().invoke(app, ["status"]).stdout
    found = this_process(listener[0]).model_copy(update={"dashboard_url": "http://here"})
    note_part("ray", found)
    told = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)
    assert [told[key] for key in ("ray", "ray_dashboard", "ray_pid")] == [found.address, "http://here", found.pid]
    plain = CliRunner().invoke(app, ["status"]).stdout
    assert f"Ray: {found.address}, dashboard http://here, process {found.pid}\n" in plain


def test_noting_one_process_keeps_the_others(own_cache: Path) -> None:
    server = Server(pid=1, began="1", url="http://s")
    worker = Worker(pid=2, began="2", api_url="http://s/api")
    shared = Ray(pid=3, began="3", address="a:1", dashboard_url="", num_cpus=1)
    note_part("worker", worker)
    note_part("server", server)
    note_part("ray", shared)
    assert noted() == Started(server=server, ray=shared, worker=worker)
    note_part("server", None)
    assert noted() == Started(ray=shared, worker=worker)
    note_part("worker", None)
    note_part("ray", None)
    assert not note_file().exists()


def test_a_note_from_before_there_was_a_ray_in_it_still_counts(own_cache: Path) -> None:
    note(Started())
    note_file().write_text('{"server": {"pid": 1, "began": "1", "url": "http://s"}, "worker": null}')
    assert noted() == Started(server=Server(pid=1, began="1", url="http://s"))


@pytest.mark.parametrize("option", ["--ray-dashboard-port", "--ray-metrics-port"])
def test_a_taken_port_is_one_line_that_names_its_option(
    own_cache: Path, listener: tuple[str, int], option: str
) -> None:
    dashboard_port, metrics_port = free_ports()
    taken = listener[1]
    ports = (taken, metrics_port) if "dashboard" in option else (dashboard_port, taken)
    with pytest.raises(LocalRayError, match=rf"^port {taken} is taken: choose another with {option}, .*--no-ray$"):
        start_local_ray(*ports)
    assert noted() == Started()


def test_why_ray_did_not_start_is_told_in_one_line(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(LocalRayError, match=r"^Ray would run commands of anyone .* RAY_AUTH_MODE is 'disabled'"):
        start_local_ray(*free_ports())
    assert noted() == Started()
    assert running_ray() is None
