"""SAM 3: nouns to tracked masks in one model, which looks for them on every frame."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.base import FrameSource
from agents.engines.frame_windows import even_frames, read_ahead
from agents.engines.torch_run import CheckpointConfig, placement
from agents.engines.video_memory import PassingFrame, forget, to_pixels, to_solid
from infra.checkpoints import checkpoint_folder, checkpoint_label
from infra.video import Frames
from schemas.clip import Clip
from schemas.mask import encode
from schemas.record import Share
from schemas.track import ObjectMasks

_MEAN_RGB = _STD_RGB = (0.5, 0.5, 0.5)
_TEXT_TOKENS = 32
"""Length of every noun's text, padded or cut."""


class Sam3TrackerConfig(CheckpointConfig):
    """What the tracker looks at, and what SAM 3 takes for an object."""

    track_fps: float = Field(default=8.0, gt=0)
    """Evenly spaced frames a second on which the clip is tracked."""
    min_frames: int = Field(default=32, ge=1)
    """No fewer frames are tracked, where the clip has them."""
    max_frames: int = Field(default=480, ge=1)
    """No more frames are tracked, however long the clip; bounds its time."""
    long_side_px: int = Field(default=1024, ge=32)
    """Size at which frames are read; the model then squeezes them to its own square (1008 px)."""
    min_score: Share = 0.5
    """Detections below it are dropped."""
    min_new_score: Share = 0.7
    """A detection that is no object known yet must reach this, unless none is known at all."""
    min_area_px: int = Field(default=16, ge=1)
    """An object is out of sight where its mask has fewer pixels, at the video's own size."""
    max_objects: int = Field(default=24, ge=1)
    """At most this many objects of a clip are followed at once."""
    frames_per_window: int = Field(default=16, ge=1)
    """Frames read from the video at once, while those before are worked on; nothing is worked on during the first."""


class HeldFrame(NamedTuple):
    """One frame's mask logits (1, h, w) and tracker scores by object id, until it is known which objects stay."""

    place: int
    logits: dict[int, Any]
    scores: dict[int, float]


class Sam3Tracker:
    """`MaskTracker` over `Sam3VideoModel` and its inference session.

    One sweep forward: each frame is encoded once, looked at for every noun, and the objects found before are carried
    on by a tracker of SAM 2's kind, so an object may come in anywhere. SAM 3 may take an object back within its first
    frames (`hotstart_delay`, 15 of them), as unconfirmed or double; so many frames are held back, and what is taken
    back leaves no trace in them.

    Frames come in windows, each read while the one before is worked on, and leave as run lengths; of the past the
    session keeps what it still reads (`video_memory`). Frames go through the model one by one, so there is no batch to
    halve where a GPU has no room.

    Without the package `kernels`, which fetches compiled code from a hub, transformers leaves out the suppression of
    double detections and the filling of holes; SAM 3's own rule for double objects still holds.
    """

    name = "sam3"

    def __init__(self, config: Sam3TrackerConfig, frames: FrameSource) -> None:
        self.config = config
        self._frames = frames
        self._model: Any = None
        self._tokenizer: Any = None

    def weights(self) -> tuple[str, ...]:
        """The model folder's name and content; raises CheckpointError where it is not there."""
        return (checkpoint_label(self.config.model),)

    def settings(self) -> dict[str, Any]:
        """What of its configuration shapes its output, ready for JSON."""
        return {"tracker": self.config.shaping()}

    def setup(self) -> None:
        """Load model and tokenizer; raises CheckpointError where their folder is not there."""
        from transformers import AutoTokenizer, Sam3VideoModel

        folder = checkpoint_folder(self.config.model)
        device, dtype = placement(self.config)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = Sam3VideoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
        self._model.eval().to(device)
        self._model.score_threshold_detection = self.config.min_score
        self._model.new_det_thresh = self.config.min_new_score
        self._model.max_num_objects = self.config.max_objects

    def track_many(self, asked: Sequence[tuple[Clip, Sequence[str]]]) -> list[list[ObjectMasks]]:
        """For each clip one `ObjectMasks` per object of the wanted nouns, best score first, at the clip's own size.

        Clip by clip, as a session holds one. The score is that of the detection that the object began with. Raises
        what the frame source raises.
        """
        return [self._track(clip, classes) for clip, classes in asked]

    def _track(self, clip: Clip, classes: Sequence[str]) -> list[ObjectMasks]:
        nouns = sorted(set(classes))
        if not nouns:
            return []
        frame_idx = even_frames(clip, self.config.track_fps, self.config.min_frames, self.config.max_frames)
        session = self._session(nouns, len(frame_idx))
        rle: dict[int, list[str | None]] = {}
        owner: dict[int, tuple[str, float]] = {}
        for held in self._sweep(session, clip, frame_idx):
            for number, counts in self._counts(session, held, (clip.height_px, clip.width_px)).items():
                rle.setdefault(number, [None] * len(frame_idx))[held.place] = counts
                prompt = session.prompts[session.obj_id_to_prompt_id[number]]
                owner.setdefault(number, (prompt, session.obj_id_to_score[number]))
        times_s = self._frames.times_s(clip, frame_idx)
        found = [
            ObjectMasks(
                detector_class=owner[number][0],
                frame_idx=tuple(frame_idx),
                frame_time_s=tuple(times_s),
                rle=tuple(counts),
                height_px=clip.height_px,
                width_px=clip.width_px,
                score=min(1.0, owner[number][1]),
            )
            for number, counts in rle.items()
        ]
        return sorted(found, key=lambda masks: -masks.score)

    def _session(self, nouns: Sequence[str], num_frames: int) -> Any:
        from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

        device, dtype = self._model.device, self._model.dtype
        session = Sam3VideoInferenceSession(inference_device=device, inference_state_device=device, dtype=dtype)
        session.processed_frames = PassingFrame(num_frames)
        for noun in nouns:
            number = session.add_prompt(noun)
            text = self._tokenizer(
                noun, return_tensors="pt", padding="max_length", max_length=_TEXT_TOKENS, truncation=True
            ).to(device)
            session.prompt_input_ids[number] = text.input_ids
            session.prompt_attention_masks[number] = text.attention_mask
        return session

    def _sweep(self, session: Any, clip: Clip, frame_idx: Sequence[int]) -> Iterator[HeldFrame]:
        """Every frame in order, as soon as no object on it can be taken back any more."""
        held: deque[HeldFrame] = deque()

        def read(places: Sequence[int]) -> Frames:
            return self._frames.read(clip, [frame_idx[place] for place in places], self.config.long_side_px)

        for window, frames in read_ahead(read, range(len(frame_idx)), self.config.frames_per_window):
            for place, frame in zip(window, frames, strict=True):
                held.append(self._step(session, place, frame[None]))
                if len(held) >= self._model.hotstart_delay:
                    yield held.popleft()
        yield from held

    def _step(self, session: Any, place: int, frame: Frames) -> HeldFrame:
        side_px = self._model.config.image_size
        session.processed_frames.hold(place, to_pixels(frame, side_px, _MEAN_RGB, _STD_RGB, self._model)[0])
        output = self._model(inference_session=session, frame_idx=place)
        _forget_scores(session, place)
        forget(session, place, self._model.tracker_model.config)
        hidden = output.suppressed_obj_ids
        logits = {number: own for number, own in output.obj_id_to_mask.items() if number not in hidden}
        return HeldFrame(place, logits, dict(output.obj_id_to_tracker_score))

    def _counts(self, session: Any, held: HeldFrame, size_px: tuple[int, int]) -> dict[int, str]:
        """COCO counts by object id of what is in sight."""
        masks = {
            number: to_solid(logits, *size_px)[0]
            for number, logits in held.logits.items()
            if number not in session.removed_obj_ids
        }
        prompts = {number: session.obj_id_to_prompt_id[number] for number in masks}
        masks = apart(masks, prompts, held.scores)
        return {number: encode(mask) for number, mask in masks.items() if mask.sum() >= self.config.min_area_px}


def apart(
    masks: Mapping[int, npt.NDArray[np.bool_]], prompts: Mapping[int, int], scores: Mapping[int, float]
) -> dict[int, npt.NDArray[np.bool_]]:
    """The masks by object id, no two of one noun on one pixel: it is left to the one with the better tracker score.

    Of equal scores the lower id has it, and an object without a score has score 0. SAM 3's own last step.
    """
    taken: dict[int, npt.NDArray[np.bool_]] = {}
    result: dict[int, npt.NDArray[np.bool_]] = {}
    for number in sorted(masks, key=lambda number: (-scores.get(number, 0.0), number)):
        before = taken.get(prompts[number], np.zeros_like(masks[number]))
        result[number] = masks[number] & ~before
        taken[prompts[number]] = before | masks[number]
    return dict(sorted(result.items()))


def _forget_scores(session: Any, place: int) -> None:
    """The session copies these notes on every frame, and reads those of the frame in hand alone."""
    for notes in (session.obj_id_to_tracker_score_frame_wise, session.suppressed_obj_ids):
        for seen in [seen for seen in notes if seen != place]:
            del notes[seen]
