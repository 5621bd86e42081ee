import numpy as np
import pytest

from agents.engines.painted_truth import PaintedTruth
from infra.truth import ClipTruth, ObjectTruth, truth_path, write_truth
from schemas.clip import Clip
from schemas.mask import decode, encode
from schemas.track import ObjectMasks

HEIGHT, WIDTH, FRAMES = 20, 30, 6


def rectangle(left, size):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[2 : 2 + size, left : left + size] = True
    return mask


def truth_of(name, cls, size, hidden=()):
    masks = [None if frame in hidden else encode(rectangle(frame, size)) for frame in range(FRAMES)]
    return ObjectTruth(
        object_id=name,
        noun=cls,
        colour=None,
        direction="right",
        masks=ObjectMasks(
            detector_class=cls,
            frame_idx=tuple(range(FRAMES)),
            frame_time_s=tuple(i / 10 for i in range(FRAMES)),
            rle=tuple(masks),
            height_px=HEIGHT,
            width_px=WIDTH,
            score=1.0,
        ),
    )


def clip(start, end):
    return Clip(
        clip_id="c",
        source_id="s",
        video="sub/a.mp4",
        video_sha256="0" * 64,
        license="",
        start_s=start / 10,
        end_s=end / 10,
        start_frame=start,
        end_frame=end,
        fps=10,
        height_px=HEIGHT,
        width_px=WIDTH,
        caption="a cat",
    )


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sub").mkdir()
    video = tmp_path / "sub" / "a.mp4"
    objects = (truth_of("0", "cat", 4), truth_of("1", "cat", 8, hidden=(0, 1, 2)), truth_of("2", "dog", 5))
    write_truth(video, ClipTruth(video="a.mp4", caption="two cats and a dog", objects=objects))
    return tmp_path


def test_hands_the_exact_masks_of_the_wanted_class_within_the_span_largest_first(root):
    (found,) = PaintedTruth(root).track_many([(clip(2, 5), ["cat"])])
    assert [masks.frame_idx for masks in found] == [(2, 3, 4), (2, 3, 4)]
    assert [int(decode(masks.rle[2], HEIGHT, WIDTH).sum()) for masks in found] == [64, 16]
    assert found[0].rle[0] is None
    assert np.array_equal(decode(found[1].rle[1], HEIGHT, WIDTH), rectangle(3, 4))


def test_leaves_out_what_is_never_seen_in_the_span(root):
    (found,) = PaintedTruth(root).track_many([(clip(0, 3), ["cat", "dog"])])
    assert [masks.detector_class for masks in found] == ["dog", "cat"]


def test_each_clip_gets_its_own_objects_in_the_order_asked(root):
    found = PaintedTruth(root).track_many([(clip(0, 3), ["dog"]), (clip(2, 5), ["cat"]), (clip(0, 3), ["cat"])])
    assert [[masks.detector_class for masks in own] for own in found] == [["dog"], ["cat", "cat"], ["cat"]]
    assert [own[0].frame_idx for own in found] == [(0, 1, 2), (2, 3, 4), (0, 1, 2)]


def test_a_video_without_truth_of_its_own_is_refused(root):
    truth_path(root / "sub" / "a.mp4").rename(truth_path(root / "sub" / "b.mp4"))
    with pytest.raises(ValueError, match=r"a\.truth\.json is missing"):
        PaintedTruth(root).track_many([(clip(0, 3), ["cat"])])
    truth_path(root / "sub" / "b.mp4").rename(truth_path(root / "sub" / "a.mp4"))
    text = truth_path(root / "sub" / "a.mp4").read_text().replace("a.mp4", "z.mp4")
    truth_path(root / "sub" / "a.mp4").write_text(text)
    with pytest.raises(ValueError, match=r"truth of z\.mp4, not of a\.mp4"):
        PaintedTruth(root).track_many([(clip(0, 3), ["cat"])])
