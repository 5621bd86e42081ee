"""Processor time of reading few frames of a 20 s clip: the GOP plan against a full scan, in one run.

Run by `make perf`. The clip is a packaged one of a city seen from a slow camera, played to and fro until it lasts 20 s
and encoded by x264 as it comes, but with a key frame every second (as phones do) and every two (as video sites do).
The plan's time includes finding where frames lie, for a file that was never seen before. Both sides give the same
pixels, which is checked first; then medians of five, taken in turns.
"""

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from infra.video import Frames, iter_frames, probe, read_frames
from infra.video_index import forget_indexes
from infra.weights import fetch, weight_path

CLIP, FPS, SECONDS, LONG_SIDE_PX = "clip-city", 30, 20, 720
GOPS_S = (1, 2)
ROUNDS = 5
NEEDED = 6.0
"""Times less processor time for 4 frames, with a key frame a second."""


def make_clip(path: Path, images: list[npt.NDArray[np.uint8]], gop_s: int, seconds: int = SECONDS) -> None:
    """The images to and fro in H.264 for so long, with a key frame every `gop_s` seconds."""
    to_and_fro = itertools.cycle([*images, *images[-2:0:-1]])
    height_px, width_px = (side // 2 * 2 for side in images[0].shape[:2])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(gop_s * FPS)})
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        for image in itertools.islice(to_and_fro, FPS * seconds):
            picture = np.ascontiguousarray(image[:height_px, :width_px])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def full_scan(path: Path, wanted: list[int]) -> npt.NDArray[np.uint8]:
    """Decode everything, keep what is wanted: what readers without an index do."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 2
        chosen = set(wanted)
        kept = [f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(video=0)) if i in chosen]
    return np.stack(kept)


def planned(path: Path, wanted: list[int]) -> Frames:
    """The project's own reader, on a file that it has not seen."""
    forget_indexes()
    return read_frames(path, wanted, LONG_SIDE_PX)


def cpu_s(work: Callable[[Path, list[int]], object], path: Path, wanted: list[int]) -> float:
    """Processor seconds of one call, all threads."""
    start = time.process_time()
    work(path, wanted)
    return time.process_time() - start


def times_less(path: Path, count: int, gop_s: int) -> float:
    """Full scan over plan, in processor time, for `count` frames spread over the clip; prints one line."""
    num_frames = probe(path).num_frames
    wanted = [int((i + 0.5) * num_frames / count) for i in range(count)]
    if not np.array_equal(planned(path, wanted), full_scan(path, wanted)):
        sys.exit(f"{count} frames: the plan and the full scan give other pixels")
    pairs = [(cpu_s(full_scan, path, wanted), cpu_s(planned, path, wanted)) for _ in range(ROUNDS)]
    scan_s, plan_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    sys.stdout.write(
        f"key frame every {gop_s} s, {count:>2} of {num_frames} frames: full scan {scan_s:.3f} CPU-s, "
        f"plan {plan_s:.3f}, {scan_s / plan_s:.1f} times less\n"
    )
    return float(scan_s / plan_s)


def main() -> None:
    """Print one line per number of frames and distance of key frames; exits 1 where the plan saves too little."""
    fetch([CLIP], print)
    source = weight_path(CLIP)
    images = [image for _, image in iter_frames(source, range(probe(source).num_frames), LONG_SIDE_PX)]
    saved = {}
    with tempfile.TemporaryDirectory() as folder:
        for gop_s in GOPS_S:
            path = Path(folder) / f"{gop_s}.mp4"
            make_clip(path, images, gop_s)
            for count in (4, 8, 16, 32):
                saved[gop_s, count] = times_less(path, count, gop_s)
    if saved[1, 4] < NEEDED:
        sys.exit(f"4 frames must take at least {NEEDED:g} times less, with a key frame a second")


if __name__ == "__main__":
    main()
