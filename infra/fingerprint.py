"""Near-duplicates: a perceptual fingerprint of a clip, and how far two of them lie apart.

A frame's hash is the difference hash (N. Krawetz, "Kind of Like That", 2013) over both axes of an 8 x 8 grid, 128
bits; a clip's fingerprint is the hashes of evenly spaced frames. Re-encoding, resizing, another aspect ratio, a shift
of brightness and trimming leave it nearly as it was; mirroring, turning and cropping do not.
"""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from infra.video import Image, iter_frames
from schemas.record import Record

NUM_FRAMES = 16
GRID = 8
"""Cells a side; each is compared with the one to its right and the one below."""
MARGIN = 1.5
"""Grey levels (of 255) by which a cell must be darker than the next: less is noise of the encoder."""
MIN_CONTRAST = 3.0
"""Standard deviation of a frame's cells, in grey levels, under which it is flat (a fade, say) and tells nothing."""
NEAR = 0.06
"""Distance up to which two clips count as near-duplicates.

On 40 synthetic clips over five backgrounds, copies re-encoded at CRF 38, halved, squeezed to 4:3, shifted by 40 grey
levels or cut to half their length came to 0.011 at most, and different clips to 0.123 at least.
"""
_LONG_SIDE_PX = 128
_DIGITS = 2 * GRID * GRID // 4


class Fingerprint(Record):
    """Hashes of the frames that are not flat, in order, as 32 hex digits each; none for a clip that is flat."""

    hashes: tuple[str, ...]


class FingerprintIndex:
    """Fingerprints that others are held against."""

    def __init__(self, known: Mapping[str, Fingerprint]) -> None:
        told = {name: _words(fingerprint) for name, fingerprint in known.items() if fingerprint.hashes}
        self._names = list(told)
        self._words = np.concatenate([*told.values(), np.empty((0, 2), np.uint64)])
        self._starts = np.cumsum([0, *(len(words) for words in told.values())])

    def nearest(self, fingerprint: Fingerprint) -> tuple[str, float] | None:
        """The nearest known one and its distance; None where nothing is known or the fingerprint is empty."""
        if not self._names or not fingerprint.hashes:
            return None
        apart = _bits_apart(_words(fingerprint), self._words)
        starts, counts = self._starts[:-1], np.diff(self._starts)
        ours = np.minimum.reduceat(apart, starts, axis=1).mean(axis=0)
        theirs = np.add.reduceat(apart.min(axis=0), starts) / counts
        distances = np.minimum(ours, theirs) / (2 * GRID * GRID)
        best = int(distances.argmin())
        return self._names[best], float(distances[best])


def fingerprint_of(path: Path, start_frame: int, end_frame: int) -> Fingerprint:
    """That of displayed frames `[start_frame, end_frame)` of a file or folder of pictures.

    Each sampled frame is the middle one of an equal part of the span. Raises VideoError, ValueError for an empty span.
    """
    if end_frame <= start_frame:
        raise ValueError(f"a fingerprint needs a frame at least, got the span [{start_frame}, {end_frame})")
    middles = start_frame + (np.arange(NUM_FRAMES) + 0.5) * (end_frame - start_frame) / NUM_FRAMES
    frame_idx = sorted(set(middles.astype(np.int64).tolist()))
    hashes = (frame_hash(image) for _, image in iter_frames(path, frame_idx, _LONG_SIDE_PX))
    return Fingerprint(hashes=tuple(each for each in hashes if each is not None))


def frame_hash(image: Image) -> str | None:
    """32 hex digits for an RGB picture, None for a flat one.

    The bits, high first: row by row, whether a cell is darker than its right neighbour, on a grid of 9 columns and 8
    rows; then whether it is darker than the one below, on 8 columns and 9 rows. A cell is its mean grey (BT.601).
    """
    grey = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY)
    wide = cv2.resize(grey, (GRID + 1, GRID), interpolation=cv2.INTER_AREA)
    tall = cv2.resize(grey, (GRID, GRID + 1), interpolation=cv2.INTER_AREA)
    if wide.std() < MIN_CONTRAST:
        return None
    bits = np.concatenate([(np.diff(wide, axis=1) > MARGIN).ravel(), (np.diff(tall, axis=0) > MARGIN).ravel()])
    return np.packbits(bits).tobytes().hex()


def distance(one: Fingerprint, other: Fingerprint) -> float:
    """Mean share of bits in which the frames of one differ from the most similar frame of the other, 0 to 1.

    The smaller of both ways round, so a piece cut from a clip is near the whole; 1 where either is empty.
    """
    found = FingerprintIndex({"other": other}).nearest(one)
    return found[1] if found else 1.0


def _words(fingerprint: Fingerprint) -> npt.NDArray[np.uint64]:
    """(frames, 2): each hash as two words."""
    if any(len(each) != _DIGITS for each in fingerprint.hashes):
        raise ValueError(f"a frame's hash has {_DIGITS} hex digits, got {fingerprint.hashes}")
    return np.frombuffer(bytes.fromhex("".join(fingerprint.hashes)), np.uint64).reshape(-1, 2)


def _bits_apart(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """(len(one), len(other)): bits in which each two hashes differ."""
    return np.asarray(np.bitwise_count(one[:, None] ^ other[None]).sum(axis=2), dtype=np.int64)
