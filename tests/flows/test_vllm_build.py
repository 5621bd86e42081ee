"""Profiles that have the build start its own chat servers: what may be said, and whole builds with a stand-in."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.build import build
from flows.pools import Pools
from flows.profile_config import Profile, load_profile
from flows.profile_files import ProfileError
from flows.result import BuildResult
from flows.wiring import UNKNOWN, Site, agent_labels
from infra.builds import read_samples
from infra.lake import Lake
from infra.pool import PoolError
from infra.synthetic import write_clips

SITE = Site(videos_root="", frames_dir="", identity=UNKNOWN)
PROFILE = """
name = "own"
description = "For a test."
clips_per_unit = 2
[[vllm]]
name = "text"
model = "{home}/model"
python = "{home}/python"
replicas = 2
gpus = 0
cpus = 0.5
start_timeout_s = 60
[analyzer]
engine = "chat"
chat = {{ base_url = "vllm://text", model = "small", concurrency = 4, first_wait_s = 0.01 }}
resources = {{ batch_size = 1 }}
[segmenter]
engine = "painted-truth"
[annotator]
engine = "measured-facts"
[reviewer]
engine = "second-look+efficientnet-lite3+minilm"
[refiner]
engine = "template"
"""
REPLY = r"""
import json, re

def reply(payload):
    asked = json.loads(payload["messages"][1]["content"])
    thing = re.compile(r"\b(?:a|an|another) (?:\w+ )?(\w+)(?= (?:moves|comes|stays))", re.IGNORECASE)
    found = [{"phrase": one[0], "noun": one[1], "singular": one[1], "number": "singular"}
             for one in thing.finditer(asked["caption"])]
    return json.dumps({"id": asked["id"], "subjects": found[:1], "others": found[1:]})
"""
SEED = 38
"""Its captions name things as a detector of COCO does, in three clips of four."""


def profile_of(folder: Path, text: str) -> Profile:
    path = folder / "own.toml"
    path.write_text(text)
    return load_profile(str(path))


def test_an_address_in_place_of_a_name_makes_no_other_agents(tmp_path: Path) -> None:
    text = PROFILE.format(home="/models")
    own = profile_of(tmp_path, text)
    assert [vllm.replicas for vllm in own.vllm] == [2]
    elsewhere = profile_of(tmp_path, text.replace("vllm://text", "http://gpu-7:8000/v1"))
    other_server = profile_of(tmp_path, text.replace("replicas = 2", "replicas = 9").replace("/models", "/elsewhere"))
    assert agent_labels(own) == agent_labels(elsewhere) == agent_labels(other_server)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "vllm://text",
            "vllm://txt",
            r"analyzer: got 'vllm://txt'; the sections \[\[vllm\]\] have these names: 'text'$",
        ),
        ("vllm://text", "vllm://text/v1", "analyzer.chat.base_url: .*vllm://NAME"),
        ("vllm://text", "ray://text", "analyzer.chat.base_url: .*got 'ray://text'.*"),
        ("replicas = 2", "replica = 2", r"unknown key 'vllm\.0\.replica'"),
        ("gpus = 0", "gpus = 1.5", r"vllm\.0: .*a whole number of them"),
        ("[analyzer]", '[[vllm]]\nname = "text"\nmodel = "b"\n[analyzer]', "vllm: 2 sections share names: 'text'"),
    ],
)
def test_a_slip_is_said_in_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ProfileError, match=said) as caught:
        profile_of(tmp_path, PROFILE.format(home="/models").replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_workers_that_ask_by_themselves_need_an_address(tmp_path: Path) -> None:
    reviewer = (
        '[reviewer]\nengine = "videorefer+chat"\ncaptioner = { model = "/models/videorefer" }\n'
        'chat = { base_url = "vllm://text", model = "small" }\n[refiner]'
    )
    text = PROFILE.format(home="/models").partition("[reviewer]")[0] + reviewer + '\nengine = "template"\n'
    with pytest.raises(ProfileError, match=r" reviewer: got 'vllm://text', which stands for servers that "):
        profile_of(tmp_path, text)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_servers_that_do_not_start_stop_the_build_with_their_last_words(
    stub_vllm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path))
    stub_vllm.be("exit")
    job: Any = object()
    with Pools(profile_of(tmp_path, PROFILE.format(home=stub_vllm.home)), SITE, None) as pools:
        with pytest.raises(PoolError, match=r"^vLLM text: replica \d is given up: (.|\n)*ValueError: no such model$"):
            list(pools.get("analyzer").run(0, [job]))
        assert pools.started


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_build_that_is_stopped_while_servers_start_leaves_none(
    stub_vllm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path))
    stub_vllm.be("mute")
    job: Any = object()
    said: list[str] = []

    def run(pools: Pools) -> None:
        try:
            list(pools.get("analyzer").run(0, [job]))
        except PoolError as error:
            said.append(str(error))

    with Pools(profile_of(tmp_path, PROFILE.format(home=stub_vllm.home)), SITE, None) as pools:
        thread = threading.Thread(target=run, args=(pools,))
        thread.start()
        while len(stub_vllm.alive()) < 4:
            time.sleep(0.1)
    thread.join(timeout=5)
    assert stub_vllm.all_end(within_s=1)
    assert said == ["the pool is closed"]


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What the run's log is told."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Keep()
    logging.getLogger("prefect.flow_runs").addHandler(handler)
    yield found
    logging.getLogger("prefect.flow_runs").removeHandler(handler)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(300)
def test_a_build_starts_its_servers_ends_them_and_starts_none_when_all_is_done(
    server: None, stub_vllm: Any, tmp_path: Path, lines: list[str]
) -> None:
    stub_vllm.script(REPLY)
    source, profile = tmp_path / "rows.jsonl", tmp_path / "own.toml"
    source.write_text("\n".join(map(json.dumps, write_clips(tmp_path / "clips", 4, SEED))))
    profile.write_text(PROFILE.format(home=stub_vllm.home))
    result = build(str(source), str(tmp_path / "lake"), profile=str(profile))
    assert isinstance(result, BuildResult)
    assert (result.is_new, result.ray_started) == (True, True)
    assert len(stub_vllm.notes()) == 2
    assert stub_vllm.all_end(within_s=1)
    assert any(line.startswith("vLLM text: 1 of 2 replicas answer after ") for line in lines)
    lake = Lake(tmp_path / "lake")
    kept = list(read_samples(lake, result.build_id, "short_caption"))
    assert kept
    assert {sample.provenance.engines[0] for sample in kept} == {"analyzer=chat:small"}
    again = build(str(source), str(tmp_path / "lake"), profile=str(profile))
    assert isinstance(again, BuildResult)
    assert (again.build_id, again.is_new, again.ray_started) == (result.build_id, False, False)
    assert len(stub_vllm.notes()) == 2
