"""A whole build whose analyzer and refiner are behind a chat server, through a real Prefect server and a real Ray.

The model is scripted: it finds the nouns of painted clips' captions and joins sentences, makes slips that it mends when
they are shown to it, and fails one clip for good. One story of three runs: the server refuses, it serves, and all over
again.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agents.chat_prompt import tag_of
from flows.build import build
from flows.plan import plan_build
from flows.profile_config import ROLES, load_profile
from flows.result import BuildResult
from flows.wiring import agent_labels
from infra.builds import KINDS, read_manifest, read_quarantine, read_samples, verify_build
from infra.lake import Lake
from infra.pool import PoolError
from infra.synthetic import write_clips
from schemas.quarantine import QuarantineEntry
from schemas.sample import Sample

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.timeout(300)]

PROFILE = """
name = "tiny"
description = "For a test."
clips_per_unit = 2
[analyzer]
engine = "chat"
chat = {{ base_url = "{url}", model = "asked", api_key_env = "TEST_CHAT_KEY", concurrency = 3, first_wait_s = 0.01 }}
resources = {{ batch_size = 1 }}
[segmenter]
engine = "painted-truth"
[annotator]
engine = "measured-facts"
[reviewer]
engine = "second-look+efficientnet-lite3+minilm"
[refiner]
engine = "chat"
chat = {{ base_url = "{url}", model = "asked", api_key_env = "TEST_CHAT_KEY", first_wait_s = 0.01 }}
"""
SEED = 38
"""Its captions name things as a detector of COCO does, in three clips of four."""
KEY = "sk-" + "secret" * 9
THING = re.compile(r"\b(?:a|an|another) (?:\w+ )?(\w+)(?= (?:moves|comes|stays))", re.IGNORECASE)


class Model:
    """Replies to both agents; `doomed` is a tag whose replies are always cut off. Every first reply has a slip."""

    def __init__(self, server: Any, doomed: str) -> None:
        self.server, self.doomed = server, doomed
        self.asked: list[str] = []

    def __call__(self, payload: Mapping[str, Any]) -> Any:
        asked = json.loads(payload["messages"][1]["content"])
        tag = asked["id"] if "id" in asked else asked["objects"][0]["id"]
        self.asked.append(tag)
        reply = {"id": tag} | self.nouns(asked["caption"]) if "caption" in asked else self.texts(asked["objects"])
        if len(payload["messages"]) == 2:
            slips = [{"id": "0" * 8}, {"more": 1}, {"id": tag[::-1]}]
            return self.server.said(json.dumps(reply | slips[len(self.asked) % 3]))
        return self.server.said(json.dumps(reply), "length" if tag == self.doomed else "stop")

    def nouns(self, caption: str) -> dict[str, Any]:
        things = [
            {"phrase": found[0], "noun": found[1], "singular": found[1], "number": "singular"}
            for found in THING.finditer(caption)
        ]
        return {"subjects": things[:1], "others": things[1:]}

    def texts(self, objects: list[dict[str, str]]) -> dict[str, Any]:
        joined = [re.sub(r"\. (It|He|She) looks", " and looks", item["notes"], count=1) for item in objects]
        return {"objects": [{"id": item["id"], "text": text} for item, text in zip(objects, joined, strict=True)]}


@dataclass(frozen=True)
class Story:
    """What became of the runs, and what the server was asked in each."""

    lake: Lake
    profile: Path
    doomed: str
    refused: str
    result: BuildResult
    again: BuildResult
    asked: tuple[int, int, int]
    model: Model

    @property
    def samples(self) -> list[Sample]:
        return [sample for kind in KINDS for sample in read_samples(self.lake, self.result.build_id, kind)]

    @property
    def entries(self) -> list[QuarantineEntry]:
        return list(read_quarantine(self.lake, self.result.build_id))


@pytest.fixture(scope="module")
def served(chat_servers: Any) -> Any:
    server = chat_servers(lambda _: server.reply(401, json.dumps({"error": {"message": f"no such key: {KEY}"}})))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def story(server: None, served: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("story")
    lake, source, profile = folder / "lake", folder / "rows.jsonl", folder / "tiny.toml"
    source.write_text("\n".join(map(json.dumps, write_clips(folder / "clips", 4, SEED))))
    profile.write_text(PROFILE.format(url=served.url))
    plan = plan_build(source, None, Lake(lake), load_profile(str(profile)), None, lambda line: None)
    doomed = plan.clips[1].clip_id
    model = Model(served, tag_of(doomed))

    def run() -> BuildResult:
        result = build(str(source), str(lake), profile=str(profile))
        assert isinstance(result, BuildResult)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_CHAT_KEY", KEY)
        with pytest.raises(PoolError) as refused:
            run()
        asked = [len(served.received)]
        served.script = model
        result = run()
        asked.append(len(served.received))
        again = run()
        asked.append(len(served.received))
    return Story(Lake(lake), profile, doomed, str(refused.value), result, again, (*asked,), model)


def test_a_refusal_stops_the_build_with_one_line_that_holds_no_key(story: Story) -> None:
    assert "refuses model 'asked': HTTP 401: no such key: ***" in story.refused
    assert "\n" not in story.refused
    assert "secret" not in story.refused


def test_the_build_is_sound_and_says_who_worded_what(story: Story) -> None:
    assert story.result.is_new
    assert verify_build(story.lake, story.result.build_id) == []
    worded = {sample.provenance.wording for sample in story.samples if sample.kind == "detailed_caption"}
    assert "chat:asked" in worded
    assert worded <= {"chat:asked", "template"}
    assert {sample.provenance.engines[0] for sample in story.samples} == {"analyzer=chat:asked"}
    assert {sample.provenance.engines[-1] for sample in story.samples} == {"refiner=chat:asked"}


def test_every_mention_stands_in_its_caption_and_ends_in_a_sample_or_in_quarantine(story: Story) -> None:
    counts = {(entry.group, entry.name): entry.n for entry in story.result.counts}
    assert counts["stages", "analyzer: mentions"] >= 3
    seen = {item.object_id for sample in story.samples for item in sample.objects}
    assert seen
    assert not any(entry.reason == "not_in_caption" for entry in story.entries)


def test_the_clip_that_the_model_fails_is_in_quarantine_with_the_reason_and_costs_itself_only(story: Story) -> None:
    failed = [entry for entry in story.entries if entry.reason == "agent_error"]
    assert [(entry.clip_id, entry.stage, entry.retryable) for entry in failed] == [(story.doomed, "analyzer", True)]
    assert "truncated after 3 asks: the reply was cut off" in failed[0].evidence
    assert story.doomed not in {sample.clip_id for sample in story.samples}


def test_what_the_agents_spent_is_told_of_each_and_is_what_the_server_was_asked(story: Story) -> None:
    manifest = read_manifest(story.lake, story.result.build_id)
    counts = {entry.agent: entry.cost.tokens for entry in manifest.work if entry.cost}
    asked = {role: count for role, count in counts.items() if count}
    assert asked.keys() == {"analyzer", "refiner"}
    assert sum(count.requests for count in asked.values()) == len(story.model.asked)
    for count in asked.values():  # every first reply has a slip
        assert (count.prompt_tokens, count.completion_tokens) == (11 * count.requests, 7 * count.requests)
        assert 0 < count.reasks < count.requests
        assert count.cached == 0
    page = (Path(story.result.folder) / "report.html").read_text()
    assert f">{asked['refiner'].prompt_tokens}<" in page
    assert "completion tokens" in story.result.markdown()


def test_the_same_command_again_asks_nothing(story: Story) -> None:
    assert story.asked[0] < story.asked[1] == story.asked[2]
    assert (story.again.build_id, story.again.is_new, story.again.ray_started) == (story.result.build_id, False, False)


def test_neither_key_nor_address_is_in_what_is_kept_of_agents(story: Story) -> None:
    manifest = read_manifest(story.lake, story.result.build_id)
    assert KEY not in manifest.model_dump_json()
    labels = agent_labels(load_profile(str(story.profile)))
    assert "127.0.0.1" not in "".join(labels[role].model_dump_json() for role in ROLES)
