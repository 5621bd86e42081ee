"""Fixtures that several packages' tests share."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

MakeVideo = Callable[..., Path]
ReadNumber = Callable[[npt.NDArray[np.uint8]], int]
BLOCK_PX = 8
BITS = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write golden files of agents' outputs that are missing; existing ones are never overwritten",
    )


def barcoded(number: int, height_px: int, width_px: int, scene: int) -> npt.NDArray[np.uint8]:
    """A scene's textured ground, a square that moves with the number, and the number in black and white blocks."""
    rng = np.random.default_rng(scene)
    ground = rng.integers(40, 200, (height_px // 16 + 1, width_px // 16 + 1, 3), np.uint8)
    image = np.kron(ground, np.ones((16, 16, 1), np.uint8))[:height_px, :width_px].copy()
    left = (number * 3) % (width_px - 12)
    image[height_px // 2 : height_px // 2 + 12, left : left + 12] = (250, 30, 30)
    for bit in range(BITS):
        image[:BLOCK_PX, bit * BLOCK_PX : (bit + 1) * BLOCK_PX] = 255 * (number >> bit & 1)
    return image


def read_barcode(image: npt.NDArray[np.uint8]) -> int:
    """The number that `barcoded` wrote."""
    blocks = image[:BLOCK_PX, : BITS * BLOCK_PX].reshape(BLOCK_PX, BITS, BLOCK_PX, 3).mean((0, 2, 3))
    return sum(1 << bit for bit, value in enumerate(blocks) if value > 128)


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """Writes a video of which each frame bears its number; returns its path.

    `cuts` are the frames at which a new scene starts; `stamps` the frames' presentation stamps in ticks of 1/fps.
    """

    def make(
        name: str = "a.mp4",
        num_frames: int = 40,
        codec: str = "libx264",
        size_px: tuple[int, int] = (64, 96),
        fps: int = 25,
        options: dict[str, str] | None = None,
        container_options: dict[str, str] | None = None,
        cuts: Sequence[int] = (),
        stamps: Sequence[int] | None = None,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=fps, options=options or {})
            stream.height, stream.width = size_px
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.time_base = Fraction(1, fps)
            stream.codec_context.thread_count = 1
            for number in range(num_frames):
                scene = sum(number >= cut for cut in cuts)
                frame = av.VideoFrame.from_ndarray(barcoded(number, *size_px, scene), format="rgb24")
                frame.pts = stamps[number] if stamps is not None else number
                frame.time_base = Fraction(1, fps)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def read_number() -> ReadNumber:
    """Reads the number back from a frame of `make_video`."""
    return read_barcode
