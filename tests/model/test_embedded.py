"""The packaged pairing: what it is made of, how it starts, and the cache of its language model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from infra.settings import settings
from infra.weights import CATALOGUE, WeightError, fetch
from model.answering import answer, option_scores
from model.embedded import LANGUAGE_WEIGHT, WEIGHTS, build_embedded, engine_labels, language_model_and_tokenizer
from model.modeling import VideoReferForConditionalGeneration
from model.processing import VideoReferProcessor
from model.request import Message, ObjectRegion, Request, Scene

Pairing = tuple[VideoReferForConditionalGeneration, VideoReferProcessor]


@pytest.fixture(scope="module")
def pairing() -> Pairing:
    fetch(WEIGHTS, print)
    return build_embedded(seed=3)


def test_labels_name_both_weights() -> None:
    assert [label.split("@")[0] for label in engine_labels()] == ["efficientnet-lite0", "smollm2-135m"]


def test_a_weight_that_was_not_fetched_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path))
    with pytest.raises(WeightError, match="efficientnet-lite0 is missing"):
        build_embedded(seed=0)


def test_a_side_that_cells_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="side_px 250; a multiple of 16"):
        build_embedded(seed=0, side_px=250)


@pytest.mark.weights
def test_the_language_model_answers_what_it_knows(pairing: Pairing) -> None:
    network, processor = pairing
    france = Request((Message("user", "What is the capital of France?"),), None, ())
    (said,) = answer(network, processor, [france], max_new_tokens=20)
    assert "Paris" in said
    right, wrong = option_scores(network, processor, france, ["Paris", "Banana"])
    assert right.log_probability > wrong.log_probability + 2


@pytest.mark.weights
def test_the_plain_language_model_is_made_once_and_whole(pairing: Pairing, monkeypatch: pytest.MonkeyPatch) -> None:
    derived = settings().cache_dir / "derived"
    (folder,) = derived.glob(f"{CATALOGUE[LANGUAGE_WEIGHT].sha256}-*[0-9]")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    network, tokenizer = language_model_and_tokenizer()
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert not list(derived.glob("*.partial"))
    assert network.dtype == torch.float32
    assert getattr(network.config, "quantization_config", None) is None
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"


def test_a_write_that_fails_leaves_nothing_behind_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny network stands for the packaged one: the disk is full once it was written."""
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path))
    entry = CATALOGUE[LANGUAGE_WEIGHT]
    entry.path.parent.mkdir(parents=True)
    entry.path.touch()
    tiny = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: tiny)

    def full(*_: object, **__: object) -> None:
        (partial,) = derived.glob("*.partial")
        assert (partial / "model.safetensors").exists()
        raise OSError("No space left on device")

    derived = tmp_path / "derived"
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", full)
    left_over = derived / f"{entry.sha256}-r1.partial"
    left_over.mkdir(parents=True)
    (left_over / "of a process that died").touch()
    with pytest.raises(OSError, match="No space left"):
        language_model_and_tokenizer()
    assert [path.suffix for path in derived.iterdir()] == [".lock"]


@pytest.mark.weights
def test_the_seed_alone_decides_the_new_weights(pairing: Pairing) -> None:
    network, _ = pairing
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again, _ = build_embedded(seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    other, _ = build_embedded(seed=4)
    for part in ("connector", "object_encoder"):
        first, second, third = (getattr(each, part).state_dict() for each in (network, again, other))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], third[name]) for name in first)


@pytest.mark.weights
def test_visual_tokens_start_at_the_size_of_words_and_apart_from_one_another(pairing: Pairing) -> None:
    """On noise of all scales, not the pictures that the start was made with."""
    network, processor = pairing
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 255, (4, 8, 8, 3), np.uint8)
    frames = np.kron(coarse, np.ones((1, 16, 16, 1), np.uint8))
    masks = tuple(np.zeros((128, 128), np.bool_) for _ in range(4))
    for place, mask in enumerate(masks):
        mask[place * 30 : place * 30 + 30, 40:80] = True
    regions = tuple(ObjectRegion((place,), (mask,)) for place, mask in enumerate(masks))
    question = "There are 4: <region>, <region>, <region>, <region>."
    scene = Scene(frames, (0.0, 1.0, 2.0, 3.0), (0, 1, 2, 3), 0.0, 4.0)
    batch = processor([Request((Message("user", question),), scene, regions)])
    with torch.no_grad():
        embeds = network.splice(**batch).inputs_embeds[0]
    words = network.get_input_embeddings().weight.detach()
    for text, count in (("<video>", 2 * 16), ("<region>", 4)):
        tokens = embeds[batch["input_ids"][0] == processor.placeholder_id(text)]
        assert len(tokens) == count
        assert 0.5 < float(tokens.std() / words.std()) < 2
        cosine = torch.nn.functional.cosine_similarity(tokens[0], tokens[1:])
        assert cosine.max() < 0.95
