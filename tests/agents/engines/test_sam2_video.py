"""With random weights masks mean nothing; what is shown is that sessions are kept small and joined without a trace."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from agents.engines.sam2_video import (
    FramePrompt,
    Sam2Video,
    Sam2VideoConfig,
    Step,
    stability_of,
    to_prompt_mask,
    without_returns,
)
from agents.engines.video_memory import to_pixels
from infra.video import Frames
from schemas.mask import decode

HEIGHT_PX, WIDTH_PX, NUM_FRAMES = 60, 100, 44
VIDEO: Frames = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
MEAN_RGB, STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Make = Callable[..., Sam2Video]
Logits = dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]
"""Mask logits and object scores by session and place."""


@pytest.fixture(scope="module")
def make(tiny_checkpoints: Any) -> Make:
    """The engine, loaded."""

    def made(**changes: Any) -> Sam2Video:
        engine = Sam2Video(Sam2VideoConfig(model=str(tiny_checkpoints.sam2), **changes))
        engine.setup()
        return engine

    return made


def boxes(count: int) -> npt.NDArray[np.bool_]:
    masks = np.zeros((count, HEIGHT_PX, WIDTH_PX), dtype=bool)
    for i in range(count):
        masks[i, 3 + 3 * i : 28 + 4 * i, 5 + 8 * i : 35 + 8 * i] = True
    return masks


def reader(video: Frames, asked: list[int] | None = None) -> Callable[[Sequence[int]], Frames]:
    def read(places: Sequence[int]) -> Frames:
        if asked is not None:
            asked.extend(places)
        return video[list(places)]

    return read


def run(engine: Sam2Video, prompts: Sequence[FramePrompt], video: Frames = VIDEO) -> Logits:
    steps = engine.steps(reader(video), len(video), prompts)
    return {(step.session, step.place): (step.logits, step.object_logits) for step in steps}


def whole_sessions(engine: Sam2Video, prompts: Sequence[FramePrompt]) -> Logits:
    """As transformers has it: a session per prompt frame that holds all frames and all outputs, forward, then back."""
    model = engine._model
    pixels = to_pixels(VIDEO, model.image_size, MEAN_RGB, STD_RGB, model)
    said: Logits = {}
    for number, prompt in enumerate(prompts):
        session = Sam2VideoInferenceSession(
            video=pixels, video_height=HEIGHT_PX, video_width=WIDTH_PX, dtype=torch.float32
        )
        for index, mask in enumerate(prompt.masks):
            given = to_prompt_mask(mask, model.image_size)
            session.add_mask_inputs(session.obj_id_to_idx(index), prompt.place, given)
        session.obj_with_new_inputs = list(range(len(prompt.masks)))
        for reverse in (False, True):
            for output in model.propagate_in_video_iterator(session, start_frame_idx=prompt.place, reverse=reverse):
                fresh = (output.pred_masks[:, 0].clone(), output.object_score_logits[:, 0].clone())
                if (number, output.frame_idx) in said:  # the sweep back begins on the prompt frame once more
                    assert output.frame_idx == prompt.place
                    assert torch.equal(said[number, output.frame_idx][0], fresh[0])
                said[number, output.frame_idx] = fresh
    return said


@pytest.mark.parametrize(("batch", "window"), [(1, 7), (1, 64), (5, 16)])
def test_a_session_that_forgets_says_bit_by_bit_what_a_whole_one_says(make: Make, batch: int, window: int) -> None:
    prompts = [FramePrompt(20, boxes(3)), FramePrompt(5, boxes(4)[3:])]
    engine = make(frames_per_batch=batch, frames_per_window=window)
    whole, bounded = whole_sessions(engine, prompts), run(engine, prompts)
    assert whole.keys() == bounded.keys() == {(s, place) for s in (0, 1) for place in range(NUM_FRAMES)}
    for key, (logits, scores) in whole.items():
        assert logits.shape == ((3, 32, 32) if key[0] == 0 else (1, 32, 32))
        if batch == 1:
            assert torch.equal(bounded[key][0], logits)
            assert torch.equal(bounded[key][1], scores)
        else:  # an encoder's batch may sum in another order
            assert torch.allclose(bounded[key][0], logits, atol=1e-3)
    # which is only worth something if the past matters: a clip cut behind the prompt frame says otherwise
    cut = run(engine, [FramePrompt(0, boxes(3))], VIDEO[19:])
    assert not torch.allclose(cut[0, 5][0], bounded[0, 24][0], atol=1e-2)


def test_a_session_of_eight_says_of_each_object_what_a_session_of_one_says(make: Make) -> None:
    engine = make()
    masks = boxes(8)
    together = run(engine, [FramePrompt(10, masks)])
    apart = []
    for index in range(8):
        alone = run(engine, [FramePrompt(10, masks[index : index + 1])])
        for key, (logits, scores) in alone.items():
            # memories are kept in bfloat16, so a sum in another order may round otherwise
            assert torch.allclose(logits[0], together[key][0][index], atol=2e-3)
            assert torch.allclose(scores[0], together[key][1][index], atol=2e-3)
            others = torch.cat([together[key][0][:index], together[key][0][index + 1 :]])
            apart.append(float((others - logits).abs().amax(dim=(1, 2)).min()))
    assert min(apart) > 5e-3  # no other object's logits would have passed


def test_back_is_forward_on_the_mirrored_clip_and_both_meet_on_the_prompt_frame(make: Make) -> None:
    """`whole_sessions` has the other half of it: both sweeps say the same of the prompt frame itself."""
    engine = make(frames_per_batch=1)
    last = NUM_FRAMES - 1
    back = run(engine, [FramePrompt(last, boxes(2))])
    forward = run(engine, [FramePrompt(0, boxes(2))], VIDEO[::-1])
    assert len(back) == len(forward) == NUM_FRAMES
    for place in range(NUM_FRAMES):
        assert torch.allclose(back[0, place][0], forward[0, last - place][0], atol=1e-4)
    given = torch.cat([to_prompt_mask(mask, 128) for mask in boxes(2)])[:, 0]
    small = torch.nn.functional.interpolate(given[:, None], (32, 32), mode="bilinear", antialias=True)[:, 0]
    assert torch.allclose(back[0, last][0], small * 20 - 10, atol=1e-3)


def test_sessions_of_several_prompt_frames_share_each_frame_and_do_not_touch_one_another(make: Make) -> None:
    engine = make(frames_per_batch=1)
    prompts = [FramePrompt(30, boxes(1)), FramePrompt(4, boxes(3)[1:]), FramePrompt(12, boxes(4)[3:])]
    encoded: list[int] = []
    engine._model.vision_encoder.register_forward_hook(lambda _, args, outputs: encoded.append(len(args[0])))
    asked: list[int] = []
    steps = list(engine.steps(reader(VIDEO, asked), NUM_FRAMES, prompts))
    assert asked == [*range(4, NUM_FRAMES), *range(29, -1, -1)]
    assert sum(encoded) == len(asked)
    joined = {(step.session, step.place): step.logits for step in steps}
    assert len(joined) == len(steps) == 3 * NUM_FRAMES
    for number, prompt in enumerate(prompts):
        for (_, place), (logits, _) in run(engine, [prompt]).items():
            assert torch.equal(joined[number, place], logits)


def held_bytes(session: Any) -> int:
    """Bytes of every tensor that a session keeps hold of, each storage once."""
    found: dict[int, int] = {}
    for value in _tensors(vars(session)) | _tensors(vars(session.cache)):
        storage = value.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def held_bytes_of_one_memory(session: Any) -> int:
    """Of the four objects together."""
    outputs = session.output_dict_per_obj[0]["cond_frame_outputs"]
    return sum(int(output["maskmem_features"].untyped_storage().nbytes()) for output in outputs.values())


def _tensors(value: Any) -> set[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {value}
    inner: Iterator[Any] = iter(())
    if isinstance(value, dict):
        inner = iter(value.values())
    elif isinstance(value, list | tuple):
        inner = iter(value)
    return {tensor for item in inner for tensor in _tensors(item)}


def test_what_a_session_holds_does_not_grow_with_the_clip(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(frames_per_batch=1)
    sessions: list[Any] = []
    make_session = engine._session
    monkeypatch.setattr(engine, "_session", lambda *args: sessions.append(make_session(*args)) or sessions[-1])
    video = np.concatenate([VIDEO, VIDEO, VIDEO])
    sizes = {
        (step.place >= 10, step.place): held_bytes(sessions[0])
        for step in engine.steps(reader(video), len(video), [FramePrompt(10, boxes(4))])
    }
    forward = [sizes[True, place] for place in range(10, len(video))]
    back = [sizes[False, place] for place in range(10)]
    settled = max(forward[:50])
    assert max(forward) == settled
    assert max(back) <= settled
    whole = sessions[0].output_dict_per_obj.values()
    assert all(len(outputs["non_cond_frame_outputs"]) <= 15 for outputs in whole)
    assert settled > 10 * held_bytes_of_one_memory(sessions[0])  # the measure sees what is held


def test_masks_leave_as_run_lengths_at_the_videos_size_in_the_order_of_the_prompts(make: Make) -> None:
    engine = make(min_stability=0.0)
    prompts = [FramePrompt(20, boxes(3)), FramePrompt(5, boxes(4)[3:])]
    size_px = (90, 150)
    masklets = engine.masklets(reader(VIDEO), NUM_FRAMES, size_px, prompts)
    said = run(engine, prompts)
    assert len(masklets) == 4
    for (session, index), masklet in zip([(0, 0), (0, 1), (0, 2), (1, 0)], masklets, strict=True):
        assert len(masklet.rle) == NUM_FRAMES
        assert sum(counts is not None for counts in masklet.rle) > NUM_FRAMES / 2
        for place, counts in enumerate(masklet.rle):
            native = enlarged(said[session, place][0][index].double().numpy(), *size_px)
            if counts is not None:
                sure = np.abs(native) > 1e-4
                assert np.array_equal(decode(counts, *size_px)[sure], (native > 0)[sure])
            else:
                assert (native > 1e-4).sum() < engine.config.min_area_px
    assert all(0 < masklet.stability <= 1 for masklet in masklets)


def enlarged(values: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.float64]:
    """Bilinear between pixel centres, the outermost repeated."""

    def weights(length: int, wanted: int) -> npt.NDArray[np.float64]:
        matrix = np.zeros((wanted, length))
        for i in range(wanted):
            at = min(max((i + 0.5) * length / wanted - 0.5, 0), length - 1)
            low = int(at)
            matrix[i, low] += 1 - (at - low)
            matrix[i, min(low + 1, length - 1)] += at - low
        return matrix

    return weights(values.shape[0], height) @ values @ weights(values.shape[1], width).T


def test_an_object_is_out_of_sight_by_score_stability_or_size(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    solid, faint, tiny = torch.full((8, 8), 5.0), torch.full((8, 8), 0.5), torch.full((8, 8), -5.0)
    tiny[0, 0] = 5.0
    said = [
        Step(0, 0, torch.stack([solid, solid]), torch.tensor([4.0, 4.0])),
        Step(0, 1, torch.stack([solid, faint]), torch.tensor([-1.0, 4.0])),
        Step(0, 2, torch.stack([tiny, solid]), torch.tensor([4.0, 0.5])),
    ]
    monkeypatch.setattr(Sam2Video, "steps", lambda *args: iter(said))
    prompt = FramePrompt(0, np.ones((2, 8, 8), dtype=bool))
    one, two = make().masklets(reader(VIDEO), 3, (8, 8), [prompt])
    assert [counts is not None for counts in one.rle] == [True, False, False]
    assert [counts is not None for counts in two.rle] == [True, False, True]
    _, strict = make(min_object_logit=1.0).masklets(reader(VIDEO), 3, (8, 8), [prompt])
    assert [counts is not None for counts in strict.rle] == [True, False, False]
    _, lenient = make(min_stability=0.0).masklets(reader(VIDEO), 3, (8, 8), [prompt])
    assert [counts is not None for counts in lenient.rle] == [True, True, True]
    assert (two.stability, lenient.stability) == (1.0, pytest.approx(2 / 3))


def test_stability_is_the_share_of_the_area_that_a_stricter_cut_leaves() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 9, 9)) * np.array([0, 0.5, 1, 4, 50])[:, None, None]
    for delta in (0.5, 1.0):
        expected = [(one > delta).sum() / max((one > -delta).sum(), 1) for one in logits]
        assert stability_of(torch.from_numpy(logits), delta).tolist() == pytest.approx(expected)
    assert stability_of(torch.full((1, 4, 4), -9.0), 1.0).tolist() == [0]


@pytest.mark.parametrize(
    ("seen", "start", "kept"),
    [
        ("xxxxxxxxx", 4, "xxxxxxxxx"),
        ("xxxxx..xx", 4, "xxxxx..xx"),  # a gap of two is bridged
        ("xxxxx...x", 4, "xxxxx...."),  # of three it is not
        ("x...x..xx", 4, "....x..xx"),  # each way for itself
        ("x...x...x", 4, "....x...."),
        ("...x.x.xx", 3, "...x.x.xx"),
        ("xx.....xx", 4, "........."),  # out of sight where it began
    ],
)
def test_what_comes_back_after_too_long_is_not_taken_for_the_object(seen: str, start: int, kept: str) -> None:
    rle = ["counts" if char == "x" else None for char in seen]
    got = without_returns(rle, start, max_gap_frames=2)
    assert "".join("x" if counts else "." for counts in got) == kept


def test_out_of_memory_in_the_encoder_halves_the_frames_and_changes_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [FramePrompt(10, boxes(2))]
    expected = run(make(frames_per_batch=2), prompts)
    engine = make(frames_per_batch=16)
    encode = engine._model.get_image_features
    sizes: list[int] = []

    def crowded(pixels: torch.Tensor, **more: Any) -> Any:
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return encode(pixels, **more)

    monkeypatch.setattr(engine._model, "get_image_features", crowded)
    got = run(engine, prompts)
    assert sizes[:4] == [16, 8, 4, 2]
    assert max(sizes[4:]) == 2
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key][0], expected[key][0]) for key in got)


def test_it_runs_in_bfloat16(make: Make) -> None:
    engine = make(dtype="bfloat16", min_stability=0.0)
    prompts = [FramePrompt(3, boxes(2))]
    masklets = engine.masklets(reader(VIDEO), 10, (HEIGHT_PX, WIDTH_PX), prompts)
    exact = make(dtype="float32", min_stability=0.0).masklets(reader(VIDEO), 10, (HEIGHT_PX, WIDTH_PX), prompts)
    for one, other in zip(masklets, exact, strict=True):
        assert one.rle[3] == other.rle[3]  # the prompt frame's mask is the given one
        assert None not in one.rle
    assert engine.masklets(reader(VIDEO), 10, (HEIGHT_PX, WIDTH_PX), []) == []
