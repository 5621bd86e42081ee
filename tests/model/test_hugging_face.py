"""What libraries around transformers expect of any model: customary arguments, adapters, resizing, units to wrap."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import infer_auto_device_map  # type: ignore[import-untyped]
from torch import nn

from model.efficientnet_lite import EfficientNetLiteConfig
from model.modeling import VideoReferForConditionalGeneration
from model.request import Request

Make = Callable[..., Any]


@pytest.fixture
def batch_for(tiny_processor: Make, make_request: Callable[..., Request]) -> Make:
    """`batch_for(model)`: forward arguments of two requests with objects, with labels, and those of a question."""

    def build(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        processor = tiny_processor(model.config)
        requests = [make_request(((0, 1, 3), (2,)), seed=1), make_request(((1,),), seed=2, answer="Two dogs.")]
        encoded = [processor.encode(request, with_labels=True) for request in requests]
        return dict(processor.collate(encoded, "right")), dict(processor(make_request(((0, 1),), answer=None)))

    return build


def test_the_customary_arguments_change_no_result(tiny_model: Make, batch_for: Make) -> None:
    model = tiny_model()
    customary: dict[str, Any] = {
        "inputs_embeds": None,
        "use_cache": False,
        "output_attentions": None,
        "output_hidden_states": None,
        "return_dict": True,
    }
    for batch in batch_for(model):
        with torch.no_grad():
            plain, given = model(**batch), model(**batch, **customary)
            as_tuple = model(**batch, return_dict=False)
        assert list(given) == list(plain)
        assert all(torch.equal(given[name], plain[name]) for name in plain)
        assert isinstance(as_tuple, tuple)
        assert torch.equal(as_tuple[0], plain[0])


@pytest.mark.parametrize("with_labels", [True, False])
def test_hidden_states_and_attentions_are_the_language_model_s(
    tiny_model: Make, batch_for: Make, with_labels: bool
) -> None:
    model = tiny_model()
    model.language_model.set_attn_implementation("eager")
    batch = batch_for(model)[0]
    if not with_labels:
        del batch["labels"]
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_attentions=True)
    rows, length = batch["input_ids"].shape
    assert [tuple(one.shape) for one in output.hidden_states] == [(rows, length, 32)] * 3
    assert [tuple(one.shape) for one in output.attentions] == [(rows, 4, length, length)] * 2


def test_embeddings_instead_of_ids_are_refused(tiny_model: Make) -> None:
    ids = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="give input_ids"):
        tiny_model()(ids, inputs_embeds=torch.zeros(1, 2, 32))


def test_peft_adapts_the_language_model_for_training_and_answers(
    tiny_model: Make, batch_for: Make, tmp_path: Path
) -> None:
    model = tiny_model()
    answered, question = batch_for(model)
    with torch.no_grad():
        before = model(**answered).loss
    torch.manual_seed(0)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=r"language_model\..*\.(q_proj|v_proj)")
    adapted = peft.get_peft_model(model, settings)
    torch.testing.assert_close(adapted(**answered, return_dict=True).loss, before)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    for _ in range(5):
        loss = adapted(**answered).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < before
    written = adapted.generate(**question, max_new_tokens=3, eos_token_id=None, do_sample=False)
    assert written.shape == (1, 3)
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_model(), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(**answered).loss, adapted(**answered).loss)


@pytest.mark.parametrize("tied", [False, True])
def test_resizing_keeps_the_known_tokens_and_survives_saving(
    tiny_model: Make, batch_for: Make, tmp_path: Path, tied: bool
) -> None:
    model = tiny_model(text_overrides={"tie_word_embeddings": tied})
    question = batch_for(model)[1]
    known = model.config.text_config.vocab_size
    with torch.no_grad():
        before = model(**question).logits
        model.resize_token_embeddings(known + 5)
        after = model(**question).logits
    assert after.shape[-1] == model.config.text_config.vocab_size == model.language_model.config.vocab_size == known + 5
    torch.testing.assert_close(after[..., :known], before)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
    model.save_pretrained(tmp_path)
    loaded = VideoReferForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**question).logits, after)


def test_embeddings_and_head_can_be_replaced(tiny_model: Make) -> None:
    model = tiny_model()
    table, head = nn.Embedding(300, 32), nn.Linear(32, 300, bias=False)
    model.set_input_embeddings(table)
    model.set_output_embeddings(head)
    assert model.language_model.get_input_embeddings() is model.get_input_embeddings() is table
    assert model.language_model.get_output_embeddings() is model.get_output_embeddings() is head


EFFICIENTNET = EfficientNetLiteConfig(
    image_size=32, stem_channels=8, stage_depths=[1, 1, 1, 1], stage_channels=[8, 8, 8, 8], stage_kernels=[3, 3, 3, 3],
    stage_strides=[1, 2, 2, 2], stage_expansions=[1, 2, 2, 2],
)  # fmt: skip


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(("tower", "tower_units"), [("siglip", set()), (EFFICIENTNET, {"ConvNorm"})])
def test_units_that_must_not_be_split_are_named_where_present(
    tiny_model: Make, tower: Any, tower_units: set[str], depth: int
) -> None:
    own = {} if tower == "siglip" else {"vision_config": tower}
    model = tiny_model(connector_depth=depth, connector_stride=(2, 1, 1), **own)
    present = {type(module).__name__ for module in model.modules()}
    named = set(model._no_split_modules)
    assert named >= {"Qwen2DecoderLayer"} | tower_units | ({"BottleneckBlock"} if depth else set())
    assert named & {"ConvNorm", "BottleneckBlock", "STCConnector"} <= present


def test_a_device_map_splits_no_part_that_adds_across_its_layers(tiny_model: Make) -> None:
    model = tiny_model(vision_config=EFFICIENTNET, connector_stride=(2, 1, 1))
    sizes = {name: sum(one.nbytes for one in part.parameters()) for name, part in model.named_children()}
    half = (sizes["vision_tower"] + sizes["connector"]) // 2
    devices = infer_auto_device_map(
        model, {0: half, 1: sizes["connector"] + half, "cpu": "1GB"}, no_split_module_classes=model._no_split_modules
    )
    assert len(set(devices.values())) > 1
    for part in ("vision_tower", "connector", "object_encoder"):
        assert part in devices, devices
