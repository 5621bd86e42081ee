"""The configuration holds any tower and language model, survives saving, and refuses what cannot be built."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from model.configuration import VideoReferConfig
from model.efficientnet_lite import EfficientNetLiteConfig

Make = Callable[..., VideoReferConfig]


@pytest.mark.parametrize(
    "vision",
    [
        SiglipVisionConfig(hidden_size=24, num_attention_heads=3),
        SiglipVisionConfig(),
        CLIPVisionConfig(image_size=336, patch_size=14),
        EfficientNetLiteConfig(image_size=64),
    ],
)
@pytest.mark.parametrize(
    "text", [LlamaConfig(hidden_size=64), Qwen2Config(tie_word_embeddings=True, max_window_layers=3), Qwen2Config()]
)
def test_any_tower_and_language_model_survive_saving(
    tmp_path: Path, vision: PreTrainedConfig, text: PreTrainedConfig
) -> None:
    config = VideoReferConfig(vision_config=vision, text_config=text, connector_stride=(1, 2, 3), video_token_id=7,
                              image_token_id=8, region_token_id=9)  # fmt: skip
    config.save_pretrained(tmp_path)
    loaded = VideoReferConfig.from_pretrained(tmp_path)
    assert type(loaded.vision_config) is type(vision)
    assert type(loaded.text_config) is type(text)
    assert loaded.vision_config.to_dict() == vision.to_dict()
    assert loaded.text_config.to_dict() == text.to_dict()
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.connector_stride == (1, 2, 3)


def test_the_defaults_are_those_of_videorefer_7b(tmp_path: Path) -> None:
    config = VideoReferConfig()
    assert (config.vision_config.hidden_size, config.vision_config.image_size) == (1152, 384)
    assert (config.text_config.model_type, config.text_config.hidden_size) == ("qwen2", 3584)
    assert (config.num_frames, config.num_object_tokens, config.connector_depth) == (16, 4, 4)
    config.save_pretrained(tmp_path)
    assert VideoReferConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


def test_what_is_saved_is_plain_json(tiny_config: Make, tmp_path: Path) -> None:
    tiny_config(vision="clip", text="llama", num_frames=9).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "videorefer"
    assert saved["vision_config"]["model_type"] == "clip_vision_model"
    assert saved["text_config"]["model_type"] == "llama"
    assert saved["num_frames"] == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_frames": 0}, "got num_frames 0; allowed is 1 or more"),
        ({"num_object_tokens": 0}, "got num_object_tokens 0; allowed is 1 or more"),
        ({"connector_depth": -1}, "got connector_depth -1; allowed is 0 or more"),
        ({"connector_stride": [2, 2]}, r"connector_stride \(2, 2\)"),
        ({"connector_stride": [2, 0, 2]}, r"connector_stride \(2, 0, 2\)"),
        ({"paper_exact": True, "object_position": True}, "set object_position to false"),
        ({"video_token_id": 3, "image_token_id": 3, "region_token_id": 4}, "three different ids"),
        ({"video_token_id": 3, "image_token_id": 4, "region_token_id": -1}, "three different ids"),
        ({"num_frames": "many"}, "num_frames"),
    ],
)
def test_what_cannot_be_built_is_refused(tiny_config: Make, values: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**values)


def test_a_value_broken_later_is_refused_on_saving(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config()
    config.num_object_tokens = 0
    with pytest.raises(StrictDataclassError, match="num_object_tokens"):
        config.save_pretrained(tmp_path)


def test_an_unknown_tower_is_refused() -> None:
    with pytest.raises(ValueError, match="no_such_tower"):
        VideoReferConfig(vision_config={"model_type": "no_such_tower"})


def test_the_efficientnet_is_known_to_the_auto_class(tmp_path: Path) -> None:
    EfficientNetLiteConfig(image_size=96).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).image_size == 96
