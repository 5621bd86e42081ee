"""SAM 2: objects through a clip, both ways from the frames on which their masks are known."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.engines.frame_windows import ReadFrames, read_ahead
from agents.engines.torch_run import CheckpointConfig, Halving, placement
from agents.engines.video_memory import forget, to_pixels, to_solid
from infra.checkpoints import checkpoint_folder, checkpoint_label
from infra.video import Frames
from schemas.mask import encode
from schemas.record import Share

_MEAN_RGB = (0.485, 0.456, 0.406)
_STD_RGB = (0.229, 0.224, 0.225)


class Sam2VideoConfig(CheckpointConfig):
    """When an object is out of sight, and how much is worked on at once."""

    min_object_logit: float = Field(default=0.0, ge=0)
    """An object is out of sight on frames where SAM 2's object score (a logit) is not above this; the model itself
    leaves no mask at 0 and below.
    """
    stability_delta: float = Field(default=1.0, gt=0)
    """How far from 0, in logits, the two areas lie that `min_stability` compares."""
    min_stability: Share = 0.6
    """An object is out of sight where its mask's area at logit `+stability_delta` is a lesser share of that at
    `-stability_delta`.
    """
    min_area_px: int = Field(default=16, ge=1)
    """An object is out of sight where its mask has fewer pixels, at the video's own size."""
    max_gap_frames: int = Field(default=24, ge=0)
    """What is found after it was out of sight for more tracked frames in a row is not taken for it, as SAM 2 then often
    goes over to something alike.
    """
    frames_per_window: int = Field(default=32, ge=1)
    """Frames read from the video at once; bounds memory for long clips."""
    frames_per_batch: int = Field(default=8, ge=1)
    """Frames through the image encoder at once; halved where a GPU has no room for them."""


class FramePrompt(NamedTuple):
    """Masks (objects, height, width), of any size, on the tracked frame number `place`."""

    place: int
    masks: npt.NDArray[np.bool_]


class Masklet(NamedTuple):
    """One object's COCO counts for each tracked frame, None where it is out of sight, and its mean stability."""

    rle: tuple[str | None, ...]
    stability: float


class Step(NamedTuple):
    """What SAM 2 says of one session's objects on one frame: mask logits (objects, h, w), object scores (objects,)."""

    session: int
    place: int
    logits: Any
    object_logits: Any


class Sam2Video:
    """Masks through a clip by `Sam2VideoModel` (Ravi et al. 2024) and its inference session.

    Objects that were found on one frame share a session. Those of another frame have one of their own, since a session
    writes the memory of all its objects alike and would take the first ones' guess on that frame for given masks. All
    sessions go through the clip together: one sweep forward, one back, in each of which every frame is read and
    encoded once, however many sessions and objects there are.

    Frames come in windows, each read while the one before is worked on, and leave as run lengths; of the past a session
    keeps what it still reads (`video_memory`).
    """

    name = "sam2"

    def __init__(self, config: Sam2VideoConfig) -> None:
        self.config = config
        self._batches = Halving(config.frames_per_batch)
        self._model: Any = None

    def weights(self) -> tuple[str, ...]:
        """The model folder's name and content; raises CheckpointError where it is not there."""
        return (checkpoint_label(self.config.model),)

    def setup(self) -> None:
        """Load the model; raises CheckpointError where its folder is not there."""
        from transformers import Sam2VideoModel

        folder = checkpoint_folder(self.config.model)
        device, dtype = placement(self.config)
        self._model = Sam2VideoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
        self._model.eval().to(device)

    def masklets(
        self, read: ReadFrames, num_frames: int, size_px: tuple[int, int], prompts: Sequence[FramePrompt]
    ) -> list[Masklet]:
        """One masklet per prompted object, in the order of the prompts; `size_px` is the video's height and width."""
        first_object = np.cumsum([0, *(len(prompt.masks) for prompt in prompts)])
        start = [prompt.place for prompt in prompts for _ in prompt.masks]
        rle: list[list[str | None]] = [[None] * num_frames for _ in start]
        stability = np.zeros((len(start), num_frames))
        for step in self.steps(read, num_frames, prompts):
            shares = stability_of(step.logits, self.config.stability_delta)
            in_sight = (step.object_logits.float().cpu().numpy() > self.config.min_object_logit) & (
                shares >= self.config.min_stability
            )
            for number in np.flatnonzero(in_sight):
                (mask,) = to_solid(step.logits[number : number + 1], *size_px)
                if mask.sum() >= self.config.min_area_px:
                    index = first_object[step.session] + number
                    rle[index][step.place], stability[index, step.place] = encode(mask), shares[number]
        kept = [without_returns(own, place, self.config.max_gap_frames) for own, place in zip(rle, start, strict=True)]
        return [Masklet(own, _mean_where_seen(shares, own)) for own, shares in zip(kept, stability, strict=True)]

    def steps(self, read: ReadFrames, num_frames: int, prompts: Sequence[FramePrompt]) -> Iterator[Step]:
        """What SAM 2 says, frame by frame: forward from the earliest prompt, then back from the latest."""
        if not prompts:
            return
        sessions = [self._session(prompt, num_frames) for prompt in prompts]
        places = [prompt.place for prompt in prompts]
        for reverse, order in ((False, range(min(places), num_frames)), (True, range(max(places) - 1, -1, -1))):
            for place, features in self._encoded(read, order):
                for number, session in enumerate(sessions):
                    if place < places[number] if reverse else place >= places[number]:
                        yield self._step(number, session, place, reverse, features)

    def _session(self, prompt: FramePrompt, num_frames: int) -> Any:
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        device, dtype = self._model.device, self._model.dtype
        session = Sam2VideoInferenceSession(inference_device=device, inference_state_device=device, dtype=dtype)
        session.processed_frames = range(num_frames)  # only their number is asked for: features are put in beforehand
        for index, mask in enumerate(prompt.masks):
            prompt_mask = to_prompt_mask(mask, self._model.image_size)
            session.add_mask_inputs(session.obj_id_to_idx(index), prompt.place, prompt_mask)
        session.obj_with_new_inputs = list(range(len(prompt.masks)))
        return session

    def _encoded(self, read: ReadFrames, places: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each place with its frame's features."""
        for window, frames in read_ahead(read, places, self.config.frames_per_window):
            features = chain.from_iterable(self._batches.batches(frames, self._encode))
            yield from zip(window, features, strict=True)

    def _encode(self, frames: Frames) -> list[dict[str, Any]]:
        import torch

        with torch.inference_mode():
            pixels = to_pixels(frames, self._model.image_size, _MEAN_RGB, _STD_RGB, self._model)
            found = self._model.get_image_features(pixels, return_dict=True)
        return [
            {
                "vision_feats": [level[:, index : index + 1] for level in found.fpn_hidden_states],
                # of the position encodings, only those of the last level are read, and they are large
                "vision_pos_embeds": [found.fpn_position_encoding[-1][:, index : index + 1]],
            }
            for index in range(len(frames))
        ]

    def _step(self, number: int, session: Any, place: int, reverse: bool, features: dict[str, Any]) -> Step:
        import torch

        session.cache.clear_all()
        session.cache.cache_vision_features(place, features)
        with torch.inference_mode():
            output = self._model(inference_session=session, frame_idx=place, reverse=reverse)
        forget(session, place, self._model.config, reverse=reverse, comes_back=True)
        return Step(number, place, output.pred_masks[:, 0], output.object_score_logits[:, 0])


def to_prompt_mask(mask: npt.NDArray[np.bool_], side_px: int) -> Any:
    """(1, 1, side, side) of 0 and 1: the mask squeezed to a square with antialiasing, cut at one half."""
    import torch
    from torch.nn.functional import interpolate

    solid = torch.from_numpy(mask)[None, None].float()
    if mask.shape != (side_px, side_px):
        solid = interpolate(solid, (side_px, side_px), mode="bilinear", align_corners=False, antialias=True)
        solid = (solid >= 0.5).float()
    return solid


def stability_of(logits: Any, delta: float) -> npt.NDArray[np.float64]:
    """For each of (N, h, w) logits, its area above `delta` as a share of that above `-delta`; 0 without any area.

    SAM's stability score: what a small shift of the cut does to the mask.
    """
    sure, likely = ((logits > cut).sum(dim=(1, 2)).double().cpu().numpy() for cut in (delta, -delta))
    shares: npt.NDArray[np.float64] = sure / np.maximum(likely, 1)
    return shares


def without_returns(rle: Sequence[str | None], start: int, max_gap_frames: int) -> tuple[str | None, ...]:
    """The counts, None also where the object comes back, seen from `start` outward, after too long a gap."""
    kept = list(rle)
    for order in (range(start, len(rle)), range(start, -1, -1)):
        gap = 0
        for place in order:
            if gap > max_gap_frames:
                kept[place] = None
            gap = 0 if kept[place] is not None else gap + 1
    return tuple(kept)


def _mean_where_seen(shares: npt.NDArray[np.float64], rle: Sequence[str | None]) -> float:
    seen = [counts is not None for counts in rle]
    return float(shares[seen].mean()) if any(seen) else 0.0
