"""How a box moves, in the frame and against the ground, and what that says of a claimed direction.

The ground's own motion is estimated from one look to the next, by corners outside the mask that are followed and
fitted with a similarity transform by RANSAC. A camera that pans or follows moves the frame; where the ground is known,
a claim needs to hold in one of the two only, and an object that does neither can be told to stand still.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from agents.second_look import BoxPath, Look
from schemas.words import Direction

SURE_MOVE_DIAG = 0.06
"""A little over the displacement from which the annotator speaks of movement."""
MAYBE_MOVE_DIAG = 0.03
SURE_STILL_DIAG = 0.025
SURE_SWELLING = 1.25
SURE_SWELL_DIAG = 0.1
SURE_CONSTANT = 1.08
"""Ratio of sizes, or its inverse, up to which an object has neither grown nor shrunk."""
GRID = 6
CORNERS_A_CELL = 8
BORDER = 0.006
WHOLE_SHARE = 0.4
"""Of the boxes, the share that must be clear of the border for the others to be left out."""
MIN_CORNERS = 25
RESTING_PX = 1.0
MIN_RESTING_A_QUARTER = 4
MIN_FITTING = 0.5
"""Of the corners that were followed, the share that must fit one motion of the ground."""

_WAYS: dict[Direction, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}


@dataclass(frozen=True)
class Movement:
    """Box centres (n, 2) and sizes (n,), means of width and height, in frame diagonals and in order of time.

    Boxes that the frame's border cuts shrink and stop short of their objects: they are left out where enough others are
    left (`trimmed`), and elsewhere `cut` says so.
    """

    centres_diag: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.float64]
    cut: bool
    trimmed: bool

    def displacement_diag(self) -> npt.NDArray[np.float64]:
        """(dx, dy) from the first to the last boxes, two an end where there are at least eight."""
        end = 1 if len(self.sizes) < 8 else 2
        return np.asarray(self.centres_diag[-end:].mean(axis=0) - self.centres_diag[:end].mean(axis=0))

    def swelling(self) -> float:
        """Ratio of the last sizes over the first."""
        end = 1 if len(self.sizes) < 8 else 2
        return float(self.sizes[-end:].mean() / max(float(self.sizes[:end].mean()), 1e-9))

    def reach_diag(self, direction: Direction) -> float:
        """The farthest that it ever gets in one direction, between any two moments."""
        along = self.centres_diag @ np.array(_WAYS[direction])
        return float((along - np.minimum.accumulate(along)).max())

    def told(self) -> str:
        """For people."""
        dx, dy = self.displacement_diag()
        return f"box centre moves {dx:+.3f}, {dy:+.3f} diagonals, size x {self.swelling():.2f}"


def in_frame(path: BoxPath) -> Movement:
    """The movement in the frame, over every frame in which the object is seen."""
    sizes = path.in_diagonals(path.boxes[:, 2:] - path.boxes[:, :2]).mean(axis=1)
    at_border = np.any(np.hstack([path.boxes[:, :2] < BORDER, path.boxes[:, 2:] > 1 - BORDER]), axis=1)
    return _of_whole_boxes(path.in_diagonals(path.centres), sizes, np.asarray(at_border))


def _of_whole_boxes(
    centres_diag: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], at_border: npt.NDArray[np.bool_]
) -> Movement:
    whole = ~at_border
    if whole.sum() >= max(3, WHOLE_SHARE * len(whole)):
        return Movement(centres_diag[whole], sizes[whole], cut=False, trimmed=not whole.all())
    return Movement(centres_diag, sizes, cut=True, trimmed=False)


def against_ground(looks: Sequence[Look]) -> Movement | None:
    """The movement from look to look with the ground's own taken out; None where the ground cannot be followed."""
    if len(looks) < 2:
        return None
    height, width = looks[0].mask.shape
    diagonal_px = float(np.hypot(height, width))
    to_first = np.eye(3)
    centres, sizes, boxes = [], [], []
    for number, look in enumerate(looks):
        if number:
            step = _ground_step(looks[number - 1], look)
            if step is None:
                return None
            to_first = to_first @ np.linalg.inv(step)
        ys, xs = np.nonzero(look.mask)
        box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=np.float64)
        centre = to_first @ np.array([*(box[:2] + box[2:]) / 2, 1.0])
        centres.append(centre[:2] / diagonal_px)
        sizes.append((box[2:] - box[:2]).mean() * np.sqrt(abs(np.linalg.det(to_first[:2, :2]))) / diagonal_px)
        boxes.append(box)
    edges = np.array(boxes)
    at_border = np.any(np.hstack([edges[:, :2] <= 2, edges[:, 2:] >= np.array([width, height]) - 2]), axis=1)
    return _of_whole_boxes(np.array(centres), np.array(sizes), np.asarray(at_border))


def direction_score(
    direction: Direction, movement: Movement, *, still_tells: bool, swelling_tells: bool = True
) -> float:
    """0 against, 0.5 cannot tell, 1 for.

    `still_tells` where standing still speaks against a movement, `swelling_tells` where growing or shrinking speaks
    against standing still.
    """
    moved, swelling = movement.displacement_diag(), movement.swelling()
    length = float(np.hypot(*moved))
    if direction == "none":
        return _stillness(movement, length, swelling if swelling_tells else 1.0)
    if direction in ("toward", "away"):
        if movement.cut:
            return 0.5
        growing = swelling if direction == "toward" else 1 / swelling
        if growing < 1 / SURE_SWELLING or (still_tells and growing < SURE_CONSTANT):
            return 0.0
        return 1.0 if growing > 1.12 else 0.5
    along = float(np.dot(moved, _WAYS[direction]))
    if along < -MAYBE_MOVE_DIAG and not (movement.cut and along > -SURE_MOVE_DIAG):
        return 0.0
    if along > 0.02 and along > 0.4 * length:
        return 1.0
    reached = movement.reach_diag(direction) > MAYBE_MOVE_DIAG
    across_only = length > SURE_MOVE_DIAG and along < 0.1 * length
    still = length < SURE_STILL_DIAG
    return 0.0 if still_tells and (across_only or still) and not reached and not movement.cut else 0.5


def _stillness(movement: Movement, length: float, swelling: float) -> float:
    # a box that the border or another object cuts shrinks and moves a little without its object
    if movement.cut:
        far = length > max(SURE_MOVE_DIAG, 0.35 * float(movement.sizes.max()))
        return 0.0 if far else 1.0 if length < MAYBE_MOVE_DIAG else 0.5
    swelled = not 1 / SURE_SWELLING < swelling < SURE_SWELLING and np.ptp(movement.sizes) > SURE_SWELL_DIAG
    if length > SURE_MOVE_DIAG or swelled:
        return 0.0
    return 1.0 if length < MAYBE_MOVE_DIAG else 0.5


def _ground_step(before: Look, after: Look) -> npt.NDArray[np.float64] | None:
    """The (3, 3) similarity that takes the ground of one look to that of the next, in pixels.

    Corners at rest in two quarters of the frame are a camera at rest, however many others go along with objects.
    """
    grays = [cv2.cvtColor(look.image, cv2.COLOR_RGB2GRAY) for look in (before, after)]
    corners = _corners(grays[0], ~before.mask)
    if not len(corners):
        return None
    moved, found, _ = cv2.calcOpticalFlowPyrLK(grays[0], grays[1], corners, None, winSize=(21, 21), maxLevel=4)
    old, new = corners[found[:, 0] > 0, 0], moved[found[:, 0] > 0, 0]
    resting = old[np.abs(new - old).max(axis=1) < RESTING_PX]
    quarters = (resting > np.array(before.mask.shape[::-1]) / 2) @ np.array([1, 2])
    if (np.bincount(quarters, minlength=4) >= MIN_RESTING_A_QUARTER).sum() >= 2:
        return np.eye(3)
    if len(old) < MIN_CORNERS:
        return None
    fitted, fitting = cv2.estimateAffinePartial2D(old, new, ransacReprojThreshold=2.0)
    if fitted is None or fitting.mean() < MIN_FITTING:
        return None
    return np.vstack([fitted, [0.0, 0.0, 1.0]])


def _corners(gray: npt.NDArray[np.uint8], beside: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """(n, 1, 2) corners, the best of each cell of a grid, so that a textured object does not take them all."""
    height, width = gray.shape
    found = []
    for row in range(GRID):
        for column in range(GRID):
            top, left = row * height // GRID, column * width // GRID
            cell = np.s_[top : (row + 1) * height // GRID, left : (column + 1) * width // GRID]
            inside = np.ascontiguousarray(beside[cell]).astype(np.uint8)
            corners = cv2.goodFeaturesToTrack(np.ascontiguousarray(gray[cell]), CORNERS_A_CELL, 0.05, 5, mask=inside)
            if corners is not None:
                found.append(corners + np.array([left, top], np.float32))
    return np.concatenate(found) if found else np.zeros((0, 1, 2), np.float32)
