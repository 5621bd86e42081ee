"""What goes into SAM 2 and SAM 3, what comes out of them, and what a session of SAM 3 may forget.

Sessions of transformers keep every frame and output of a video. SAM 3 looks back a fixed number of frames:
`num_maskmem - 1` of them for what was seen (features of about 1 MB per object and frame),
`max_object_pointers_in_encoder - 1` for pointers (1 kB), and at the frames that were prompted, which are many, as it
prompts itself: of these it reads the nearest few, and a pointer of each. All else is dropped as the sweep goes on. So a
session's size depends on its objects and, but for those pointers, not on the length of the clip; what it answers stays
the same bit by bit.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from infra.video import Frames

_NEVER_READ = ("pred_masks", "high_res_masks")
_SPATIAL = ("maskmem_features", "maskmem_pos_enc")
_PIXELS_AT_ONCE = 2**24
"""18 masks at 720p, 2 at 4K: some 200 MB while they are cut."""


class PassingFrame:
    """Stands for all frames of a clip where a session wants them, and holds one: that of the step in hand."""

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._held: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._num_frames

    def __getitem__(self, place: int) -> Any:
        return self._held[place]

    def hold(self, place: int, pixels: Any) -> None:
        """Put the frame at `place` in the stead of the one before."""
        self._held = {place: pixels}


def forget(session: Any, place: int, config: Any) -> None:
    """Drop from a session, after the step at `place`, what no later step reads; `config` is the tracker's own.

    Steps are one frame apart and go forward.
    """
    for outputs in session.output_dict_per_obj.values():
        prompted, others = outputs["cond_frame_outputs"], outputs["non_cond_frame_outputs"]
        for seen in list(others):
            age = place - seen
            if age >= max(config.max_object_pointers_in_encoder, config.num_maskmem) - 1:
                del others[seen]
            else:
                _lighten(others[seen], _NEVER_READ + (_SPATIAL if age >= config.num_maskmem - 1 else ()))
        for seen in _out_of_reach(prompted, place, config):
            _lighten(prompted[seen], _NEVER_READ + _SPATIAL)
        for output in prompted.values():
            _lighten(output, ("high_res_masks",))
            _part(output)
    for inputs in session.mask_inputs_per_obj.values():
        inputs.clear()


def _lighten(output: MutableMapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        output.pop(key, None)


def _part(output: MutableMapping[str, Any]) -> None:
    """An object's own copy of what was computed for all at once, which is else kept whole for as long as one is read:
    objects are prompted on frames of their own.
    """
    features = output.get("maskmem_features")
    if features is not None and features.untyped_storage().nbytes() > features.nbytes:
        output["maskmem_features"] = features.clone()


def _out_of_reach(prompted: MutableMapping[int, Any], place: int, config: Any) -> Iterator[int]:
    """Prompted frames of which only the pointers are read from now on: nearer ones are as many as the model takes."""
    if config.max_cond_frame_num > 0:
        nearest_first = sorted(prompted, reverse=True)
        yield from (
            seen for seen in nearest_first[config.max_cond_frame_num :] if place - seen >= config.num_maskmem - 1
        )


def to_pixels(frames: Frames, side_px: int, mean: tuple[float, ...], std: tuple[float, ...], model: Any) -> Any:
    """(N, 3, side, side) model input of (N, height, width, 3) RGB frames, on the model's device in its number format.

    As SAM 2's and SAM 3's own processors: squeezed to a square, bilinear with antialiasing, rounded to whole levels,
    then scaled to 0 to 1 and normalised. They need torchvision; this is the same in torch.
    """
    import torch
    from torch.nn.functional import interpolate

    pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(model.device).permute(0, 3, 1, 2).float()
    if pixels.shape[2:] != (side_px, side_px):
        pixels = interpolate(pixels, (side_px, side_px), mode="bilinear", align_corners=False, antialias=True)
        pixels = pixels.round().clamp(0, 255)
    shift, scale = (torch.tensor(values, device=model.device)[:, None, None] for values in (mean, std))
    return ((pixels / 255 - shift) / scale).to(model.dtype)


def to_solid(logits: Any, height_px: int, width_px: int) -> npt.NDArray[np.bool_]:
    """(N, height, width) masks of (N, h, w) logits: enlarged bilinearly in float32, then cut at 0.

    One at a time, as logits at a large video's size take much memory.
    """
    from torch.nn.functional import interpolate

    masks = np.zeros((len(logits), height_px, width_px), dtype=np.bool_)
    for index, own in enumerate(logits):
        large = interpolate(own[None, None].float(), (height_px, width_px), mode="bilinear", align_corners=False)
        masks[index] = (large[0, 0] > 0).cpu().numpy()
    return masks


def to_runs(logits: Any, height_px: int, width_px: int) -> list[npt.NDArray[np.int64]]:
    """Of each of (N, h, w) logits the runs of its mask as `to_solid` has it, column by column, background first.

    The device finds where pixels differ from the one before, so that only those places leave it. As many masks at once
    as `_PIXELS_AT_ONCE` allows.
    """
    from torch.nn.functional import interpolate

    area_px = height_px * width_px
    runs: list[npt.NDArray[np.int64]] = []
    at_once = max(1, _PIXELS_AT_ONCE // area_px)
    for some in (logits[first : first + at_once] for first in range(0, len(logits), at_once)):
        large = interpolate(some[:, None].float(), (height_px, width_px), mode="bilinear", align_corners=False)
        solid = (large[:, 0] > 0).transpose(1, 2).flatten(1)
        changes = solid.clone()
        changes[:, 1:] ^= solid[:, :-1]
        places = changes.flatten().nonzero()[:, 0].cpu().numpy()
        own = np.split(places, np.searchsorted(places, np.arange(1, len(some)) * area_px))
        runs += [np.diff(places - number * area_px, prepend=0, append=area_px) for number, places in enumerate(own)]
    return runs


def to_counts(runs: npt.NDArray[np.int64], height_px: int, width_px: int) -> str:
    """COCO counts of a mask's runs, as `schemas.mask.encode` gives them of the mask."""
    rle = coco.frPyObjects({"size": [height_px, width_px], "counts": runs.tolist()}, height_px, width_px)
    return str(rle["counts"].decode("ascii"))
