import json
from pathlib import Path

import av
import pytest

from flows.demo_source import demo_captions, write_demo_source
from infra.weights import CATALOGUE, WeightError, fetch, weight_path

SYNTHETIC = [
    {"id": "s-0", "video": "videos/s-0.mp4", "caption": "A cat moves.", "start_s": 0.0, "end_s": 2.0, "license": "CC0"}
]
SHOT_STARTS = {"bikes.mp4": (0, 30, 76, 137, 187, 242), "cityCC0.mpg": (0, 116)}
"""First displayed frame of each shot, from frame differences; the other clips are one shot."""


def test_captions_are_eight_with_different_ids_and_known_clips() -> None:
    captions = demo_captions()
    assert len({item.id for item in captions}) == len(captions) == 8
    assert all(item.clip in CATALOGUE and item.start_s < item.end_s for item in captions)


def test_absent_clips_stop_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightError, match="doctor --fetch"):
        write_demo_source(tmp_path / "source", SYNTHETIC)
    assert not (tmp_path / "source").exists()


@pytest.fixture
def clips() -> None:
    fetch({item.clip for item in demo_captions()}, print)


@pytest.mark.weights
@pytest.mark.usefixtures("clips")
def test_rows_name_copied_videos_and_synthetic_rows_follow(tmp_path: Path) -> None:
    manifest = write_demo_source(tmp_path, SYNTHETIC)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert rows[-1:] == SYNTHETIC
    for row, item in zip(rows, demo_captions(), strict=False):
        assert row == item.model_dump(exclude={"clip"}) | {
            "video": f"videos/{weight_path(item.clip).name}",
            "license": CATALOGUE[item.clip].license,
        }
        assert (tmp_path / row["video"]).read_bytes() == weight_path(item.clip).read_bytes()


@pytest.mark.weights
@pytest.mark.usefixtures("clips")
def test_writing_again_mends_a_broken_copy_and_leaves_the_others(tmp_path: Path) -> None:
    write_demo_source(tmp_path, [])
    whole, broken = tmp_path / "videos" / "bikes.mp4", tmp_path / "videos" / "cityCC0.mpg"
    before = whole.stat().st_mtime_ns
    broken.write_bytes(b"half")
    write_demo_source(tmp_path, SYNTHETIC)
    assert whole.stat().st_mtime_ns == before
    assert broken.read_bytes() == weight_path("clip-city").read_bytes()


@pytest.mark.weights
@pytest.mark.usefixtures("clips")
def test_two_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="s-0"):
        write_demo_source(tmp_path, SYNTHETIC * 2)


@pytest.mark.weights
@pytest.mark.usefixtures("clips")
@pytest.mark.parametrize("item", demo_captions(), ids=lambda item: item.id)
def test_spans_lie_within_one_shot_of_the_clip(item) -> None:
    path = weight_path(item.clip)
    with av.open(str(path)) as container:
        stamps_s = sorted(frame.time for frame in container.decode(video=0))
    inside = [i for i, at in enumerate(stamps_s) if item.start_s <= at - stamps_s[0] < item.end_s]
    assert len(inside) >= 28
    assert not set(SHOT_STARTS.get(path.name, ())) & set(inside[1:])
