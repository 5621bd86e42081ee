import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from infra.video import VideoError
from model.data.item import BadItemError
from model.data.official import official_item
from model.data.scene import CachedReader, OpenVideo, SceneConfig, mid_segment, read_plainly, request_of
from model.data.sources import sample_item

ALL = SceneConfig(num_frames=4, side_px=1000, single_frame_share=0.0)
ONE = ALL._replace(single_frame_share=1.0)

pytestmark = pytest.mark.usefixtures("video")


def official_request(path: Path, root: Path, number: int, num_frames: int) -> tuple[list[Any], list[Any]]:
    """Scene frames and (frame, mask) pairs by the official loader's rules: whole parse, full scan, loops."""
    row = json.loads(path.read_text())[number]
    with av.open(str(root / row["video"])) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    segment = float(len(decoded) - 1) / num_frames
    shown = []
    for i in range(num_frames):
        start, end = segment * i, segment * (i + 1)
        shown.append(decoded[int(np.round((start + end) / 2))])
    from pycocotools import mask as coco

    pairs = [
        [(decoded[int(key)], coco.decode(value["segmentation"]).astype(bool)) for key, value in one.items()]
        for one in row["annotation"]
    ]
    return shown, pairs


def test_scene_and_masked_frames_are_those_of_the_official_loader(rows: Any, tmp_path: Path) -> None:
    path = rows.file([rows.official(0, ((3, 30), (17,)))])
    shown, pairs = official_request(path, tmp_path, 0, 4)
    request = request_of(official_item(rows.official(0, ((30, 3), (17,))), 0, "s"), tmp_path, ALL, 0, 0)
    assert request.scene is not None
    assert np.array_equal(request.scene.frames[list(request.scene.shown)], np.stack(shown))
    assert request.scene.times_s == tuple(sorted(request.scene.times_s))
    for one, expected in zip(request.objects, pairs, strict=True):
        for frame, mask, (image, official_mask) in zip(one.frames, one.masks, expected, strict=True):
            assert np.array_equal(request.scene.frames[frame], image)
            assert np.array_equal(mask, official_mask)


def test_each_needed_frame_is_decoded_once_and_all_at_once(rows: Any, tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def reader(video: OpenVideo, frame_idx: Any, long_side_px: int) -> Any:
        asked.append(list(frame_idx))
        return read_plainly(video, frame_idx, long_side_px)

    request_of(official_item(rows.official(0, ((3, 30), (30, 5))), 0, "s"), tmp_path, ALL, 0, 0, reader)
    assert asked == [sorted({*mid_segment(40, 4), 3, 30, 5})]


def test_frames_are_shrunk_to_what_the_tower_needs(rows: Any, tmp_path: Path) -> None:
    request = request_of(official_item(rows.official(0), 0, "s"), tmp_path, ALL._replace(side_px=32), 0, 0)
    assert request.scene is not None
    assert request.scene.frames.shape[1:] == (32, 48, 3)
    assert request.objects[0].masks[0] is not None
    assert request.objects[0].masks[0].shape == (64, 96)


def test_a_short_clip_gives_each_frame_once() -> None:
    assert mid_segment(1, 16) == [0]
    assert mid_segment(5, 16) == [0, 1, 2, 3, 4]
    assert len(mid_segment(600, 16)) == 16


def test_nothing_after_the_visible_end_is_shown(rows: Any, tmp_path: Path, read_number: Callable[..., int]) -> None:
    sample = rows.sample(0, ((12, 17),), start_s=0.4, visible_until_s=0.8)
    request = request_of(sample_item(sample, "s"), tmp_path, ALL._replace(num_frames=50), 0, 0)
    assert request.scene is not None
    assert [read_number(frame) for frame in request.scene.frames] == list(range(10, 20))
    assert (request.scene.start_s, request.scene.end_s) == (0.4, 0.8)


@pytest.mark.parametrize("frame", [9, 20])
def test_a_mask_outside_the_visible_span_is_refused(rows: Any, tmp_path: Path, frame: int) -> None:
    sample = rows.sample(0, ((12, frame),), start_s=0.4, visible_until_s=0.8)
    with pytest.raises(BadItemError, match=f"a mask is of frame {frame}; frames 10 to 19 may be seen"):
        request_of(sample_item(sample, "s"), tmp_path, ALL, 0, 0)


def test_a_share_of_the_items_keeps_one_visible_frame_that_changes_with_the_epoch(rows: Any, tmp_path: Path) -> None:
    half = ALL._replace(single_frame_share=0.5)
    row = rows.official(0, ((1, 2, 3, 4, 5, 6), (7,)))
    row["annotation"][0]["6"]["segmentation"] = None
    item = official_item(row, 0, "s")
    made = [request_of(item, tmp_path, half, 0, epoch).objects for epoch in range(60)]
    counts = Counter(len(objects[0].frames) for objects in made)
    assert set(counts) == {1, 5}
    assert 18 <= counts[1] <= 42
    singles = {int(np.flatnonzero(objects[0].masks[0].any(0))[0]) for objects in made if len(objects[0].frames) == 1}
    assert singles == {1, 2, 3, 4, 5}
    again = request_of(item, tmp_path, half, 0, 7).objects
    assert all(np.array_equal(a, b) for a, b in zip(again[0].masks, made[7][0].masks, strict=True))


def test_an_empty_mask_is_not_what_a_single_frame_shows(rows: Any, tmp_path: Path) -> None:
    row = rows.official(0, ((1, 2),))
    row["annotation"][0]["1"]["segmentation"] = {"size": [64, 96], "counts": [64 * 96]}
    for epoch in range(8):
        (one,) = request_of(official_item(row, 0, "s"), tmp_path, ONE, 0, epoch).objects
        assert [mask.any() for mask in one.masks if mask is not None] == [True]


def test_frames_in_which_an_object_is_absent_are_left_out_unless_wanted(rows: Any, tmp_path: Path) -> None:
    row = rows.official(0, ((3, 25),))
    row["annotation"][0]["25"]["segmentation"] = None
    item = official_item(row, 0, "s")
    (plain,) = request_of(item, tmp_path, ALL, 0, 0).objects
    (exact,) = request_of(item, tmp_path, ALL._replace(keeps_absent=True), 0, 0).objects
    assert len(plain.frames) == 1
    assert [mask is None for mask in exact.masks] == [False, True]


def test_of_many_masks_as_many_as_allowed_are_taken_evenly(rows: Any, tmp_path: Path) -> None:
    item = official_item(rows.official(0, (tuple(range(40)),)), 0, "s")
    (one,) = request_of(item, tmp_path, ALL._replace(max_masks=4), 0, 0).objects
    lefts = [int(np.flatnonzero(mask.any(0))[0]) for mask in one.masks if mask is not None]
    assert lefts == mid_segment(40, 4)


def test_a_cache_gives_the_same_frames_without_decoding_again(
    rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = official_item(rows.official(0), 0, "s")
    cached = CachedReader(tmp_path / "frames", 1 << 24)
    plain, first = (request_of(item, tmp_path, ALL, 0, 0, reader).scene for reader in (read_plainly, cached))
    monkeypatch.setattr("infra.decode_cache.iter_frames", lambda *_: pytest.fail("decoded again"))
    second = request_of(item, tmp_path, ALL, 0, 0, cached).scene
    assert plain is not None
    assert first is not None
    assert second is not None
    assert np.array_equal(plain.frames, first.frames)
    assert np.array_equal(plain.frames, second.frames)


def test_an_image_has_one_frame_and_a_polygon_without_size_lies_on_it(rows: Any, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "x.png"), image[..., ::-1])
    polygon = [[10, 10, 30, 10, 30, 30, 10, 30]]
    row = rows.official(0, annotation=[{"9": {"segmentation": polygon}}], video=..., image="x.png")
    request = request_of(official_item(row, 0, "s"), tmp_path, ALL, 0, 0)
    assert request.scene is not None
    assert request.scene.is_image
    assert np.array_equal(request.scene.frames, image[None])
    (one,) = request.objects
    assert one.frames == (0,)
    assert one.masks[0] is not None
    assert one.masks[0].sum() == 400
    small = request_of(official_item(row, 0, "s"), tmp_path, ALL._replace(side_px=32), 0, 0)
    assert small.scene is not None
    assert small.scene.frames.shape == (1, 32, 48, 3)


def test_frames_of_a_folder_count_as_the_official_loader_sorts_them(
    rows: Any, tmp_path: Path, read_number: Callable[..., int]
) -> None:
    from infra.video import read_frames

    (tmp_path / "f").mkdir()
    for number, image in enumerate(read_frames(tmp_path / "a.mp4", range(12), 1000)):
        cv2.imwrite(str(tmp_path / "f" / f"{number}.png"), image[..., ::-1])
    item = official_item(rows.official(0, ((2,),), video="f"), 0, "s")
    request = request_of(item, tmp_path, ALL, 0, 0)
    official_name = sorted(path.name for path in (tmp_path / "f").iterdir())[2]
    assert request.scene is not None
    assert read_number(request.scene.frames[request.objects[0].frames[0]]) == int(Path(official_name).stem) == 10


def test_text_alone_has_no_scene(rows: Any, tmp_path: Path) -> None:
    request = request_of(official_item(rows.official(0, annotation=..., video=...), 0, "s"), tmp_path, ALL, 0, 0)
    assert (request.scene, request.objects) == (None, ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"video": "absent.mp4"}, "missing_file"),
        ({"video": "a\0.mp4"}, "missing_file"),
        ({"video": "../a.mp4"}, "outside_root"),
        ({"video": "link.mp4"}, "outside_root"),
        ({"video": "/etc/hostname"}, "outside_root"),
        ({"video": "text.mp4"}, "unreadable_video"),
        ({"annotation": [{"40": {"segmentation": None}}]}, "frame_outside"),
        ({"annotation": [{"4": {"segmentation": None}}]}, "not_visible"),
        ({"annotation": [{"4": {"segmentation": {"size": [96, 64], "counts": [64 * 96]}}}]}, "bad_mask"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_its_reason(
    rows: Any, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.mp4").write_text("no video")
    (tmp_path / "in" / "a.mp4").hardlink_to(tmp_path / "a.mp4")
    (tmp_path / "in" / "link.mp4").symlink_to(tmp_path / "a.mp4")
    with pytest.raises((BadItemError, VideoError)) as caught:
        request_of(official_item(rows.official(0, **changes), 0, "s"), tmp_path / "in", ALL, 0, 0)
    assert caught.value.reason == reason


def test_a_span_without_frames_is_refused(rows: Any, tmp_path: Path) -> None:
    sample = rows.sample(0, start_s=5.0, end_s=6.0, visible_until_s=5.5)
    with pytest.raises(BadItemError, match="holds no frame"):
        request_of(sample_item(sample, "s"), tmp_path, ALL, 0, 0)


def test_a_video_that_was_replaced_is_refused(rows: Any, tmp_path: Path, make_video: Callable[..., Path]) -> None:
    item = sample_item(rows.sample(0), "s")
    request_of(item, tmp_path, ALL, 0, 0)
    make_video("a.mp4", num_frames=41)
    with pytest.raises(BadItemError, match="another file than its masks were made on") as caught:
        request_of(item, tmp_path, ALL, 0, 0)
    assert caught.value.reason == "changed_video"
