"""Replicas under a real Ray on this machine, asked through the real client; a stand-in is started in vLLM's place."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import cloudpickle

from infra.chat import ChatRefusedError, ChatSettings, Message
from infra.ray_cluster import start_ray
from infra.replicated_chat import ReplicatedChat
from infra.vllm import replica
from infra.vllm import servers as vllm_servers
from infra.vllm.servers import VllmServers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHAT = ChatSettings(base_url="vllm://text", model="small", first_wait_s=0.01, max_wait_s=0.1, concurrency=6)
DRIVER = """
import sys, time
from infra.ray_cluster import start_ray
from infra.vllm.servers import VllmServers
from infra.vllm.settings import VllmSettings
with start_ray(num_cpus=2), VllmServers(VllmSettings.model_validate_json(sys.argv[1]), ("small",), print) as servers:
    while not all(servers.places()):
        time.sleep(0.1)
    print("all up", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """A Ray that takes itself to have four GPUs."""
    ray.init(address="local", num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False)
    with start_ray():  # finds it in use
        yield
    ray.shutdown()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def servers(stub_vllm: Any, told: list[str]) -> Callable[..., VllmServers]:
    """Starts servers of the stand-in; what they log is in `told`."""

    def start(**changes: Any) -> VllmServers:
        given = {"replicas": 2, "start_timeout_s": 60.0} | changes
        return VllmServers(stub_vllm.settings(**given), ("small",), lambda _, line: told.append(line))

    return start


def until(is_so: Callable[[], object], within_s: float = 60.0) -> None:
    end_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.05)


def ask_all(servers: VllmServers, numbers: Sequence[int], meanwhile: Callable[[], None] = lambda: None) -> None:
    """Every question must get its own answer, whatever happens meanwhile, once a few are answered."""

    async def one(chat: ReplicatedChat, number: int) -> int:
        said = await chat.complete((Message(role="user", content=f"question {number}"),))
        assert said.text == f"echo question {number}"
        return number

    async def whole() -> None:
        async with ReplicatedChat(CHAT, servers) as chat:
            await asyncio.gather(*(one(chat, number) for number in numbers[:5]))
            rest = asyncio.gather(*(one(chat, number) for number in numbers[5:]))
            await asyncio.to_thread(meanwhile)
            assert await rest == list(numbers[5:])

    asyncio.run(whole())


def server_pids(stub: Any) -> list[int]:
    return [int(note["pid"]) for note in stub.notes() if note["pid"] in stub.alive()]


def again(told: list[str]) -> list[str]:
    return [line for line in told if "is started again" in line]


def test_replicas_share_the_work_serve_nobody_else_and_end_with_the_run(
    stub_vllm: Any, servers: Callable[..., VllmServers], told: list[str]
) -> None:
    stub_vllm.write(delay_s=0.02)
    with servers() as both:
        until(lambda: all(both.places()))
        ask_all(both, range(60))
        assert len(set(stub_vllm.served())) == 2
        for place in both.places():
            assert place is not None
            refused = httpx.post(f"{place.url}/v1/chat/completions", json={}, trust_env=False)
            assert refused.status_code == 401
        assert len(stub_vllm.alive()) == 4
    assert stub_vllm.all_end(within_s=2)
    assert re.match(r"^vLLM text: 1 of 2 replicas answer after \d+ s; replica [12] at http://\S+:\d+$", told[0])
    assert re.match(r"^vLLM text: 2 of 2 replicas answer after \d+ s; ", told[1])
    assert len(told) == 2
    assert both.failure() == "the vLLM servers 'text' are closed"


@pytest.mark.parametrize("victim", ["server", "its actor"])
def test_one_that_is_killed_is_started_again_and_no_answer_is_lost_or_wrong(
    stub_vllm: Any, servers: Callable[..., VllmServers], told: list[str], victim: str
) -> None:
    stub_vllm.write(delay_s=0.05)
    with servers() as both:
        until(lambda: all(both.places()))
        first = server_pids(stub_vllm)

        def kill() -> None:
            pid = first[0] if victim == "server" else parent_of(parent_of(parent_of(first[0])))
            os.kill(pid, signal.SIGKILL)
            until(lambda: len(again(told)) == 1)
            until(lambda: all(both.places()))

        ask_all(both, range(300), kill)
        until(lambda: len(set(server_pids(stub_vllm)) - set(first)) == 1)
        ask_all(both, range(40))
        assert set(stub_vllm.served()[-40:]) == set(server_pids(stub_vllm))
    assert stub_vllm.all_end()
    (line,) = again(told)
    assert re.match(r"^vLLM text: replica [12] is started again, 1 of 3 times: ", line)
    if victim == "server":
        assert "vLLM died of SIGKILL" in line


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_all_down_and_up_again_costs_time_and_nothing_else(stub_vllm: Any, servers: Callable[..., VllmServers]) -> None:
    stub_vllm.write(delay_s=0.05)
    with servers() as both:
        until(lambda: all(both.places()))

        def kill() -> None:
            stub_vllm.be("mute")  # they start again and are not well for some time
            for pid in server_pids(stub_vllm):
                os.kill(pid, signal.SIGKILL)
            until(lambda: not any(both.places()))
            until(lambda: len(stub_vllm.notes()) == 4)
            num_served = len(stub_vllm.served())
            time.sleep(2)
            assert len(stub_vllm.served()) == num_served
            stub_vllm.be("serve")

        ask_all(both, range(200), kill)
    assert stub_vllm.all_end()


def test_health_that_never_comes_is_one_clear_error(
    stub_vllm: Any, servers: Callable[..., VllmServers], told: list[str]
) -> None:
    stub_vllm.be("exit")
    said = (
        r"^vLLM text: replica [12] is given up: vLLM exited with status 3; the last lines of (.|\n)*ValueError: no such"
    )
    with servers() as both, pytest.raises(ChatRefusedError, match=said):
        ask_all(both, range(3))
    stub_vllm.be("mute")
    said = r"^vLLM text: replica 1 is given up: vLLM did not answer in 2 s; the last lines of \S+:\nup$"
    with servers(replicas=1, start_timeout_s=2) as one, pytest.raises(ChatRefusedError, match=said):
        ask_all(one, range(3))
    assert stub_vllm.all_end()
    assert not [line for line in told if "again" in line]


def test_restarts_are_bounded(stub_vllm: Any, servers: Callable[..., VllmServers], told: list[str]) -> None:
    with servers(replicas=1, max_restarts=1) as one:
        for _ in range(2):
            until(lambda: all(one.places()))
            (pid,) = server_pids(stub_vllm)
            os.kill(pid, signal.SIGKILL)
            until(lambda: not any(one.places()))
        until(one.failure)
        assert re.match(r"^vLLM text: replica 1 is given up: it ended for the 2\. time, the last time: ", one.failure())
        with pytest.raises(ChatRefusedError, match=r"for the 2\. time"):
            ask_all(one, range(3))
    assert len(stub_vllm.notes()) == 2


def test_an_hour_of_service_starts_the_count_of_restarts_anew(
    stub_vllm: Any, servers: Callable[..., VllmServers], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_servers, "_FORGIVEN_AFTER_S", 0.0)
    with servers(replicas=1, max_restarts=1) as one:
        for count in range(1, 4):
            until(lambda: all(one.places()))
            (pid,) = server_pids(stub_vllm)
            os.kill(pid, signal.SIGKILL)
            until(lambda count=count: len(again(told)) == count)  # type: ignore[misc]
        until(lambda: all(one.places()))
    assert all("is started again, 1 of 1 times: " in line for line in again(told))


def test_a_first_start_that_fails_costs_no_replica_where_another_answers(
    stub_vllm: Any, servers: Callable[..., VllmServers], told: list[str]
) -> None:
    stub_vllm.write(start_s=2)  # the one that fails does so long before the other answers
    stub_vllm.fail_once()
    with servers() as both:
        until(lambda: all(both.places()))
    assert not [line for line in told if "given up" in line]
    (line,) = again(told)
    assert re.match(r"(?s)^vLLM text: replica [12] is started again, 1 of 3 times: .*OSError: address in use$", line)


def test_one_that_hangs_is_ended_and_started_again(
    stub_vllm: Any, servers: Callable[..., VllmServers], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_HEALTH_EVERY_S": 0.1, "_HEALTH_ANSWER_S": 1.0, "_MAX_SICK_LOOKS": 3}.items():
        monkeypatch.setattr(replica, name, value)
    cloudpickle.register_pickle_by_value(replica)  # the actor's process is to have these numbers, too
    try:
        with servers(replicas=1) as one:
            until(lambda: all(one.places()))
            (hung,) = server_pids(stub_vllm)
            time.sleep(3)
            assert server_pids(stub_vllm) == [hung]
            stub_vllm.be("hang")
            until(lambda: not any(one.places()))
            stub_vllm.be("serve")
            until(lambda: all(one.places()))
            assert hung not in server_pids(stub_vllm)
            ask_all(one, range(20))
    finally:
        cloudpickle.unregister_pickle_by_value(replica)
    (line,) = again(told)
    said = r"^vLLM text: replica 1 is started again, 1 of 3 times: vLLM runs, but has not said for [3-9] s that it is "
    assert re.match(said, line)


@pytest.mark.parametrize(("replicas", "gpus", "devices"), [(2, 2, {"0,1", "2,3"}), (2, 0.5, {"0"}), (1, 0, {""})])
def test_ray_gives_each_replica_its_gpus(
    stub_vllm: Any, servers: Callable[..., VllmServers], replicas: int, gpus: float, devices: set[str]
) -> None:
    with servers(replicas=replicas, gpus=gpus) as started:
        until(lambda: all(started.places()))
    assert {note["environment"]["CUDA_VISIBLE_DEVICES"] for note in stub_vllm.notes()} == devices
    assert all(("2" in note["argv"]) == (gpus == 2) for note in stub_vllm.notes())


def test_where_no_node_has_room_that_is_said_and_not_waited_out_for_ever(
    stub_vllm: Any, servers: Callable[..., VllmServers]
) -> None:
    said = "for it in 2 s; each replica needs 99 CPUs and 0 GPUs, the cluster has 2 CPUs and 4 GPUs, which others share"
    with servers(replicas=1, cpus=99, start_timeout_s=2) as one, pytest.raises(ChatRefusedError, match=said):
        ask_all(one, range(3))
    with servers(replicas=3, cpus=1, start_timeout_s=8) as three:  # the third waits, the others work
        until(lambda: sum(place is not None for place in three.places()) == 2)
        time.sleep(9)
        assert three.failure() == ""
        ask_all(three, range(20))
    assert stub_vllm.all_end()


def test_an_end_while_they_start_leaves_nothing(stub_vllm: Any, servers: Callable[..., VllmServers]) -> None:
    stub_vllm.be("mute")
    with servers():
        until(lambda: len(stub_vllm.alive()) == 4)
    assert stub_vllm.all_end(within_s=2)


def test_no_server_outlives_its_driver(stub_vllm: Any) -> None:
    line = [sys.executable, "-c", DRIVER, stub_vllm.settings(replicas=2).model_dump_json()]
    driver = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert driver.stdout is not None
        assert any("all up" in line for line in driver.stdout)
        assert len(stub_vllm.alive()) == 4
        driver.kill()
        assert stub_vllm.all_end(within_s=60)
    finally:
        driver.kill()
        driver.wait()
