"""Bases of trainings: a pair of folders is held once and answers as its parts do; other architectures are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from flows.profile_files import ProfileError
from flows.train_base import load_base, require_ours
from flows.train_profile import FolderBase, Network, PairBase

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def pair(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> PairBase:
    """A dual encoder and a language model, in folders as hubs have them."""
    vision, language = tmp_path_factory.mktemp("vision"), tmp_path_factory.mktemp("language")
    torch.manual_seed(1)
    text = SIZES | {"vocab_size": 30, "max_position_embeddings": 8}
    SiglipModel(
        SiglipConfig(text_config=text, vision_config=SIZES | {"image_size": 28, "patch_size": 14})
    ).save_pretrained(vision)
    SiglipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(vision)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=259, num_key_value_heads=2, **SIZES))
    model.generation_config.repetition_penalty = 1.25
    model.save_pretrained(language)
    PreTrainedTokenizerFast.from_pretrained(tiny.folder / "tokenizer").save_pretrained(language)
    network = Network(num_frames=2, connector_depth=1, max_length=512)
    return PairBase(kind="pair", vision=str(vision), language=str(language), network=network)


@torch.no_grad()
def test_a_pair_answers_as_its_parts_do(pair: PairBase) -> None:
    model, processor = load_base(pair, seed=3)
    ids = torch.tensor([[3, 5, 7, 11]])
    language = AutoModelForCausalLM.from_pretrained(pair.language).eval()
    assert torch.equal(model(input_ids=ids).logits, language(input_ids=ids).logits)
    assert model.generation_config.repetition_penalty == 1.25

    pixels = torch.randn(2, 3, 28, 28)
    tower = SiglipModel.from_pretrained(pair.vision).eval().vision_model
    expected = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(model.vision_tower(pixels), expected.reshape(2, 2, 2, 16))
    assert processor.num_frames == 2


def test_a_pair_is_drawn_from_the_seed_and_saves_whole(pair: PairBase, tmp_path: Path) -> None:
    states = [load_base(pair, seed)[0].state_dict() for seed in (3, 3, 4)]
    drawn = [name for name in states[0] if name.startswith(("connector.", "object_encoder."))]
    assert drawn
    assert all(torch.isfinite(value).all() for value in states[0].values())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    moved = {name.split(".")[0] for name in states[0] if not torch.equal(states[0][name], states[2][name])}
    assert moved == {"connector", "object_encoder"}

    model, processor = load_base(pair, seed=3)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = load_base(FolderBase(kind="model", path=str(tmp_path)), seed=0)[0].state_dict()
    assert again.keys() == states[0].keys()
    assert all(torch.equal(again[name], value) for name, value in states[0].items())


def test_another_architecture_is_no_whole_model(pair: PairBase) -> None:
    with pytest.raises(ProfileError, match="of type 'qwen2'; allowed as a whole model are 'videorefer'"):
        require_ours(FolderBase(kind="model", path=pair.language))
    require_ours(pair)
