"""Fingerprints of clips: copies are near, other clips are not, and hashes are what their definition says."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from infra.fingerprint import (
    GRID,
    MARGIN,
    NEAR,
    NUM_FRAMES,
    Fingerprint,
    FingerprintIndex,
    distance,
    fingerprint_key,
    fingerprint_of,
    frame_hash,
)
from infra.scenes import LONG_SIDE_PX
from infra.sources import ClipConfig, SourceRow, printed_clips_of
from infra.video import iter_frames


def scene(seed, num_frames=48, size_px=(180, 320)):
    """(N, H, W, 3): a ground of soft patches under a bright disk that moves."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 220, (6, 9, 3)).astype(np.float32)
    ground = cv2.resize(coarse, size_px[::-1], interpolation=cv2.INTER_CUBIC)
    start, end = rng.random((2, 2)) * size_px
    y, x = np.mgrid[: size_px[0], : size_px[1]]
    frames = []
    for number in range(num_frames):
        at = start + (end - start) * number / num_frames
        disk = (y - at[0]) ** 2 + (x - at[1]) ** 2 < (0.15 * size_px[0]) ** 2
        frames.append(np.where(disk[..., None], 240, np.clip(ground, 0, 255)))
    return np.stack(frames).astype(np.uint8)


def write(path, frames, crf=18, codec="libx264"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12, options={"crf": str(crf)} if codec == "libx264" else {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 12)
        stream.codec_context.thread_count = 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
    return of_file(path, 0, len(frames))


def of_file(path, start_frame, end_frame):
    """By the definition: of each of 16 equal parts of the span the middle frame, decoded for itself."""
    middles = [start_frame + (2 * part + 1) * (end_frame - start_frame) // 32 for part in range(NUM_FRAMES)]
    hashes = [frame_hash(image) for _, image in iter_frames(path, middles, LONG_SIDE_PX)]
    return Fingerprint(hashes=tuple(each for each in hashes if each is not None))


def resized(frames, height_px, width_px):
    return np.stack([cv2.resize(image, (width_px, height_px), interpolation=cv2.INTER_AREA) for image in frames])


COPIES = {
    "re-encoded": (lambda frames: frames, 40, "libx264"),
    "another codec": (lambda frames: frames, 0, "mpeg4"),
    "halved": (lambda frames: resized(frames, 90, 160), 23, "libx264"),
    "squeezed": (lambda frames: resized(frames, 180, 240), 23, "libx264"),
    "brighter": (lambda frames: np.clip(frames.astype(int) + 30, 0, 255).astype(np.uint8), 23, "libx264"),
    "darker and paler": (lambda frames: (10 + 0.7 * frames).astype(np.uint8), 23, "libx264"),
    "every other frame": (lambda frames: frames[::2], 23, "libx264"),
    "a third cut off": (lambda frames: frames[16:], 23, "libx264"),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_near(tmp_path, how):
    change, crf, codec = COPIES[how]
    frames = scene(1)
    original = write(tmp_path / "a.mp4", frames)
    copy = write(tmp_path / "b.mp4", change(frames), crf, codec)
    assert len(original.hashes) == NUM_FRAMES
    assert distance(original, copy) <= NEAR / 2
    assert distance(copy, original) == distance(original, copy)


def test_other_clips_are_far(tmp_path):
    prints = [write(tmp_path / f"{seed}.mp4", scene(seed)) for seed in range(8)]
    between = [distance(one, other) for place, one in enumerate(prints) for other in prints[:place]]
    assert min(between) > 3 * NEAR
    mirrored = write(tmp_path / "m.mp4", scene(1)[:, :, ::-1])
    assert distance(prints[1], mirrored) > NEAR


def test_the_sampled_frames_are_the_middles_of_equal_parts():
    hashes = [f"{number:032x}" for number in range(80)]
    wanted = [(2 * part + 1) * 80 // 32 for part in range(NUM_FRAMES)]
    assert fingerprint_of(hashes).hashes == tuple(hashes[place] for place in wanted)
    assert fingerprint_of(hashes[:3]).hashes == tuple(hashes[:3])
    assert fingerprint_of([None, hashes[1], None]).hashes == (hashes[1],)


def test_fingerprints_taken_while_shots_are_found_are_those_of_the_frames_alone(make_video, tmp_path):
    path = make_video(num_frames=100, cuts=(30, 70), size_px=(180, 320))
    row = SourceRow(source_id="r", video=path.name, caption="A cat.", start_s=0.2, end_s=None, license="")
    clips, fingerprints = printed_clips_of(row, tmp_path, ClipConfig(min_shot_s=1.1))
    spans = [(5, 30), (30, 70), (70, 100)]
    assert [(clip.start_frame, clip.end_frame) for clip in clips.clips] == spans[1:]
    (sha256,) = {clip.video_sha256 for clip in clips.clips}
    assert fingerprints == {fingerprint_key(sha256, *span): of_file(path, *span) for span in spans}
    assert len(set(fingerprints.values())) == 3


def slow_hash(image):
    """The definition, pixel by pixel: exact means of cells whose edges may cut pixels."""
    height_px, width_px = image.shape[:2]
    grey = [[float(np.dot(pixel, (0.299, 0.587, 0.114))) for pixel in row] for row in image]

    def mean(row, column, rows, columns):
        top, bottom = row * height_px / rows, (row + 1) * height_px / rows
        left, right = column * width_px / columns, (column + 1) * width_px / columns
        total = 0.0
        for y in range(height_px):
            for x in range(width_px):
                tall = max(0.0, min(bottom, y + 1) - max(top, y))
                wide = max(0.0, min(right, x + 1) - max(left, x))
                total += tall * wide * grey[y][x]
        return total / ((bottom - top) * (right - left))

    bits = ""
    wide = [[mean(row, column, GRID, GRID + 1) for column in range(GRID + 1)] for row in range(GRID)]
    for row in wide:
        bits += "".join("1" if row[i + 1] - row[i] > MARGIN else "0" for i in range(GRID))
    tall = [[mean(row, column, GRID + 1, GRID) for column in range(GRID)] for row in range(GRID + 1)]
    for row in range(GRID):
        bits += "".join("1" if tall[row + 1][i] - tall[row][i] > MARGIN else "0" for i in range(GRID))
    return f"{int(bits, 2):032x}"


@pytest.mark.parametrize("size_px", [(16, 18), (23, 31), (40, 21), (9, 8)])
def test_a_frame_hash_is_what_its_definition_says(size_px):
    for seed in range(3):
        image = np.random.default_rng(seed).integers(0, 256, (*size_px, 3), np.uint8)
        assert frame_hash(image) == slow_hash(image)


def slow_distance(one, other):
    def bits_apart(a, b):
        return (int(a, 16) ^ int(b, 16)).bit_count() / 128

    ways = [
        sum(min(bits_apart(a, b) for b in theirs.hashes) for a in ours.hashes) / len(ours.hashes)
        for ours, theirs in ((one, other), (other, one))
    ]
    return min(ways)


def test_the_nearest_is_that_of_a_slow_search():
    rng = np.random.default_rng(5)
    known = {
        f"k{number}": Fingerprint(hashes=tuple(rng.bytes(16).hex() for _ in range(rng.integers(0, 17))))
        for number in range(60)
    }
    index = FingerprintIndex(known)
    full = {name: item for name, item in known.items() if item.hashes}
    assert len(full) < len(known)
    for _ in range(20):
        asked = Fingerprint(hashes=tuple(rng.bytes(16).hex() for _ in range(rng.integers(1, 17))))
        name, apart = index.nearest(asked)
        slow = {key: slow_distance(asked, item) for key, item in full.items()}
        assert apart == pytest.approx(min(slow.values()))
        assert slow[name] == pytest.approx(apart)


def test_flat_frames_tell_nothing(tmp_path):
    black = np.zeros((24, 64, 96, 3), np.uint8)
    fade = np.concatenate([black, scene(2, 24, (64, 96))])
    flat = write(tmp_path / "black.mp4", black)
    assert flat == Fingerprint(hashes=())
    assert distance(flat, flat) == 1.0
    assert FingerprintIndex({"flat": flat}).nearest(flat) is None
    faded = write(tmp_path / "fade.mp4", fade)
    assert len(faded.hashes) == NUM_FRAMES // 2
    assert distance(faded, write(tmp_path / "other.mp4", np.concatenate([black, scene(3, 24, (64, 96))]))) > 3 * NEAR


def test_an_empty_span_and_a_strange_hash_are_refused():
    with pytest.raises(ValueError, match="got none"):
        fingerprint_of([])
    with pytest.raises(ValueError, match="32 hex digits"):
        distance(Fingerprint(hashes=("ab",)), Fingerprint(hashes=("cd",)))
