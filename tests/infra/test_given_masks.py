"""Masks that came with a source reach their clips as they are, or cost their row with a reason."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.given_masks import MaskReader, places_of
from infra.sources import ClipConfig, ClipSet, SourceRow, clips_of, read_source
from schemas.given import GivenMasks
from schemas.mask import decode, encode
from schemas.record import content_id


class Given:
    """Every row of a source cut into clips, with its masks; `expected` is of the first video of `MaskLayouts.small`."""

    def __init__(self, source: Path, root: Path | None = None) -> None:
        self.root, listing = read_source(source, root)
        reader = MaskReader(self.root)
        self.rows = {row.source_id: row for row in listing.rows}
        self.outcomes = {row.source_id: self._outcome(row, reader) for row in listing.rows}

    def _outcome(self, row: SourceRow, reader: MaskReader) -> tuple[ClipSet, dict[str, GivenMasks]]:
        assert row.masks is not None
        return reader.give(clips_of(row, self.root, ClipConfig()), row.masks)

    def masks(self, source_id: str) -> GivenMasks:
        clips, given = self.outcomes[source_id]
        assert clips.rejected == ()
        (clip,) = clips.clips
        assert list(given) == [clip.given_sha256]
        return given[clip.given_sha256]

    def evidence(self, source_id: str) -> str:
        clips, given = self.outcomes[source_id]
        assert (clips.clips, given) == ((), {})
        (entry,) = clips.rejected
        assert (entry.stage, entry.reason, entry.subject_id) == ("source", "bad_masks", source_id)
        return entry.evidence


def edited(path: Path, edit: Any) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def test_counts_of_mevis_are_passed_on_byte_for_byte(layouts: Any, tmp_path: Path) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small()})
    written = json.loads((split / "mask_dict.json").read_text())
    found = Given(split).masks("v1/1")
    assert [item.object_id for item in found.objects] == ["0", "1"]
    for item in found.objects:
        assert item.frame_idx == tuple(range(8))
        assert list(item.rle) == [rle and rle["counts"] for rle in written[item.object_id]]
    assert found.objects[1].rle[4:] == (None,) * 4


def test_a_mask_without_a_pixel_is_out_of_sight(layouts: Any, tmp_path: Path) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small()})
    empty = {"size": [64, 96], "counts": encode(np.zeros((64, 96), bool))}
    edited(split / "mask_dict.json", lambda masks: masks["0"].__setitem__(slice(0, 2), [empty, {}]))
    (item,) = Given(split).masks("v1/0").objects
    assert item.rle[:2] == (None, None)
    assert None not in item.rle[2:]


@pytest.mark.parametrize("layout", ["davis", "youtube"])
def test_pixels_of_a_value_are_the_objects_mask(layouts: Any, tmp_path: Path, layout: str) -> None:
    video = layouts.small(num_frames=26, expressions=[("a dog", ("2",)), ("another dog", ("1",))])
    source = getattr(layouts, layout)(tmp_path, {"v1": video})
    given = Given(source)
    frames = tuple(range(26)) if layout == "davis" else (0, 5, 10, 15, 20, 25)
    for source_id, row in given.rows.items():
        (item,) = given.masks(source_id).objects
        assert item.frame_idx == frames
        assert row.masks is not None
        for frame, counts in zip(frames, item.rle, strict=True):
            truth = video.masks[row.masks.objects[0]][frame]
            assert np.array_equal(decode(counts, 64, 96) if counts else np.zeros((64, 96), bool), truth)


def test_masks_belong_to_the_frames_that_the_metadata_names(layouts: Any, tmp_path: Path) -> None:
    video = layouts.small(num_frames=19)
    split = layouts.mevis(tmp_path / "train", {"v1": video})

    def name_every_second(meta: Any) -> None:
        meta["videos"]["v1"]["frames"] = [f"{i:05d}" for i in range(18, -1, -2)]

    edited(split / "meta_expressions.json", name_every_second)
    edited(split / "mask_dict.json", lambda masks: masks.update({"0": masks["0"][::2]}))
    (item,) = Given(split).masks("v1/0").objects
    assert item.frame_idx == tuple(range(0, 19, 2))
    assert item.rle == tuple(layouts.rle(video.masks["1"][i])["counts"] for i in range(0, 19, 2))


def test_masks_stand_in_the_order_of_displayed_frames_whatever_their_own(layouts: Any, tmp_path: Path) -> None:
    video = layouts.small(num_frames=12)
    split = layouts.mevis(tmp_path / "train", {"v1": video})
    for i in range(12):  # displayed as 2, 3, ... 13, named and masked as 10, 11, 12, 13, 2, ...
        (split / "JPEGImages" / "v1" / f"{i:05d}.jpg").rename(split / "JPEGImages" / "v1" / f"{i + 2}.jpg")
    edited(
        split / "meta_expressions.json",
        lambda meta: meta["videos"]["v1"].update({"frames": [f"{i + 2}" for i in range(12)]}),
    )
    masked = [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]
    edited(split / "mask_dict.json", lambda masks: masks.update({"0": [masks["0"][i] for i in masked]}))
    (item,) = Given(split).masks("v1/0").objects
    assert item.frame_idx == tuple(range(12))
    assert item.rle == tuple(layouts.rle(mask)["counts"] for mask in video.masks["1"])


def test_one_set_of_masks_has_one_id_wherever_it_stands(layouts: Any, tmp_path: Path) -> None:
    same = [("a dog", ("1",)), ("the running dog", ("1",)), ("both", ("1", "2"))]
    given = Given(layouts.mevis(tmp_path / "train", {"v1": layouts.small(expressions=same)}))
    first, second, both = (content_id(given.masks(f"v1/{i}")) for i in range(3))
    assert first == second != both


def test_each_shot_gets_its_own_frames_and_one_without_the_object_says_so(layouts: Any, tmp_path: Path) -> None:
    video = layouts.small(num_frames=24)
    cut = [frame if i < 12 else 255 - np.roll(frame, 30, axis=0) for i, frame in enumerate(video.frames)]
    cut = layouts.small(num_frames=24, frames=cut, expressions=[("a dog", ("1",)), ("a cat", ("2",))])
    given = Given(layouts.mevis(tmp_path / "train", {"v1": cut}))
    clips, masks = given.outcomes["v1/0"]
    assert [masks[clip.given_sha256].objects[0].frame_idx for clip in clips.clips] == [
        tuple(range(12)),
        tuple(range(12, 24)),
    ]
    clips, masks = given.outcomes["v1/1"]  # gone from frame 12 on
    assert ([clip.start_frame for clip in clips.clips], len(masks)) == ([0], 1)
    (entry,) = clips.rejected
    assert (entry.reason, entry.stage, bool(entry.clip_id)) == ("not_visible", "source", True)
    assert entry.evidence == "no mask of 1 in frames 12 to 23"


def test_bad_masks_cost_their_own_row_only(layouts: Any, tmp_path: Path) -> None:
    one = [("a dog", ("1",))]
    split = layouts.mevis(tmp_path / "train", {f"v{i}": layouts.small(expressions=one) for i in range(8)})

    def spoil(masks: Any) -> None:
        del masks["0"]
        masks["100"].pop()
        masks["200"][3]["size"] = [96, 64]
        masks["300"][3]["counts"] = masks["300"][3]["counts"][:-2]
        masks["400"][3]["counts"] = "no counts!"
        masks["500"][3] = ["counts"]
        masks["600"] = {"0": None}

    edited(split / "mask_dict.json", spoil)
    given = Given(split)
    assert given.evidence("v0/0") == "mask_dict.json holds no object 0"
    assert given.evidence("v1/0") == "mask_dict.json has 7 masks of object 100 for 8 frames"
    assert "mask 3 is (96, 64) and covers 6144 pixels; the video's frames are (64, 96)" in given.evidence("v2/0")
    assert "object 300, mask 3" in given.evidence("v3/0")
    assert "is no COCO run lengths" in given.evidence("v4/0")
    assert "is no COCO run lengths" in given.evidence("v5/0")
    assert given.evidence("v6/0")
    assert len(given.masks("v7/0").objects) == 1


def test_bad_images_cost_the_rows_of_their_video_only(layouts: Any, tmp_path: Path) -> None:
    one = [("a dog", ("1",))]
    root = layouts.davis(tmp_path, {f"v{i}": layouts.small(num_frames=20, expressions=one) for i in range(8)})
    pngs = root / "Annotations" / "480p"
    (pngs / "v0" / "00003.png").unlink()
    (pngs / "v1" / "00003.png").write_bytes(layouts.png(np.zeros((64, 100), np.uint8)))
    (pngs / "v2" / "00003.png").write_bytes(b"not a picture at all, though it is named as one")
    (pngs / "v3" / "00003.png").write_bytes((pngs / "v3" / "00003.png").read_bytes()[:80])
    (pngs / "v4" / "00003.png").write_bytes(layouts.png(np.zeros((64, 96), np.uint8), "rgb24"))
    (pngs / "v5").rename(tmp_path / "elsewhere")
    for file in (pngs / "v6").iterdir():
        file.write_bytes(layouts.png(np.zeros((64, 96), np.uint8)))
    given = Given(root)
    assert given.evidence("v0/Davis17_annot2/1") == "v0/00003.png is missing, as 1 of 20 in all"
    assert "v1/00003.png is no PNG image of 96 x 64 pixels" in given.evidence("v1/Davis17_annot2/1")
    assert "v2/00003.png is no PNG image" in given.evidence("v2/Davis17_annot2/1")
    assert "v3/00003.png does not decode" in given.evidence("v3/Davis17_annot2/1")
    assert "v4/00003.png is rgb24" in given.evidence("v4/Davis17_annot2/1")
    assert "cannot be read" in given.evidence("v5/Davis17_annot2/1")
    assert given.evidence("v6/Davis17_annot2/1") == "no pixel of 20 images in v6 has the value 1"
    assert len(given.masks("v7/Davis17_annot2/1").objects) == 1


def test_masks_are_not_read_outside_the_root(layouts: Any, tmp_path: Path) -> None:
    root = layouts.davis(tmp_path / "DAVIS", {name: layouts.small(num_frames=20) for name in ("v1", "v2")})
    pngs = root / "Annotations" / "480p"
    (pngs / "v1").rename(tmp_path / "v1")
    (pngs / "v1").symlink_to(tmp_path / "v1")
    (pngs / "v2" / "00003.png").unlink()
    (pngs / "v2" / "00003.png").symlink_to(tmp_path / "v1" / "00003.png")
    given = Given(root)
    assert "leads out of the videos root" in given.evidence("v1/Davis17_annot2/1")
    assert "v2/00003.png is missing" in given.evidence("v2/Davis17_annot2/1")


def test_frames_that_the_video_lacks_and_rows_without_an_object_are_bad_masks(layouts: Any, tmp_path: Path) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small(), "v2": layouts.small()})
    (split / "JPEGImages" / "v1" / "00007.jpg").unlink()
    edited(
        split / "meta_expressions.json", lambda meta: meta["videos"]["v2"]["expressions"]["0"].update({"anno_id": []})
    )
    given = Given(split)
    assert given.evidence("v1/0") == "masks are said of frame 00007, which the video lacks, as 1 in all"
    assert given.evidence("v2/0") == "the expression names no object of mask_dict.json"
    edited(split / "meta_expressions.json", lambda meta: meta["videos"]["v2"].update({"frames": ["00000"] * 8}))
    assert Given(split).evidence("v2/1") == "the expressions name a frame of the video twice"


@pytest.mark.parametrize("indent", [None, 2])
def test_places_of_a_file_are_those_that_a_parse_finds(tmp_path: Path, indent: int | None) -> None:
    tricky = {"a": [1, [2]], 'b"]\\': ["]}[{", {"x": ["\\", '"']}], "c": [], "é": [None], "d": 5, "e": {"f": [1]}}
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(tricky, indent=indent))
    data = path.read_bytes()
    found = {key: json.loads(data[start:end]) for key, (start, end) in places_of(path).items()}
    assert found == {key: value for key, value in tricky.items() if key != "d"}


def test_of_a_file_cut_short_the_whole_arrays_are_found(tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    path.write_text(json.dumps({"a": [1, 2], "b": [3, 4]})[:-4])
    assert list(places_of(path)) == ["a"]
    path.write_text("")
    assert places_of(path) == {}


@pytest.mark.parametrize("text", ["[[1], [2]]", '{"\\\\q": [1]}', '{"0": ' + "[" * 100_000 + "]" * 100_000 + "}"])
def test_a_file_that_is_no_object_of_masks_costs_its_rows_only(layouts: Any, tmp_path: Path, text: str) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small()})
    (split / "mask_dict.json").write_text(text)
    assert "mask_dict.json" in Given(split).evidence("v1/1")
