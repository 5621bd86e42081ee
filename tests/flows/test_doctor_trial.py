"""One clip goes through every engine of a profile; one that fails is told with what mends it, and stops no other."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.doctor import fetch_weights
from flows.doctor_trial import try_engines
from flows.finding import Finding
from flows.profile_config import ROLES, Profile, load_profile
from infra.settings import settings

pytestmark = [pytest.mark.slow, pytest.mark.weights]

WORKED = re.compile(
    r"loaded in [\d.]+ s, a clip of [\d.]+ s in [\d.]+ s: (\d+) (\w+), (\d+) dropped"
    r"(?:, (\d+) requests \((\d+) more cached, (\d+) re-asks\), (\d+) \+ (\d+) tokens)?"
)
FIELDS = ["mentions", "tracks", "captions", "verdicts", "samples"]


@pytest.fixture(scope="module", autouse=True)
def weights() -> None:
    fetch_weights("painted", say=print)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own with the machine's weights, and a folder for what is temporary."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "files").symlink_to(settings().cache_dir / "files")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def tried(profile: Profile, said: list[str] | None = None) -> dict[str, Finding]:
    say = (said if said is not None else []).append
    return {finding.what.split()[0]: finding for finding in try_engines(profile, "my own.toml", say)}


def profile_with(**sections: Any) -> Profile:
    return Profile.model_validate(load_profile("painted").model_dump() | sections)


def test_each_engine_says_how_long_it_took_and_what_came_out(own_folders: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--profile", "painted", "--trial", "--json"])
    found = json.loads(result.stdout)["findings"][-5:]
    assert [finding["what"].split()[0] for finding in found] == list(ROLES)
    told = [WORKED.fullmatch(finding["detail"]) for finding in found]
    assert all(told), found
    assert [said[2] for said in told if said] == FIELDS
    assert [said[4] for said in told if said] == [None] * 5  # no chat server, no tokens
    assert int(told[0][1]) >= int(told[1][1]) == int(told[2][1]) > 0  # type: ignore[index]
    assert list((own_folders / "temporary").iterdir()) == []


def test_engines_that_fail_are_told_and_the_others_tried(chat_server: Any) -> None:
    folder = {"model": "some-org/some-model"}
    found = tried(
        profile_with(
            analyzer={"engine": "chat", "chat": {"base_url": chat_server.url, "model": "asked"}},
            segmenter={"engine": "grounding-dino+hq-sam+sam2", "detector": folder, "mask_model": folder,
                       "video_model": folder},
            refiner={"engine": "chat", "chat": {"base_url": "http://127.0.0.1:1/v1", "model": "asked",
                                                "max_attempts": 1}},
        )
    )  # fmt: skip
    assert {role: finding.ok for role, finding in found.items()} == dict.fromkeys(ROLES, False) | {
        "annotator": True,
        "reviewer": True,
    }
    assert found["analyzer"].detail.startswith("BadReplyError: not_json after 3 asks")
    assert "some-org/some-model" in found["segmenter"].detail
    assert found["segmenter"].mend.endswith("hf download some-org/some-model")
    assert "127.0.0.1:1" in found["refiner"].detail
    assert "start its server" in found["refiner"].mend
    assert len(chat_server.received) == 3
    assert found["analyzer"].mend.endswith("then: videorefer doctor --trial --profile 'my own.toml'")


NO_NOUNS = """
import json

def reply(payload):
    asked = json.loads(payload["messages"][1]["content"])
    return json.dumps({"id": asked["id"], "subjects": [], "others": []})
"""


def test_a_server_that_a_run_starts_is_started_asked_and_ended(stub_vllm: Any) -> None:
    stub_vllm.script(NO_NOUNS)
    said: list[str] = []
    found = tried(
        profile_with(
            vllm=[stub_vllm.settings(replicas=3).model_dump()],
            analyzer={"engine": "chat", "chat": {"base_url": "vllm://text", "model": "small"}},
        ),
        said,
    )
    told = WORKED.fullmatch(found["analyzer"].detail)
    assert told, found["analyzer"]
    assert int(told[4]) == len(stub_vllm.served()) > 0
    assert len(stub_vllm.notes()) == 1  # one of each is enough to try
    assert any(line.startswith("vLLM text: 1 of 1 replicas answer after ") for line in said)
    assert all(finding.ok for finding in found.values())
    assert stub_vllm.all_end(within_s=2)


def test_a_server_that_cannot_be_started_is_told_and_not_waited_for(
    stub_vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def analyzer_of(server: Any) -> Finding:
        chat = {"base_url": "vllm://text", "model": "small"}
        return tried(profile_with(vllm=[server.model_dump()], analyzer={"engine": "chat", "chat": chat}))["analyzer"]

    absent = analyzer_of(stub_vllm.settings(python="/nowhere/python"))
    assert absent.detail.startswith("not tried: there is no /nowhere/python")
    assert "-m venv" in absent.mend
    monkeypatch.setattr("flows.doctor_room._gpus_here", lambda: 0)
    no_gpu = analyzer_of(stub_vllm.settings(gpus=2))
    assert no_gpu.detail.startswith("not tried: 2 needed (vLLM text 1 x 2), 0 here: 2 lacking")
    assert stub_vllm.notes() == []
    stub_vllm.be("exit")
    ended = analyzer_of(stub_vllm.settings())
    assert "replica 1 is given up: vLLM exited with status 3" in ended.detail
    assert not any(finding.ok for finding in (absent, no_gpu, ended))


def test_a_chat_engine_says_its_tokens(chat_server: Any) -> None:
    def nouns(payload: Any) -> Any:
        asked = json.loads(payload["messages"][1]["content"])
        return chat_server.said(json.dumps({"id": asked["id"], "subjects": [], "others": []}))

    chat_server.script = nouns
    found = tried(
        profile_with(
            analyzer={"engine": "chat", "chat": {"base_url": chat_server.url, "model": "asked"}},
        )
    )
    said = WORKED.fullmatch(found["analyzer"].detail)
    assert said
    requests, cached, reasks, prompt, completion = map(int, said.groups()[3:])
    assert (requests, cached, reasks) == (len(chat_server.received), 0, requests - 1)
    assert (prompt, completion) == (11 * requests, 7 * requests)
    assert all(finding.ok for finding in found.values())
