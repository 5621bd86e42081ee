"""SAM 2: objects through a clip, both ways from the frames on which their masks are known."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.engines.frame_windows import ReadFrames, in_a_thread, read_ahead
from agents.engines.sam2_step import ObjectBatch
from agents.engines.torch_run import CheckpointConfig, Halving, placement
from agents.engines.video_memory import to_counts, to_pixels, to_runs
from infra.checkpoints import checkpoint_folder, checkpoint_label
from schemas.record import Share

_log = logging.getLogger(__name__)

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
    frames_per_window: int = Field(default=16, ge=1)
    """Frames read from the video at once, while those before are worked on; nothing is worked on during the first."""
    frames_per_batch: int = Field(default=8, ge=1)
    """Frames of a window through the image encoder at once; halved where a GPU has no room for them."""
    objects_per_batch: int = Field(default=8, ge=1)
    """Objects of a frame through the tracker at once; halved where a GPU has no room for them."""


class FramePrompt(NamedTuple):
    """Masks (objects, height, width), of any size, on the tracked frame number `place`."""

    place: int
    masks: npt.NDArray[np.bool_]


class Masklet(NamedTuple):
    """One object's COCO counts for each tracked frame, None where it is out of sight, and its mean stability."""

    rle: tuple[str | None, ...]
    stability: float


class Step(NamedTuple):
    """What SAM 2 says of one prompt's objects on one frame: mask logits (objects, h, w), object scores (objects,)."""

    prompt: int
    place: int
    logits: Any
    object_logits: Any


class Sighting(NamedTuple):
    """An object in sight on a frame: its prompt, its number in it, COCO counts of its mask, and its stability."""

    prompt: int
    number: int
    place: int
    counts: str
    stability: float


class Sam2Video:
    """Masks through a clip by `Sam2VideoModel` (Ravi et al. 2024).

    Objects that were found on one frame go together (`sam2_step`). Those of another frame go by themselves, since SAM 2
    writes the memory of all objects of a session alike and would take the first ones' guess on that frame for given
    masks. All go through the clip at once: forward, then back, and in each sweep every frame is read and encoded once,
    however many objects there are.

    Nothing in a step waits for the device. Frames come in windows, each read while the one before is worked on; masks
    leave as run lengths, made by a thread while the device goes on.
    """

    name = "sam2"

    def __init__(self, config: Sam2VideoConfig) -> None:
        self.config = config
        self._batches = Halving(config.frames_per_batch)
        self._objects_per_batch = config.objects_per_batch
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
        """One masklet per prompted object, in the order of the prompts; `size_px` is the video's height and width.

        Where CUDA is out of memory, the clip is begun again with half as many objects at once, as are all that follow.
        """
        import torch

        while True:
            parts = split(prompts, self._objects_per_batch)
            most = max((len(prompt.masks) for prompt in parts), default=0)
            try:
                return self._masklets(read, num_frames, size_px, parts)
            except torch.cuda.OutOfMemoryError:
                if most < 2:
                    raise
            # only here, as the error being handled held the failed step's tensors
            torch.cuda.empty_cache()
            self._objects_per_batch = most // 2
            _log.warning("CUDA out of memory with %d objects at once; going on with %d", most, most // 2)

    def _masklets(
        self, read: ReadFrames, num_frames: int, size_px: tuple[int, int], prompts: Sequence[FramePrompt]
    ) -> list[Masklet]:
        first_object = np.cumsum([0, *(len(prompt.masks) for prompt in prompts)])
        start = [prompt.place for prompt in prompts for _ in prompt.masks]
        rle: list[list[str | None]] = [[None] * num_frames for _ in start]
        stability = np.zeros((len(start), num_frames))
        steps = self.steps(read, num_frames, prompts)
        for seen in chain.from_iterable(in_a_thread(partial(self._sightings, size_px), steps, ahead=2)):
            index = first_object[seen.prompt] + seen.number
            rle[index][seen.place], stability[index, seen.place] = seen.counts, seen.stability
        kept = [without_returns(own, place, self.config.max_gap_frames) for own, place in zip(rle, start, strict=True)]
        return [Masklet(own, _mean_where_seen(shares, own)) for own, shares in zip(kept, stability, strict=True)]

    def _sightings(self, size_px: tuple[int, int], step: Step) -> list[Sighting]:
        import torch

        shares = stability_of(step.logits, self.config.stability_delta)
        scores, shares = torch.stack([step.object_logits.double(), shares]).cpu().numpy()
        numbers = np.flatnonzero((scores > self.config.min_object_logit) & (shares >= self.config.min_stability))
        return [
            Sighting(step.prompt, number, step.place, to_counts(runs, *size_px), shares[number])
            for number, runs in zip(numbers.tolist(), to_runs(step.logits[numbers.tolist()], *size_px), strict=True)
            if runs[1::2].sum() >= self.config.min_area_px
        ]

    def steps(self, read: ReadFrames, num_frames: int, prompts: Sequence[FramePrompt]) -> Iterator[Step]:
        """What SAM 2 says, frame by frame: forward from the earliest prompt, then back from the latest."""
        if not prompts:
            return
        places = [prompt.place for prompt in prompts]
        batches = [self._object_batch(prompt, num_frames) for prompt in prompts]
        forward, back = range(min(places), num_frames), range(max(places) - 1, -1, -1)
        ways = chain.from_iterable(([False] * len(forward), [True] * len(back)))
        for reverse, (place, levels) in zip(ways, self._encoded(read, [*forward, *back]), strict=True):
            for number, batch in enumerate(batches):
                if place < batch.place if reverse else place >= batch.place:
                    yield Step(number, place, *batch.step(place, levels, reverse))

    def _object_batch(self, prompt: FramePrompt, num_frames: int) -> ObjectBatch:
        import torch

        masks = torch.cat([to_prompt_mask(mask, self._model.image_size) for mask in prompt.masks])
        return ObjectBatch(self._model, prompt.place, masks.to(self._model.device, self._model.dtype), num_frames)

    def _encoded(self, read: ReadFrames, places: Sequence[int]) -> Iterator[tuple[int, list[Any]]]:
        """Each place with its frame's features."""

        def read_pixels(some: Sequence[int]) -> Any:
            # in the reading thread, as a copy to the device waits for all that it has been given to do
            return to_pixels(read(some), self._model.image_size, _MEAN_RGB, _STD_RGB, self._model)

        for window, pixels in read_ahead(read_pixels, places, self.config.frames_per_window):
            features = chain.from_iterable(self._batches.batches(pixels, self._encode))
            yield from zip(window, features, strict=True)

    def _encode(self, pixels: Any) -> list[list[Any]]:
        """Of each frame the levels of its features, finest first, each (places, 1, channels)."""
        import torch

        with torch.inference_mode():
            levels = self._model.get_image_features(pixels, return_dict=True).fpn_hidden_states
        return [[level[:, index : index + 1] for level in levels] for index in range(len(pixels))]


def split(prompts: Sequence[FramePrompt], most: int) -> list[FramePrompt]:
    """The prompts, those of more than `most` objects as several of the same frame."""
    return [
        FramePrompt(place, masks[first : first + most])
        for place, masks in prompts
        for first in range(0, len(masks), most)
    ]


def to_prompt_mask(mask: npt.NDArray[np.bool_], side_px: int) -> Any:
    """(1, 1, side, side) of 0 and 1: the mask squeezed to a square with antialiasing, cut at one half."""
    import torch
    from torch.nn.functional import interpolate

    solid = torch.from_numpy(mask)[None, None].float()
    if mask.shape != (side_px, side_px):
        solid = interpolate(solid, (side_px, side_px), mode="bilinear", align_corners=False, antialias=True)
        solid = (solid >= 0.5).float()
    return solid


def stability_of(logits: Any, delta: float) -> Any:
    """For each of (N, h, w) logits, its area above `delta` as a share of that above `-delta`; 0 without any area.

    SAM's stability score: what a small shift of the cut does to the mask.
    """
    sure, likely = ((logits > cut).sum(dim=(1, 2)) for cut in (delta, -delta))
    return sure.double() / likely.clamp(min=1)


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
