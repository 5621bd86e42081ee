"""Builds whose analyzer and refiner are behind a real vLLM server with SmolLM2-135M-Instruct: run by `make test-vllm`.

40 painted clips go through two builds. In the first the server is behind both agents. So small a model names few things
that a detector knows, so in the second a parser is the analyzer, and the refiner has every clip's objects to word. What
the model says is told and not asserted. Asserted is that each question ends in a valid reply with its own ids, which no
schema forces, and that what the lake holds is what was said of just that clip or object: lake, shards, kept answers and
the server's counters are read here with pyarrow, json and Prometheus' parser alone.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flows.doctor import fetch_weights
from infra.actors import Scene
from infra.settings import settings
from infra.synthetic import draw_plan, write_clip
from infra.vllm.process import vllm_server
from infra.vllm.settings import VllmSettings
from model.embedded import save_language_model

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.timeout(1200)]

NUM_CLIPS, SEED = 40, 38
MODEL = "SmolLM2-135M-Instruct"
MAX_ASKS = 3
"""Of one question, the first included: two re-asks, as by default."""
CHAT = """
engine = "chat"
[{role}.chat]
base_url = "{url}/v1"
model = "{model}"
max_tokens = {max_tokens}
frequency_penalty = 0.3
concurrency = 16
timeout_s = 300
"""
PROFILE = """
name = "{name}"
description = "For a test."
clips_per_unit = 20
[analyzer]
{analyzer}
[segmenter]
engine = "painted-truth"
[annotator]
engine = "measured-facts"
[reviewer]
engine = "second-look+efficientnet-lite3+minilm"
[refiner]
{refiner}
"""
COUNTERS = {
    "requests": ("http_requests_total", {"handler": "/v1/chat/completions"}),
    "prompt tokens": ("vllm:prompt_tokens_total", {}),
    "reply tokens": ("vllm:generation_tokens_total", {}),
}
THING = {"phrase", "noun", "singular", "number"}


@dataclass(frozen=True)
class Run:
    """One call of `videorefer build`: what the server did for it, and the lake's files of agents' outputs after it."""

    used: Counter[str]
    took_s: float
    parts: frozenset[str]


@dataclass(frozen=True)
class Answer:
    """A kept answer: the payload, what was asked in it, how often before, and the reply."""

    payload: dict[str, Any]
    asked: dict[str, Any]
    asks_before: int
    reply: dict[str, Any]


@dataclass(frozen=True)
class Story:
    """What became of the builds; `captions` by row."""

    folder: Path
    captions: dict[str, str]
    runs: dict[str, Run]

    def table(self, pattern: str) -> list[dict[str, Any]]:
        """The rows of the lake's files of that pattern, of at least one."""
        files = sorted((self.folder / "lake").glob(pattern))
        assert files, f"the lake holds no {pattern}"
        return [row for file in files for row in pq.read_table(file).to_pylist()]

    def answers(self, role: str) -> list[Answer]:
        """All that are kept of an agent."""
        found = []
        for file in sorted((self.folder / "cache" / "answers" / role).rglob("*.json")):
            kept = json.loads(file.read_bytes())
            turns = kept["payload"]["messages"]
            asked = json.loads(turns[1]["content"])
            found.append(Answer(kept["payload"], asked, (len(turns) - 2) // 2, kept["completion"]))
        return found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on this machine's processors."""
    folder = tmp_path_factory.mktemp("server")
    save_language_model(folder / "checkpoint")
    vllm = VllmSettings(
        name="small", model=str(folder / "checkpoint"), gpus=0, cpus=os.cpu_count() or 1, dtype="bfloat16",
        max_model_len=4096,
    )  # fmt: skip
    with vllm_server(vllm, (MODEL,), folder / "log") as address:
        yield address


@pytest.fixture(scope="module")
def story(url: str, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    fetch_weights("painted", say=print)
    (folder / "cache").mkdir()
    (folder / "cache" / "files").symlink_to(settings().cache_dir / "files")
    rows = [write_row(folder / "clips" / f"{number:02d}.mp4", number) for number in range(NUM_CLIPS)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    max_tokens = {"analyzer": 256, "refiner": 512}
    analyzer, refiner = (CHAT.format(url=url, model=MODEL, role=r, max_tokens=n) for r, n in max_tokens.items())
    for name, engine in (("both", analyzer), ("refiner", 'engine = "spacy-chunks+minilm"')):
        (folder / f"{name}.toml").write_text(PROFILE.format(name=name, analyzer=engine, refiner=refiner))
    names = ("both", "refiner", "both again", "refiner again")
    runs = {name: build(folder, name.split()[0], url) for name in names}
    for name, run in runs.items():
        told = ", ".join(f"{number:,} {counter}" for counter, number in run.used.items())
        print(f"{name}: {run.took_s:.0f} s, {told}, {run.used['reply tokens'] / run.took_s:.0f} reply tokens/s")
    return Story(folder, {str(row["id"]): str(row["caption"]) for row in rows}, runs)


def write_row(video: Path, number: int) -> dict[str, object]:
    video.parent.mkdir(exist_ok=True)
    scene = Scene(duration_s=1.0)
    return write_clip(video, draw_plan(np.random.default_rng([SEED, number]), scene), scene)


def build(folder: Path, profile: str, url: str) -> Run:
    """The command as users call it, in a cache and with a Prefect of its own."""
    before, start_s = counted(url), time.monotonic()
    around = {"VIDEOREFER_CACHE": str(folder / "cache"), "PREFECT_HOME": str(folder / "prefect")}
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | around
    words = ["--source", "rows.jsonl", "--lake", "lake", "--profile", f"./{profile}.toml"]
    ended = subprocess.run(
        [Path(sys.executable).with_name("videorefer"), "build", *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    parts = frozenset(str(file) for file in (folder / "lake" / "agents").glob("*/*/part-*.parquet"))
    return Run(Counter(counted(url)) - Counter(before), time.monotonic() - start_s, parts)


def counted(url: str) -> dict[str, int]:
    """What the server says that it has done."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        ours: sum(int(s.value) for s in samples if s.name == name and labels.items() <= s.labels.items())
        for ours, (name, labels) in COUNTERS.items()
    }


def ids_of(told: dict[str, Any]) -> list[str]:
    return [item["id"] for item in told.get("objects", [told])]


def is_valid(role: str, answer: Answer) -> bool:
    """Whether a reply is whole JSON of the shape asked for; read without the code under test."""
    try:
        said = json.loads(answer.reply["text"])
    except json.JSONDecodeError:
        return False
    if answer.reply["finish_reason"] != "stop" or not isinstance(said, dict):
        return False
    if role == "refiner":
        return set(said) == {"objects"} and all(set(item) == {"id", "text"} for item in said["objects"])
    things = [*said["subjects"], *said["others"]]
    return set(said) == {"id", "subjects", "others"} and all(
        set(thing) == THING and thing["number"] in ("singular", "plural") for thing in things
    )


def said_by(role: str, answers: list[Answer]) -> list[tuple[Answer, dict[str, Any]]]:
    """The valid replies that bear the ids of their questions."""
    valid = [(answer, json.loads(answer.reply["text"])) for answer in answers if is_valid(role, answer)]
    return [(answer, said) for answer, said in valid if ids_of(said) == ids_of(answer.asked)]


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_every_clip_has_its_output_and_none_failed(story: Story) -> None:
    lake = story.folder / "lake"
    assert list(lake.glob("failures/*/*/part-*")) == []
    for role in ("analyzer", "refiner"):
        labels = [json.loads(file.read_bytes()) for file in lake.glob(f"agents/{role}/*/label.json")]
        asked = [label for label in labels if label["engine"] == f"chat:{MODEL}"]
        assert len(asked) == 1
        num_builds = 1 if role == "analyzer" else 2  # one refiner, under a key of its own behind each analyzer
        for file in lake.glob(f"agents/{role}/*/label.json"):
            rows = story.table(f"agents/{role}/{file.parent.name}/part-*.parquet")
            assert set(Counter(row["clip_id"] for row in rows).values()) == {num_builds}
            assert len(rows) == num_builds * NUM_CLIPS
            assert len({row["key"] for row in rows}) == len(rows)
    reasons = Counter(row["reason"] for row in story.table("quarantine/*/part-*.parquet"))
    print(f"quarantined: {dict(reasons)}")
    assert not reasons.keys() & {"agent_error", "agent_timeout", "worker_lost"}


@pytest.mark.parametrize("role", ["analyzer", "refiner"])
def test_every_question_ends_in_a_valid_reply_with_its_own_ids(story: Story, role: str) -> None:
    answers = story.answers(role)
    questions = {hashed(answer.payload["messages"][1]["content"]) for answer in answers}
    sound = said_by(role, answers)
    answered = {hashed(answer.payload["messages"][1]["content"]) for answer, _ in sound}
    at_once = sum(answer.asks_before == 0 for answer, _ in sound)
    print(f"{role}: {len(questions)} questions, {at_once} answered soundly at once, {len(answered)} after re-asks")
    assert questions == answered
    assert len(questions) >= (NUM_CLIPS if role == "analyzer" else NUM_CLIPS // 2)
    assert max(answer.asks_before for answer in answers) < MAX_ASKS
    if role == "analyzer":
        assert Counter(answer.asked["caption"] for answer in answers if not answer.asks_before) == Counter(
            story.captions.values()
        )


@pytest.mark.parametrize("role", ["analyzer", "refiner"])
def test_no_schema_forces_an_id(story: Story, role: str) -> None:
    schemas = {json.dumps(answer.payload["response_format"], sort_keys=True) for answer in story.answers(role)}
    (schema,) = schemas  # the same for all questions, so none holds an id of one
    assert "const" not in schema
    assert "pattern" not in schema
    assert re.findall(r'"enum": \[[^]]*\]', schema) == ['"enum": ["singular", "plural"]'] * (role == "analyzer")
    ids = {name for answer in story.answers(role) for name in ids_of(answer.asked)}
    assert len(ids) >= NUM_CLIPS // 2
    assert not any(name in schema for name in ids)


def test_what_the_lake_holds_of_a_clip_the_model_said_of_just_that_clip(story: Story) -> None:
    said: dict[str, set[str]] = {}
    for answer, reply in said_by("analyzer", story.answers("analyzer")):
        phrases = {thing["phrase"].strip().lower() for thing in (*reply["subjects"], *reply["others"])}
        said.setdefault(answer.asked["id"], set()).update(phrases)
    folder = next(
        file.parent.name
        for file in (story.folder / "lake" / "agents" / "analyzer").glob("*/label.json")
        if json.loads(file.read_bytes())["engine"] == f"chat:{MODEL}"
    )
    rows = story.table(f"agents/analyzer/{folder}/part-*.parquet")
    mentions = [(tag_of(row["clip_id"]), item["phrase"].lower()) for row in rows for item in row["mentions"]]
    print(f"{len(mentions)} mentions in {len({tag for tag, _ in mentions})} clips")
    assert {tag_of(row["clip_id"]) for row in rows} == said.keys()
    assert [(tag, phrase) for tag, phrase in mentions if phrase not in said[tag]] == []


def test_what_a_shard_says_of_an_object_the_model_said_of_just_that_object(story: Story) -> None:
    said: dict[str, set[str]] = {}
    for _, reply in said_by("refiner", story.answers("refiner")):
        for item in reply["objects"]:
            said.setdefault(item["id"], set()).add(" ".join(item["text"].split()))
    rows = story.table("builds/*/data/detailed_caption/shard-*.parquet")
    worded = [row for row in rows if row["provenance"]["wording"] == f"chat:{MODEL}"]
    print(f"{len(worded)} of {len(rows)} detailed captions in the model's words")
    assert worded
    told = [(tag_of(row["objects"][0]["object_id"]), row["conversations"][1]["value"]) for row in worded]
    assert [(tag, text) for tag, text in told if text not in said.get(tag, set())] == []


def tag_of(whole: str) -> str:
    """The id that goes out for a clip or an object, as `agents.chat_prompt.tag_of` is told to make it."""
    return hashlib.sha256(json.dumps([whole]).encode()).hexdigest()[:8]


def test_the_server_counts_what_is_kept_and_the_same_commands_again_send_nothing(story: Story) -> None:
    kept = [answer for role in ("analyzer", "refiner") for answer in story.answers(role)]
    first = story.runs["both"].used + story.runs["refiner"].used
    assert first["reply tokens"] >= sum(answer.reply["completion_tokens"] for answer in kept)
    questions = {answer.payload["messages"][1]["content"] for answer in kept}
    # a question on several objects that fails is put again object by object, and a job that fails is tried once more
    assert len(kept) <= first["requests"] <= 2 * MAX_ASKS * len(questions)
    for name in ("both", "refiner"):
        assert story.runs[name].used["requests"] > 0
        assert story.runs[f"{name} again"].used["requests"] == 0
    assert story.runs["refiner"].parts == story.runs["both again"].parts == story.runs["refiner again"].parts
