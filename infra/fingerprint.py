"""Near-duplicates: a perceptual fingerprint of a clip, and how far two of them lie apart.

A frame's hash is the difference hash (N. Krawetz, "Kind of Like That", 2013) over both axes of an 8 x 8 grid, 128
bits; a clip's fingerprint is the hashes of evenly spaced frames. Re-encoding, resizing, another aspect ratio, a shift
of brightness and trimming leave it nearly as it was; mirroring, turning and cropping do not.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from infra.video import Image
from schemas.record import Record, content_id

NUM_FRAMES = 16
GRID = 8
"""Cells a side; each is compared with the one to its right and the one below."""
MARGIN = 1.5
"""Grey levels (of 255) by which a cell must be darker than the next: less is noise of the encoder."""
MIN_CONTRAST = 3.0
"""Standard deviation of a frame's cells, in grey levels, under which it is flat (a fade, say) and tells nothing."""
NEAR = 0.05
"""Distance up to which two clips count as near-duplicates.

Of 405 synthetic clips, which share six cut-outs and five still backgrounds, no two came nearer than 0.054, and half
lay 0.11 or more from any other. Copies of 25 shots, nine of them real: re-encoded at CRF 40, halved, squeezed to 4:3 or
brightened by 40 grey levels, 99 of 100 came to 0.049 at most. A part cut from a shot came to 0.04 where the camera is
at rest; where it pans fast, the frames that are taken differ too much, and the part is missed at up to 0.15.
"""
_DIGITS = 2 * GRID * GRID // 4


class Fingerprint(Record):
    """Hashes of the frames that are not flat, in order, as 32 hex digits each; none for a clip that is flat."""

    hashes: tuple[str, ...]


class FingerprintIndex:
    """Fingerprints that others are held against.

    Each look-up takes time in proportion to the hashes known, 0.5 ms for 16,000 of them, and 27 bytes for each.
    """

    def __init__(self, known: Mapping[str, Fingerprint]) -> None:
        told = {name: _words(fingerprint) for name, fingerprint in known.items() if fingerprint.hashes}
        self._names = list(told)
        words = np.concatenate([*told.values(), np.empty((0, 2), np.uint64)])
        self._words = np.ascontiguousarray(words.T)
        self._counts = np.array([len(words) for words in told.values()], np.int64)
        self._starts = np.cumsum(self._counts) - self._counts

    def nearest(self, fingerprint: Fingerprint) -> tuple[str, float] | None:
        """The nearest known one and its distance; None where nothing is known or the fingerprint is empty."""
        if not self._names or not fingerprint.hashes:
            return None
        nearest_ours = np.full(self._words.shape[1], 255, np.uint8)
        ours = np.zeros(len(self._names), np.int64)
        for word in _words(fingerprint):  # frame by frame: what is at hand then stays in the processor's cache
            apart = np.bitwise_count(self._words[0] ^ word[0])
            apart += np.bitwise_count(self._words[1] ^ word[1])
            ours += np.minimum.reduceat(apart, self._starts)
            np.minimum(nearest_ours, apart, out=nearest_ours)
        theirs = np.add.reduceat(nearest_ours, self._starts, dtype=np.int64) / self._counts
        distances = np.minimum(ours / len(fingerprint.hashes), theirs) / (2 * GRID * GRID)
        best = int(distances.argmin())
        return self._names[best], float(distances[best])


def fingerprint_of(hashes: Sequence[str | None]) -> Fingerprint:
    """That of a clip, by `frame_hash` of each of its frames.

    Each frame taken is the middle one of an equal part of the clip. Raises ValueError for a clip without a frame.
    """
    if not hashes:
        raise ValueError("a fingerprint needs a frame at least, got none")
    middles = ((np.arange(NUM_FRAMES) + 0.5) * len(hashes) / NUM_FRAMES).astype(np.int64)
    return Fingerprint(hashes=tuple(found for place in np.unique(middles) if (found := hashes[place]) is not None))


def fingerprint_key(video_sha256: str, start_frame: int, end_frame: int) -> str:
    """Where the fingerprint of a shot rests: under its content, whichever rows and captions speak of it."""
    return content_id(video_sha256, start_frame, end_frame)


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
