"""How well masks agree: region similarity J and boundary accuracy F, as DAVIS defines them.

J is the intersection over union (Perazzi et al. 2016, eq. 1). F is the harmonic mean of precision and recall of the
boundary pixels that find a partner within a tolerance of 0.8 % of the frame's diagonal (eq. 2), here with a disk
dilation as in the benchmark's own code. Over a track, both are means over the frames that the truth annotates. DAVIS
leaves out the first frame, which its methods are given; here nothing is given, so every frame counts.
"""

import math

import cv2
import numpy as np
import numpy.typing as npt

from schemas.mask import Mask, decode
from schemas.record import Record, Share
from schemas.track import ObjectMasks

BOUND_RATIO = 0.008


class MaskScore(Record):
    """Means over `num_frames` frames."""

    j: Share
    f: Share
    num_frames: int

    @property
    def j_and_f(self) -> float:
        """The mean of both."""
        return (self.j + self.f) / 2


def region_similarity(pred: Mask, truth: Mask) -> float:
    """Intersection over union of two (height, width) masks; 1 where both are empty."""
    union = np.count_nonzero(pred | truth)
    return float(np.count_nonzero(pred & truth) / union) if union else 1.0


def boundary_accuracy(pred: Mask, truth: Mask, bound_ratio: float = BOUND_RATIO) -> float:
    """F of the boundary pixels of two (height, width) masks; 1 where both have none, 0 where one has none."""
    pred_edge, truth_edge = boundary(pred), boundary(truth)
    if not pred_edge.any() or not truth_edge.any():
        return float(pred_edge.any() == truth_edge.any())
    disk = _disk(math.ceil(bound_ratio * math.hypot(*pred.shape)))
    precision = pred_edge[cv2.dilate(truth_edge.astype(np.uint8), disk) > 0].sum() / pred_edge.sum()
    recall = truth_edge[cv2.dilate(pred_edge.astype(np.uint8), disk) > 0].sum() / truth_edge.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: Mask) -> Mask:
    """Pixels that differ from their neighbour to the right, below, or right below; the frame's edge is no boundary."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    edge: Mask = (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])
    return edge


def track_score(pred: ObjectMasks, truth: ObjectMasks) -> MaskScore:
    """J and F over the frames that both annotate; None counts as an empty mask.

    Raises ValueError where sizes differ or no frame is common.
    """
    if (pred.height_px, pred.width_px) != (truth.height_px, truth.width_px):
        raise ValueError(
            f"masks are {pred.height_px} x {pred.width_px}, the truth is {truth.height_px} x {truth.width_px}"
        )
    pred_rle = dict(zip(pred.frame_idx, pred.rle, strict=True))
    pairs = [
        (_mask(pred_rle[frame], truth), _mask(counts, truth))
        for frame, counts in zip(truth.frame_idx, truth.rle, strict=True)
        if frame in pred_rle
    ]
    if not pairs:
        raise ValueError("prediction and truth have no frame in common")
    return MaskScore(
        j=float(np.mean([region_similarity(*pair) for pair in pairs])),
        f=float(np.mean([boundary_accuracy(*pair) for pair in pairs])),
        num_frames=len(pairs),
    )


def _mask(counts: str | None, size: ObjectMasks) -> Mask:
    shape = (size.height_px, size.width_px)
    return np.zeros(shape, dtype=np.bool_) if counts is None else decode(counts, *shape)


def _disk(radius_px: int) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[-radius_px : radius_px + 1, -radius_px : radius_px + 1]
    return np.asarray(x**2 + y**2 <= radius_px**2, dtype=np.uint8)
