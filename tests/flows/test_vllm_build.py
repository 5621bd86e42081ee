"""Profiles that have the build start its own chat servers: what may be said, and whole builds with a stand-in."""

import json
import logging
import re
import shutil
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


def stale_with(folder: Path, text: str, *changes: tuple[str, str]) -> set[str]:
    """The agents that are other ones after the changes."""
    before = agent_labels(profile_of(folder, text))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    after = agent_labels(profile_of(folder, text))
    return {role for role in before if after[role] != before[role]}


def test_what_a_server_computes_with_tells_its_agents_from_others(stub_vllm: Any, tmp_path: Path) -> None:
    text = PROFILE.format(home=stub_vllm.home)
    (weights,) = agent_labels(profile_of(tmp_path, text))["analyzer"].weights
    assert re.match(r"^model@[0-9a-f]{12} dtype=auto$", weights)
    assert str(tmp_path) not in weights
    for change in ("dtype = 'float16'", "options = { quantization = 'awq' }"):
        assert stale_with(tmp_path, text, ("gpus = 0", f"gpus = 0\n{change}")) == {"analyzer"}
    (stub_vllm.home / "other").mkdir()
    for name in ("config.json", "a.safetensors"):
        (stub_vllm.home / "other" / name).write_text("[]")
    assert stale_with(tmp_path, text, ("/model", "/other")) == {"analyzer"}


def test_where_and_how_fast_it_computes_does_not(stub_vllm: Any, tmp_path: Path) -> None:
    text = PROFILE.format(home=stub_vllm.home)
    size = "replicas = 9\nmax_model_len = 99\noptions = { max-num-seqs = 4, enforce-eager = false }"
    assert stale_with(tmp_path, text, ("replicas = 2", size)) == set()
    copy = shutil.copytree(stub_vllm.home / "model", tmp_path / "elsewhere" / "model")
    assert stale_with(tmp_path, text, (f"{stub_vllm.home}/model", str(copy))) == set()
    elsewhere = PROFILE.format(home="/only/there")  # the model lies on the servers' machines alone: its name counts
    assert agent_labels(profile_of(tmp_path, elsewhere))["analyzer"].weights == ("model dtype=auto",)
    assert stale_with(tmp_path, elsewhere, ("/only/there", "/moved")) == set()
    assert stale_with(tmp_path, elsewhere, ("/there/model", "/there/model-2")) == {"analyzer"}


def test_at_an_address_the_profile_alone_can_say_it(stub_vllm: Any, tmp_path: Path) -> None:
    text = PROFILE.format(home=stub_vllm.home)
    plain = text.replace("vllm://text", "http://gpu-7:8000/v1")
    assert agent_labels(profile_of(tmp_path, plain))["analyzer"].weights == ()
    named = ('model = "small"', 'model = "small", weights = "SmolLM2 of May"')
    assert stale_with(tmp_path, plain, named) == {"analyzer"}
    assert stale_with(tmp_path, text.replace(*named), ("vllm://text", "http://gpu-7:8000/v1")) == set()


def test_a_reviewer_is_told_by_the_weights_of_both_its_servers(tmp_path: Path) -> None:
    seer = '[[vllm]]\nname = "seer"\nmodel = "org/Seer"\n[analyzer]'
    reviewer = (
        '[reviewer]\nengine = "chat"\ncaptioner = { base_url = "vllm://seer", model = "seer" }\n'
        'chat = { base_url = "vllm://text", model = "small" }\n[refiner]'
    )
    before, _, _ = PROFILE.format(home="/models").replace("[analyzer]", seer).partition("[reviewer]")
    text = f'{before}{reviewer}\nengine = "template"\n'
    assert agent_labels(profile_of(tmp_path, text))["reviewer"].weights == ("Seer dtype=auto", "model dtype=auto")
    assert stale_with(tmp_path, text, ('"org/Seer"', '"org/Seer"\ndtype = "half"')) == {"reviewer"}


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
    num_asked = len(stub_vllm.served())
    (stub_vllm.home / "model" / "a.safetensors").write_text("another checkpoint by the same name")
    other = build(str(source), str(tmp_path / "lake"), profile=str(profile))
    assert isinstance(other, BuildResult)
    assert other.build_id != result.build_id
    assert len(stub_vllm.served()) == 2 * num_asked  # kept answers of the other checkpoint are none of this one's
