"""With random weights masks mean nothing; what is shown is that a session that forgets says what a whole one says."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

from agents.engines.sam3_video import Sam3Tracker, Sam3TrackerConfig, apart
from agents.engines.video_memory import to_pixels
from infra.video import Frames
from schemas.clip import Clip
from schemas.mask import decode, rle_iou
from schemas.track import ObjectMasks

HEIGHT_PX, WIDTH_PX, NUM_FRAMES, FIRST = 60, 100, 44, 7
VIDEO: Frames = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
NOUNS = ("dog", "red car")
HALF = (0.5, 0.5, 0.5)
PARTS = ("maskmem_features", "pred_masks")
POINTERS = ("object_pointer", "object_score_logits")
"""Small, and kept for every prompted frame, which SAM 3 reads."""

Make = Callable[..., Sam3Tracker]


def clip_of(num_frames: int) -> Clip:
    return Clip(
        clip_id="c",
        source_id="s",
        video="v.mp4",
        video_sha256="0" * 64,
        license="",
        start_s=FIRST / 8,
        end_s=(FIRST + num_frames) / 8,
        start_frame=FIRST,
        end_frame=FIRST + num_frames,
        fps=8,
        height_px=HEIGHT_PX,
        width_px=WIDTH_PX,
        caption="a dog",
    )


class ArrayFrames:
    def __init__(self, video: Frames) -> None:
        self.video = video

    def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        return self.video[[index - FIRST for index in frame_idx]]

    def times_s(self, clip: Clip, frame_idx: Sequence[int]) -> tuple[float, ...]:
        return tuple(index / clip.fps for index in frame_idx)


@pytest.fixture(scope="module")
def make(tiny_checkpoints: Any) -> Make:
    """The engine, loaded. Whatever overlaps is taken for the same object: so random weights find some on the first
    frame, find them again on all others (which SAM 3 takes as a prompt on every fifth), and some prove to be doubles.
    """

    def made(video: Frames = VIDEO, **changes: Any) -> Sam3Tracker:
        config = {"model": str(tiny_checkpoints.sam3), "min_score": 0.2, "min_new_score": 0.2} | changes
        tracker = Sam3Tracker(Sam3TrackerConfig(**config), ArrayFrames(video))
        tracker.setup()
        model = tracker._model
        model.assoc_iou_thresh = model.trk_assoc_iou_thresh = 0.001
        model.high_conf_thresh = model.high_iou_thresh = 0.0
        model.recondition_every_nth_frame = 5
        return tracker

    return made


def track(tracker: Sam3Tracker, clip: Clip, nouns: Sequence[str]) -> list[ObjectMasks]:
    """A clip alone."""
    (found,) = tracker.track_many([(clip, nouns)])
    return found


def by_a_whole_session(tracker: Sam3Tracker) -> tuple[dict[int, dict[int, npt.NDArray[np.bool_]]], Any]:
    """Masks by object and place: transformers' own sweep over a session with all frames, then its processor's rules."""
    model = tracker._model
    pixels = to_pixels(VIDEO, model.config.image_size, HALF, HALF, model)
    session = Sam3VideoInferenceSession(video=pixels, dtype=torch.float32)
    for noun in NOUNS:
        text = tracker._tokenizer(noun, return_tensors="pt", padding="max_length", max_length=32)
        number = session.add_prompt(noun)
        session.prompt_input_ids[number], session.prompt_attention_masks[number] = text.input_ids, text.attention_mask
    found: dict[int, dict[int, npt.NDArray[np.bool_]]] = {}
    for output in model.propagate_in_video_iterator(session):  # which holds frames back until objects are confirmed
        hidden = session.hotstart_removed_obj_ids | set(output.suppressed_obj_ids)
        shown = sorted(number for number in output.obj_id_to_mask if number not in hidden)
        logits = [output.obj_id_to_mask[number][None] for number in shown]
        large = [
            torch.nn.functional.interpolate(one, (HEIGHT_PX, WIDTH_PX), mode="bilinear")[0, 0] > 0 for one in logits
        ]
        for number, mask in zip(shown, large, strict=True):
            own = mask.numpy().copy()
            for other, other_mask in zip(shown, large, strict=True):
                scores = [output.obj_id_to_tracker_score[each] for each in (other, number)]
                same_noun = session.obj_id_to_prompt_id[other] == session.obj_id_to_prompt_id[number]
                if same_noun and (scores[0] > scores[1] or (scores[0] == scores[1] and other < number)):
                    own &= ~other_mask.numpy()
            if own.sum() >= tracker.config.min_area_px:
                found.setdefault(number, {})[output.frame_idx] = own
    return found, session


@pytest.mark.slow
@pytest.mark.parametrize("window", [6, 64])
def test_a_session_that_forgets_says_bit_by_bit_what_a_whole_one_says(make: Make, window: int) -> None:
    whole, session = by_a_whole_session(make())
    again = max(len(outputs["cond_frame_outputs"]) for outputs in session.output_dict_per_obj.values())
    assert again > make()._model.tracker_model.config.max_cond_frame_num  # more prompted frames than are read
    assert session.removed_obj_ids  # and objects that SAM 3 takes back
    found = track(make(frames_per_window=window), clip_of(NUM_FRAMES), NOUNS)
    expected = sorted(
        (session.prompts[session.obj_id_to_prompt_id[number]], float(session.obj_id_to_score[number]), masks)
        for number, masks in whole.items()
    )
    got = sorted((item.detector_class, item.score, masks_of(item)) for item in found)
    assert len(got) == len(expected) >= 2
    for one, other in zip(got, expected, strict=True):
        assert one[:2] == other[:2]
        assert one[2].keys() == other[2].keys()
        assert all(np.array_equal(one[2][place], other[2][place]) for place in one[2])


def masks_of(item: ObjectMasks) -> dict[int, npt.NDArray[np.bool_]]:
    assert item.frame_idx == tuple(range(FIRST, FIRST + NUM_FRAMES))
    return {place: decode(counts, HEIGHT_PX, WIDTH_PX) for place, counts in enumerate(item.rle) if counts}


def test_tracks_have_the_clips_size_and_times_and_come_best_first(make: Make) -> None:
    found = track(make(), clip_of(NUM_FRAMES), NOUNS)
    assert {item.detector_class for item in found} <= set(NOUNS)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    assert all((item.height_px, item.width_px) == (HEIGHT_PX, WIDTH_PX) for item in found)
    assert all(item.frame_time_s == tuple(index / 8 for index in item.frame_idx) for item in found)


def test_the_order_of_nouns_changes_nothing_and_no_noun_means_no_work(make: Make) -> None:
    tracker = make()
    clip = clip_of(10)
    assert track(tracker, clip, NOUNS) == track(tracker, clip, (*NOUNS[::-1], "dog"))
    assert track(tracker, clip, []) == []
    assert track(Sam3Tracker(tracker.config, ArrayFrames(VIDEO)), clip, []) == []  # not even a model


def test_each_clip_of_a_batch_has_what_it_has_alone(make: Make) -> None:
    tracker = make()
    asked = [(clip_of(3), ["red car"]), (clip_of(2), ()), (clip_of(2), NOUNS)]
    found = tracker.track_many(asked)
    assert found == [track(tracker, clip, nouns) for clip, nouns in asked]
    assert [{len(item.rle) for item in own} for own in found] == [{3}, set(), {2}]


def test_thresholds_and_the_number_of_objects_are_those_of_the_profile(make: Make) -> None:
    assert track(make(min_score=0.99), clip_of(10), NOUNS) == []
    found = {}
    for limit in (0.2, 0.99):
        tracker = make(min_new_score=limit, max_objects=12)
        tracker._model.assoc_iou_thresh = 1.1  # nothing is taken for the same object
        tracker._model.hotstart_delay = 0  # and nothing is taken back
        found[limit] = len(track(tracker, clip_of(4), NOUNS))
    assert found[0.2] == 12
    assert 0 < found[0.99] <= 10  # those of the first frame alone: each noun has five queries


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Those that a session keeps hold of, wherever in it."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
    elif hasattr(value, "__dict__"):
        yield from tensors_of(vars(value))


def held_bytes(value: Any) -> int:
    """Bytes of their storages, each once: a small part of a large tensor keeps all of it."""
    storages = [tensor.untyped_storage() for tensor in tensors_of(value)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.slow
def test_what_a_session_holds_does_not_grow_with_the_clip(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = make(np.concatenate([VIDEO, VIDEO]), max_objects=8)
    tracker._model.hotstart_delay = 0  # no object is taken back: their number is fixed
    tracker._model.new_det_thresh = 0.2
    step = tracker._step
    held: list[int] = []
    numbers: set[int] = set()
    parts: dict[str, int] = {}

    def measured(session: Any, *args: Any) -> Any:
        seen = step(session, *args)
        outputs = [
            output
            for kinds in session.output_dict_per_obj.values()
            for kind in kinds.values()
            for output in kind.values()
        ]
        numbers.add(len(session.output_dict_per_obj))
        parts.update({name: value.nbytes for output in outputs for name, value in output.items() if name in PARTS})
        held.append(held_bytes(session) - held_bytes([output[name] for output in outputs for name in POINTERS]))
        assert len(session.obj_id_to_tracker_score_frame_wise) <= 1
        assert len(session.suppressed_obj_ids) <= 1
        return seen

    monkeypatch.setattr(tracker, "_step", measured)
    track(tracker, clip_of(2 * NUM_FRAMES), NOUNS)
    assert len(held) == 2 * NUM_FRAMES
    assert numbers == {8}
    # per object, what was seen on the last frames and on as many prompted ones as are read, with the masks of these
    memory, mask = (parts[name] for name in PARTS)
    assert max(held) <= held[0] + 8 * ((6 + 4) * memory + 4 * mask)
    assert max(held) > held[0] + 8 * 9 * memory  # which is reached


def test_overlapping_masks_of_one_noun_are_set_apart_by_score_and_of_two_nouns_left() -> None:
    rng = np.random.default_rng(0)
    masks = {number: rng.random((9, 9)) < 0.6 for number in (4, 1, 7, 2)}
    prompts, scores = {4: 0, 1: 0, 7: 0, 2: 1}, {4: 0.5, 1: 0.5, 2: 0.1}
    result = apart(masks, prompts, scores)
    assert list(result) == [1, 2, 4, 7]
    for y in range(9):
        for x in range(9):
            claims = sorted((-scores.get(n, 0), n) for n in masks if masks[n][y, x] and prompts[n] == 0)
            assert [n for n in (1, 4, 7) if result[n][y, x]] == [n for _, n in claims[:1]]
            assert result[2][y, x] == masks[2][y, x]


def test_pixels_and_words_go_in_as_the_documentation_has_it(make: Make) -> None:
    """Squeezed to the model's square, scaled to -1 to 1; text in 32 tokens, longer ones cut."""
    tracker = make()
    seen: list[torch.Tensor] = []
    tracker._model.detector_model.vision_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"] if kwargs else args[0]), with_kwargs=True
    )
    long_noun = "dog " * 30
    track(tracker, clip_of(2), ["dog", long_noun])
    assert [tuple(pixels.shape) for pixels in seen] == [(1, 3, 112, 112)] * 2
    assert torch.equal(seen[1], to_pixels(VIDEO[1:2], 112, HALF, HALF, tracker._model))
    session = tracker._session(["dog", long_noun], 2)
    assert [tuple(ids.shape) for ids in session.prompt_input_ids.values()] == [(1, 32), (1, 32)]
    assert session.prompt_attention_masks[0].sum() == 5  # start, d, o, g, end
    assert session.prompt_attention_masks[1].sum() == 32


def test_its_label_is_the_folders_name_and_content_and_what_shapes_its_output(make: Make) -> None:
    tracker = make()
    (label,) = tracker.weights()
    assert label.startswith("tiny-sam3@")
    assert tracker.settings()["tracker"]["min_score"] == 0.2
    assert "model" not in tracker.settings()["tracker"]


def test_in_bfloat16_it_finds_what_it_finds_in_float32(make: Make) -> None:
    """Up to rounding; the two objects overlap, so masks are told from one another by more than 0.8."""
    exact, rounded = (track(make(dtype=dtype), clip_of(6), NOUNS) for dtype in ("float32", "bfloat16"))
    assert exact != rounded
    assert [item.detector_class for item in exact] == [item.detector_class for item in rounded] == ["dog", "red car"]
    for one, other in zip(exact, rounded, strict=True):
        assert one.score == pytest.approx(other.score, rel=0.03)
        assert rle_iou(one.rle, other.rle, (HEIGHT_PX, WIDTH_PX)) > 0.9
        assert [counts is None for counts in one.rle] == [counts is None for counts in other.rle]
    assert rle_iou(exact[0].rle, rounded[1].rle, (HEIGHT_PX, WIDTH_PX)) < 0.8
