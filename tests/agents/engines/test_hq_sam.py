"""With random weights masks mean nothing; what is shown is what goes in and out, and that one embedding serves all."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image as Pillow

from agents.engines.hq_sam import Boxed, HqSam, HqSamConfig, Masks, to_model_px
from infra.video import Image
from schemas.record import BoxXyxyPx

IMAGE: Image = np.random.default_rng(0).integers(0, 256, (45, 100, 3), dtype=np.uint8)
BOXES: list[BoxXyxyPx] = [(3, 4, 50, 40), (20, 20, 90, 44), (60.5, 1.25, 99, 30)]

Make = Callable[..., HqSam]


@pytest.fixture(scope="module")
def make(tiny_checkpoints: Any) -> Make:
    """The engine, loaded."""

    def made(**changes: Any) -> HqSam:
        engine = HqSam(HqSamConfig(model=str(tiny_checkpoints.hq_sam), **changes))
        engine.setup()
        return engine

    return made


def masks_of(engine: HqSam, image: Image, boxes: Sequence[BoxXyxyPx]) -> Masks:
    """Those of one image alone."""
    (found,) = engine.masks_many([(image, boxes)])
    return found


def bilinear(values: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.float64]:
    """Sampled between pixel centres, the outermost repeated: what torch calls bilinear without aligned corners."""

    def weights(length: int, wanted: int) -> npt.NDArray[np.float64]:
        matrix = np.zeros((wanted, length))
        for i in range(wanted):
            at = min(max((i + 0.5) * length / wanted - 0.5, 0), length - 1)
            low = int(at)
            matrix[i, low] += 1 - (at - low)
            matrix[i, min(low + 1, length - 1)] += at - low
        return matrix

    return weights(values.shape[0], height) @ values @ weights(values.shape[1], width).T


def test_masks_have_the_size_of_the_image_and_the_order_of_the_boxes(make: Make) -> None:
    engine = make()
    masks, ious = masks_of(engine, IMAGE, BOXES)
    assert (masks.shape, masks.dtype) == ((3, 45, 100), np.bool_)
    assert len(ious) == 3
    assert all(isinstance(iou, float) and 0 <= iou <= 1 for iou in ious)
    back, _ = masks_of(engine, IMAGE, BOXES[::-1])
    assert np.array_equal(back[::-1], masks)
    assert not np.array_equal(masks[0], masks[1])


def test_the_image_is_embedded_once_for_all_boxes_and_not_at_all_without_one(make: Make) -> None:
    engine = make(boxes_per_batch=2)
    embedded: list[tuple[int, ...]] = []
    decoded: list[int] = []
    engine._model.vision_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: embedded.append(tuple(kwargs["pixel_values"].shape)), with_kwargs=True
    )
    engine._model.register_forward_pre_hook(
        lambda _, args, kwargs: decoded.append(kwargs["input_boxes"].shape[1]), with_kwargs=True
    )
    masks_of(engine, IMAGE, BOXES)
    assert embedded == [(1, 3, 64, 64)]
    assert decoded == [2, 1]
    masks, ious = masks_of(engine, IMAGE, [])
    assert (masks.shape, masks.dtype, ious) == ((0, 45, 100), np.bool_, [])
    assert len(embedded) == 1


def test_boxes_in_batches_are_as_boxes_at_once(make: Make) -> None:
    (one, one_iou), (all_, all_iou) = (masks_of(make(boxes_per_batch=size), IMAGE, BOXES) for size in (1, 3))
    assert (one != all_).mean() < 0.001
    assert one_iou == pytest.approx(all_iou, abs=1e-5)


def asked_of_many_clips() -> list[Boxed]:
    """Images of several sizes with one to three boxes, one with none between them."""
    rng = np.random.default_rng(1)
    sizes = [(45, 100), (80, 30), (64, 64), (45, 100), (20, 50)]
    boxes: list[list[BoxXyxyPx]] = [BOXES[:2], [(2, 10, 25, 70)], [], BOXES, [(1, 1, 20, 15), (5, 2, 49, 19)]]
    return [(rng.integers(0, 256, (*size, 3), dtype=np.uint8), own) for size, own in zip(sizes, boxes, strict=True)]


@pytest.mark.parametrize("frames_per_batch", [1, 2, 8])
def test_images_of_many_clips_get_the_masks_that_they_get_alone(make: Make, frames_per_batch: int) -> None:
    """Up to rounding, which turns pixels whose logit is next to 0."""
    asked = asked_of_many_clips()
    together = list(make(frames_per_batch=frames_per_batch).masks_many(asked))
    assert [len(masks) for masks, _ in together] == [2, 1, 0, 3, 2]
    engine = make()
    for (image, boxes), (masks, ious) in zip(asked, together, strict=True):
        expected, expected_ious = masks_of(engine, image, boxes)
        assert (masks.shape, masks.dtype) == ((len(boxes), *image.shape[:2]), np.bool_)
        assert not boxes or (masks != expected).mean() < 0.001
        assert ious == pytest.approx(expected_ious, abs=1e-5)


def test_the_encoder_takes_images_in_batches_as_masks_are_asked_for(make: Make) -> None:
    engine = make(frames_per_batch=2)
    embedded: list[int] = []
    engine._model.vision_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: embedded.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    masks = engine.masks_many(asked_of_many_clips())
    assert embedded == []
    next(masks)
    next(masks)
    next(masks)  # that of the image without boxes
    assert embedded == [2]
    assert len(list(masks)) == 2
    assert embedded == [2, 2]
    assert list(engine.masks_many([])) == []


def test_where_a_gpu_has_no_room_images_go_in_smaller_batches(make: Make) -> None:
    engine = make(frames_per_batch=4)
    tried: list[int] = []

    def crowded(module: torch.nn.Module, args: Any, inputs: dict[str, torch.Tensor]) -> None:
        tried.append(len(inputs["pixel_values"]))
        if tried[-1] > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    engine._model.vision_encoder.register_forward_pre_hook(crowded, with_kwargs=True)
    found = list(engine.masks_many(asked_of_many_clips()))
    assert tried == [4, 2, 1, 1, 1, 1]
    expected = list(make(frames_per_batch=1).masks_many(asked_of_many_clips()))
    assert all(np.array_equal(one[0], other[0]) for one, other in zip(found, expected, strict=True))
    assert [ious for _, ious in found] == [ious for _, ious in expected]


def test_pixels_go_in_as_the_documentation_has_it(make: Make) -> None:
    """Longer side to 64, PIL's bilinear, 0 to 1, ImageNet's mean and deviation, then zeros to the right and below."""
    engine = make()
    seen: list[torch.Tensor] = []
    engine._model.vision_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    masks_of(engine, IMAGE, BOXES[:1])
    small = np.asarray(Pillow.fromarray(IMAGE).resize((64, 29), Pillow.Resampling.BILINEAR))
    expected = np.zeros((64, 64, 3))
    expected[:29] = (small / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(seen[0][0].permute(1, 2, 0).numpy() - expected).max() < 1e-5


def test_boxes_go_in_at_the_scale_of_the_resized_image_unpadded(make: Make) -> None:
    engine = make()
    seen: list[torch.Tensor] = []
    engine._model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_boxes"]), with_kwargs=True
    )
    masks_of(engine, IMAGE, BOXES)
    expected = [[x1 * 64 / 100, y1 * 29 / 45, x2 * 64 / 100, y2 * 29 / 45] for x1, y1, x2, y2 in BOXES]
    assert np.allclose(seen[0][0].numpy(), expected, atol=1e-4)
    assert np.allclose(to_model_px(BOXES, (45, 100), (29, 64)), expected, atol=1e-4)


def test_masks_come_out_enlarged_to_the_padded_square_cut_to_the_image_and_enlarged_again(make: Make) -> None:
    engine = make()
    low: list[npt.NDArray[np.float64]] = []
    engine._model.register_forward_hook(
        lambda _, args, outputs: low.append(outputs.pred_masks[0, :, 0].double().numpy())
    )
    masks, _ = masks_of(engine, IMAGE, BOXES)
    assert low[0].shape == (3, 32, 32)
    for logits, mask in zip(low[0], masks, strict=True):
        native = bilinear(bilinear(logits, 64, 64)[:29], 45, 100)
        sure = np.abs(native) > 1e-4
        assert sure.mean() > 0.99
        assert np.array_equal(mask[sure], native[sure] > 0)
    assert 0.01 < masks.mean() < 0.99


def test_the_high_quality_token_alone_gives_other_masks_than_the_sum(make: Make) -> None:
    alone, added = (masks_of(make(hq_token_only=only), IMAGE, BOXES)[0] for only in (True, False))
    assert (alone != added).mean() > 0.01


def test_in_bfloat16_boxes_keep_their_precision(make: Make) -> None:
    engine = make(dtype="bfloat16")
    assert engine._model.vision_encoder.dtype == torch.bfloat16
    exact, _ = masks_of(make(dtype="float32"), IMAGE, BOXES)
    rounded, _ = masks_of(engine, IMAGE, BOXES)
    assert (exact != rounded).mean() < 0.05
    assert {value.dtype for name, value in engine._model.named_parameters() if "vision_encoder" not in name} == {
        torch.float32
    }


def test_its_label_is_the_folders_name_and_content(make: Make) -> None:
    (label,) = make().weights()
    assert label.startswith("tiny-hq-sam@")
