"""Towers against the hidden states that transformers itself returns."""

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    PreTrainedConfig,
    SiglipVisionConfig,
)

from model.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from model.vision_tower import TransformerTower, build_tower

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 30, "patch_size": 8}
SIGLIP = SiglipVisionConfig(intermediate_size=24, **SIZES)
CONFIGS = [
    SIGLIP,
    CLIPVisionConfig(intermediate_size=24, **SIZES),
    Dinov2Config(mlp_ratio=2, **SIZES),
    Dinov2WithRegistersConfig(mlp_ratio=2, **SIZES),
]


def kind(config: PreTrainedConfig) -> str:
    return config.model_type


@torch.no_grad()
@pytest.mark.parametrize("select_layer", [-1, -2, -4, 2, 0])
@pytest.mark.parametrize("config", CONFIGS, ids=kind)
def test_a_tower_gives_the_patches_of_the_selected_hidden_state(config: PreTrainedConfig, select_layer: int) -> None:
    torch.manual_seed(0)
    whole = AutoModel.from_config(config).eval()
    tower = build_tower(config, select_layer).eval()
    assert isinstance(tower, TransformerTower)
    tower.model.load_state_dict(whole.state_dict())
    pixels = torch.randn(2, 3, 30, 30)
    expected: Tensor = whole(pixel_values=pixels, output_hidden_states=True).hidden_states[select_layer]
    assert tower.grid_size == (3, 3)
    assert tower.hidden_size == 16
    torch.testing.assert_close(tower(pixels), expected[:, -9:].reshape(2, 3, 3, 16))


@torch.no_grad()
def test_what_comes_after_the_selected_layer_is_not_computed() -> None:
    tower = build_tower(SIGLIP, -2).eval()
    pixels = torch.randn(1, 3, 30, 30)
    before = tower(pixels)
    computed: list[str] = []
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: computed.append(name))
    torch.testing.assert_close(tower(pixels), before)
    assert any("layers.1." in name for name in computed)
    assert [name for name in computed if "layers.2." in name or "head" in name] == []


def test_every_weight_of_the_vision_model_keeps_its_name() -> None:
    names = {f"model.{name}" for name in AutoModel.from_config(SIGLIP).state_dict()}
    assert set(build_tower(SIGLIP, -2).state_dict()) == names
    assert any("head" in name for name in names)


def test_a_tower_learns_up_to_the_selected_layer() -> None:
    tower = build_tower(SIGLIP, -2)
    tower(torch.randn(1, 3, 30, 30)).square().sum().backward()
    learns = {name for name, weight in tower.named_parameters() if weight.grad is not None}
    assert any("layers.1." in name for name in learns)
    assert not any("layers.2." in name or "head" in name for name in learns)


@pytest.mark.parametrize("select_layer", [4, -5])
def test_a_layer_that_is_not_there_is_refused(select_layer: int) -> None:
    with pytest.raises(ValueError, match=rf"vision_select_layer {select_layer} .*3 layers; -4 to 3"):
        build_tower(SIGLIP, select_layer)


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(30, 31\) pixels.*\(30, 30\)"):
        build_tower(SIGLIP, -2)(torch.zeros(1, 3, 30, 31))


def test_a_convolutional_tower_is_built_from_its_configuration() -> None:
    tower = build_tower(EfficientNetLiteConfig(image_size=64), -2)
    assert isinstance(tower, EfficientNetLite)
    assert tower.grid_size == (4, 4)
