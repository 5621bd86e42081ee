"""How a processor is called, what its batches become on a device and in a format, and images with `paper_exact`."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import SiglipImageProcessorPil

from model.processing import Batch, VideoReferProcessor
from model.request import ObjectRegion, Request

Make = Callable[..., Any]
MakeRequest = Callable[..., Request]
EXACT = ("mask_weights", "mask_boxes", "mask_times")


def moved_by_px(request: Request, left_px: int) -> Request:
    """The request with a square 300 px wide at `left_px` of 640 as its only object's mask, on frame 0."""
    mask = torch.zeros(360, 640, dtype=torch.bool).numpy()
    mask[20:320, left_px : left_px + 300] = True
    return request._replace(objects=(ObjectRegion((0,), (mask,)),))


@pytest.mark.parametrize("arguments", [("cpu", torch.bfloat16), (torch.device("cpu"), torch.bfloat16)])
def test_the_usual_cast_keeps_masks_boxes_and_times(
    tiny_config: Make, tiny_processor: Make, make_request: MakeRequest, arguments: tuple[Any, ...]
) -> None:
    processor = tiny_processor(tiny_config())
    before = processor([make_request(((0, 1, 3), (2,)), answer=None)])
    names = list(before)
    exact = {name: before[name].clone() for name in EXACT}
    after = before.to(*arguments)
    assert after is before
    assert list(after) == names
    assert after["pixel_values"].dtype == torch.bfloat16
    assert {after[name].dtype for name in names if name not in (*EXACT, "pixel_values")} == {torch.long}
    for name, value in exact.items():
        assert after[name].dtype == torch.float32
        assert torch.equal(after[name], value)


def test_a_cast_by_format_alone_or_by_name_is_the_same(
    tiny_config: Make, tiny_processor: Make, make_request: MakeRequest
) -> None:
    processor = tiny_processor(tiny_config())
    for arguments, named in (((torch.float16,), {}), ((), {"device": "cpu", "dtype": torch.float16})):
        batch = processor([make_request(answer=None)]).to(*arguments, **named)
        assert batch["pixel_values"].dtype == torch.float16
        assert all(batch[name].dtype == torch.float32 for name in EXACT)


def test_every_tensor_moves_to_the_device(tiny_config: Make, tiny_processor: Make, make_request: MakeRequest) -> None:
    batch = tiny_processor(tiny_config())([make_request(answer=None)]).to("meta", torch.bfloat16, non_blocking=True)
    assert {value.device.type for value in batch.values()} == {"meta"}
    assert batch["mask_boxes"].dtype == torch.float32


def test_a_move_of_three_pixels_is_told_after_the_usual_cast(
    tiny_config: Make, tiny_processor: Make, make_request: MakeRequest
) -> None:
    processor = tiny_processor(tiny_config())
    request = make_request(answer=None)
    here, there = (
        processor([moved_by_px(request, left_px)]).to("cpu", torch.bfloat16)["mask_boxes"] for left_px in (330, 333)
    )
    torch.testing.assert_close((there - here)[0], torch.tensor([3 / 640, 0, 3 / 640, 0]), rtol=1e-4, atol=1e-7)


def test_a_cast_batch_is_what_a_model_in_that_format_takes(
    tiny_config: Make, tiny_processor: Make, tiny_model: Make, make_request: MakeRequest
) -> None:
    config = tiny_config()
    batch = tiny_processor(config)([make_request(((0, 1),), answer=None)])
    model = tiny_model(config)
    with torch.no_grad():
        expected = model(**batch).logits
        got = model.bfloat16()(**batch.to("cpu", torch.bfloat16)).logits
    assert got.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(got.float().flatten(), expected.flatten(), dim=0) > 0.98


def test_a_batch_crosses_processes(tiny_config: Make, tiny_processor: Make, make_request: MakeRequest) -> None:
    batch = tiny_processor(tiny_config())([make_request(answer=None)])
    again = pickle.loads(pickle.dumps(batch))
    assert isinstance(again, Batch)
    assert all(torch.equal(again[name], batch[name]) for name in batch)
    assert again.to(torch.bfloat16)["mask_times"].dtype == torch.float32


def test_one_request_is_a_batch_of_one(tiny_config: Make, tiny_processor: Make, make_request: MakeRequest) -> None:
    processor = tiny_processor(tiny_config())
    request = make_request(((0,), (1, 2)), answer=None)
    alone, listed = processor(request), processor([request])
    assert list(alone) == list(listed)
    assert all(torch.equal(alone[name], listed[name]) for name in listed)
    assert torch.equal(processor(requests=request)["input_ids"], listed["input_ids"])


@pytest.mark.parametrize(
    ("positional", "named", "got"),
    [
        ((), {"text": "What?", "images": [1]}, "got text, images; .* requests"),
        ((), {}, "got nothing; .* requests"),
        (([],), {}, "got nothing; .* requests"),
        (("What?",), {}, "got str; .* requests"),
        ((["What?"],), {"return_tensors": "pt"}, "got return_tensors; .* requests"),
    ],
)
def test_what_other_processors_take_is_refused_by_name(
    tiny_config: Make, tiny_processor: Make, positional: tuple[Any, ...], named: dict[str, Any], got: str
) -> None:
    with pytest.raises(TypeError, match=got):
        tiny_processor(tiny_config())(*positional, **named)


@pytest.mark.parametrize(("num_frames", "steps"), [(4, 2), (5, 3), (1, 1)])
def test_paper_exact_shows_an_image_as_often_as_a_video_has_frames(
    tiny_config: Make, tiny_processor: Make, tiny_model: Make, make_request: MakeRequest, num_frames: int, steps: int
) -> None:
    config = tiny_config(paper_exact=True, num_frames=num_frames)
    processor, model = tiny_processor(config), tiny_model(config)
    request = make_request(((0,),), num_frames=1, is_image=True, answer=None)
    batch = processor(request)
    assert len(batch["pixel_values"]) == 1
    assert batch["scene_frame_index"].tolist() == [0] * num_frames
    assert batch["scene_num_frames"].tolist() == [num_frames]
    assert (batch["input_ids"] == processor.placeholder_id("<image>")).sum() == steps
    assert batch["mask_frame_index"].tolist() == [0]
    repeated = request._replace(
        scene=request.scene._replace(  # type: ignore[union-attr]
            frames=request.scene.frames.repeat(num_frames, 0),  # type: ignore[union-attr]
            times_s=tuple(range(num_frames)),
            shown=tuple(range(num_frames)),
            end_s=float(num_frames),
            is_image=False,
        ),
        messages=(request.messages[0]._replace(content=request.messages[0].content.replace("<image>", "<video>")),),
    )
    seen: list[int] = []
    model.vision_tower.register_forward_hook(lambda _module, _given, out: seen.append(len(out)))
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, model(**processor(repeated)).logits, atol=1e-5, rtol=0)
    assert seen == [1, num_frames]


def test_an_image_in_a_batch_of_paper_exact_leaves_the_others_as_they_are(
    tiny_config: Make, tiny_processor: Make, make_request: MakeRequest
) -> None:
    processor = tiny_processor(tiny_config(paper_exact=True))
    video, image = make_request(answer=None), make_request(num_frames=1, is_image=True, answer=None)
    batch = processor([video, image, video])
    assert batch["scene_frame_index"].tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 5, 6, 7, 8]
    assert batch["scene_num_frames"].tolist() == [4, 4, 4]


def test_an_image_of_the_published_sizes_takes_the_tokens_of_sixteen_frames(
    tiny_tokenizer: Any, make_request: MakeRequest
) -> None:
    image = make_request((), num_frames=1, is_image=True, answer=None)
    for paper_exact, tokens in ((True, 1352), (False, 169)):
        processor = VideoReferProcessor(
            SiglipImageProcessorPil(size={"height": 28, "width": 28}),
            tiny_tokenizer,
            (27, 27),
            16,
            (2, 2, 2),
            4,
            paper_exact,
            None,
        )
        assert (processor(image)["input_ids"] == processor.placeholder_id("<image>")).sum() == tokens
