import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from model.data.item import BadItemError, ItemObject, Media, Polygons, RunLengths
from model.data.masks import mask_of
from model.data.official import official_item
from model.data.sources import FileSource
from model.request import Message

SIZE = (64, 96)


def test_schema_a_gives_each_object_its_frames_in_the_order_of_the_file(rows: Any) -> None:
    row = rows.official(7, ((30, 3), (5,)), frame_idx="30")
    row["annotation"][0]["4"] = {"segmentation": None}
    row["annotation"][0]["6"] = {}
    item = official_item(row, 0, "a.json")
    assert (item.item_id, item.source) == ("7", "a.json")
    assert item.media == Media("a.mp4", is_image=False, in_name_order=True)
    assert item.messages == (
        Message("user", "<video>\nWhat is <region> and <region>?"),
        Message("assistant", "Thing 7."),
    )
    assert [one.frame_idx for one in item.objects] == [(30, 3, 4, 6), (5,)]
    assert item.objects[0].masks[0] == RunLengths(rows.rle(30)["counts"], *SIZE)
    assert item.objects[0].masks[2:] == (None, None)


def test_rows_of_ytb_vos_nest_their_frames_once_more(rows: Any) -> None:
    plain = rows.official(0, ((3, 30),))
    nested = plain | {"annotation": [{"57": plain["annotation"][0]}]}
    assert official_item(nested, 0, "s").objects == official_item(plain, 0, "s").objects


def test_one_frame_without_a_segmentation_is_not_taken_for_nesting(rows: Any) -> None:
    row = rows.official(0) | {"annotation": [{"57": {}}]}
    assert official_item(row, 0, "s").objects == (ItemObject((57,), (None,)),)


def test_schema_b_gives_each_mask_a_region(rows: Any) -> None:
    polygon = [[1, 1, 9, 1, 9, 9]]
    masks = [{"3": rows.rle(3), "30": rows.rle(30)}, {"5": polygon}]
    row = rows.official(0, annotation=..., id=..., video=["a.mp4"], masks=masks, height=64, width=96)
    item = official_item(row, 12, "s")
    assert item.item_id == "12"
    assert [one.frame_idx for one in item.objects] == [(3,), (30,), (5,)]
    assert item.objects[2].masks == (Polygons(((1, 1, 9, 1, 9, 9),), SIZE),)


def test_every_object_of_an_image_is_in_its_one_frame(rows: Any) -> None:
    row = rows.official(0, ((57,),), video=..., image="x.jpg")
    assert official_item(row, 0, "s").objects[0].frame_idx == (0,)
    flat = rows.official(0, annotation=..., video=..., image="x.jpg", masks=[rows.rle(3), None])
    assert official_item(flat, 0, "s").objects == (
        ItemObject((0,), (RunLengths(rows.rle(3)["counts"], *SIZE),)),
        ItemObject((0,), (None,)),
    )


def test_rows_may_have_no_regions_or_text_alone(rows: Any) -> None:
    assert official_item(rows.official(0, annotation=...), 0, "s").objects == ()
    text = official_item(rows.official(0, annotation=..., video=...), 0, "s")
    assert (text.media, text.objects) == (None, ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"conversations": ...}, "bad_turns"),
        ({"conversations": [{"from": "human"}]}, "bad_turns"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "bad_turns"),
        ({"image": "x.jpg"}, "several_media"),
        ({"video": ["1.jpg", "2.jpg"], "timestamps": [0, 1]}, "several_media"),
        ({"video": {"path": 1}}, "bad_row"),
        ({"stream": True}, "bad_row"),
        ({"annotation": {"3": None}}, "bad_row"),
        ({"annotation": [[]]}, "bad_row"),
        ({"annotation": [{"-3": None}]}, "bad_row"),
        ({"annotation": [{"3.5": None}]}, "bad_row"),
        ({"video": ...}, "bad_row"),
        ({"masks": [{"3": None}]}, "bad_row"),
        ({"annotation": [{"3": {"segmentation": {"counts": "abc"}}}]}, "bad_mask"),
        ({"annotation": [{"3": {"segmentation": {"size": [64, 96], "counts": 5}}}]}, "bad_mask"),
        ({"annotation": [{"3": {"segmentation": [1, 2, 3]}}]}, "bad_mask"),
        ({"annotation": [{"3": {"segmentation": "x"}}]}, "bad_mask"),
    ],
)
def test_an_odd_row_is_refused_with_its_reason(rows: Any, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadItemError) as caught:
        official_item(rows.official(0, **changes), 0, "s")
    assert caught.value.reason == reason


def test_an_object_with_two_masks_of_an_image_is_refused(rows: Any) -> None:
    with pytest.raises(BadItemError, match="an object of an image has one mask, got 2"):
        official_item(rows.official(0, ((3, 30),), video=..., image="x.jpg"), 0, "s")


def test_a_row_that_is_no_json_costs_itself_alone(rows: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, \n' + json.dumps(rows.official(2)) + "\n5\n")
    source = FileSource(path, tmp_path)
    assert len(source) == 3
    assert source.item(1).item_id == "2"
    for index, said in ((0, "row 0 is no JSON"), (2, "a row is a JSON object, got int")):
        with pytest.raises(BadItemError, match=said):
            source.item(index)


def test_each_form_of_a_mask_gives_what_pycocotools_gives(rows: Any) -> None:
    mask = rows.mask(7)
    whole = coco.encode(np.asfortranarray(mask, np.uint8))
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = tuple(np.diff([0, *edges, flat.size]).tolist())
    polygon = ((7.0, 10.0, 17.0, 10.0, 17.0, 20.0, 7.0, 20.0), (40.0, 40.0, 50.0, 40.0, 45.0, 50.0))
    drawn = coco.decode(coco.merge(coco.frPyObjects([list(part) for part in polygon], *SIZE))).astype(np.bool_)
    for stored, expected in (
        (RunLengths(whole["counts"].decode(), *SIZE), mask),
        (RunLengths(runs, *SIZE), mask),
        (Polygons(polygon, SIZE), drawn),
        (Polygons(polygon, None), drawn),
    ):
        found = mask_of(stored, SIZE)
        assert found is not None
        assert np.array_equal(found, expected)


def test_a_mask_without_a_pixel_is_absent() -> None:
    assert mask_of(RunLengths((64 * 96,), *SIZE), SIZE) is None
    assert mask_of(None, SIZE) is None


@pytest.mark.parametrize(
    "stored",
    [
        RunLengths((64 * 96 - 1,), *SIZE),
        RunLengths((64 * 96 + 1, -1), *SIZE),
        RunLengths("0`0", *SIZE),
        RunLengths("é", *SIZE),
        RunLengths((1,), 1 << 30, 1 << 30),
        RunLengths((), 0, 0),
        RunLengths((96 * 64,), 96, 64),
        Polygons(((1.0, 2.0, 3.0, 4.0),), SIZE),
        Polygons(((1.0, 2.0, 3.0, 4.0, 5.0, 1e9),), SIZE),
        Polygons(((1.0, 2.0, 3.0, 4.0, 5.0, float("nan")),), SIZE),
    ],
)
def test_a_mask_that_does_not_add_up_or_fit_its_frame_is_refused(stored: Any) -> None:
    with pytest.raises(BadItemError) as caught:
        mask_of(stored, SIZE)
    assert caught.value.reason == "bad_mask"
