from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from agents.base import Detection
from agents.engines.flow_tracker import FlowTracker, FlowTrackerConfig, tracked_frames
from infra.video import Frames, Image
from schemas.clip import Clip
from schemas.mask import decode
from schemas.record import BoxXyxyPx, Record
from schemas.track import ObjectMasks

HEIGHT_PX, WIDTH_PX, NUM_FRAMES = 120, 200, 48
RED, BLUE = (220, 30, 30), (30, 30, 220)
Truth = list[npt.NDArray[np.bool_]]


class NoConfig(Record):
    pass


class ColourDetector:
    """Every saturated red or blue patch is a "car"; silent on frames in `blind`."""

    name = "colour"
    classes = ("car", "dog")
    config = NoConfig()

    def __init__(self) -> None:
        self.calls = 0
        self.blind_calls: frozenset[int] = frozenset()

    def weights(self) -> tuple[str, ...]:
        return ("colour@0",)

    def setup(self) -> None:
        pass

    def detect(self, image: Image) -> list[Detection]:
        self.calls += 1
        if self.calls - 1 in self.blind_calls:
            return []
        found = []
        for colour in (RED, BLUE):
            rows, columns = np.nonzero(_like(image, colour))
            if len(rows) >= 60:
                box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                found.append(Detection(detector_class="car", score=0.9, box_xyxy_px=tuple(float(v) for v in box)))
        return found


class ColourMasks:
    """The pixels in a box that look like the box's centre."""

    name = "colour"
    config = NoConfig()

    def __init__(self) -> None:
        self.images = 0

    def weights(self) -> tuple[str, ...]:
        return ("colour@1",)

    def setup(self) -> None:
        pass

    def masks(self, image: Image, boxes_xyxy_px: Sequence[BoxXyxyPx]) -> tuple[npt.NDArray[np.bool_], list[float]]:
        self.images += 1
        result = np.zeros((len(boxes_xyxy_px), *image.shape[:2]), dtype=bool)
        for index, (x1, y1, x2, y2) in enumerate(boxes_xyxy_px):
            inside = np.zeros(image.shape[:2], dtype=bool)
            inside[int(y1) : int(y2), int(x1) : int(x2)] = True
            result[index] = inside & _like(image, image[int((y1 + y2) / 2), int((x1 + x2) / 2)])
        return result, [0.95] * len(boxes_xyxy_px)


class ArrayFrames:
    def __init__(self, video: Frames) -> None:
        self.video = video

    def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        scale = min(1.0, long_side_px / max(self.video.shape[1:3]))
        size = (round(self.video.shape[2] * scale), round(self.video.shape[1] * scale))
        return np.stack([cv2.resize(self.video[i], size, interpolation=cv2.INTER_AREA) for i in frame_idx])

    def times_s(self, clip: Clip, frame_idx: Sequence[int]) -> tuple[float, ...]:
        return tuple(index / clip.fps for index in frame_idx)


def _like(image: Image, colour: Sequence[int]) -> npt.NDArray[np.bool_]:
    return np.asarray((np.abs(image.astype(int) - np.asarray(colour, dtype=int)) < 60).all(axis=-1))


def paint(*movers: tuple[tuple[int, int, int], dict[int, tuple[int, int]]]) -> tuple[Frames, list[Truth]]:
    """Rectangles of 36 x 24 px by top left corner over textured ground, later ones in front; a mover lacks frames."""
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(90, 160, (24, 40, 3), dtype=np.uint8), (WIDTH_PX, HEIGHT_PX))
    grain = rng.integers(-20, 20, (24, 36, 1))
    frames, truths = [], [[] for _ in movers]
    for number in range(NUM_FRAMES):
        image = ground.copy()
        for index, (colour, path) in enumerate(movers):
            mask = np.zeros((HEIGHT_PX, WIDTH_PX), dtype=bool)
            if number in path:
                x, y = path[number]
                left, right = max(0, x), min(WIDTH_PX, x + 36)
                mask[y : y + 24, left:right] = True
                patch = np.clip(np.array(colour) + grain, 0, 255).astype(np.uint8)
                image[y : y + 24, left:right] = patch[:, left - x : right - x]
            for earlier in truths[:index]:
                earlier[-1] &= ~mask
            truths[index].append(mask)
        frames.append(image)
    return np.stack(frames), truths


def clip_of(num_frames: int = NUM_FRAMES, fps: float = 16.0, start: int = 0) -> Clip:
    return Clip(
        clip_id="c",
        source_id="s",
        video="v.mp4",
        video_sha256="0" * 64,
        license="",
        start_s=start / fps,
        end_s=(start + num_frames) / fps,
        start_frame=start,
        end_frame=start + num_frames,
        fps=fps,
        height_px=HEIGHT_PX,
        width_px=WIDTH_PX,
        caption="a car",
    )


def iou_with(masks: ObjectMasks, truth: Truth) -> float:
    values = []
    for index, counts in zip(masks.frame_idx, masks.rle, strict=True):
        got = decode(counts, HEIGHT_PX, WIDTH_PX) if counts else np.zeros((HEIGHT_PX, WIDTH_PX), dtype=bool)
        either = (got | truth[index]).sum()
        values.append((got & truth[index]).sum() / either if either else 1.0)
    return float(np.mean(values))


def run(video: Frames, config: FlowTrackerConfig | None = None) -> tuple[list[ObjectMasks], ColourMasks]:
    masks = ColourMasks()
    tracker = FlowTracker(ColourDetector(), masks, ArrayFrames(video), config)
    tracker.setup()
    (found,) = tracker.track_many([(clip_of(), ["car"])])
    return found, masks


def steady(x: int, y: int, dx: int) -> dict[int, tuple[int, int]]:
    return {number: (x + dx * number, y) for number in range(NUM_FRAMES)}


def test_two_movers_are_two_objects_on_few_segmented_frames() -> None:
    video, (red, blue) = paint((RED, steady(10, 20, 2)), (BLUE, steady(140, 80, -2)))
    found, masks = run(video)
    assert len(found) == 2
    assert max(iou_with(item, red) for item in found) > 0.85
    assert max(iou_with(item, blue) for item in found) > 0.85
    assert masks.images <= FlowTrackerConfig().max_key_frames


def test_the_same_video_gives_the_same_tracks() -> None:
    video, _ = paint((RED, steady(10, 20, 2)), (BLUE, steady(140, 80, -2)))
    assert run(video)[0] == run(video)[0]


def test_an_object_has_no_mask_before_it_enters_and_after_it_leaves() -> None:
    path = {number: (6 * (number - 8) - 36, 50) for number in range(8, 47)}
    video, (truth,) = paint((RED, path))
    (found,), _ = run(video)
    shown = {index for index, counts in zip(found.frame_idx, found.rle, strict=True) if counts}
    true = {index for index in found.frame_idx if truth[index].any()}
    assert min(shown) >= min(true) - 2
    assert max(shown) <= max(true) + 2
    assert len(shown & true) > 0.8 * len(true)
    assert iou_with(found, truth) > 0.75


def test_objects_that_cross_keep_their_identity() -> None:
    video, (red, blue) = paint((RED, steady(5, 46, 3)), (BLUE, steady(150, 52, -3)))
    found, _ = run(video)
    assert len(found) == 2
    assert max(iou_with(item, red) for item in found) > 0.7
    assert max(iou_with(item, blue) for item in found) > 0.8


def test_an_object_the_detector_misses_for_a_while_is_one_object() -> None:
    video, (truth,) = paint((RED, steady(10, 40, 2)))
    detector = ColourDetector()
    detector.blind_calls = frozenset({6, 7, 8})
    tracker = FlowTracker(detector, ColourMasks(), ArrayFrames(video))
    tracker.setup()
    ((found,),) = tracker.track_many([(clip_of(), ["car"])])
    assert None not in found.rle
    assert iou_with(found, truth) > 0.85


def test_a_small_object_faster_than_flow_is_followed_by_its_detections() -> None:
    video, (truth,) = paint((RED, {number: (14 * (number - 8), 50) for number in range(8, 20)}))
    config = FlowTrackerConfig(min_frames=48, detect_every=1)
    found, _ = run(video, config)
    assert len(found) == 1
    assert iou_with(found[0], truth) > 0.7


def test_masks_have_the_videos_size_whatever_size_is_tracked() -> None:
    video, (truth,) = paint((RED, steady(10, 40, 2)))
    (found,), _ = run(video, FlowTrackerConfig(long_side_px=100))
    assert (found.height_px, found.width_px) == (HEIGHT_PX, WIDTH_PX)
    assert iou_with(found, truth) > 0.75


def test_each_clip_gets_its_own_objects_in_the_order_asked() -> None:
    video, (truth,) = paint((RED, steady(10, 40, 2)))
    tracker = FlowTracker(ColourDetector(), ColourMasks(), ArrayFrames(video))
    tracker.setup()
    late = clip_of(NUM_FRAMES // 2, start=NUM_FRAMES // 2)
    none, (second,), (whole,) = tracker.track_many([(clip_of(), ["dog"]), (late, ["car"]), (clip_of(), ["car"])])
    assert none == []
    assert (second.frame_idx[0], whole.frame_idx[0]) == (NUM_FRAMES // 2, 0)
    assert min(iou_with(second, truth), iou_with(whole, truth)) > 0.75


def test_nothing_is_tracked_without_classes_or_detections() -> None:
    video, _ = paint((RED, steady(10, 40, 2)))
    tracker = FlowTracker(ColourDetector(), ColourMasks(), ArrayFrames(video))
    tracker.setup()
    assert tracker.track_many([(clip_of(), []), (clip_of(), ["dog"])]) == [[], []]


def test_an_unknown_class_is_refused() -> None:
    tracker = FlowTracker(ColourDetector(), ColourMasks(), ArrayFrames(np.zeros((1, 8, 8, 3), np.uint8)))
    with pytest.raises(ValueError, match="unicorn"):
        tracker.track_many([(clip_of(), ["unicorn"])])


@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"), [(1, 25.0, 1), (20, 25.0, 20), (75, 25.0, 32), (150, 25.0, 48), (900, 25.0, 64)]
)
def test_frames_are_even_bounded_and_within_the_clip(num_frames: int, fps: float, expected: int) -> None:
    picked = tracked_frames(clip_of(num_frames, fps, start=100), FlowTrackerConfig())
    assert len(picked) == expected
    assert picked[0] == 100
    assert picked[-1] == 100 + num_frames - 1 if num_frames > 1 else 100
    assert np.ptp(np.diff(picked)) <= 1 if num_frames > 1 else True


def test_settings_tell_every_part() -> None:
    tracker = FlowTracker(ColourDetector(), ColourMasks(), ArrayFrames(np.zeros((1, 8, 8, 3), np.uint8)))
    assert tracker.settings().keys() == {"tracker", "detector", "mask_model"}
    assert tracker.weights() == ("colour@0", "colour@1")
