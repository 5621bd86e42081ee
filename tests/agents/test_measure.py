"""Measured facts against synthetic masks of known motion and pixels of known colour."""

import numpy as np
import pytest

from agents.measure import apart, colour_names, colour_shares, contacts, motion_facts, places_of, size_of
from schemas.mask import encode
from schemas.track import ObjectMasks
from schemas.words import COLOURS

HEIGHT, WIDTH = 240, 320
DIAGONAL = 400.0


def disc(x, y, radius):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def track(shapes, fps=10.0):
    """One `ObjectMasks` from masks (None out of sight), a frame every 1/fps s."""
    rles = tuple(None if shape is None or not shape.any() else encode(shape) for shape in shapes)
    return ObjectMasks(
        detector_class="car",
        frame_idx=tuple(range(len(rles))),
        frame_time_s=tuple(i / fps for i in range(len(rles))),
        rle=rles,
        height_px=HEIGHT,
        width_px=WIDTH,
        score=0.9,
    )


def path(start, end, radius=(20, 20), num_frames=31):
    steps = np.linspace(0, 1, num_frames)
    return track(
        [
            disc(*(np.array(start) + t * (np.array(end) - np.array(start))), radius[0] + t * (radius[1] - radius[0]))
            for t in steps
        ]
    )


@pytest.mark.parametrize(
    ("colour", "rgb"),
    [
        ("black", (25, 25, 28)),
        ("white", (240, 238, 230)),
        ("gray", (128, 130, 133)),
        ("red", (255, 0, 0)),
        ("red", (128, 10, 10)),
        ("orange", (255, 140, 0)),
        ("yellow", (255, 215, 0)),
        ("green", (34, 139, 34)),
        ("green", (85, 107, 47)),
        ("blue", (0, 0, 255)),
        ("blue", (135, 206, 235)),
        ("purple", (128, 0, 128)),
        ("pink", (255, 192, 203)),
        ("pink", (255, 20, 147)),
        ("brown", (101, 67, 33)),
        ("brown", (210, 180, 140)),
    ],
)
def test_a_colour_is_called_by_its_basic_name(colour, rgb):
    assert COLOURS[colour_names(np.array([rgb], np.uint8))[0]] == colour


def test_every_colour_gets_a_name():
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    names = colour_names(cube)
    assert names.min() >= 0
    assert set(names) == set(range(len(COLOURS)))


def test_colour_shares_drop_small_ones_and_sort_by_share():
    pixels = np.repeat(np.array([[255, 0, 0], [0, 0, 255], [255, 255, 255]], np.uint8), [30, 60, 10], axis=0)
    assert [(share.colour, share.share) for share in colour_shares(pixels)] == [("blue", 0.6), ("red", 0.3)]
    assert colour_shares(pixels[:0]) == ()


@pytest.mark.parametrize(
    ("box", "places"),
    [
        ((0, 100, 40, 140), ("left",)),
        ((280, 0, 320, 30), ("right", "top")),
        ((140, 100, 180, 140), ("middle",)),
        ((140, 200, 180, 240), ("bottom",)),
        ((0, 200, 40, 240), ("left", "bottom")),
    ],
)
def test_places_are_the_outer_thirds_of_the_centre(box, places):
    assert places_of(box, HEIGHT, WIDTH) == places


def test_sizes_split_at_3_and_15_percent():
    assert [size_of(share) for share in (0.029, 0.03, 0.149, 0.15)] == ["small", "medium", "medium", "large"]


@pytest.mark.parametrize(
    ("start", "end", "direction", "start_places", "end_places"),
    [
        ((50, 120), (270, 120), "right", ("left",), ("right",)),
        ((270, 60), (50, 80), "left", ("right", "top"), ("left",)),
        ((160, 40), (160, 200), "down", ("top",), ("bottom",)),
        ((160, 200), (150, 40), "up", ("bottom",), ("top",)),
    ],
)
def test_a_translation_is_measured_in_diagonals(start, end, direction, start_places, end_places):
    facts = motion_facts(path(start, end), 0.0, 10.0)
    assert facts is not None
    assert (facts.direction, facts.start_places, facts.end_places) == (direction, start_places, end_places)
    speed = np.hypot(end[0] - start[0], end[1] - start[1]) / DIAGONAL / 3.0
    assert facts.speed_diag_per_s == pytest.approx(speed, rel=0.02)
    # three frames an end are taken for medians, one frame short of either end
    assert facts.displacement_x_diag == pytest.approx((end[0] - start[0]) / DIAGONAL * 28 / 30, abs=0.004)
    assert facts.growth == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("num_frames", "speed"), [(11, "fast"), (31, "moderate"), (101, "slow")])
def test_speed_classes_follow_the_time_taken(num_frames, speed):
    facts = motion_facts(path((50, 120), (270, 120), num_frames=num_frames), 0.0, 20.0)
    assert facts is not None
    assert facts.speed == speed


def test_jitter_is_no_motion():
    rng = np.random.default_rng(7)
    facts = motion_facts(track([disc(*(160 + rng.normal(0, 3, 2) * (1, 0.7)), 30) for _ in range(30)]), 0.0, 5.0)
    assert facts is not None
    assert (facts.direction, facts.speed, facts.moves) == ("none", "still", False)


def test_growing_masks_come_toward_and_shrinking_ones_go_away():
    toward = motion_facts(path((160, 120), (170, 125), radius=(20, 60)), 0.0, 5.0)
    away = motion_facts(path((170, 125), (160, 120), radius=(60, 20)), 0.0, 5.0)
    assert toward is not None
    assert away is not None
    assert (toward.direction, away.direction) == ("toward", "away")
    assert toward.growth > 2 > 0.5 > away.growth


def test_an_entering_object_moves_by_its_free_edge_and_does_not_come_toward():
    facts = motion_facts(path((-30, 120), (100, 120), radius=(40, 40)), 0.0, 5.0)
    assert facts is not None
    assert facts.direction == "right"
    assert facts.displacement_x_diag == pytest.approx(130 / DIAGONAL * 28 / 30, abs=0.01)


def test_a_leaving_object_keeps_its_direction():
    facts = motion_facts(path((220, 120), (350, 120), radius=(40, 40)), 0.0, 5.0)
    assert facts is not None
    assert facts.direction == "right"
    assert facts.displacement_x_diag == pytest.approx(130 / DIAGONAL * 28 / 30, abs=0.01)


def test_one_bad_mask_does_not_change_the_direction():
    shapes = [disc(50 + 7 * i, 120, 20) for i in range(31)]
    shapes[0], shapes[-1] = disc(300, 30, 10), disc(20, 200, 10)
    facts = motion_facts(track(shapes), 0.0, 5.0)
    assert facts is not None
    assert facts.direction == "right"


def test_only_visible_frames_of_the_half_open_span_count():
    masks = track([disc(50, 120, 20), None, disc(150, 120, 20), disc(250, 120, 20)])
    assert motion_facts(masks, 0.0, 0.2) is None
    facts = motion_facts(masks, 0.0, 0.3)
    assert facts is not None
    assert facts.displacement_x_diag == pytest.approx(100 / DIAGONAL)
    assert facts.speed_diag_per_s == pytest.approx(100 / DIAGONAL / 0.2)


def test_contact_lasts_while_masks_touch():
    moving = track([disc(20 + 10 * i, 120, 15) for i in range(28)])
    standing = track([disc(160, 120, 20)] * 28)
    gap = max(1, round(0.005 * DIAGONAL))
    touching = [i / 10 for i in range(28) if abs(20 + 10 * i - 160) <= 35 + gap]
    assert contacts(moving, standing) == [(touching[0], touching[-1])]
    assert contacts(standing, moving) == [(touching[0], touching[-1])]


def test_contact_needs_common_visible_frames():
    shapes = [disc(160, 120, 20)] * 6
    assert contacts(track(shapes), track([None, None, None, None, None, shapes[0]])) == []
    assert contacts(track(shapes), track([disc(60, 120, 20)] * 6)) == []


def test_what_touches_in_a_single_frame_has_no_contact_but_is_not_apart():
    standing = track([disc(160, 120, 20)] * 6)
    once = track([disc(60, 120, 20)] * 5 + [disc(160, 120, 20)])
    never = track([disc(60, 120, 20)] * 6)
    assert contacts(standing, once) == []
    assert not apart(standing, once)
    assert not apart(once, standing)
    assert apart(standing, never)
    assert apart(standing, track([None] * 5 + [disc(60, 120, 20)]))


def test_contact_of_other_frame_sizes_is_refused():
    small = ObjectMasks(
        detector_class="dog",
        frame_idx=(0,),
        frame_time_s=(0.0,),
        rle=(encode(np.ones((4, 4), bool)),),
        height_px=4,
        width_px=4,
        score=1.0,
    )
    with pytest.raises(ValueError, match="240 x 320 and 4 x 4"):
        contacts(track([disc(160, 120, 20)]), small)
