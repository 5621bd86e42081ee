"""Small videos with shards and official rows about them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from infra.builds import BuildWriter, Manifest
from infra.lake import Lake
from infra.video import video_sha256
from schemas.mask import Mask, encode
from schemas.quarantine import QuarantineEntry
from schemas.sample import SCHEMA_VERSION, Provenance, Sample
from schemas.track import Track

HEIGHT_PX, WIDTH_PX = 64, 96


class Rows:
    """Writes rows; a mask is a square whose place follows from its frame."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mask(self, frame: int) -> Mask:
        mask = np.zeros((HEIGHT_PX, WIDTH_PX), np.bool_)
        mask[10:20, frame : frame + 10] = True
        return mask

    def rle(self, frame: int) -> dict[str, Any]:
        made = coco.encode(np.asfortranarray(self.mask(frame), np.uint8))
        return {"size": [HEIGHT_PX, WIDTH_PX], "counts": made["counts"].decode()}

    def official(self, number: int, frames: Sequence[Sequence[int]] = ((3, 30),), **changes: Any) -> dict[str, Any]:
        regions = " and ".join("<region>" for _ in frames)
        row = {
            "id": number,
            "video": "a.mp4",
            "conversations": [
                {"from": "human", "value": f"<video>\nWhat is {regions}?"},
                {"from": "gpt", "value": f"Thing {number}."},
            ],
            "annotation": [{str(frame): {"segmentation": self.rle(frame)} for frame in one} for one in frames],
        }
        return {key: value for key, value in (row | changes).items() if value is not ...}

    def sample(self, number: int, frames: Sequence[Sequence[int]] = ((3, 30),), **changes: Any) -> Sample:
        regions = " and ".join("<region>" for _ in frames)
        video = self.folder / changes.get("video", "a.mp4")
        row = {
            "sample_id": f"s{number:05d}", "kind": "detailed_caption", "qa_type": "none", "split": "train",
            "clip_id": f"c{number:05d}", "source_id": "src", "video": "a.mp4",
            "video_sha256": video_sha256(video) if video.exists() else "0" * 64,
            "license": "CC0", "start_s": 0.0, "end_s": 1.6, "visible_until_s": 1.6, "fps": 25.0,
            "height": HEIGHT_PX, "width": WIDTH_PX,
            "conversations": [
                {"from": "human", "value": f"<video>\nWhat is {regions}?"},
                {"from": "gpt", "value": f"Thing {number}."},
            ],
            "objects": [
                {
                    "object_id": f"o{place}", "noun": "dog", "frame_idx": tuple(one),
                    "frame_time_s": tuple(frame / 25 for frame in one),
                    "rle": tuple(encode(self.mask(frame)) for frame in one),
                }
                for place, one in enumerate(frames)
            ],
            "provenance": Provenance(
                engines=(), weights=(), prompt_hashes=(), revisions=(), verdict="kept", wording="template"
            ),
        }  # fmt: skip
        return Sample.model_validate(row | changes)

    def file(self, rows: Sequence[Any], name: str = "rows.json") -> Path:
        path = self.folder / name
        path.write_text(
            "\n".join(map(json.dumps, rows)) if name.endswith(".jsonl") else json.dumps(rows, ensure_ascii=False)
        )
        return path

    def build(self, samples: Sequence[Sample], rows_per_shard: int = 4096, name: str = "lake") -> Lake:
        lake = Lake(self.folder / name)
        writer = BuildWriter(lake, "b1", rows_per_shard)
        for kind in ("short_caption", "detailed_caption", "qa"):
            writer.write_samples(kind, [sample for sample in samples if sample.kind == kind])
        writer.write_tracks(list[Track]())
        writer.write_quarantine(list[QuarantineEntry]())
        writer.commit(
            Manifest(
                build_id="b1",
                schema_version=SCHEMA_VERSION,
                created_at="2025-01-01T00:00:00+00:00",
                source="clips",
                videos_root=str(self.folder),
                profile_name="painted",
                profile_json="{}",
                labels=(),
                counts=(),
            )
        )
        return lake


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    """Writes rows into the test's folder, and keeps what is cached there too."""
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))
    return Rows(tmp_path)


@pytest.fixture
def video(make_video: Callable[..., Path]) -> Path:
    """`a.mp4`: 40 frames at 25 a second, each with its number, a key frame every 10."""
    return make_video("a.mp4", options={"g": "10"})
