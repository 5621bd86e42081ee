import cv2
import numpy as np
import pytest

from agents.engines.efficientnet import EfficientNetLite3


@pytest.fixture(scope="module")
def classifier():
    engine = EfficientNetLite3()
    engine.setup()
    return engine


def stop_sign(side_px):
    """A red octagon with a white rim and STOP on a pole before a blue sky: an ImageNet street sign."""
    image = np.full((side_px, side_px, 3), (120, 170, 230), np.uint8)
    centre, radius = side_px / 2, side_px * 0.36
    cv2.rectangle(image, (int(centre) - 6, int(centre)), (int(centre) + 6, side_px), (110, 110, 110), -1)
    for scale, colour in ((1.0, (240, 240, 240)), (0.93, (190, 20, 30))):
        angles = np.deg2rad(22.5 + 45 * np.arange(8))
        corners = np.stack(
            [centre + scale * radius * np.cos(angles), centre * 0.9 + scale * radius * np.sin(angles)], 1
        )
        cv2.fillPoly(image, [corners.astype(np.int32)], colour)
    size = side_px / 190
    cv2.putText(
        image,
        "STOP",
        (int(centre - 41 * size), int(centre)),
        cv2.FONT_HERSHEY_DUPLEX,
        size,
        (245, 245, 245),
        int(3 * size),
    )
    return image


@pytest.mark.weights
@pytest.mark.parametrize("shape", [(280, 280), (37, 411), (600, 20)])
def test_probabilities_sum_to_one_for_any_size(classifier, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    probabilities = classifier.probabilities(image)
    assert probabilities.shape == (1000,)
    assert probabilities.dtype == np.float32
    assert probabilities.min() >= 0
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.weights
def test_labels_are_in_imagenet_order(classifier):
    assert len(classifier.labels) == 1000
    assert classifier.labels[0].startswith("tench")
    assert classifier.labels[398] == "abacus"


@pytest.mark.weights
def test_a_painted_stop_sign_is_a_street_sign(classifier):
    assert classifier.labels[classifier.probabilities(stop_sign(300)).argmax()] == "street sign"


@pytest.mark.weights
def test_channels_are_read_as_rgb(classifier):
    y, x = np.mgrid[:280, :280] / 280 - 0.5
    shade = np.clip(1.1 - 1.6 * np.hypot(x + 0.1, y + 0.1), 0.2, 1.2)[..., None]
    ball = np.where((np.hypot(x, y) < 0.36)[..., None], np.array((140, 200, 60)) * shade, 235).clip(0, 255)
    green_apple = classifier.labels.index("Granny Smith")
    as_rgb, as_bgr = (classifier.probabilities(image.astype(np.uint8)) for image in (ball, ball[:, :, ::-1]))
    assert as_rgb[green_apple] > 2 * as_bgr[green_apple]


@pytest.mark.weights
def test_a_view_of_an_image_is_accepted(classifier):
    image = stop_sign(300)
    np.testing.assert_allclose(
        classifier.probabilities(image[10:290, 10:290]), classifier.probabilities(image[10:290, 10:290].copy())
    )


@pytest.mark.weights
def test_the_label_names_model_and_list():
    assert [label.split("@")[0] for label in EfficientNetLite3().weights()] == [
        "efficientnet-lite3",
        "efficientnet-labels",
    ]
