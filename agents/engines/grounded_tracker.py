"""The paper's segmenter: nouns to boxes on one frame, boxes to masks, masks through the clip both ways."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.base import Detection, Engine, FrameSource
from agents.engines.frame_windows import ReadFrames, even_frames
from agents.engines.hq_sam import Boxed, Masks
from agents.engines.mask_tracks import mask_iou
from agents.engines.prompt_frames import FoundOn, PromptFramesConfig, Question, find_nouns
from agents.engines.sam2_video import FramePrompt, Masklet
from agents.engines.torch_run import CheckpointConfig
from infra.video import Frames, Image
from schemas.clip import Clip
from schemas.mask import rle_iou
from schemas.record import Record, Share
from schemas.track import ObjectMasks

_READERS = 4
"""Threads that read prompt frames of several clips: the models wait for them."""


class Configured(Protocol):
    """A part that can tell its settings."""

    @property
    def config(self) -> CheckpointConfig:
        """What shapes its output, and where it runs."""


class NounDetector(Engine, Configured, Protocol):
    """Boxes of any nouns, told in words."""

    def detect_nouns(self, asked: Sequence[tuple[Image, Sequence[str]]]) -> list[list[Detection]]:
        """For each image the boxes of its nouns, best first; `detector_class` is the noun as given."""


class BoxMasker(Engine, Configured, Protocol):
    """Boxes on many images to masks."""

    def masks_many(self, asked: Sequence[Boxed]) -> Iterator[Masks]:
        """For each image, in order, its boxes' masks and the model's own estimate of each one's IoU."""


class VideoModel(Engine, Configured, Protocol):
    """Masks of one frame to masks of all."""

    def masklets(
        self, read: ReadFrames, num_frames: int, size_px: tuple[int, int], prompts: Sequence[FramePrompt]
    ) -> list[Masklet]:
        """One masklet per prompted object, in the order of the prompts; `size_px` is the video's height and width."""


class GroundedTrackerConfig(Record):
    """What the tracker looks at, and which objects it keeps."""

    track_fps: float = Field(default=8.0, gt=0)
    """Evenly spaced frames a second on which the clip is tracked."""
    min_frames: int = Field(default=32, ge=1)
    """No fewer frames are tracked, where the clip has them; a detailed caption shows up to 32."""
    max_frames: int = Field(default=480, ge=1)
    """No more frames are tracked, however long the clip; bounds its time."""
    long_side_px: int = Field(default=1024, ge=32)
    """Size at which all three models get frames, which are decoded once at it."""
    prompt_frames: PromptFramesConfig = PromptFramesConfig()
    min_mask_iou: Share = 0.5
    """Least own estimate of a mask's IoU for it to be carried on."""
    merge_iou: Share = 0.7
    """Of two objects whose masks overlap more, the surer one stays, whatever nouns they were found for."""
    max_objects: int = Field(default=24, ge=1)
    """At most this many objects of a clip are carried on, the surest ones."""


class Reel(NamedTuple):
    """A clip, the displayed-frame indices on which it is tracked, and what reads frames by their place in them."""

    clip: Clip
    frame_idx: tuple[int, ...]
    read: ReadFrames


class Seed(NamedTuple):
    """One object on its prompt frame. `score` is the geometric mean of its detection's and its mask's."""

    place: int
    noun: str
    score: float
    mask: npt.NDArray[np.bool_]


class GroundedTracker:
    """`MaskTracker` as the paper has it (section 3.1): Grounding DINO, HQ-SAM, SAM 2.

    It differs from the paper in that the prompt frame is not drawn (`PromptFramesConfig`), in that nouns which are not
    on it are looked for on others, and in that the same object found twice is carried once.

    The detector and the mask model see the prompt frames of all clips asked about in common batches, and only those
    frames are held. SAM 2 then takes clip by clip, all objects of a clip together: its cost is per frame and object,
    each attending to a memory of its own clip, and its image encoder has batches of frames already.
    """

    name = "grounding-dino+hq-sam+sam2"

    def __init__(
        self,
        detector: NounDetector,
        mask_model: BoxMasker,
        video_model: VideoModel,
        frames: FrameSource,
        config: GroundedTrackerConfig | None = None,
    ) -> None:
        self.config = config or GroundedTrackerConfig()
        self._detector, self._mask_model, self._video_model = detector, mask_model, video_model
        self._frames = frames

    def weights(self) -> tuple[str, ...]:
        """Those of the three models; raises CheckpointError where one is not on this machine."""
        return (*self._detector.weights(), *self._mask_model.weights(), *self._video_model.weights())

    def settings(self) -> dict[str, Any]:
        """Its configuration and what of its parts' shapes the output, ready for JSON."""
        return {
            "tracker": self.config.model_dump(mode="json"),
            "detector": self._detector.config.shaping(),
            "mask_model": self._mask_model.config.shaping(),
            "video_model": self._video_model.config.shaping(),
        }

    def setup(self) -> None:
        """Load the three models; raises CheckpointError where one is not on this machine."""
        self._detector.setup()
        self._mask_model.setup()
        self._video_model.setup()

    def track_many(self, asked: Sequence[tuple[Clip, Sequence[str]]]) -> list[list[ObjectMasks]]:
        """For each clip one `ObjectMasks` per object of the wanted nouns, best score first, at the clip's own size.

        The score is the geometric mean of the detection's, of the mask's estimated IoU, and of the masks' stability
        through the clip. Raises what the frame source raises, for all clips, and before any model runs where a clip's
        first prompt frames cannot be read.
        """
        reels = [self._reel(clip) for clip, _ in asked]
        wanted = [(len(reel.frame_idx), sorted(set(nouns))) for reel, (_, nouns) in zip(reels, asked, strict=True)]
        found = find_nouns(partial(self._look, reels), wanted, self.config.prompt_frames)
        prompted = [(reel, one) for reel, own in zip(reels, found, strict=True) for one in own]
        images = _read_all([(reel, (one.place,)) for reel, one in prompted])
        boxed = [
            (image, [box.box_xyxy_px for box in one.detections])
            for (image,), (_, one) in zip(images, prompted, strict=True)
        ]
        # each clip is carried as soon as its masks are there, before those of the clips behind it are made
        masks = self._mask_model.masks_many(boxed)
        return [self._carry(reel, self._seeds(own, masks)) for reel, own in zip(reels, found, strict=True)]

    def _reel(self, clip: Clip) -> Reel:
        frame_idx = even_frames(clip, self.config.track_fps, self.config.min_frames, self.config.max_frames)

        def read(places: Sequence[int]) -> Frames:
            return self._frames.read(clip, [frame_idx[place] for place in places], self.config.long_side_px)

        return Reel(clip, tuple(frame_idx), read)

    def _look(self, reels: Sequence[Reel], questions: Sequence[Question]) -> list[list[list[Detection]]]:
        frames = _read_all([(reels[question.position], question.places) for question in questions])
        shown = [(image, question.nouns) for question, own in zip(questions, frames, strict=True) for image in own]
        boxes = iter(self._detector.detect_nouns(shown))
        return [list(islice(boxes, len(question.places))) for question in questions]

    def _carry(self, reel: Reel, seeds: Sequence[Seed]) -> list[ObjectMasks]:
        """The objects through their clip, best score first."""
        if not seeds:
            return []
        clip, frame_idx, read = reel
        prompts = to_prompts(seeds)
        masklets = self._video_model.masklets(read, len(frame_idx), (clip.height_px, clip.width_px), prompts)
        by_prompt = [seed for prompt in prompts for seed in seeds if seed.place == prompt.place]
        carried = [
            (_with(seed.score, masklet.stability), seed, masklet)
            for seed, masklet in zip(by_prompt, masklets, strict=True)
            if any(masklet.rle)
        ]
        times_s = self._frames.times_s(clip, frame_idx)
        return [
            ObjectMasks(
                detector_class=seed.noun,
                frame_idx=frame_idx,
                frame_time_s=tuple(times_s),
                rle=masklet.rle,
                height_px=clip.height_px,
                width_px=clip.width_px,
                score=score,
            )
            for score, seed, masklet in self._without_twins(carried, (clip.height_px, clip.width_px))
        ]

    def _seeds(self, found: Sequence[FoundOn], masks: Iterator[Masks]) -> list[Seed]:
        """Objects of every prompt frame of a clip, surest first, each once; takes as many of `masks` as it has."""
        seeds: list[Seed] = []
        for (place, detections), (solid, ious) in zip(found, islice(masks, len(found)), strict=True):
            own = [
                Seed(place, box.detector_class, (box.score * iou) ** 0.5, mask)
                for box, mask, iou in zip(detections, solid, ious, strict=True)
                if iou >= self.config.min_mask_iou and mask.any()
            ]
            seeds += merged(own, self.config.merge_iou)
        return sorted(seeds, key=lambda seed: -seed.score)[: self.config.max_objects]

    def _without_twins(
        self, carried: Sequence[tuple[float, Seed, Masklet]], size_px: tuple[int, int]
    ) -> list[tuple[float, Seed, Masklet]]:
        """Best first, without those that are the same thing as a better one found on another frame.

        Objects of one prompt frame were compared there; masks that meet later are two objects of which one is lost.
        """
        kept: list[tuple[float, Seed, Masklet]] = []
        for item in sorted(carried, key=lambda item: -item[0]):
            others = (other for other in kept if other[1].place != item[1].place)
            if all(rle_iou(item[2].rle, other[2].rle, size_px) <= self.config.merge_iou for other in others):
                kept.append(item)
        return kept


def merged(seeds: Sequence[Seed], merge_iou: float) -> list[Seed]:
    """Of objects on one frame, surest first, those whose masks overlap no surer one's by more than `merge_iou`."""
    kept: list[Seed] = []
    for seed in sorted(seeds, key=lambda seed: -seed.score):
        if all(mask_iou(seed.mask, other.mask) <= merge_iou for other in kept):
            kept.append(seed)
    return kept


def to_prompts(seeds: Sequence[Seed]) -> list[FramePrompt]:
    """One prompt per frame, with the masks of its objects in their order."""
    places = dict.fromkeys(seed.place for seed in seeds)
    return [FramePrompt(place, np.stack([seed.mask for seed in seeds if seed.place == place])) for place in places]


def _read_all(asked: Sequence[tuple[Reel, Sequence[int]]]) -> list[Frames]:
    """Frames of several clips, in the order asked, read side by side."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda one: one[0].read(one[1]), asked))


def _with(seed_score: float, stability: float) -> float:
    """The geometric mean of three scores, of which two are in `seed_score` already."""
    return min(1.0, float((seed_score**2 * stability) ** (1 / 3)))
