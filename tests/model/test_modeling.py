"""The whole network: batches of mixed requests, loss, generation, saving, and replacing its object encoder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.inputs import MaskBatch, ObjectTokens, SceneIndex
from model.modeling import VideoReferForConditionalGeneration
from model.processing import Encoded, VideoReferProcessor
from model.request import Request

Side = Literal["left", "right"]
Make = Callable[..., Any]


class Zeroed(nn.Module):
    """An object encoder that tells nothing."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor, masks: MaskBatch) -> ObjectTokens:
        tokens = self.encoder(features, masks)
        return tokens._replace(tokens=torch.zeros_like(tokens.tokens))


@pytest.fixture
def mixed(make_request: Callable[..., Request]) -> list[Request]:
    """Several objects at different times, text only, an image, a scene without objects, a single frame not shown."""
    return [
        make_request(((0, 1, 2, 3), (3,), (1, -3)), seed=1),
        make_request((), num_frames=0, answer="Nothing, there is only text."),
        make_request(((0,), (0,)), num_frames=1, is_image=True, seed=2),
        make_request((), num_frames=3, seed=3, answer="A dog and a cat."),
        make_request(((1,),), num_frames=5, shown=(0, 2, 4), seed=4),
        make_request(((4, 1),), num_frames=5, shown=(0, 1), seed=5, answer="It moved."),
    ]


def collated(
    processor: VideoReferProcessor, requests: Sequence[Request], side: Side = "left", labels: bool = True
) -> dict[str, Tensor]:
    batch = dict(processor.collate([processor.encode(request, True) for request in requests], side))
    return batch if labels else {name: value for name, value in batch.items() if name != "labels"}


def masks_of(encoded: Encoded, place: int) -> MaskBatch:
    """The masks of one object of one request, as those of a batch of one object."""
    own = encoded.mask_object_index == place
    fields = MaskBatch(*(getattr(encoded, f"mask_{name}")[own] for name in MaskBatch._fields))
    return fields._replace(object_index=torch.zeros_like(fields.object_index))


def questions(requests: Sequence[Request]) -> list[Request]:
    return [request._replace(messages=request.messages[:-1]) for request in requests]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("paper_exact", [False, True])
@pytest.mark.parametrize(("vision", "text"), [("siglip", "qwen2"), ("clip", "llama")])
def test_a_mixed_batch_gives_each_sample_what_it_gets_alone(
    tiny_model: Make, tiny_processor: Make, mixed: list[Request], vision: str, text: str, paper_exact: bool, side: Side
) -> None:
    model = tiny_model(vision=vision, text=text, paper_exact=paper_exact, image_size_px=56)
    processor = tiny_processor(model.config)
    batch = collated(processor, mixed, side, labels=False)
    with torch.no_grad():
        together = model(**batch).logits
        for row, mask, request in zip(together, batch["attention_mask"], mixed, strict=True):
            alone = model(**collated(processor, [request], labels=False)).logits[0]
            torch.testing.assert_close(row[mask > 0], alone, atol=1e-4, rtol=0)


def test_placeholders_are_filled_in_order_by_scenes_and_objects(
    tiny_model: Make, tiny_processor: Make, mixed: list[Request]
) -> None:
    model = tiny_model()
    processor = tiny_processor(model.config)
    batch = collated(processor, mixed, labels=False)
    with torch.no_grad():
        spliced = model.splice(**batch).inputs_embeds
        features = model.vision_tower(batch["pixel_values"])
        scenes, objects = [], []
        for one in (processor.encode(request, True) for request in mixed):
            own, features = features[: len(one.pixel_values)], features[len(one.pixel_values) :]
            if len(one.scene_num_frames):
                scenes += list(model.connector(own, SceneIndex(one.scene_frame_index, one.scene_num_frames))[0])
            for place in one.mask_object_index.unique().tolist():
                objects += list(model.object_encoder(own, masks_of(one, place)).tokens)
        for row, ids in zip(spliced, batch["input_ids"], strict=True):
            for embedded, token in zip(row, ids.tolist(), strict=True):
                if token in (model.config.video_token_id, model.config.image_token_id):
                    expected = scenes.pop(0)
                elif token == model.config.region_token_id:
                    expected = objects.pop(0)
                else:
                    expected = model.get_input_embeddings().weight[token]
                torch.testing.assert_close(embedded, expected, atol=1e-5, rtol=0)
    assert not scenes
    assert not objects


def test_each_distinct_frame_passes_the_tower_once_and_without_gradients(
    tiny_model: Make, tiny_processor: Make, make_request: Callable[..., Request]
) -> None:
    model = tiny_model()
    model.vision_tower.requires_grad_(False)
    seen: list[tuple[int, bool]] = []
    model.vision_tower.register_forward_hook(lambda _module, _given, out: seen.append((len(out), out.requires_grad)))
    request = make_request(((0, 3), (3, 5)), num_frames=6, shown=(0, 2, 3))
    model(**collated(tiny_processor(model.config), [request, request])).loss.backward()
    assert seen == [(8, False)]
    assert model.connector.readout[0].weight.grad.any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_is_the_mean_over_answer_tokens_and_the_head_sees_no_other(
    tiny_model: Make, tiny_processor: Make, mixed: list[Request], side: Side
) -> None:
    model = tiny_model()
    batch = collated(tiny_processor(model.config), mixed, side)
    rows: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda _module, _given, out: rows.append(out.shape[:-1].numel())
    )
    output = model(**batch)
    hook.remove()
    labels = batch.pop("labels")
    logits = model(**batch).logits
    losses = [
        F.cross_entropy(logits[row, place - 1], labels[row, place])
        for row, place in (labels != -100).nonzero().tolist()
    ]
    assert rows == [len(losses)]
    assert output.logits is None
    assert output.num_labels == len(losses) == sum(len(r.messages[-1].content) + 1 for r in mixed)
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss_sum, torch.stack(losses).sum(), atol=1e-3, rtol=0)
    divided = model(**batch, labels=labels, num_items_in_batch=torch.tensor(7.0)).loss
    torch.testing.assert_close(divided, output.loss_sum / 7, atol=1e-4, rtol=0)


def alike(request: Request) -> Request:
    """The request with its first frame, and its objects' first masks, everywhere: all similarities are equal."""
    assert request.scene is not None
    frames = request.scene.frames.copy()
    frames[:] = frames[0]
    objects = tuple(one._replace(masks=(one.masks[0],) * len(one.masks)) for one in request.objects)
    return request._replace(scene=request.scene._replace(frames=frames), objects=objects)


@pytest.mark.parametrize("side", ["left", "right"])
def test_places_that_ties_leave_empty_are_as_if_they_were_not_there(
    tiny_model: Make, tiny_processor: Make, make_request: Callable[..., Request], side: Side
) -> None:
    model = tiny_model(paper_exact=True)
    processor = tiny_processor(model.config)
    requests = [alike(make_request(((0, 1, 2, 3), (2,)), seed=1)), make_request(((0, 1),), seed=2, answer="Longer.")]
    batch = collated(processor, requests, side)
    spliced = model.splice(**{name: value for name, value in batch.items() if name != "labels"})
    empty = (batch["attention_mask"] > 0) & (spliced.attention_mask == 0)
    assert empty.sum(1).tolist() == [1, 0]
    assert (batch["input_ids"][empty] == model.config.region_token_id).all()
    loss_sum = torch.zeros(())
    for embeds, mask, labels in zip(*spliced, batch["labels"], strict=True):
        logits = model.language_model(inputs_embeds=embeds[mask > 0][None]).logits[0]
        loss_sum = loss_sum + F.cross_entropy(logits[:-1], labels[mask > 0][1:], reduction="sum")
    torch.testing.assert_close(model(**batch).loss_sum, loss_sum, atol=1e-3, rtol=0)


def test_a_label_behind_an_empty_place_is_predicted_from_before_it(
    tiny_model: Make, tiny_processor: Make, make_request: Callable[..., Request]
) -> None:
    model = tiny_model(paper_exact=True)
    batch = collated(tiny_processor(model.config), [alike(make_request(((0, 1, 2, 3),)))])
    region = (batch["input_ids"][0] == model.config.region_token_id).nonzero()[:, 0].tolist()
    assert len(region) == 2
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, region[1]] = 5
    labels[0, region[1] + 1] = 5
    loss = model(**(batch | {"labels": labels}))
    del batch["labels"]
    expected = F.cross_entropy(model(**batch).logits[0, region[0]], torch.tensor(5))
    assert loss.num_labels == 1
    torch.testing.assert_close(loss.loss, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "kind"), [("video_token_id", "scene tokens"), ("region_token_id", "object tokens")])
def test_more_places_than_tokens_are_refused(
    tiny_model: Make, tiny_processor: Make, make_request: Callable[..., Request], name: str, kind: str
) -> None:
    model = tiny_model()
    batch = collated(tiny_processor(model.config), [make_request()])
    batch["input_ids"][0, 0] = getattr(model.config, name)
    with pytest.raises(ValueError, match=rf"got \d+ places of .* for \d+ {kind}.*processor_for"):
        model(**batch)


def test_unknown_inputs_are_refused(tiny_model: Make) -> None:
    with pytest.raises(TypeError, match="image_sizes"):
        tiny_model()(torch.zeros(1, 2, dtype=torch.long), image_sizes=torch.ones(1))


@pytest.mark.parametrize("tower_learns", [False, True])
def test_in_training_text_alone_still_passes_every_part(tiny_model: Make, tower_learns: bool) -> None:
    model = tiny_model().train()
    model.vision_tower.requires_grad_(tower_learns)
    ids = torch.zeros(1, 2, dtype=torch.long)
    loss = model(ids, labels=torch.full_like(ids, -100)).loss
    loss.backward()
    assert loss == 0
    parts = [model.connector, model.object_encoder, model.language_model]
    parts += [model.vision_tower.model.embeddings] if tower_learns else []
    assert all(parameter.grad is not None for part in parts for parameter in part.parameters())
    assert not any(parameter.grad.any() for part in parts for parameter in part.parameters())


def test_generation_of_a_batch_equals_one_by_one(tiny_model: Make, tiny_processor: Make, mixed: list[Request]) -> None:
    model = tiny_model()
    processor = tiny_processor(model.config)
    asked = questions(mixed)
    together = model.generate(**processor(asked), max_new_tokens=6, eos_token_id=None)
    assert together.shape == (len(mixed), 6)
    assert len({tuple(row) for row in together.tolist()}) > 1
    for row, request in zip(together, asked, strict=True):
        assert torch.equal(row, model.generate(**processor([request]), max_new_tokens=6, eos_token_id=None)[0])


def test_generation_takes_the_tokens_of_greatest_logit(
    tiny_model: Make, tiny_processor: Make, make_request: Callable[..., Request]
) -> None:
    model = tiny_model()
    batch = dict(tiny_processor(model.config)(questions([make_request(((0, 1),))])))
    written = model.generate(**batch, max_new_tokens=4, eos_token_id=None)
    for token in written[0]:
        with torch.no_grad():
            assert model(**batch).logits[0, -1].argmax() == token
        batch["input_ids"] = torch.cat([batch["input_ids"], token[None, None]], 1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])


def test_a_batch_padded_on_the_right_is_not_continued(
    tiny_model: Make, tiny_processor: Make, mixed: list[Request]
) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="left padding"):
        model.generate(**collated(tiny_processor(model.config), mixed, "right", labels=False))


@pytest.mark.parametrize("tied", [False, True])
def test_saving_keeps_every_bit_and_tied_embeddings(
    tiny_model: Make, tiny_processor: Make, mixed: list[Request], tmp_path: Path, tied: bool
) -> None:
    model = tiny_model(text_overrides={"tie_word_embeddings": tied})
    model.generation_config.max_new_tokens = 17
    model.save_pretrained(tmp_path)
    loaded, report = VideoReferForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.generation_config.max_new_tokens == 17
    batch = collated(tiny_processor(model.config), mixed, labels=False)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) is tied


def test_a_saved_model_loads_in_bfloat16(
    tiny_model: Make, tiny_processor: Make, mixed: list[Request], tmp_path: Path
) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = VideoReferForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    batch = collated(tiny_processor(model.config), mixed)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss, atol=0.1, rtol=0)
    assert loaded.generate(**tiny_processor(model.config)(questions(mixed)), max_new_tokens=2).shape[0] == len(mixed)


def test_parts_may_have_formats_of_their_own(tiny_model: Make, tiny_processor: Make, mixed: list[Request]) -> None:
    model = tiny_model()
    batch = collated(tiny_processor(model.config), mixed)
    with torch.no_grad():
        expected = model(**batch).loss
        model.vision_tower.to(torch.bfloat16)
        model.language_model.to(torch.bfloat16)
        torch.testing.assert_close(model(**batch).loss, expected, atol=0.1, rtol=0)


def test_activation_checkpointing_changes_no_gradient(
    tiny_model: Make, tiny_processor: Make, mixed: list[Request]
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        model.vision_tower.requires_grad_(False)
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**collated(tiny_processor(model.config), mixed)).loss.backward()
        gradients.append([one.grad for one in model.parameters() if one.grad is not None])
    assert model.language_model.model.layers[0].gradient_checkpointing
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-4)


def test_the_object_encoder_may_be_wrapped(tiny_model: Make, tiny_processor: Make, mixed: list[Request]) -> None:
    model = tiny_model()
    batch = collated(tiny_processor(model.config), mixed, labels=False)
    with torch.no_grad():
        before = model(**batch).logits
        model.object_encoder = Zeroed(model.object_encoder)
        embeds = model.splice(**batch).inputs_embeds
        after = model(**batch).logits
    is_region = batch["input_ids"] == model.config.region_token_id
    assert not embeds[is_region].any()
    with_objects = is_region.any(1)
    assert torch.equal(after[~with_objects], before[~with_objects])
    assert ((after - before).abs().amax((1, 2)) > 1e-3).tolist() == with_objects.tolist()


def test_box_and_time_of_an_object_matter_only_with_object_position(
    tiny_model: Make, tiny_processor: Make, mixed: list[Request]
) -> None:
    for object_position in (True, False):
        model = tiny_model(object_position=object_position)
        batch = collated(tiny_processor(model.config), mixed[:1], labels=False)
        with torch.no_grad():
            before = model(**batch).logits
            moved = model(**(batch | {"mask_boxes": 1 - batch["mask_boxes"].flip(1)})).logits
            later = model(**(batch | {"mask_times": batch["mask_times"] + 0.3})).logits
        assert torch.equal(moved, before) is not object_position
        assert torch.equal(later, before) is not object_position


def test_a_new_model_starts_without_influence_of_positions(tiny_config: Make) -> None:
    model = VideoReferForConditionalGeneration(tiny_config())
    assert not model.object_encoder.position.mlp[2].weight.any()
    assert model.connector.readout[0].weight.std() > 0.05
