"""A whole build in which every agent but the segmenter is behind a chat server, through real Prefect and real Ray.

The model is scripted, and looks: in each picture it finds the red ring. It mends slips that are shown to it, calls some
objects still and some another thing. One story of two builds, each into a lake of its own, with one folder of answers.
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest

from flows.build import build
from flows.result import BuildResult
from infra.builds import KINDS, read_quarantine, read_samples, verify_build
from infra.lake import Lake
from infra.settings import settings
from infra.synthetic import write_clips
from schemas.quarantine import QuarantineEntry
from schemas.sample import Sample

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.timeout(300)]

PROFILE = """
name = "tiny"
description = "For a test."
clips_per_unit = 3
[analyzer]
engine = "chat"
chat = {{ base_url = "{url}", model = "small" }}
[segmenter]
engine = "painted-truth"
[annotator]
engine = "chat"
chat = {{ base_url = "{url}", model = "seer", concurrency = 3 }}
config = {{ num_pictures = 5, picture_px = 320 }}
[reviewer]
engine = "chat"
captioner = {{ base_url = "{url}", model = "other-seer" }}
chat = {{ base_url = "{url}", model = "small", concurrency = 3 }}
[refiner]
engine = "chat"
chat = {{ base_url = "{url}", model = "small" }}
"""
SEED = 84
"""Its captions name most things as a detector of COCO does."""
THING = re.compile(r"\b(?:a|an|another) (?:\w+ )?(\w+)(?= (?:moves|comes|stays))", re.IGNORECASE)


class Model:
    """Replies to all agents, by the shape that the reply must have."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.shown: list[tuple[str, int, int]] = []
        self.rulings: dict[str, str] = {}
        self.still: set[str] = set()

    def __call__(self, payload: Mapping[str, Any]) -> Any:
        wants = set(payload["response_format"]["json_schema"]["schema"]["properties"]) - {"id"}
        user = next(turn["content"] for turn in payload["messages"] if turn["role"] == "user")
        asked = json.loads(user if isinstance(user, str) else user[-1]["text"].rsplit("\n\n", 1)[1])
        is_first = payload["messages"][-1]["content"] == user
        if isinstance(user, list):
            rings = sum(has_ring(part["image_url"]["url"]) for part in user[:-1])
            self.shown.append((payload["model"], len(user) - 1, rings))
        reply = self.reply(wants, asked)
        slip = {"id": asked["id"][::-1]} if is_first and "acts" in wants else {}
        return self.server.said(json.dumps({key: asked[key] for key in ("id",) if key in asked} | reply | slip))

    def reply(self, wants: set[str], asked: dict[str, Any]) -> dict[str, Any]:
        if "subjects" in wants:
            found = list(THING.finditer(asked["caption"]))
            texts = [{"phrase": one[0], "noun": one[1], "singular": one[1], "number": "singular"} for one in found]
            return {"subjects": texts[:1], "others": texts[1:]}
        if "acts" in wants:
            if len(self.still) < 2:
                self.still.add(asked["id"])
            return {"text": f"The {asked['noun']} wanders about.", "acts": asked["id"] not in self.still}
        if "answer" in wants:
            ruling = ("no", "unsure", "yes")[min(len(self.rulings), 2)]
            return {"reason": "It looks so.", "answer": self.rulings.setdefault(asked["id"], ruling)}
        if "objects" in wants:
            return {"objects": [{"id": item["id"], "text": item["notes"]} for item in asked["objects"]]}
        return {"text": f"The {asked['noun']} has a glossy coat." if "noun" in asked else "A glossy thing."}


def has_ring(address: str) -> bool:
    """Whether a picture holds pure red next to black."""
    data = base64.b64decode(address.split(",")[1])
    picture = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)).astype(int)
    red = ((picture[..., 0] > 200) & (picture[..., 1:].max(axis=2) < 70)).astype(np.uint8)
    black = (picture.max(axis=2) < 70).astype(np.uint8)
    return int((cv2.dilate(red, np.ones((5, 5), np.uint8)) & black).sum()) > 30


@dataclass(frozen=True)
class Story:
    """What became of both builds, and how much the server was asked in each."""

    lake: Lake
    result: BuildResult
    elsewhere: Lake
    again: BuildResult
    asked: tuple[int, int]
    model: Model

    def samples(self, lake: Lake, result: BuildResult) -> list[Sample]:
        return [sample for kind in KINDS for sample in read_samples(lake, result.build_id, kind)]

    @property
    def entries(self) -> list[QuarantineEntry]:
        return list(read_quarantine(self.lake, self.result.build_id))


@pytest.fixture(scope="module")
def story(server: None, chat_servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("story")
    source, profile = folder / "rows.jsonl", folder / "tiny.toml"
    source.write_text("\n".join(map(json.dumps, write_clips(folder / "clips", 6, SEED))))
    served = chat_servers(lambda _: None)
    model = served.script = Model(served)
    profile.write_text(PROFILE.format(url=served.url))
    results, asked = [], []
    for name in ("lake", "elsewhere"):
        result = build(str(source), str(folder / name), profile=str(profile))
        assert isinstance(result, BuildResult)
        results.append(result)
        asked.append(len(served.received))
    served.stop()
    first, second = results
    return Story(Lake(folder / "lake"), first, Lake(folder / "elsewhere"), second, (asked[0], asked[1]), model)


def test_the_build_is_sound_and_its_samples_say_who_did_what(story: Story) -> None:
    assert verify_build(story.lake, story.result.build_id) == []
    samples = story.samples(story.lake, story.result)
    assert {sample.provenance.engines for sample in samples} == {
        (
            "analyzer=chat:small",
            "segmenter=painted-truth",
            "annotator=chat:seer+measured-facts",
            "reviewer=chat:other-seer+chat:small",
            "refiner=chat:small",
        )
    }
    detailed = [sample.conversations[1].value for sample in samples if sample.kind == "detailed_caption"]
    assert detailed
    assert all(" has a glossy coat. " in text and " wanders about." in text for text in detailed)


def test_every_picture_shows_a_ring(story: Story) -> None:
    assert {model for model, _, _ in story.model.shown} == {"seer", "other-seer"}
    for model, pictures, rings in story.model.shown:
        assert pictures == (1 if model == "other-seer" else 5)
        assert rings == pictures


def test_what_agents_drop_is_in_quarantine_with_its_reason_and_no_clip_failed(story: Story) -> None:
    reasons = Counter((entry.stage, entry.reason) for entry in story.entries)
    assert reasons["reviewer", "other_object"] == reasons["reviewer", "unsure_match"] == 1
    assert 1 <= reasons["annotator", "static_subject"] <= 2
    assert "agent_error" not in {entry.reason for entry in story.entries}
    dropped = {entry.subject_id for entry in story.entries if entry.stage == "reviewer"}
    still = {entry.subject_id for entry in story.entries if entry.reason == "static_subject"}
    samples = story.samples(story.lake, story.result)
    assert not dropped & {item.object_id for sample in samples for item in sample.objects}
    described = {item.object_id for sample in samples if sample.kind != "short_caption" for item in sample.objects}
    assert described
    assert not still & described


def test_another_lake_gets_the_same_samples_of_the_same_pictures_and_asks_nothing(story: Story) -> None:
    assert story.asked[0] == story.asked[1] > 0
    assert story.samples(story.elsewhere, story.again) == story.samples(story.lake, story.result)
    answers = list((settings().cache_dir / "answers").rglob("*.json"))
    assert {path.parents[1].name for path in answers} == {"analyzer", "annotator", "reviewer", "refiner"}
    assert max(path.stat().st_size for path in answers) < 20_000
