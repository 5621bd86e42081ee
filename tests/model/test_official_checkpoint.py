"""The official checkpoint: its names and shapes in full on the meta device, small random tensors under its names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import SiglipVisionConfig

from model.official_checkpoint import CheckpointError, config_from_official, load_official, official_shapes

REAL = {
    "model_type": "videorefer_qwen2",
    "mm_projector_type": "stc_connector_v35",
    "mm_region_encoder_type": "pooling",
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_hidden_size": 1152,
    "mm_vision_select_layer": -2,
    "num_frames": 16,
    "vocab_size": 151647,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}
SMALL_SIZES = {
    "mm_hidden_size": 16,
    "vocab_size": 40,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SMALL = REAL | SMALL_SIZES
TOWER = SiglipVisionConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
)
STAGES = [(stage, block) for stage in ("s1", "s2") for block in range(1, 5)]


def linear(name: str, out: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def connector_shapes(vision: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Projector, as the table of the published checkpoint has it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for stage, number in STAGES:
        block = f"model.mm_projector.{stage}.b{number}"
        width = vision if (stage, number) == ("s1", 1) else hidden
        shapes |= {f"{block}.conv1.conv.weight": (hidden, width, 1, 1)} | norm(f"{block}.conv1.bn", hidden)
        shapes |= {f"{block}.conv2.conv.weight": (hidden, 1, 3, 3)} | norm(f"{block}.conv2.bn", hidden)
        shapes |= {f"{block}.conv3.conv.weight": (hidden, hidden, 1, 1)} | norm(f"{block}.conv3.bn", hidden)
        shapes |= {f"{block}.se.fc1.weight": (width // 4, hidden, 1, 1), f"{block}.se.fc1.bias": (width // 4,)}
        shapes |= {f"{block}.se.fc2.weight": (hidden, width // 4, 1, 1), f"{block}.se.fc2.bias": (hidden,)}
        if width != hidden:
            shapes |= {f"{block}.downsample.conv.weight": (hidden, width, 1, 1)} | norm(
                f"{block}.downsample.bn", hidden
            )
    shapes |= {"model.mm_projector.sampler.0.weight": (hidden, hidden, 2, 2, 2)}
    shapes |= {"model.mm_projector.sampler.0.bias": (hidden,)}
    return (
        shapes
        | linear("model.mm_projector.readout.0", hidden, hidden)
        | linear("model.mm_projector.readout.2", hidden, hidden)
    )


def tower_shapes(tower: SiglipVisionConfig) -> dict[str, tuple[int, ...]]:
    width, wide = tower.hidden_size, tower.intermediate_size
    base = "model.vision_tower.vision_tower.vision_model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{base}.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        f"{base}.embeddings.patch_embedding.bias": (width,),
        f"{base}.embeddings.position_embedding.weight": ((tower.image_size // 14) ** 2, width),
        f"{base}.head.probe": (1, 1, width),
        f"{base}.head.attention.in_proj_weight": (3 * width, width),
        f"{base}.head.attention.in_proj_bias": (3 * width,),
    }
    shapes |= norm(f"{base}.post_layernorm", width) | norm(f"{base}.head.layernorm", width)
    shapes |= linear(f"{base}.head.attention.out_proj", width, width)
    for part in (f"{base}.head", *(f"{base}.encoder.layers.{layer}" for layer in range(tower.num_hidden_layers))):
        shapes |= linear(f"{part}.mlp.fc1", wide, width) | linear(f"{part}.mlp.fc2", width, wide)
    for layer in range(tower.num_hidden_layers):
        part = f"{base}.encoder.layers.{layer}"
        shapes |= norm(f"{part}.layer_norm1", width) | norm(f"{part}.layer_norm2", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{part}.self_attn.{name}", width, width)
    return shapes


def language_shapes(official: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, wide = official["hidden_size"], official["intermediate_size"]
    shared = hidden // official["num_attention_heads"] * official["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("model.embed_tokens.weight", "lm_head.weight"), (official["vocab_size"], hidden)
    )
    shapes |= {"model.norm.weight": (hidden,)}
    for layer in range(official["num_hidden_layers"]):
        part = f"model.layers.{layer}"
        shapes |= {f"{part}.input_layernorm.weight": (hidden,), f"{part}.post_attention_layernorm.weight": (hidden,)}
        shapes |= linear(f"{part}.self_attn.q_proj", hidden, hidden)
        shapes |= linear(f"{part}.self_attn.k_proj", shared, hidden)
        shapes |= linear(f"{part}.self_attn.v_proj", shared, hidden)
        shapes |= {f"{part}.self_attn.o_proj.weight": (hidden, hidden), f"{part}.mlp.down_proj.weight": (hidden, wide)}
        shapes |= dict.fromkeys((f"{part}.mlp.gate_proj.weight", f"{part}.mlp.up_proj.weight"), (wide, hidden))
    return shapes


def all_shapes(official: dict[str, Any], tower: SiglipVisionConfig) -> dict[str, tuple[int, ...]]:
    vision, hidden = tower.hidden_size, official["hidden_size"]
    return (
        language_shapes(official)
        | tower_shapes(tower)
        | connector_shapes(vision, hidden)
        | linear("model.region_encoder.feat_linear.0", hidden, vision)
        | linear("model.region_encoder.feat_linear.2", hidden, hidden)
    )


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) * 0.3 for name, shape in all_shapes(SMALL, TOWER).items()}


def write(folder: Path, state: dict[str, Tensor], num_files: int) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    names = sorted(state)
    if num_files == 1:
        save_file(state, folder / "model.safetensors")
        return folder
    weight_map = {}
    for number in range(num_files):
        file = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        part = names[number::num_files]
        save_file({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_the_real_sizes_give_the_names_and_shapes_of_the_published_checkpoint() -> None:
    config = config_from_official(REAL)
    shapes = {name: tuple(shape) for name, shape in official_shapes(config).items()}
    assert shapes == all_shapes(REAL, config.vision_config)
    assert shapes["model.mm_projector.s1.b1.se.fc1.weight"] == (288, 3584, 1, 1)
    assert shapes["model.mm_projector.s2.b1.se.fc1.weight"] == (896, 3584, 1, 1)
    assert shapes["model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight"] == (729, 1152)
    assert round(sum(torch.Size(shape).numel() for shape in shapes.values()) / 1e9, 2) == 8.43


def test_the_real_configuration_is_that_of_the_paper() -> None:
    config = config_from_official(REAL)
    assert (config.num_frames, config.vision_select_layer, config.num_object_tokens) == (16, -2, 4)
    assert (config.paper_exact, config.object_position) == (True, False)
    assert (config.region_token_id, config.video_token_id, config.image_token_id) == (151646, 151647, 151648)
    assert config.text_config.rope_parameters["rope_theta"] == 1000000.0


@pytest.mark.parametrize("num_files", [1, 3])
def test_every_weight_of_a_checkpoint_comes_to_its_place(
    tmp_path: Path, state: dict[str, Tensor], num_files: int
) -> None:
    model = load_official(write(tmp_path / "official", state, num_files), vision_config=TOWER, dtype=torch.float32)
    ours = model.state_dict()
    assert len(ours) == len(state)
    pairs = {
        "object_encoder.mlp.2.bias": "model.region_encoder.feat_linear.2.bias",
        "connector.before.0.conv1.weight": "model.mm_projector.s1.b1.conv1.conv.weight",
        "connector.before.0.shortcut.0.weight": "model.mm_projector.s1.b1.downsample.conv.weight",
        "connector.before.0.shortcut.1.weight": "model.mm_projector.s1.b1.downsample.bn.weight",
        "connector.before.2.norm1.weight": "model.mm_projector.s1.b3.conv1.bn.weight",
        "connector.before.3.squeeze_excite.fc2.bias": "model.mm_projector.s1.b4.se.fc2.bias",
        "connector.after.0.squeeze_excite.fc1.weight": "model.mm_projector.s2.b1.se.fc1.weight",
        "connector.after.1.conv2.weight": "model.mm_projector.s2.b2.conv2.conv.weight",
        "connector.after.1.conv3.weight": "model.mm_projector.s2.b2.conv3.conv.weight",
        "connector.after.3.norm2.bias": "model.mm_projector.s2.b4.conv2.bn.bias",
        "connector.after.3.norm3.bias": "model.mm_projector.s2.b4.conv3.bn.bias",
        "connector.readout.0.weight": "model.mm_projector.readout.0.weight",
        "connector.sampler.weight": "model.mm_projector.sampler.0.weight",
        "vision_tower.model.head.probe": "model.vision_tower.vision_tower.vision_model.head.probe",
        "language_model.model.layers.1.self_attn.k_proj.bias": "model.layers.1.self_attn.k_proj.bias",
        "language_model.lm_head.weight": "lm_head.weight",
    }
    for name, official in pairs.items():
        assert torch.equal(ours[name], state[official])
    found = sorted(float(tensor.sum()) for tensor in ours.values())
    assert found == sorted(float(tensor.sum()) for tensor in state.values())


@torch.no_grad()
def test_a_loaded_checkpoint_answers(tmp_path: Path, state: dict[str, Tensor]) -> None:
    model = load_official(write(tmp_path / "official", state, 2), vision_config=TOWER, dtype=torch.float32).eval()
    video, region = model.config.video_token_id, model.config.region_token_id
    batch = {
        "input_ids": torch.tensor([[1, *[video] * 4, 2, region, 3]]),
        "attention_mask": torch.ones(1, 8, dtype=torch.long),
        "pixel_values": torch.randn(2, 3, 56, 56),
        "scene_frame_index": torch.tensor([0, 1]),
        "scene_num_frames": torch.tensor([2]),
        "mask_weights": torch.ones(1, 4, 4),
        "mask_frame_index": torch.tensor([1]),
        "mask_object_index": torch.tensor([0]),
        "mask_boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
        "mask_times": torch.tensor([0.5]),
    }
    logits = model(**batch).logits
    assert logits.shape == (1, 8, 40)
    assert torch.isfinite(logits).all()
    other = model(**batch | {"mask_frame_index": torch.tensor([0])}).logits
    torch.testing.assert_close(other[:, :6], logits[:, :6])
    assert not torch.allclose(other[:, 6:], logits[:, 6:])


def test_what_was_loaded_is_saved_and_loaded_as_one_of_ours(tmp_path: Path, state: dict[str, Tensor]) -> None:
    model = load_official(write(tmp_path / "official", state, 1), vision_config=TOWER, dtype=torch.float32)
    model.save_pretrained(tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours")
    expected = model.state_dict()
    assert set(again.state_dict()) == set(expected)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_weights_are_converted_to_the_type_that_is_asked_for(tmp_path: Path, state: dict[str, Tensor]) -> None:
    model = load_official(write(tmp_path / "official", state, 1), vision_config=TOWER)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_missing_and_unknown_keys_are_named_in_one_error(tmp_path: Path, state: dict[str, Tensor]) -> None:
    del state["model.region_encoder.feat_linear.2.bias"]
    state["model.mm_projector.s1.b5.conv1.conv.weight"] = torch.zeros(1)
    folder = write(tmp_path / "official", state, 2)
    expected = (
        "1 missing: model.region_encoder.feat_linear.2.bias; 1 unknown: model.mm_projector.s1.b5.conv1.conv.weight;"
    )
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        load_official(folder, vision_config=TOWER)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    state["lm_head.weight"] = torch.zeros(41, 12)
    folder = write(tmp_path / "official", state, 1)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight of \(41, 12\) instead of \(40, 12\)"):
        load_official(folder, vision_config=TOWER)


def test_a_missing_file_is_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder = write(tmp_path / "official", state, 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors is missing"):
        load_official(folder, vision_config=TOWER)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mm_projector_type": "mlp2x_gelu"}, "mlp2x_gelu"),
        ({"model_type": "videorefer_videollama3"}, "videorefer_videollama3"),
        ({"mm_hidden_size": 768}, "mm_hidden_size 768"),
    ],
)
def test_another_architecture_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        config_from_official(REAL | change)


def test_an_incomplete_configuration_is_refused() -> None:
    with pytest.raises(CheckpointError, match="lacks num_frames"):
        config_from_official({name: value for name, value in REAL.items() if name != "num_frames"})
