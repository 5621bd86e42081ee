"""Processor time of reading few frames of a long clip: the GOP plan against a full scan, in one run.

Run by `make perf`. Both sides give the same pixels, which is checked first; then medians of five, taken in turns.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from infra.video import probe, read_frames

FPS, SECONDS, WIDTH_PX, HEIGHT_PX, GOP = 30, 20, 854, 480, 30
ROUNDS = 5


def make_clip(path: Path) -> None:
    """A 20 s clip of moving noise in H.264 with a key frame a second."""
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 256, (90, 160, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(GOP), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        for index in range(FPS * SECONDS):
            picture = np.ascontiguousarray(np.roll(texture, 2 * index, axis=1)[:HEIGHT_PX, :WIDTH_PX])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def full_scan(path: Path, wanted: list[int]) -> npt.NDArray[np.uint8]:
    """Decode everything, keep what is wanted: what readers without an index do."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 2
        chosen = set(wanted)
        kept = [f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(video=0)) if i in chosen]
    return np.stack(kept)


def cpu_s(work: Callable[[], object]) -> float:
    """Processor seconds of one call, all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print one line per number of frames."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        make_clip(path)
        num_frames = probe(path).num_frames
        for count in (4, 8, 16, 32):
            wanted = [int((i + 0.5) * num_frames / count) for i in range(count)]
            if not np.array_equal(read_frames(path, wanted, WIDTH_PX), full_scan(path, wanted)):
                sys.exit(f"{count} frames: the plan and the full scan give other pixels")
            pairs = [
                (cpu_s(lambda: full_scan(path, wanted)), cpu_s(lambda: read_frames(path, wanted, WIDTH_PX)))  # noqa: B023
                for _ in range(ROUNDS)
            ]
            scan_s, plan_s = (statistics.median(side) for side in zip(*pairs, strict=True))
            sys.stdout.write(
                f"{count:>3} of {num_frames} frames: full scan {scan_s:.3f} CPU-s, plan {plan_s:.3f}, "
                f"{scan_s / plan_s:.1f} times less\n"
            )


if __name__ == "__main__":
    main()
