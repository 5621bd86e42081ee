"""Whole builds wired as the paper has it, on tiny random checkpoints that the profile names as it would real ones.

Chat agents are behind a scripted server. Random weights find no thing, so thresholds are low, and what is looked at is
all that does not hang on them: sizes, frames, ids, labels. Files are read with pyarrow and masks with pycocotools.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from flows.build import build
from flows.result import BuildResult
from infra.ray_cluster import start_ray
from infra.synthetic import write_clips

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.timeout(300)]

PROFILE = """
name = "tiny-paper"
description = "For a test."
clips_per_unit = 3
[analyzer]
engine = "chat"
chat = { base_url = "URL", model = "words" }
SEGMENTER
[annotator]
engine = "ANNOTATOR"
chat = { base_url = "URL", model = "seer", concurrency = 3 }
config = { num_pictures = 2, picture_px = 160 }
[reviewer]
engine = "chat"
captioner = { base_url = "URL", model = "other-seer" }
chat = { base_url = "URL", model = "words", concurrency = 3 }
[refiner]
engine = "chat"
chat = { base_url = "URL", model = "words" }
"""
GROUNDED = """
[segmenter]
engine = "grounding-dino+hq-sam+sam2"
config = { min_visible_frames = 2, max_overlap = 1.0, resolve = { margin = 1e-6, contradicted_at = -1.0 } }
resources = { workers = 1, cpus = 0.5, batch_size = 2 }
[segmenter.detector]
model = "FOLDER/tiny-grounding-dino"
min_score = 0.02
max_boxes = 1
[segmenter.mask_model]
model = "FOLDER/tiny-hq-sam"
[segmenter.video_model]
model = "FOLDER/tiny-sam2"
dtype = "float32"
min_stability = 0.0
min_area_px = 1
[segmenter.tracker]
long_side_px = 160
min_mask_iou = 0.0
merge_iou = 1.0
min_frames = 8
max_frames = 8
prompt_frames = { first = [0.5, 0.0], others = [1.0] }
"""
SAM3 = """
[segmenter]
engine = "sam3"
config = { min_visible_frames = 2, max_overlap = 1.0, resolve = { margin = 1e-6, contradicted_at = -1.0 } }
resources = { workers = 1, cpus = 0.5, batch_size = 1 }
[segmenter.tracker]
model = "FOLDER/tiny-sam3"
min_score = 0.2
min_new_score = 0.2
min_area_px = 1
min_frames = 6
max_frames = 6
"""
FPS = 12
"""Of painted clips."""
SEED = 22
"""Its captions name two things each, of two kinds."""
THING = re.compile(r"\b(?:a|an|another) (?:\w+ )?(\w+)(?= (?:moves|comes|stays))", re.IGNORECASE)
TURN = (0, 1, -1, 0)
"""The part of a display matrix that turns a video by a quarter."""


@dataclass(frozen=True)
class Video:
    """What the test knows of a clip: its size as displayed, and its frames `[first, end)` in the file."""

    height_px: int
    width_px: int
    first: int
    end: int


VIDEOS = {
    "upright": Video(360, 640, 0, 36),
    "turned": Video(640, 360, 0, 36),
    "middle": Video(360, 640, 6, 30),
}


@dataclass(frozen=True)
class Case:
    """One wiring, and the folders of its models."""

    segmenter: str
    engine: str
    annotator: str
    models: tuple[str, ...]


CASES = {
    "grounded": Case(
        GROUNDED, "grounding-dino+hq-sam+sam2", "chat-by-noun", ("tiny-grounding-dino", "tiny-hq-sam", "tiny-sam2")
    ),
    "sam3": Case(SAM3, "sam3", "chat", ("tiny-sam3",)),
}


def reply_to(payload: Mapping[str, Any]) -> dict[str, Any]:
    """What the scripted model says, by the shape that the reply must have."""
    wants = set(payload["response_format"]["json_schema"]["schema"]["properties"])
    user = next(turn["content"] for turn in payload["messages"] if turn["role"] == "user")
    asked = json.loads(user if isinstance(user, str) else user[-1]["text"].rsplit("\n\n", 1)[1])
    if "subjects" in wants:
        found = list(THING.finditer(asked["caption"]))
        texts = [{"phrase": one[0], "noun": one[1], "singular": one[1], "number": "singular"} for one in found]
        told: dict[str, Any] = {"subjects": texts[:1], "others": texts[1:]}
    elif "acts" in wants:
        told = {"text": f"The {asked['noun']} wanders about.", "acts": True}
    elif "answer" in wants:
        told = {"reason": "It looks so.", "answer": "yes"}
    elif "objects" in wants:
        told = {"objects": [{"id": item["id"], "text": item["notes"]} for item in asked["objects"]]}
    else:
        told = {"text": f"The {asked.get('noun', 'thing')} has a glossy coat."}
    return {key: asked[key] for key in ("id",) if key in asked} | told


def turn(video: Path) -> None:
    """Have a video shown turned, by the matrix in its header (ISO 14496-12, 8.3.2)."""
    data = bytearray(video.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in TURN)
    data[at : at + 36] = b"".join(word.to_bytes(4, "big", signed=True) for word in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    video.write_bytes(data)


@pytest.fixture(scope="module")
def rows(server: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three painted clips, one of them turned, one a part of its video."""
    folder = tmp_path_factory.mktemp("source")
    made = write_clips(folder / "clips", len(VIDEOS), SEED)
    turn(folder / str(made[1]["video"]))
    made[2] |= {"start_s": 0.5, "end_s": 2.5}
    named = [row | {"id": name} for row, name in zip(made, VIDEOS, strict=True)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, named)))
    return folder / "rows.jsonl"


@dataclass(frozen=True)
class Built:
    """A build's files, by plain readers."""

    case: Case
    lake: Path
    result: BuildResult
    models: Path

    @property
    def folder(self) -> Path:
        return self.lake / "builds" / self.result.build_id

    @property
    def manifest(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        return told

    @property
    def labels(self) -> dict[str, dict[str, Any]]:
        return {label["agent"]: label for label in self.manifest["labels"]}

    def read(self, pattern: str) -> list[dict[str, Any]]:
        """The rows of all files of a pattern, in the order of the files' names."""
        return [row for path in sorted(self.lake.glob(pattern)) for row in pq.read_table(path).to_pylist()]

    def outputs(self, agent: str) -> dict[str, dict[str, Any]]:
        """What an agent put out, by clip."""
        return {row["clip_id"]: row for row in self.read(f"agents/{agent}/*/part-*.parquet")}

    def tracks(self) -> list[dict[str, Any]]:
        return self.read(f"builds/{self.result.build_id}/tracks/*.parquet")

    def samples(self) -> list[dict[str, Any]]:
        return self.read(f"builds/{self.result.build_id}/data/*/*.parquet")

    def dropped(self) -> list[dict[str, Any]]:
        return self.read(f"quarantine/{self.result.build_id}/*.parquet")

    def video_of(self, clip_id: str) -> Video:
        return VIDEOS[{row["clip_id"]: row["source_id"] for row in (*self.samples(), *self.dropped())}[clip_id]]


@pytest.fixture(scope="module", params=CASES)
def built(
    request: pytest.FixtureRequest,
    rows: Path,
    chat_servers: Any,
    tiny_checkpoints: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    case, folder, models = CASES[request.param], tmp_path_factory.mktemp("built"), tiny_checkpoints.sam2.parent
    served = chat_servers(lambda _: None)
    served.script = lambda payload: served.said(json.dumps(reply_to(payload)))
    text = PROFILE.replace("SEGMENTER", case.segmenter).replace("ANNOTATOR", case.annotator)
    (profile := folder / "paper.toml").write_text(text.replace("URL", served.url).replace("FOLDER", str(models)))
    with start_ray(num_cpus=2):
        result = build(str(rows), str(folder / "lake"), profile=str(profile))
    served.stop()
    assert isinstance(result, BuildResult)
    return Built(case, folder / "lake", result, models)


def solid(counts: str, height_px: int, width_px: int) -> npt.NDArray[np.uint8]:
    """The mask of COCO counts."""
    mask: npt.NDArray[np.uint8] = coco.decode({"size": [height_px, width_px], "counts": counts.encode()})
    return mask


def border_px(mask: npt.NDArray[np.uint8]) -> int:
    """Pairs of neighbours that differ: many where a mask was read with its sides swapped."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def in_order(some: Sequence[str], of: Sequence[str]) -> bool:
    """Whether ids stand in the order of others, each among them."""
    return set(some) <= set(of) and [of.index(one) for one in some] == sorted(of.index(one) for one in some)


def content_of(folder: Path) -> str:
    """12 digits of the SHA-256 over a line for each file of a model, as `sha256sum` writes it."""
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def test_every_video_gives_tracks_and_samples_and_no_clip_fails(built: Built) -> None:
    assert {built.video_of(track["clip_id"]) for track in built.tracks()} == set(VIDEOS.values())
    assert {row["kind"] for row in built.samples()} == {"short_caption", "detailed_caption", "qa"}
    assert built.result.num_failed == 0


def test_masks_have_the_displayed_size_of_their_video_and_lie_in_their_clip(built: Built) -> None:
    as_written = swapped = 0
    for track in built.tracks():
        video, masks = built.video_of(track["clip_id"]), track["masks"]
        assert (masks["height_px"], masks["width_px"]) == (video.height_px, video.width_px)
        assert len(masks["rle"]) == len(masks["frame_idx"]) == len(masks["frame_time_s"]) > 0
        assert np.all(np.diff(masks["frame_idx"]) > 0)
        assert video.first <= masks["frame_idx"][0] <= masks["frame_idx"][-1] < video.end
        np.testing.assert_allclose(masks["frame_time_s"], np.array(masks["frame_idx"]) / FPS, atol=1e-3)
        for counts in filter(None, masks["rle"]):
            mask = solid(counts, video.height_px, video.width_px)
            assert (mask.shape, mask.dtype) == ((video.height_px, video.width_px), np.uint8)
            assert coco.encode(np.asfortranarray(mask))["counts"].decode() == counts
            assert mask.any()
            as_written += border_px(mask)
            swapped += border_px(solid(counts, video.width_px, video.height_px))
    assert 0 < as_written < swapped


def test_samples_bear_the_masks_of_their_tracks(built: Built) -> None:
    tracks = {track["track_id"]: track for track in built.tracks()}
    for sample in built.samples():
        video = VIDEOS[sample["source_id"]]
        assert (sample["height"], sample["width"]) == (video.height_px, video.width_px)
        regions = sum(turn["value"].count("<region>") for turn in sample["conversations"] if turn["from"] == "human")
        assert regions == len(sample["objects"]) > 0
        for item in sample["objects"]:
            track = tracks[item["object_id"]]
            assert (track["clip_id"], track["noun"]) == (sample["clip_id"], item["noun"])
            masks = dict(zip(track["masks"]["frame_idx"], track["masks"]["rle"], strict=True))
            assert item["rle"] == [masks[index] for index in item["frame_idx"]]


def test_ids_keep_one_order_through_all_agents_and_each_ends_in_a_sample_or_in_quarantine(built: Built) -> None:
    out = {agent: built.outputs(agent) for agent in ("analyzer", "segmenter", "annotator", "reviewer", "refiner")}
    dropped = {entry["subject_id"] for entry in built.dropped()}
    assert all(out[agent].keys() == out["analyzer"].keys() for agent in out)
    assert len(out["analyzer"]) == len(VIDEOS)
    for clip_id in out["analyzer"]:
        of = {agent: found[clip_id] for agent, found in out.items()}
        mentions = [item["mention_id"] for item in of["analyzer"]["mentions"]]
        tracks = {item["track_id"]: item["mention_id"] for item in of["segmenter"]["tracks"]}
        assert in_order(list(tracks.values()), mentions)
        assert set(mentions) == set(tracks.values()) | {entry["subject_id"] for entry in of["segmenter"]["rejected"]}
        is_by_noun = built.case.annotator == "chat-by-noun"
        field, key, subjects = ("texts", "mention_id", mentions) if is_by_noun else ("captions", "track_id", [*tracks])
        told = [item[key] for item in of["annotator"][field]]
        assert in_order(told, subjects)
        assert {*told, *(entry["subject_id"] for entry in of["annotator"]["rejected"])} == set(subjects)
        verdicts = {item["track_id"]: item["keep"] for item in of["reviewer"]["verdicts"]}
        assert in_order(list(verdicts), list(tracks))
        used = {item["object_id"] for sample in of["refiner"]["samples"] for item in sample["objects"]}
        assert used <= {track_id for track_id, keep in verdicts.items() if keep}
        assert set(tracks) == used | (set(tracks) & dropped)


def test_the_manifest_names_engines_models_by_content_and_prompts(built: Built) -> None:
    labels = built.labels
    facts = "+measured-facts"
    assert {agent: label["engine"] for agent, label in labels.items()} == {
        "analyzer": "chat:words",
        "segmenter": built.case.engine,
        "annotator": "chat:seer" + facts * (built.case.annotator == "chat"),
        "reviewer": "chat:other-seer+chat:words",
        "refiner": "chat:words",
    }
    assert labels["segmenter"]["weights"] == [f"{name}@{content_of(built.models / name)}" for name in built.case.models]
    prompts = {agent: label["prompt_hash"] for agent, label in labels.items()}
    assert prompts.pop("segmenter") == ""
    assert len(set(prompts.values())) == len(prompts)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in prompts.values())
    for sample in built.samples():
        told = sample["provenance"]
        assert [entry.split("=")[0] for entry in told["engines"]] == list(labels)
        assert set(told["engines"]) >= {f"segmenter={built.case.engine}", f"annotator=chat:seer{facts}"}
        assert told["weights"] == [f"segmenter={name}" for name in labels["segmenter"]["weights"]]
