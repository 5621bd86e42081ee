"""Detections of single frames joined into tracks of boxes, by overlap, appearance and optical flow."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.assignment import FORBIDDEN, best_assignment
from agents.base import Detection
from agents.engines.boxes import box_distance, box_iou, inner_share, is_in_sight, mixed_box
from agents.engines.flow_field import FlowField
from agents.histogram import Histogram, hsv_histogram, intersection
from infra.video import Frames, Image
from schemas.record import BoxXyxyPx, Record, Share

_DETECTION_TRUST = 0.7
_INNER_SHARE = 0.6
_NEAR_DIAGONALS = 0.75


class BoxTrackConfig(Record):
    """How detections become tracks."""

    start_score: Share = 0.4
    """A detection below it may keep a track alive but not begin one (as in ByteTrack, Zhang et al. 2022)."""
    min_iou: Share = 0.25
    """Least overlap of a predicted box with the detection that continues it."""
    min_likeness: Share = 0.45
    """Least histogram intersection of a track found again, or of one carried on by flow alone."""
    min_margin: Share = 0.2
    """Where two tracks could have taken each other's detections and the score would fall by less than this, nothing
    tells who is who: both end there and the detections begin tracks of their own. So a track is only found again where
    no other choice is this near.
    """
    min_confidence: Share = 0.5
    """A track without detections is lost where less than this share of its points flows there and back."""
    sure_confidence: Share = 0.75
    """Share of a track's points in the image that must lead there and back for flow to be sure of a step."""
    sure_likeness: Share = 0.6
    """Likeness to the object that the picture must have for flow to be sure of a step."""
    max_missed: int = Field(default=3, ge=0)
    """Detection frames in a row that a track may pass without support before it is lost."""
    max_tail: int = Field(default=1, ge=0)
    """How many detection frames without support are kept before the first and after the last detection of a run, where
    nothing tells whether the object is still there, unless flow is sure of every step (`sure_confidence`,
    `sure_likeness`).
    """
    max_lost_s: float = Field(default=2.0, ge=0)
    """How long a lost track may wait to be found again."""
    max_bridge_s: float = Field(default=0.6, ge=0)
    """Where flow did not lead from one detection to the next, boxes in between are interpolated over at most this long.
    """
    occluded_iou: Share = 0.4
    """An unsupported track whose box overlaps a supported one's more than this is taken to be behind it; a detection
    there begins no track.
    """


@dataclass
class BoxTrack:
    """One object's boxes. A frame is missing from `boxes` where the object is out of sight.

    `support` holds the detections that the track was built from, `flow_iou` how much the box that flow predicted
    overlapped each; `histogram` is the running mean of its appearance; `sure` are the frames that flow alone reached
    by sure steps. A `closed` track takes no more detections.
    """

    detector_class: str
    histogram: Histogram
    boxes: dict[int, BoxXyxyPx] = field(default_factory=dict)
    support: dict[int, Detection] = field(default_factory=dict)
    flow_iou: dict[int, float] = field(default_factory=dict)
    sure: set[int] = field(default_factory=set)
    closed: bool = False
    missed: int = 0
    lost_at: int | None = None

    @property
    def score(self) -> float:
        """Mean score of the supporting detections."""
        return float(np.mean([detection.score for detection in self.support.values()]))

    @property
    def best_score(self) -> float:
        """Mean score of the three best detections: many weak ones beside them say nothing against an object."""
        return float(np.mean(sorted((detection.score for detection in self.support.values()), reverse=True)[:3]))

    def accept(self, frame: int, detection: Detection, box_xyxy_px: BoxXyxyPx, histogram: Histogram) -> None:
        """Continue with a detection; `box_xyxy_px` is where the object is taken to be."""
        self.flow_iou[frame] = box_iou(self.boxes[frame], detection.box_xyxy_px) if frame in self.boxes else 0.0
        self.boxes[frame] = box_xyxy_px
        self.support[frame] = detection
        self.histogram = self.histogram * 0.8 + histogram * 0.2
        self.missed, self.lost_at = 0, None


class BoxLinker:
    """Runs once over a clip's frames; frames and flow share one size, times are in seconds."""

    def __init__(self, frames: Frames, times_s: Sequence[float], flow: FlowField, config: BoxTrackConfig) -> None:
        self._frames, self._times_s, self._flow, self._config = frames, times_s, flow, config

    def link(self, detections: Mapping[int, Sequence[Detection]]) -> list[BoxTrack]:
        """Tracks of the detections of some frames (an empty sequence: looked, found none), in order of their start.

        Forward: active tracks follow the flow and take the detections that fit best, then lost tracks of like
        appearance are found again, then good detections left over begin tracks. Backward: each track is followed by
        flow from where it was first seen or found again. A track's last frames have flow only, for as long as
        `BoxTrackConfig` allows.
        """
        tracks: list[BoxTrack] = []
        for frame in range(len(self._frames)):
            if frame:
                self._advance(tracks, frame)
            if frame in detections:
                self._match(tracks, frame, detections[frame])
                self._drop_unsupported(tracks, frame)
        for track in tracks:
            self._bridge(track)
            self._extend_back(track, tracks, detections.keys())
            self._trim(track, detections.keys())
        return tracks

    def _advance(self, tracks: Sequence[BoxTrack], frame: int) -> None:
        for track in tracks:
            if track.lost_at is None:
                box = self._follow(track, frame - 1, frame)
                if box is None:
                    track.lost_at = frame
                else:
                    track.boxes[frame] = box

    def _follow(self, track: BoxTrack, source: int, target: int) -> BoxXyxyPx | None:
        """The track's box carried to the neighbouring frame, None where it leaves the image or the flow fails.

        A supported frame may always be left by one step; farther on the picture must stay like the object. Steps that
        leave no doubt are noted in `BoxTrack.sure`, as far as they follow one another.
        """
        predicted = self._flow.predict_box(track.boxes[source], source, target)
        if not is_in_sight(predicted.box_xyxy_px, self._flow.height_px, self._flow.width_px):
            return None
        likeness = intersection(track.histogram, histogram_of(self._frames[target], predicted.box_xyxy_px))
        in_image = inner_share(predicted.box_xyxy_px, self._flow.height_px, self._flow.width_px)
        is_sure = (
            predicted.confidence >= self._config.sure_confidence * in_image and likeness >= self._config.sure_likeness
        )
        if is_sure and (source in track.support or source in track.sure):
            track.sure.add(target)
        if source in track.support:
            return predicted.box_xyxy_px
        if predicted.confidence < self._config.min_confidence or likeness < self._config.min_likeness:
            return None
        return predicted.box_xyxy_px

    def _match(self, tracks: list[BoxTrack], frame: int, detections: Sequence[Detection]) -> None:
        histograms = [histogram_of(self._frames[frame], item.box_xyxy_px) for item in detections]
        left = list(range(len(detections)))
        for fit, waiting in (
            (self._fit, [track for track in tracks if track.lost_at is None]),
            (self._fit_again, [track for track in tracks if self._may_return(track, frame)]),
        ):
            waiting = [track for track in waiting if frame not in track.support]
            scores = np.full((len(waiting), len(left)), FORBIDDEN)
            for row, track in enumerate(waiting):
                for column, index in enumerate(left):
                    if detections[index].detector_class == track.detector_class:
                        scores[row, column] = fit(track, frame, detections[index], histograms[index])
            chosen = best_assignment(scores)
            unsure = _unsure(scores, chosen, self._config.min_margin, again=fit == self._fit_again)
            for row, (track, taken) in enumerate(zip(waiting, chosen, strict=True)):
                if row in unsure:
                    self._close(track, frame)
                elif taken is not None:
                    index = left[taken]
                    box = self._fused(track.boxes.get(frame), detections[index].box_xyxy_px)
                    track.accept(frame, detections[index], box, histograms[index])
            taken_columns = {column for row, column in enumerate(chosen) if column is not None and row not in unsure}
            left = [index for column, index in enumerate(left) if column not in taken_columns]
        for index in left:
            if detections[index].score >= self._config.start_score and not self._is_doubled(
                detections[index], frame, tracks
            ):
                track = BoxTrack(detections[index].detector_class, histograms[index])
                track.accept(frame, detections[index], detections[index].box_xyxy_px, histograms[index])
                tracks.append(track)

    def _close(self, track: BoxTrack, frame: int) -> None:
        """End a track for good before this frame."""
        track.boxes.pop(frame, None)
        track.lost_at, track.closed = frame, True

    def _fit(self, track: BoxTrack, frame: int, detection: Detection, histogram: Histogram) -> float:
        """How well a detection continues a track in sight: overlap, likeness and score, or FORBIDDEN."""
        overlap = max(
            box_iou(track.boxes[frame], detection.box_xyxy_px),
            box_iou(self._expected_box(track, frame), detection.box_xyxy_px),
        )
        if overlap < self._config.min_iou:
            return FORBIDDEN
        return overlap + 0.5 * intersection(track.histogram, histogram) + 0.2 * detection.score

    def _fit_again(self, track: BoxTrack, frame: int, detection: Detection, histogram: Histogram) -> float:
        """How well a detection fits a lost track, or one that flow led elsewhere: likeness, nearness and score."""
        if track.lost_at is None:
            reach, places = _NEAR_DIAGONALS, [track.boxes[frame]]
        else:
            last = max(track.boxes)
            reach = 0.75 + self._times_s[frame] - self._times_s[last]
            places = [self._expected_box(track, frame), track.boxes[last]]
        distance = min(box_distance(box, detection.box_xyxy_px) for box in places)
        likeness = intersection(track.histogram, histogram)
        if likeness < self._config.min_likeness or distance > reach:
            return FORBIDDEN
        return likeness - 0.5 * distance / reach + 0.2 * detection.score

    def _fused(self, predicted: BoxXyxyPx | None, detected: BoxXyxyPx) -> BoxXyxyPx:
        """Detectors jitter and flow drifts: a mean of both, nearer the detection; a prediction far off is dropped."""
        if predicted is None or box_iou(predicted, detected) < 0.5:
            return detected
        return mixed_box(predicted, detected, _DETECTION_TRUST)

    def _may_return(self, track: BoxTrack, frame: int) -> bool:
        return not track.closed and self._times_s[frame] - self._times_s[max(track.boxes)] <= self._config.max_lost_s

    def _expected_box(self, track: BoxTrack, frame: int) -> BoxXyxyPx:
        """Where a lost track would be had it gone on as over its last five supported frames."""
        seen = sorted(track.support)[-5:]
        last = track.boxes[seen[-1]]
        passed_s = self._times_s[seen[-1]] - self._times_s[seen[0]]
        if passed_s <= 0:
            return last
        first = track.boxes[seen[0]]
        ahead = (self._times_s[frame] - self._times_s[seen[-1]]) / passed_s
        dx = ((last[0] + last[2]) - (first[0] + first[2])) / 2 * ahead
        dy = ((last[1] + last[3]) - (first[1] + first[3])) / 2 * ahead
        return (last[0] + dx, last[1] + dy, last[2] + dx, last[3] + dy)

    def _drop_unsupported(self, tracks: Sequence[BoxTrack], frame: int) -> None:
        for track in tracks:
            if track.lost_at is not None or frame in track.support:
                continue
            track.missed += 1
            if track.missed > self._config.max_missed or self._is_behind(track, frame, tracks):
                track.lost_at = frame
                del track.boxes[frame]

    def _is_doubled(self, detection: Detection, frame: int, tracks: Sequence[BoxTrack]) -> bool:
        """Whether a supported track is at the same place: a second box of it, or an object half hidden by it."""
        return any(
            frame in track.support
            and track.detector_class == detection.detector_class
            and box_iou(track.boxes[frame], detection.box_xyxy_px) > self._config.occluded_iou
            for track in tracks
        )

    def _is_behind(self, track: BoxTrack, frame: int, tracks: Sequence[BoxTrack]) -> bool:
        return any(
            frame in other.support
            and other.detector_class == track.detector_class
            and box_iou(other.boxes[frame], track.boxes[frame]) > self._config.occluded_iou
            for other in tracks
            if other is not track
        )

    def _extend_back(self, track: BoxTrack, tracks: Sequence[BoxTrack], looked: Collection[int]) -> None:
        for start in sorted(frame for frame in track.support if frame - 1 not in track.boxes):
            frame, missed = start, 0
            while frame > 0 and frame - 1 not in track.boxes:
                box = self._follow(track, frame, frame - 1)
                if box is None:
                    break
                frame -= 1
                track.boxes[frame] = box
                missed += frame in looked
                unsure = missed > self._config.max_tail and frame not in track.sure
                if unsure or self._is_behind(track, frame, tracks):
                    del track.boxes[frame]
                    break

    def _bridge(self, track: BoxTrack) -> None:
        """Interpolate between two detections that flow did not join: a small object faster than flow can follow."""
        seen = sorted(track.support)
        for before, after in itertools.pairwise(seen):
            passed_s = self._times_s[after] - self._times_s[before]
            if track.flow_iou[after] >= self._config.min_iou or passed_s > self._config.max_bridge_s:
                continue
            for frame in range(before + 1, after):
                share = (self._times_s[frame] - self._times_s[before]) / passed_s
                track.boxes[frame] = mixed_box(track.boxes[before], track.boxes[after], share)

    def _trim(self, track: BoxTrack, looked: Collection[int]) -> None:
        """Cut each run's unsupported end to `max_tail` detection frames."""
        missed = 0
        for frame in range(min(track.boxes), max(track.boxes) + 1):
            if frame in track.support:
                missed = 0
            elif frame in track.boxes:
                missed += frame in looked
                unsure = missed > self._config.max_tail and frame not in track.sure
                if unsure and not self._resumes(track, frame):
                    del track.boxes[frame]

    def _resumes(self, track: BoxTrack, frame: int) -> bool:
        """Whether the run of boxes at `frame` holds a later detection."""
        while frame in track.boxes:
            if frame in track.support:
                return True
            frame += 1
        return False


def _unsure(scores: npt.NDArray[np.float64], chosen: Sequence[int | None], min_margin: float, again: bool) -> set[int]:
    """Rows that could have been served otherwise at nearly the same score: two that take each other's columns.

    With `again`, also one by a column that no row has, and one whose column a row that goes without could have.
    """
    unsure: set[int] = set()
    served = {row: column for row, column in enumerate(chosen) if column is not None}
    for (a, one), (b, other) in itertools.combinations(served.items(), 2):
        kept, swapped = scores[a, one] + scores[b, other], scores[a, other] + scores[b, one]
        if kept - swapped < min_margin:
            unsure |= {a, b}
    for row, column in served.items() if again else ():
        rivals = [scores[other, column] for other in range(len(chosen)) if other not in served]
        rivals += [scores[row, other] for other in range(scores.shape[1]) if other not in served.values()]
        if scores[row, column] - max(rivals, default=FORBIDDEN) < min_margin:
            unsure.add(row)
    return unsure


def histogram_of(image: Image, box_xyxy_px: BoxXyxyPx) -> Histogram:
    """Hue, saturation and value over the box's inner part, which holds less background than the whole."""
    x1, y1, x2, y2 = box_xyxy_px
    height_px, width_px = image.shape[:2]
    dx, dy = (x2 - x1) * (1 - _INNER_SHARE) / 2, (y2 - y1) * (1 - _INNER_SHARE) / 2
    left, top = int(np.clip(x1 + dx, 0, width_px - 1)), int(np.clip(y1 + dy, 0, height_px - 1))
    right, bottom = int(np.clip(x2 - dx, left + 1, width_px)), int(np.clip(y2 - dy, top + 1, height_px))
    return hsv_histogram(image[top:bottom, left:right])
