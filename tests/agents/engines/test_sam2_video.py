"""With random weights masks mean nothing; what is shown is that objects are joined and the past kept small, without a
trace.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from agents.engines.sam2_step import ObjectBatch
from agents.engines.sam2_video import (
    FramePrompt,
    Sam2Video,
    Sam2VideoConfig,
    Step,
    split,
    stability_of,
    to_prompt_mask,
    without_returns,
)
from agents.engines.video_memory import to_pixels
from infra.video import Frames
from schemas.mask import decode

HEIGHT_PX, WIDTH_PX, NUM_FRAMES = 60, 100, 36
VIDEO: Frames = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
MEAN_RGB, STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Make = Callable[..., Sam2Video]
Logits = dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]
"""Mask logits and object scores by prompt and place."""


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
    return {(step.prompt, step.place): (step.logits, step.object_logits) for step in steps}


def whole_sessions(engine: Sam2Video, prompts: Sequence[FramePrompt]) -> Logits:
    """As transformers has it: a session per prompt frame that holds all frames and all outputs, forward, then back."""
    model = engine._model
    pixels = to_pixels(VIDEO, model.image_size, MEAN_RGB, STD_RGB, model)
    said: Logits = {}
    for number, prompt in enumerate(prompts):
        session = Sam2VideoInferenceSession(
            video=pixels, video_height=HEIGHT_PX, video_width=WIDTH_PX, dtype=model.dtype
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


def losing_and_finding(engine: Sam2Video) -> Sam2Video:
    """The engine with an object score that turns on what is seen, about as often above 0 as below."""
    scores = torch.cat([scores for _, scores in run(engine, [FramePrompt(17, boxes(4))]).values()])
    head = engine._model.mask_decoder.pred_obj_score_head.proj_out
    with torch.no_grad():
        head.weight *= 20
        head.bias.copy_(20 * (head.bias - scores.median()))
    return engine


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (8, 5)])
def test_objects_in_one_batch_are_told_what_transformers_tells_of_one_after_another(
    make: Make, count: int, batch: int
) -> None:
    prompts = [FramePrompt(17, boxes(count)), FramePrompt(5, boxes(4)[3:])]
    engine = make(frames_per_batch=batch)
    one_by_one, joined = whole_sessions(engine, prompts), run(engine, prompts)
    assert one_by_one.keys() == joined.keys() == {(s, place) for s in (0, 1) for place in range(NUM_FRAMES)}
    for key, (logits, scores) in one_by_one.items():
        assert logits.shape == ((count, 32, 32) if key[0] == 0 else (1, 32, 32))
        # memories are kept in bfloat16, so a sum in another order may round otherwise
        assert torch.allclose(joined[key][0], logits, atol=2e-3)
        assert torch.allclose(joined[key][1], scores[:, 0] if scores.dim() > 1 else scores, atol=2e-3)
    # which is only worth something if the past matters: a clip cut behind the prompt frame says otherwise
    cut = run(engine, [FramePrompt(0, boxes(count))], VIDEO[16:22])
    assert not torch.allclose(cut[0, 5][0], joined[0, 21][0], atol=1e-2)


def test_lost_and_found_again_in_one_batch_as_one_after_another(make: Make) -> None:
    engine = losing_and_finding(make(frames_per_batch=1))
    prompts = [FramePrompt(17, boxes(4))]
    one_by_one, joined = whole_sessions(engine, prompts), run(engine, prompts)
    in_sight = torch.stack([joined[0, place][1] > 0 for place in range(NUM_FRAMES)])
    turns = (in_sight[1:] != in_sight[:-1]).sum(dim=0)
    assert turns.min() >= 4
    for key, (logits, scores) in one_by_one.items():
        assert torch.equal(joined[key][1] > 0, scores > 0)
        assert torch.allclose(joined[key][1], scores, atol=1e-2)  # 20 times as steep
        assert torch.allclose(joined[key][0], logits, atol=2e-3)


def test_in_bfloat16_one_batch_is_as_near_to_float32_as_one_after_another(make: Make) -> None:
    prompts = [FramePrompt(17, boxes(2))]
    exact = run(make(dtype="float32"), prompts)

    def error(said: Logits) -> float:
        return float(torch.stack([(said[key][0].float() - exact[key][0]).abs().mean() for key in exact]).mean())

    engine = make(dtype="bfloat16")
    assert error(run(engine, prompts)) < 1.1 * error(whole_sessions(engine, prompts))


def test_what_is_forgotten_is_not_missed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [FramePrompt(17, boxes(2)), FramePrompt(5, boxes(4)[3:])]
    bounded = run(make(frames_per_batch=1, frames_per_window=7), prompts)
    monkeypatch.setattr(ObjectBatch, "_forget", lambda *args: None)
    whole = run(make(frames_per_batch=1), prompts)
    assert whole.keys() == bounded.keys()
    assert all(torch.equal(said, other) for key in whole for said, other in zip(whole[key], bounded[key], strict=True))


class Operations(TorchDispatchMode):
    """Names of all torch operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_a_step_has_as_many_operations_for_eight_objects_as_for_one_and_waits_for_none(make: Make) -> None:
    engine = make()
    features = list(engine._encoded(reader(VIDEO), range(20)))
    names: dict[int, list[str]] = {}
    for count in (1, 8):
        batch = engine._object_batch(FramePrompt(0, boxes(count)), NUM_FRAMES)
        for place, levels in features[:-1]:
            batch.step(place, levels, False)
        with Operations() as operations, torch.inference_mode():
            batch.step(*features[-1], False)
        names[count] = operations.names
    assert len(names[8]) == len(names[1]) > 100
    # a figure brought to the device or read from it: everything there is waited for
    assert not {"aten::lift_fresh", "aten::_local_scalar_dense", "aten::nonzero"} & {*names[8]}


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
    joined = {(step.prompt, step.place): step.logits for step in steps}
    assert len(joined) == len(steps) == 3 * NUM_FRAMES
    for number, prompt in enumerate(prompts):
        for (_, place), (logits, _) in run(engine, [prompt]).items():
            assert torch.equal(joined[number, place], logits)


def held_bytes(batch: ObjectBatch) -> int:
    """Bytes of every tensor that objects keep hold of but for the model's, each storage once."""
    tensors = _tensors({name: value for name, value in vars(batch).items() if name != "_model"})
    return sum({(own := value.untyped_storage()).data_ptr(): own.nbytes() for value in tensors}.values())


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
    batches: list[ObjectBatch] = []
    make_batch = engine._object_batch
    monkeypatch.setattr(engine, "_object_batch", lambda *args: batches.append(make_batch(*args)) or batches[-1])
    video = np.concatenate([VIDEO, VIDEO, VIDEO])
    sizes = {
        step.place: held_bytes(batches[0])
        for step in engine.steps(reader(video), len(video), [FramePrompt(10, boxes(4))])
    }
    forward, back = [sizes[place] for place in range(10, len(video))], [sizes[place] for place in range(10)]
    settled = max(forward[:50])
    assert max(forward) == settled
    assert max(back) <= settled
    memory = batches[0]._given.memory.untyped_storage().nbytes()
    assert memory == 4 * 8 * 8 * 64 * 2  # of all objects, in bfloat16
    assert settled > 10 * memory  # the measure sees what is held


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
    engine = make(frames_per_batch=16, frames_per_window=16)
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


def test_out_of_memory_in_a_step_begins_the_clip_again_with_half_the_objects(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [FramePrompt(10, boxes(7)), FramePrompt(3, boxes(8)[7:])]
    tried: list[int] = []
    attend = ObjectBatch._recalled

    def crowded(batch: ObjectBatch, *args: Any) -> Any:
        tried.append(batch._num_objects)
        if batch._num_objects > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return attend(batch, *args)

    monkeypatch.setattr(ObjectBatch, "_recalled", crowded)
    size_px, most = (HEIGHT_PX, WIDTH_PX), 8
    expected = make(min_stability=0.0, objects_per_batch=1).masklets(reader(VIDEO), 14, size_px, prompts)
    engine, most = make(min_stability=0.0), 2
    got = engine.masklets(reader(VIDEO), 14, size_px, prompts)
    assert [len(masklet.rle) for masklet in got] == [14] * 8
    assert all(
        one.rle[place] == other.rle[place] for one, other in zip(got, expected, strict=True) for place in (3, 10)
    )
    assert [one.stability for one in got] == pytest.approx([one.stability for one in expected], abs=1e-3)
    assert engine._objects_per_batch == 1  # 7, then 3, then 1
    most = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        engine.masklets(reader(VIDEO), 14, size_px, prompts)
    assert tried[-1] == 1


def test_many_objects_of_a_frame_are_split(make: Make) -> None:
    prompts = [FramePrompt(4, boxes(5)), FramePrompt(2, boxes(2))]
    parts = split(prompts, 2)
    assert [(part.place, len(part.masks)) for part in parts] == [(4, 2), (4, 2), (4, 1), (2, 2)]
    assert np.array_equal(np.concatenate([part.masks for part in parts]), np.concatenate([boxes(5), boxes(2)]))
    together = make(min_stability=0.0).masklets(reader(VIDEO), 8, (HEIGHT_PX, WIDTH_PX), prompts)
    apart = make(min_stability=0.0, objects_per_batch=2).masklets(reader(VIDEO), 8, (HEIGHT_PX, WIDTH_PX), prompts)
    assert [one.stability for one in together] == pytest.approx([one.stability for one in apart], abs=1e-3)


def test_the_sweep_back_is_read_ahead_during_the_sweep_forward(make: Make) -> None:
    windows: list[list[int]] = []
    all_is_read = threading.Event()

    def read(places: Sequence[int]) -> Frames:
        windows.append(list(places))
        if 0 in places:
            all_is_read.set()
        return VIDEO[list(places)]

    for step in make(frames_per_window=4).steps(read, 10, [FramePrompt(4, boxes(1))]):
        if step.place == 9:  # the last one forward
            assert all_is_read.wait(timeout=10)
    assert windows == [[4, 5, 6, 7], [8, 9, 3, 2], [1, 0]]


def test_it_runs_in_bfloat16(make: Make) -> None:
    engine = make(dtype="bfloat16", min_stability=0.0)
    prompts = [FramePrompt(3, boxes(2))]
    masklets = engine.masklets(reader(VIDEO), 10, (HEIGHT_PX, WIDTH_PX), prompts)
    exact = make(dtype="float32", min_stability=0.0).masklets(reader(VIDEO), 10, (HEIGHT_PX, WIDTH_PX), prompts)
    for one, other in zip(masklets, exact, strict=True):
        assert one.rle[3] == other.rle[3]  # the prompt frame's mask is the given one
        assert None not in one.rle
    assert engine.masklets(reader(VIDEO), 10, (HEIGHT_PX, WIDTH_PX), []) == []
