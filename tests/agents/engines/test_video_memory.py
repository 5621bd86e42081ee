from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from agents.engines import video_memory
from agents.engines.sam2_video import to_prompt_mask
from agents.engines.video_memory import PassingFrame, forget, to_counts, to_pixels, to_runs, to_solid
from infra.video import Frames
from schemas.mask import encode, run_lengths

ON_CPU = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)


def triangles(length: int, wanted: int) -> npt.NDArray[np.float64]:
    """(wanted, length): bilinear with antialiasing, a triangle as wide as the pixels that a new one stands for."""
    scale = length / wanted
    support = max(scale, 1.0)
    matrix = np.zeros((wanted, length))
    for i in range(wanted):
        centre = (i + 0.5) * scale
        low, high = max(0, int(centre - support + 0.5)), min(length, int(centre + support + 0.5))
        matrix[i, low:high] = [max(0.0, 1 - abs((k + 0.5 - centre) / support)) for k in range(low, high)]
    return matrix / matrix.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(60, 100), (100, 37), (200, 300), (48, 48), (17, 9)])
def test_pixels_are_squeezed_with_antialiasing_rounded_and_normalised(size: tuple[int, int]) -> None:
    frames: Frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = to_pixels(frames, 48, mean, std, ON_CPU)
    assert (pixels.shape, pixels.dtype) == ((2, 3, 48, 48), torch.float32)
    rows, columns = triangles(size[0], 48), triangles(size[1], 48)
    small = np.einsum("ih,nhwc,jw->nijc", rows, frames.astype(float), columns)
    levels = (pixels.permute(0, 2, 3, 1).double().numpy() * std + mean) * 255
    assert np.abs(levels - levels.round()).max() < 1e-3
    certain = np.abs(small - np.floor(small) - 0.5) > 1e-3
    assert certain.mean() > 0.95
    assert np.array_equal(levels.round()[certain], np.clip(small.round(), 0, 255)[certain])


def test_pixels_have_the_models_number_format() -> None:
    frames: Frames = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
    pixels = to_pixels(frames[:, ::-1], 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), model)
    assert pixels.dtype == torch.bfloat16
    assert bool((pixels == -1).all())


def test_a_prompt_mask_is_squeezed_with_antialiasing_and_cut_at_one_half() -> None:
    mask = np.random.default_rng(1).random((60, 100)) < 0.5
    share = triangles(60, 48) @ mask.astype(float) @ triangles(100, 48).T
    certain = np.abs(share - 0.5) > 1e-5
    got = to_prompt_mask(mask, 48)
    assert (got.shape, set(got.unique().tolist())) == ((1, 1, 48, 48), {0.0, 1.0})
    assert np.array_equal(got[0, 0].numpy()[certain] > 0, share[certain] > 0.5)
    same = np.eye(48, dtype=bool)
    assert np.array_equal(to_prompt_mask(same, 48)[0, 0].numpy() > 0, same)


def test_logits_are_enlarged_before_they_are_cut() -> None:
    logits = torch.tensor([[[-1.0, 3.0]], [[3.0, -1.0]]])
    masks = to_solid(logits.bfloat16(), 1, 8)
    # between pixel centres at 2 and 6 of 8, the sign changes a quarter of the way from the weaker one
    assert masks.tolist() == [[[False] * 3 + [True] * 5], [[True] * 5 + [False] * 3]]
    assert to_solid(logits[:0], 4, 4).shape == (0, 4, 4)


@pytest.mark.parametrize("pixels_at_once", [1, 90 * 61 * 2, 2**24])
def test_runs_are_those_of_the_solid_masks(pixels_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_memory, "_PIXELS_AT_ONCE", pixels_at_once)
    logits = torch.randn(5, 12, 9, generator=torch.Generator().manual_seed(0))
    logits[1], logits[2] = -1.0, 1.0  # nothing, and all: neither change may be taken for a neighbour's
    runs = to_runs(logits, 90, 61)
    masks = to_solid(logits, 90, 61)
    assert [own.tolist() for own in runs] == [run_lengths(encode(mask)) for mask in masks]
    assert [own[1::2].sum() for own in runs] == [mask.sum() for mask in masks]
    assert [to_counts(own, 90, 61) for own in runs] == [encode(mask) for mask in masks]
    assert masks[3:, 0, 0].tolist() != masks[3:, -1, -1].tolist()
    assert to_runs(logits[:0], 4, 4) == []


def test_one_frame_stands_for_all() -> None:
    frames = PassingFrame(9)
    frames.hold(3, "third")
    assert (len(frames), frames[3]) == (9, "third")
    frames.hold(4, "fourth")
    with pytest.raises(KeyError):
        frames[3]


def session_after(prompted: list[int], others: list[int]) -> SimpleNamespace:
    """A session with one object of three that have given output at these places."""

    def output() -> dict[str, torch.Tensor]:
        keys = ("pred_masks", "high_res_masks", "object_pointer", "maskmem_features", "maskmem_pos_enc")
        return {key: torch.arange(24.0).view(3, 2, 4).permute(2, 0, 1)[:, 1:2] for key in keys}

    outputs = {
        "cond_frame_outputs": {place: output() for place in prompted},
        "non_cond_frame_outputs": {place: output() for place in others},
    }
    return SimpleNamespace(output_dict_per_obj={0: outputs}, mask_inputs_per_obj={0: {0: "mask"}})


SAM3 = SimpleNamespace(num_maskmem=7, max_object_pointers_in_encoder=16, max_cond_frame_num=4)


def test_of_many_prompted_frames_the_nearest_keep_their_memory_and_all_their_pointers() -> None:
    """SAM 3 prompts itself again and again; it reads the memory of the nearest four and the pointers of all."""
    prompted = [0, 16, 32, 48, 64]
    session = session_after(prompted, [])
    forget(session, 70, SAM3)
    kept = session.output_dict_per_obj[0]["cond_frame_outputs"]
    assert [seen for seen in prompted if "maskmem_features" in kept[seen]] == prompted[1:]
    assert all("object_pointer" in output and "high_res_masks" not in output for output in kept.values())
    assert session.mask_inputs_per_obj == {0: {}}
    memory = kept[64]["maskmem_features"]
    assert memory[:, 0].tolist() == [[8, 12], [9, 13], [10, 14], [11, 15]]
    assert memory.untyped_storage().nbytes() == memory.nbytes  # not that of all three objects


def test_of_other_frames_the_last_six_keep_their_memory_and_the_last_fifteen_their_pointers() -> None:
    session = session_after([10], list(range(11, 51)))
    forget(session, 50, SAM3)
    kept = session.output_dict_per_obj[0]["non_cond_frame_outputs"]
    assert [place for place, output in kept.items() if "maskmem_features" in output] == [45, 46, 47, 48, 49, 50]
    assert list(kept) == list(range(36, 51))
