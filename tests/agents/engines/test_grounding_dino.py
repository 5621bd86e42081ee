"""With random weights boxes mean nothing; shown is which box goes to which noun, and that pixels go in right."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from agents.base import Detection
from agents.engines.grounding_dino import GroundingDino, GroundingDinoConfig, phrases_of, prompt_of, to_xyxy_px
from infra.checkpoints import CheckpointError
from infra.video import Frames, Image

NOUNS = ("dog", "red car", "T-shirt", "umbrellas")
IMAGES: Frames = np.random.default_rng(0).integers(0, 256, (3, 60, 100, 3), dtype=np.uint8)

Make = Callable[..., GroundingDino]


@pytest.fixture(scope="module")
def make(tiny_checkpoints: Any) -> Make:
    """The engine, loaded; every box passes unless `min_score` is given."""

    def made(**changes: Any) -> GroundingDino:
        config = {"model": str(tiny_checkpoints.grounding_dino), "min_score": 0.0, "max_boxes": 100} | changes
        engine = GroundingDino(GroundingDinoConfig(**config))
        engine.setup()
        return engine

    return made


class Spy:
    """What goes into the model and what comes out, pass by pass."""

    def __init__(self, engine: GroundingDino) -> None:
        self.passes: list[tuple[dict[str, torch.Tensor], Any]] = []
        engine._model.register_forward_hook(self.note, with_kwargs=True)

    def note(self, module: torch.nn.Module, args: Any, inputs: dict[str, torch.Tensor], outputs: Any) -> None:
        self.passes.append((inputs, outputs))


def detect(engine: GroundingDino, images: Frames, nouns: Sequence[str]) -> list[list[Detection]]:
    """The same nouns on all images."""
    return engine.detect_nouns([(image, nouns) for image in images])


def token_places(engine: GroundingDino, text_ids: Sequence[int], noun: str) -> list[int]:
    """Where a noun's own tokens stand in a text, found by its ids, which do not stand elsewhere in it."""
    own = engine._tokenizer(noun.lower(), add_special_tokens=False).input_ids
    (start,) = [i for i in range(len(text_ids)) if list(text_ids[i : i + len(own)]) == own]
    return list(range(start, start + len(own)))


def by_the_rules(
    engine: GroundingDino, spy: Spy, image: int, nouns: Sequence[str], size_px: tuple[int, int] = (60, 100)
) -> list[tuple[str, float, Any]]:
    """(noun, score, box) from one pass's raw output: mean over a noun's tokens, centre and size to corners, clipped."""
    height_px, width_px = size_px
    inputs, outputs = spy.passes[0]
    found = []
    for noun in nouns:
        places = token_places(engine, inputs["input_ids"][image].tolist(), noun)
        for logits, (cx, cy, w, h) in zip(outputs.logits[image], outputs.pred_boxes[image].tolist(), strict=True):
            score = sum(1 / (1 + math.exp(-float(logits[place]))) for place in places) / len(places)
            left, right = (min(max((cx + sign * w / 2) * width_px, 0), width_px) for sign in (-1, 1))
            top, bottom = (min(max((cy + sign * h / 2) * height_px, 0), height_px) for sign in (-1, 1))
            if right - left >= 1 and bottom - top >= 1:
                found.append((noun, score, (left, top, right, bottom)))
    return sorted(found, key=lambda item: (item[0], -item[1]))


def as_rows(detections: Sequence[Detection]) -> list[tuple[str, float, Any]]:
    rows = [(item.detector_class, item.score, item.box_xyxy_px) for item in detections]
    return sorted(rows, key=lambda item: (item[0], -item[1]))


def test_boxes_and_scores_of_every_noun_are_those_of_its_own_tokens(make: Make) -> None:
    engine = make()
    spy = Spy(engine)
    found = detect(engine, IMAGES, NOUNS)
    assert len(found) == len(IMAGES)
    for image, detections in enumerate(found):
        got, expected = as_rows(detections), by_the_rules(engine, spy, image, NOUNS)
        assert len(expected) > 3 * len(NOUNS)
        assert [row[0] for row in got] == [row[0] for row in expected]
        assert [row[1] for row in got] == pytest.approx([row[1] for row in expected], abs=1e-6)
        assert np.allclose([row[2] for row in got], [row[2] for row in expected], atol=1e-3)
        assert [item.score for item in detections] == sorted((item.score for item in detections), reverse=True)


def test_all_nouns_of_a_clip_go_through_in_one_pass_of_a_batch_of_frames(make: Make) -> None:
    engine = make(frames_per_batch=3)
    spy = Spy(engine)
    detect(engine, IMAGES, NOUNS)
    ((inputs, outputs),) = spy.passes
    assert engine._tokenizer.decode(inputs["input_ids"][0]) == "[CLS] dog. red car. t - shirt. umbrellas. [SEP]"
    assert outputs.logits.shape == (3, 16, 256)
    assert inputs["input_ids"].shape[0] == inputs["pixel_values"].shape[0] == 3


def test_the_order_of_nouns_does_not_change_which_boxes_are_whose(make: Make) -> None:
    engine = make()
    forth, back = (detect(engine, IMAGES, order) for order in (NOUNS, NOUNS[::-1]))
    for one, other in zip(forth, back, strict=True):
        assert {item.detector_class for item in one} == set(NOUNS)
        for a, b in zip(as_rows(one), as_rows(other), strict=True):
            assert a[0] == b[0]
            assert a[1] == pytest.approx(b[1], abs=1e-4)
            assert np.allclose(a[2], b[2], atol=1e-2)
    # and nouns are told apart at all
    scores = {noun: [row[1] for row in as_rows(forth[0]) if row[0] == noun] for noun in NOUNS}
    assert max(abs(a - b) for a, b in zip(scores["dog"], scores["red car"], strict=True)) > 0.05


def test_pixels_go_in_as_the_documentation_has_it(make: Make) -> None:
    """Shorter side to 64 unless the longer passes 107, PIL's bilinear, 0 to 1, ImageNet's mean and deviation."""
    engine = make()
    spy = Spy(engine)
    tall = np.random.default_rng(1).integers(0, 256, (1, 90, 40, 3), dtype=np.uint8)
    for images, (height, width) in ((IMAGES[:1], (64, 106)), (tall, (107, 48))):
        spy.passes.clear()
        detect(engine, images, ["dog"])
        pixels = spy.passes[0][0]["pixel_values"][0].permute(1, 2, 0).numpy()
        small = np.asarray(Pillow.fromarray(images[0]).resize((width, height), Pillow.Resampling.BILINEAR))
        expected = (small / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        assert pixels.shape == expected.shape
        assert np.abs(pixels - expected).max() < 1e-5


def test_batches_of_any_size_give_the_same(make: Make) -> None:
    one, many = (detect(make(frames_per_batch=size), IMAGES, NOUNS) for size in (1, 3))
    for a, b in zip(one, many, strict=True):
        assert [row[:1] for row in as_rows(a)] == [row[:1] for row in as_rows(b)]
        assert [row[1] for row in as_rows(a)] == pytest.approx([row[1] for row in as_rows(b)], abs=1e-4)


def asked_of_many_clips() -> list[tuple[Image, Sequence[str]]]:
    """Images of three sizes between one another, with texts of other nouns, lengths and numbers."""
    rng = np.random.default_rng(3)
    sizes = [(60, 100), (90, 60), (60, 100), (60, 90), (60, 100), (90, 60), (60, 100)]
    nouns = [NOUNS, ("dog",), ("dog",), NOUNS, ("umbrellas", "cat"), ("red red red car", "man", "dog"), ("...",)]
    return [(rng.integers(0, 256, (*size, 3), dtype=np.uint8), own) for size, own in zip(sizes, nouns, strict=True)]


@pytest.mark.parametrize("frames_per_batch", [2, 8])
def test_what_is_found_on_an_image_is_the_same_alone_and_in_company(make: Make, frames_per_batch: int) -> None:
    """Up to rounding: sums of padded texts have other shapes. Alone, it is held against the slow reference."""
    asked = asked_of_many_clips()
    together = make(frames_per_batch=frames_per_batch).detect_nouns(asked)
    assert len(together) == len(asked)
    alone = make()
    spy = Spy(alone)
    for (image, nouns), found in zip(asked, together, strict=True):
        spy.passes.clear()
        alone.detect_nouns([(image, nouns)])
        expected = by_the_rules(alone, spy, 0, nouns, image.shape[:2]) if spy.passes else []
        got = as_rows(found)
        assert [row[0] for row in got] == [row[0] for row in expected]
        assert [row[1] for row in got] == pytest.approx([row[1] for row in expected], abs=1e-5)
        assert np.allclose([row[2] for row in got], [row[2] for row in expected], atol=1e-3)
    assert [len(found) >= 3 for found in together] == [True] * 6 + [False]


def test_a_pass_takes_images_of_one_size_with_a_padded_text_each(make: Make) -> None:
    engine = make(frames_per_batch=2)
    spy = Spy(engine)
    engine.detect_nouns(asked_of_many_clips())
    assert [tuple(inputs["pixel_values"].shape) for inputs, _ in spy.passes] == [
        (2, 3, 64, 106),
        (1, 3, 64, 106),
        (2, 3, 96, 64),
        (1, 3, 64, 96),
    ]
    assert all(inputs["pixel_mask"].all() for inputs, _ in spy.passes)
    texts = [engine._tokenizer.batch_decode(inputs["input_ids"]) for inputs, _ in spy.passes]
    assert texts[0][1] == "[CLS] dog. [SEP]" + " [PAD]" * 10
    assert texts[1] == ["[CLS] umbrellas. cat. [SEP]"]
    attended = spy.passes[0][0]["attention_mask"].sum(dim=1).tolist()
    assert attended == [14, 4]


def test_where_a_gpu_has_no_room_frames_of_several_clips_go_in_smaller_batches(make: Make) -> None:
    asked = asked_of_many_clips()
    engine = make(frames_per_batch=4)
    tried: list[int] = []

    def crowded(module: torch.nn.Module, args: Any, inputs: dict[str, torch.Tensor]) -> None:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    engine._model.register_forward_pre_hook(crowded, with_kwargs=True)
    assert engine.detect_nouns(asked) == make(frames_per_batch=1).detect_nouns(asked)
    assert tried == [3, *[1] * 6]


def boxes_of_queries(
    engine: GroundingDino, queries: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> torch.Tensor:
    """(images, queries, 4) of the model, in shares of the image, from the places in the image that `queries` holds.

    The first call puts the model's own choice in it: random weights rank places by chance, so each number format would
    take others.
    """
    topk = torch.topk

    def chosen(values: torch.Tensor, count: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not queries:
            queries.append(topk(values, count, dim=dim).indices)
        return values.gather(dim, queries[0]), queries[0]

    spy = Spy(engine)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "topk", chosen)
        detect(engine, IMAGES, ["dog"])
    boxes: torch.Tensor = spy.passes[0][1].pred_boxes
    return boxes.float()


def in_bfloat16_throughout(engine: GroundingDino) -> GroundingDino:
    def to_bfloat16(module: torch.nn.Module, args: Any, inputs: dict[str, torch.Tensor]) -> Any:
        return args, {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}

    engine._model.to(torch.bfloat16).register_forward_pre_hook(to_bfloat16, with_kwargs=True)
    return engine


def test_in_bfloat16_products_are_rounded_and_boxes_little(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(dtype="bfloat16")
    assert {value.dtype for value in engine._model.parameters()} == {torch.float32}
    seen: list[torch.dtype] = []
    engine._model.model.text_projection.register_forward_hook(lambda _, args, output: seen.append(output.dtype))
    queries: list[torch.Tensor] = []
    exact, mixed, rounded = (
        boxes_of_queries(each, queries, monkeypatch)
        for each in (make(dtype="float32"), engine, in_bfloat16_throughout(make(dtype="float32")))
    )
    assert seen == [torch.bfloat16]
    error_px, throughout_px = ((boxes - exact).abs() * 1333 for boxes in (mixed, rounded))  # on a frame of that width
    assert 0 < error_px.mean() < 1.0
    assert error_px.max() < 6
    assert throughout_px.mean() > 1.3 * error_px.mean()


def test_boxes_below_the_score_and_beyond_the_number_are_dropped(make: Make) -> None:
    everything = detect(make(), IMAGES[:1], NOUNS)[0]
    limit = float(np.median([item.score for item in everything]))
    (above,) = detect(make(min_score=limit), IMAGES[:1], NOUNS)
    assert 0 < len(above) < len(everything)
    assert above == [item for item in everything if item.score > limit]
    (few,) = detect(make(max_boxes=2), IMAGES[:1], NOUNS)
    for noun in NOUNS:
        own = [item for item in everything if item.detector_class == noun]
        assert [item for item in few if item.detector_class == noun] == own[:2]


def test_more_nouns_than_the_text_holds_go_in_further_passes(make: Make) -> None:
    engine = make(frames_per_batch=1)
    spy = Spy(engine)
    nouns = [f"{'red ' * 40}{noun}" for noun in ("dog", "car", "man", "ball", "bird", "cat", "tree", "umbrella")]
    (found,) = detect(engine, IMAGES[:1], nouns)
    assert len(spy.passes) == 2
    assert all(inputs["input_ids"].shape[1] <= 256 for inputs, _ in spy.passes)
    assert {item.detector_class for item in found} == set(nouns)


def test_odd_nouns_neither_end_a_phrase_nor_stop_the_others(make: Make) -> None:
    assert phrases_of(["St. Bernard", "Dog", "dog", "what?", "...", "  "]) == {
        "st bernard": ("St. Bernard",),
        "dog": ("Dog", "dog"),
        "what": ("what?",),
    }
    prompt = prompt_of(phrases_of(["St. Bernard", "dog"]))
    assert prompt.text == "st bernard. dog."
    assert [prompt.text[start:end] for start, end in prompt.spans] == ["st bernard", "dog"]
    engine = make()
    (found,) = detect(engine, IMAGES[:1], ["Dog", "...", "dog"])
    upper, lower = ([i.box_xyxy_px for i in found if i.detector_class == noun] for noun in ("Dog", "dog"))
    assert upper == lower
    assert len(upper) > 0
    assert detect(engine, IMAGES[:1], ["..."]) == [[]]
    assert detect(engine, IMAGES[:2], []) == [[], []]


def test_boxes_are_clipped_to_the_image() -> None:
    box = np.array([0.05, 0.9, 0.2, 0.4], dtype=np.float32)
    assert to_xyxy_px(box, 60, 100) == pytest.approx((0, 42, 15, 60), abs=1e-4)


def test_its_label_follows_the_files_and_not_their_place(make: Make, tiny_checkpoints: Any) -> None:
    (label,) = make().weights()
    assert label.startswith("tiny-grounding-dino@")
    with pytest.raises(CheckpointError, match="nowhere"):
        GroundingDino(GroundingDinoConfig(model="nowhere")).weights()
    with pytest.raises(CheckpointError, match="nowhere"):
        GroundingDino(GroundingDinoConfig(model="nowhere")).setup()
