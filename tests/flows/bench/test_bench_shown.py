"""What of an item reaches the model, and what becomes of items that cannot be shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from benchmark.question_score import QuestionScore
from flows.bench_record import BenchError
from infra.video import video_sha256
from model.request import Request


def masked_frames(request: Request) -> list[list[int]]:
    assert request.scene is not None
    numbers = [round(25 * time_s) for time_s in request.scene.times_s]
    return [[numbers[place] for place in one.frames] for one in request.objects]


def test_single_mode_shows_the_mask_of_the_items_frame_and_multi_mode_all(
    bench: Any, seen: list[list[Request]]
) -> None:
    two = bench.question(1, Question="Is <object0><region> left of <object1><region>?")
    two["annotation"] = [bench.masks(3, 30, absent=(20,)), bench.masks(3, 20, 30)]
    rows = [bench.question(0), two]
    single = bench.run(bench.asked(rows))
    multi = bench.run(bench.asked(rows, "multi", mode="multi"))
    one, other = seen
    assert [masked_frames(request) for request in one] == [[[20]], [[30], [20]]]
    assert [masked_frames(request) for request in other] == [[[3, 20, 30]], [[3, 30], [3, 20, 30]]]
    assert (one[0].objects[0].masks[0] == bench.square(20)).all()
    assert (single.num_off_frame, multi.num_off_frame) == (1, 0)
    assert "1 objects without a mask in the item's frame" in Path(single.report).read_text()
    assert one[0].messages[0].content == (
        "<video>\nWhat is <object0><region> number 0? (A) A hat (B) A long coat (C) Shoes (D) A watch. "
        "Answer with the option's letter from the given choices directly."
    )


def test_every_form_of_masks_and_videos_is_shown(bench: Any, seen: list[list[Request]]) -> None:
    (bench.folder / "frames").mkdir()
    for number in range(12):
        cv2.imwrite(
            str(bench.folder / "frames" / f"{number}.png"),
            np.full((bench.height_px, bench.width_px, 3), 9 * number, np.uint8),
        )
    runs = coco.encode(np.asfortranarray(bench.square(20), np.uint8))
    counts = np.diff(
        np.flatnonzero(np.diff(bench.square(20).T.ravel().astype(int), prepend=0, append=0)), prepend=0
    ).tolist()
    plain = {
        "size": [bench.height_px, bench.width_px],
        "counts": [*counts, bench.height_px * bench.width_px - sum(counts)],
    }
    polygon = [[20, 10, 29, 10, 29, 19, 20, 19]]
    forms = ({"size": list(runs["size"]), "counts": runs["counts"].decode()}, plain, polygon)
    rows = [bench.question(n, annotation=[{"20": {"segmentation": form}}]) for n, form in enumerate(forms)]
    rows.append(bench.question(3, video="frames", frame_idx=2, annotation=[bench.masks(2)]))
    result = bench.run(bench.asked(rows))
    assert result.missing == ()
    shown = [one.objects[0].masks[0] for one in seen[0]]
    assert all(mask is not None and (mask == bench.square(20)).mean() > 0.99 for mask in shown[:3])
    scene = seen[0][3].scene
    assert scene is not None
    # the file sorted third as text is 10.png, as the official loader counts a folder
    assert [frame[0, 0, 0] // 9 for frame in scene.frames[list(seen[0][3].objects[0].frames)]] == [10]


def test_items_of_ours_show_only_their_span_before_it_ends(bench: Any, seen: list[list[Request]]) -> None:
    origin = {
        "start_s": 0.4, "end_s": 1.6, "visible_until_s": 0.8, "made_by": "machine", "checked": False, "fps": 25.0,
        "video_sha256": video_sha256(bench.folder / "a.mp4"),
    }  # fmt: skip
    rows = [
        bench.question(0, frame_idx="15", annotation=[bench.masks(15)], **origin),
        bench.question(1, frame_idx="30", annotation=[bench.masks(30)], **origin),
        bench.question(2, frame_idx="15", annotation=[bench.masks(15)], **origin | {"video_sha256": "0" * 64}),
    ]
    result = bench.run(bench.asked(rows))
    (request,) = seen[0]
    assert request.scene is not None
    assert all(0.4 <= time_s < 0.8 for time_s in request.scene.times_s)
    assert (request.scene.start_s, request.scene.end_s) == (0.4, 0.8)
    assert {item.item_id: item.reason for item in result.missing} == {"1": "frame_outside", "2": "changed_video"}
    assert (result.run.num_machine_made, result.run.num_checked) == (3, 0)
    assert "3 machine-made, 0 of these checked by hand" in Path(result.report).read_text()


def test_bad_items_are_named_counted_and_wrong_and_tried_again(bench: Any, make_video: Callable[..., Path]) -> None:
    rows = [
        bench.question(0),
        bench.question(1, video="late.mp4"),
        bench.question(2, annotation=[{"20": {"segmentation": {"size": [9, 9], "counts": "x"}}}]),
        bench.question(3, Question="<region> or <region>?"),
        bench.question(4, annotation=[]),
        bench.question(5, video="../a.mp4"),
        bench.question(6),
    ]
    result = bench.run(bench.asked(rows))
    reasons = {item.item_id: item.reason for item in result.missing}
    assert reasons == {"1": "missing_file", "2": "bad_mask", "3": "regions", "4": "bad_row", "5": "outside_root"}
    assert isinstance(result.score, QuestionScore)
    assert (result.score.micro.n, result.score.micro.num_missing, result.asked) == (7, 5, 2)
    assert "item 1: missing_file" in Path(result.report).read_text()
    make_video("late.mp4")
    again = bench.run(bench.asked(rows))
    assert ([item.item_id for item in again.missing], again.asked) == (["2", "3", "4", "5"], 1)


def test_where_no_item_can_be_shown_the_folder_of_videos_is_doubted(bench: Any) -> None:
    rows = [bench.question(number, video="gone.mp4") for number in range(2)]
    with pytest.raises(BenchError, match=r"none of the 2 items .*gone\.mp4 cannot be found.*Is --videos the folder"):
        bench.run(bench.asked(rows))
