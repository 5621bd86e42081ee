"""Dense optical flow between the neighbouring frames of a clip: where boxes and masks go, and how sure that is."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from infra.video import Frames
from schemas.record import BoxXyxyPx

SoftMask = npt.NDArray[np.float32]
"""(height, width), 0 to 1; above 0.5 is the object."""

_GRID = 12
_SAME_GRAY = 10
"""Gray levels that noise and compression alone make."""
_MIN_FIT_PX = 20
_MAX_FIT_PX = 2000
_BAND_SIDES_PX = (9, 31)
_INNER_SHARE = 0.7
_MIN_POINTS = 6
_MAX_STEP_GROWTH = 1.15


@dataclass(frozen=True)
class Prediction:
    """A box one frame on; `confidence` is the share of its points that flow there and back to where they began.

    The box may reach beyond the image.
    """

    box_xyxy_px: BoxXyxyPx
    confidence: float


class FlowField:
    """DIS flow (Kroeger et al. 2016, OpenCV's medium preset) of N frames, every neighbouring pair once per direction.

    A flow vector is trusted where going there and back ends within `tolerance_px` plus a tenth of its length.
    """

    def __init__(self, frames: Frames, tolerance_px: float) -> None:
        gray = [np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in frames]
        self._gray = gray
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.height_px, self.width_px = frames.shape[1:3]
        xs, ys = np.meshgrid(np.arange(self.width_px, dtype=np.float32), np.arange(self.height_px, dtype=np.float32))
        self._grid_xy = np.stack([xs, ys], axis=-1)
        self._flow: dict[tuple[int, int], npt.NDArray[np.float16]] = {}
        self._sure: dict[tuple[int, int], npt.NDArray[np.bool_]] = {}
        for first in range(len(gray) - 1):
            there = np.asarray(dis.calc(gray[first], gray[first + 1], None), dtype=np.float32)
            back = np.asarray(dis.calc(gray[first + 1], gray[first], None), dtype=np.float32)
            # half precision halves what a long clip holds; it errs by 1/16 px at 100 px
            self._flow[first, first + 1] = there.astype(np.float16)
            self._flow[first + 1, first] = back.astype(np.float16)
            self._sure[first, first + 1] = self._returns(there, back, tolerance_px)
            self._sure[first + 1, first] = self._returns(back, there, tolerance_px)

    def warp(self, mask: SoftMask, source: int, target: int) -> SoftMask:
        """The mask of frame `source` carried to its neighbour `target`.

        Carried twice: by dense flow, which follows limbs but smears over plain ground, and by the one affine motion
        that fits the object's trusted flow. Where they differ the picture decides: a pixel that the surroundings'
        motion explains is none of the object's; one that only the object's motion explains is.
        """
        came_from = self._grid_xy + self._flow[target, source].astype(np.float32)
        dense = cv2.remap(mask, came_from, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        solid = mask > 0.5
        motion = self._affine_motion(solid, source, target)
        if motion is None:
            return np.asarray(dense, np.float32)
        size = (self.width_px, self.height_px)
        rigid = cv2.warpAffine(mask, motion, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        ground = self._motion_around(solid, source, target)
        by_ground = self._unexplained(source, target, np.array([[1, 0, ground[0]], [0, 1, ground[1]]]))
        by_object = self._unexplained(source, target, motion)
        smeared = (dense > 0.5) & (rigid <= 0.5) & (by_ground < _SAME_GRAY)
        missing = (dense <= 0.5) & (rigid > 0.5) & (by_object <= by_ground)
        return np.asarray(np.where(smeared | missing, rigid, dense), np.float32)

    def _affine_motion(self, solid: npt.NDArray[np.bool_], source: int, target: int) -> npt.NDArray[np.float64] | None:
        """The (2, 3) affine map that fits the trusted flow of an object's pixels; None where few are trusted."""
        rows, columns = np.nonzero(solid & self._sure[source, target])
        if len(rows) < _MIN_FIT_PX:
            return None
        every = max(1, len(rows) // _MAX_FIT_PX)
        rows, columns = rows[::every], columns[::every]
        before = np.stack([columns, rows, np.ones(len(rows))], axis=1).astype(np.float64)
        after = before[:, :2] + self._flow[source, target][rows, columns].astype(np.float64)
        solution = np.linalg.lstsq(before, after, rcond=None)[0]
        error = np.linalg.norm(before @ solution - after, axis=1)
        close = error <= 2 * np.median(error)
        return np.asarray(np.linalg.lstsq(before[close], after[close], rcond=None)[0].T, dtype=np.float64)

    def _motion_around(self, solid: npt.NDArray[np.bool_], source: int, target: int) -> npt.NDArray[np.float64]:
        """The median flow of a band around the object, zero where none of it is trusted."""
        near, far = (cv2.dilate(solid.astype(np.uint8), np.ones((side, side), np.uint8)) for side in _BAND_SIDES_PX)
        band = (far > near) & self._sure[source, target]
        if not band.any():
            return np.zeros(2)
        return np.asarray(np.median(self._flow[source, target][band].astype(np.float64), axis=0), dtype=np.float64)

    def _unexplained(self, source: int, target: int, motion: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """How much `target` differs in gray from `source` moved as given, smoothed over a few pixels."""
        size = (self.width_px, self.height_px)
        moved = cv2.warpAffine(self._gray[source], motion, size, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.blur(cv2.absdiff(moved, self._gray[target]), (3, 3)), dtype=np.float32)

    def predict_box(self, box_xyxy_px: BoxXyxyPx, source: int, target: int) -> Prediction:
        """The box of frame `source` carried to its neighbour `target`.

        Shift and scale are the medians over trusted points of the box's inner part, as in the Median Flow tracker
        (Kalal et al. 2010). Points off the image count as lost.
        """
        points, total = self._points_inside(box_xyxy_px)
        column, row = points[:, 0], points[:, 1]
        trusted = self._sure[source, target][row, column] if len(points) else np.zeros(0, dtype=np.bool_)
        confidence = float(trusted.sum()) / total
        if trusted.sum() < _MIN_POINTS:
            return Prediction(box_xyxy_px, 0.0)
        before = points[trusted].astype(np.float64)
        shift = self._flow[source, target][row[trusted], column[trusted]].astype(np.float64)
        dx, dy = np.median(shift, axis=0)
        scale = _median_growth(before, before + shift)
        x1, y1, x2, y2 = box_xyxy_px
        x, y, w, h = (x1 + x2) / 2 + dx, (y1 + y2) / 2 + dy, (x2 - x1) * scale / 2, (y2 - y1) * scale / 2
        return Prediction((float(x - w), float(y - h), float(x + w), float(y + h)), confidence)

    def _points_inside(self, box_xyxy_px: BoxXyxyPx) -> tuple[npt.NDArray[np.int64], int]:
        x1, y1, x2, y2 = box_xyxy_px
        margin_x, margin_y = (x2 - x1) * (1 - _INNER_SHARE) / 2, (y2 - y1) * (1 - _INNER_SHARE) / 2
        xs = np.linspace(x1 + margin_x, x2 - margin_x, _GRID).round().astype(np.int64)
        ys = np.linspace(y1 + margin_y, y2 - margin_y, _GRID).round().astype(np.int64)
        points = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
        inside = (points >= 0).all(axis=1) & (points[:, 0] < self.width_px) & (points[:, 1] < self.height_px)
        return points[inside], len(points)

    def _returns(
        self, there: npt.NDArray[np.float32], back: npt.NDArray[np.float32], tolerance_px: float
    ) -> npt.NDArray[np.bool_]:
        home = cv2.remap(back, self._grid_xy + there, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        error = np.linalg.norm(there + home, axis=-1)
        return np.asarray(error < tolerance_px + 0.1 * np.linalg.norm(there, axis=-1), dtype=np.bool_)


def _median_growth(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> float:
    """The median over point pairs of their distance after over before, within the growth one step may have."""
    first, second = np.triu_indices(len(before), k=1)
    old = np.linalg.norm(before[first] - before[second], axis=1)
    new = np.linalg.norm(after[first] - after[second], axis=1)
    apart = old > 2.0
    if not apart.any():
        return 1.0
    return float(np.clip(np.median(new[apart] / old[apart]), 1 / _MAX_STEP_GROWTH, _MAX_STEP_GROWTH))
