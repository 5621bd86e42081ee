"""A whole build with the annotator beside the segmenter, as in the paper, through real Prefect and real Ray.

The model is scripted: it is told nouns and phrases, and sees unmarked frames; it calls one subject still, has no words
for the looks of another thing, and takes one object for something else. What comes out is read with plain pyarrow.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from agents.marked_frames import QUALITY
from flows.build import build
from flows.dry_run import dry_run
from flows.profile_config import load_profile
from flows.result import BuildResult
from infra.builds import verify_build
from infra.chat import ImagePart
from infra.lake import Lake
from infra.pictures import jpeg
from infra.synthetic import write_clips
from infra.video import probe, read_frames

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
engine = "chat-by-noun"
chat = {{ base_url = "{url}", model = "seer", concurrency = 3 }}
config = {{ num_pictures = 4, picture_px = 320 }}
[reviewer]
engine = "chat"
captioner = {{ base_url = "{url}", model = "other-seer" }}
chat = {{ base_url = "{url}", model = "small", concurrency = 3 }}
[refiner]
engine = "template"
"""
SEED = 84
"""Its captions name most things as a detector of COCO does."""
THING = re.compile(r"\b(?:a|an|another) (?:\w+ )?(\w+)(?= (?:moves|comes|stays))", re.IGNORECASE)
STILL, WORDLESS = "A woman", "a gray cat"
"""Phrases of a subject that the model calls still, and of another thing whose looks it has no words for."""


class Model:
    """Replies to all agents, by the shape that the reply must have; `segmented` counts what the segmenter had committed
    when each question on a noun came.
    """

    def __init__(self, server: Any, lake: Path) -> None:
        self.server, self.lake = server, lake
        self.phrases: list[str] = []
        self.segmented: list[int] = []
        self.shown: list[list[str]] = []
        self.refused: str = ""

    def __call__(self, payload: Mapping[str, Any]) -> Any:
        wants = set(payload["response_format"]["json_schema"]["schema"]["properties"]) - {"id"}
        user = next(turn["content"] for turn in payload["messages"] if turn["role"] == "user")
        asked = json.loads(user if isinstance(user, str) else user[-1]["text"].rsplit("\n\n", 1)[1])
        if isinstance(user, list) and payload["model"] == "seer":
            self.shown.append([part["image_url"]["url"] for part in user[:-1]])
        return self.server.said(
            json.dumps({key: asked[key] for key in ("id",) if key in asked} | self.reply(wants, asked))
        )

    def reply(self, wants: set[str], asked: dict[str, Any]) -> dict[str, Any]:
        if "subjects" in wants:
            found = list(THING.finditer(asked["caption"]))
            texts = [{"phrase": one[0], "noun": one[1], "singular": one[1], "number": "singular"} for one in found]
            return {"subjects": texts[:1], "others": texts[1:]}
        if "acts" in wants:
            self.phrases.append(asked["phrase"])
            self.segmented.append(len(list(self.lake.glob("agents/segmenter/*/part-*.parquet"))))
            return {"text": f"The {asked['noun']} wanders about.", "acts": asked["phrase"] != STILL}
        if "answer" in wants:
            self.refused = self.refused or asked["id"]
            return {"reason": "It looks so.", "answer": "no" if asked["id"] == self.refused else "yes"}
        if "phrase" in asked:
            return {"text": "" if asked["phrase"] == WORDLESS else f"The {asked['noun']} has a glossy coat."}
        return {"text": "A glossy thing."}


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@dataclass(frozen=True)
class Story:
    """The build, what the model was asked, and what the lake's files hold."""

    lake: Path
    result: BuildResult
    model: Model
    left: str
    """What a dry run says is left to do after the build."""

    @property
    def folder(self) -> Path:
        return self.lake / "builds" / self.result.build_id

    def samples(self, kind: str) -> list[dict[str, Any]]:
        return rows_in(self.folder / "data" / kind)

    @property
    def mentions(self) -> dict[str, dict[str, Any]]:
        found = [one for row in rows_in(self.lake / "agents" / "analyzer") for one in row["mentions"]]
        return {one["mention_id"]: one for one in found}

    @property
    def tracks(self) -> list[dict[str, Any]]:
        return rows_in(self.folder / "tracks")

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        return rows_in(self.lake / "quarantine" / self.result.build_id)


@pytest.fixture(scope="module")
def story(server: None, chat_servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("story")
    source, profile, lake = folder / "rows.jsonl", folder / "tiny.toml", folder / "lake"
    source.write_text("\n".join(map(json.dumps, write_clips(folder / "clips", 6, SEED))))
    served = chat_servers(lambda _: None)
    model = served.script = Model(served, lake)
    profile.write_text(PROFILE.format(url=served.url))
    result = build(str(source), str(lake), profile=str(profile))
    assert isinstance(result, BuildResult)
    served.stop()
    left = dry_run(str(source), None, Lake(lake), load_profile(str(profile)), None).headline()
    return Story(lake, result, model, left)


def test_the_build_is_sound_and_says_who_wrote_and_who_measured(story: Story) -> None:
    assert verify_build(Lake(story.lake), story.result.build_id) == []
    samples = [row for kind in ("short_caption", "detailed_caption", "qa") for row in story.samples(kind)]
    engines = {tuple(row["provenance"]["engines"]) for row in samples}
    assert engines == {
        (
            "analyzer=chat:small",
            "segmenter=painted-truth",
            "annotator=chat:seer+measured-facts",
            "reviewer=chat:other-seer+chat:small",
            "refiner=template",
        )
    }
    assert story.left == "nothing to do: all 6 clips are in the lake"
    assert "agent_error" not in {entry["reason"] for entry in story.quarantine}


def test_the_annotator_asked_before_there_were_tracks_of_unmarked_frames(story: Story) -> None:
    assert story.model.segmented[0] == 0
    assert sorted(story.model.phrases) == sorted(one["phrase"] for one in story.mentions.values())
    videos = sorted((story.lake.parent / "clips").glob("*.mp4"))
    frames = [frame for path in videos for frame in read_frames(path, range(probe(path).num_frames), 320)]
    plain = {ImagePart.of_jpeg(jpeg(frame, QUALITY)).data_uri for frame in frames}
    assert {len(pictures) for pictures in story.model.shown} == {4}
    assert {picture for pictures in story.model.shown for picture in pictures} <= plain
    assert len({tuple(pictures) for pictures in story.model.shown}) == len(videos)


def test_detailed_captions_hold_the_texts_on_their_own_mention(story: Story) -> None:
    mention_of = {track["track_id"]: story.mentions[track["mention_id"]] for track in story.tracks}
    detailed = story.samples("detailed_caption")
    assert detailed
    for row in detailed:
        (item,) = row["objects"]
        mention = mention_of[item["object_id"]]
        pronoun = {"woman": "She"}.get(mention["noun"], "It")
        noun = mention["noun"]
        told = row["conversations"][1]["value"]
        assert told in (f"The {noun} has a glossy coat. {one} wanders about." for one in (pronoun, f"The {noun}"))
        assert mention["phrase"] not in (STILL, WORDLESS)
    assert {row["conversations"][1]["value"] for row in story.samples("qa")}


def test_every_mention_and_track_ends_in_a_sample_or_with_its_reason(story: Story) -> None:
    reasons: dict[str, set[tuple[str, str]]] = {}
    for entry in story.quarantine:
        reasons.setdefault(entry["subject_id"], set()).add((entry["stage"], entry["reason"]))
    kinds = ("short_caption", "detailed_caption", "qa")
    sampled = {item["object_id"] for kind in kinds for row in story.samples(kind) for item in row["objects"]}
    of_mention: dict[str, list[str]] = {}
    for track in story.tracks:
        of_mention.setdefault(track["mention_id"], []).append(track["track_id"])
        assert track["track_id"] in sampled or reasons[track["track_id"]]
    assert of_mention
    for mention_id, mention in story.mentions.items():
        assert of_mention.get(mention_id) or reasons[mention_id]
        tracks = of_mention.get(mention_id, [])
        if mention["phrase"] in (STILL, WORDLESS):
            why = "static_subject" if mention["phrase"] == STILL else "unusable_text"
            assert ("annotator", why) in reasons[mention_id]
            assert not sampled & set(tracks)
            assert all(reasons[track_id] == {("refiner", "no_sample")} for track_id in tracks)
    left_out = {mention["phrase"] for mention_id, mention in story.mentions.items() if of_mention.get(mention_id)}
    assert {STILL, WORDLESS} & left_out
    assert [pair for pairs in reasons.values() for pair in pairs].count(("reviewer", "other_object")) == 1
