"""Fixtures that several packages' tests share."""

import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco

pytest_plugins = ("tests.stub_vllm", "tests.tiny_checkpoints")

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
        pix_fmt: str | None = None,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=fps, options=options or {})
            stream.height, stream.width = size_px
            stream.pix_fmt = pix_fmt or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
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


@dataclass(frozen=True)
class MaskedVideo:
    """Frames (height, width, 3) RGB, each object's masks in all of them, and expressions with the objects they mean."""

    frames: Sequence[npt.NDArray[np.uint8]]
    masks: Mapping[str, Sequence[npt.NDArray[np.bool_]]]
    expressions: Sequence[tuple[str, tuple[str, ...]]]


def square_of(number: int, left_px: int, height_px: int = 64, width_px: int = 96) -> npt.NDArray[np.bool_]:
    """A mask of a square that goes to the right with the number."""
    mask = np.zeros((height_px, width_px), np.bool_)
    mask[20:36, left_px + number : left_px + number + 16] = True
    return mask


class MaskLayouts:
    """Writes sources that bring masks as MeViS, Ref-YouTube-VOS and DAVIS lay them out, with pycocotools and FFmpeg."""

    video = MaskedVideo

    def small(self, num_frames: int = 8, **changes: object) -> MaskedVideo:
        """Two squares, of which the second is gone from the middle on, in barcoded frames of 64 x 96."""
        frames = [barcoded(number, 64, 96, scene=0) for number in range(num_frames)]
        gone = np.zeros((64, 96), np.bool_)
        second = [square_of(n, 60) if n < num_frames // 2 else gone for n in range(num_frames)]
        masks = {"1": [square_of(n, 10) for n in range(num_frames)], "2": second}
        expressions = [("the dog on the left", ("1",)), ("two dogs", ("1", "2"))]
        return MaskedVideo(**({"frames": frames, "masks": masks, "expressions": expressions} | changes))

    def mevis(self, split: Path, videos: Mapping[str, MaskedVideo]) -> Path:
        """`obj_id` is as MeViS has it, a number that names nothing outside its video; `anno_id` leads to the masks."""
        meta: dict[str, object] = {}
        masks: dict[str, object] = {}
        for number, (name, video) in enumerate(videos.items()):
            self.write_frames(split / "JPEGImages" / name, video.frames)
            anno_ids = {item: 100 * number + place for place, item in enumerate(video.masks)}
            masks |= {
                str(anno_ids[item]): [self.rle(mask) for mask in of_item] for item, of_item in video.masks.items()
            }
            expressions = {
                str(place): {
                    "exp": text,
                    "obj_id": [list(video.masks).index(item) for item in items],
                    "anno_id": [anno_ids[item] for item in items],
                }
                for place, (text, items) in enumerate(video.expressions)
            }
            frames = [f"{i:05d}" for i in range(len(video.frames))]
            meta[name] = {"expressions": expressions, "vid_id": number, "frames": frames}
        (split / "mask_dict.json").write_text(json.dumps(masks))
        (split / "meta_expressions.json").write_text(json.dumps({"videos": meta}))
        return split

    def davis(self, root: Path, videos: Mapping[str, MaskedVideo]) -> Path:
        """Masks of every frame, and the texts of the second annotator in Latin-1; an expression means one object."""
        lines = []
        for name, video in videos.items():
            self.write_frames(root / "JPEGImages" / "480p" / name, video.frames)
            self.write_pngs(root / "Annotations" / "480p" / name, video.masks, range(len(video.frames)))
            lines += [f'{name} {items[0]} "{text}"' for text, items in video.expressions]
        (root / "davis_text_annotations").mkdir()
        (root / "davis_text_annotations" / "Davis17_annot2.txt").write_bytes("\n".join(lines).encode("latin-1"))
        return root

    def youtube(self, root: Path, videos: Mapping[str, MaskedVideo], step: int = 5) -> Path:
        """Masks of every fifth frame, named as its file; expressions lie outside the split, `obj_id` is a text."""
        meta: dict[str, object] = {}
        for name, video in videos.items():
            masked = range(0, len(video.frames), step)
            self.write_frames(root / "train" / "JPEGImages" / name, video.frames)
            self.write_pngs(root / "train" / "Annotations" / name, video.masks, masked)
            expressions = {
                str(i): {"exp": text, "obj_id": items[0]} for i, (text, items) in enumerate(video.expressions)
            }
            meta[name] = {"expressions": expressions, "frames": [f"{i:05d}" for i in masked]}
        folder = root / "meta_expressions" / "train"
        folder.mkdir(parents=True)
        (folder / "meta_expressions.json").write_text(json.dumps({"videos": meta}))
        return root / "train"

    def rle(self, mask: npt.NDArray[np.bool_]) -> dict[str, object] | None:
        if not mask.any():
            return None
        made = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        return {"size": list(made["size"]), "counts": made["counts"].decode()}

    def write_frames(self, folder: Path, frames: Sequence[npt.NDArray[np.uint8]]) -> None:
        folder.mkdir(parents=True)
        for number, frame in enumerate(frames):
            cv2.imwrite(str(folder / f"{number:05d}.jpg"), frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])

    def write_pngs(
        self, folder: Path, masks: Mapping[str, Sequence[npt.NDArray[np.bool_]]], numbers: Sequence[int]
    ) -> None:
        folder.mkdir(parents=True)
        for number in numbers:
            values = sum(int(item) * of_item[number].astype(np.uint8) for item, of_item in masks.items())
            (folder / f"{number:05d}.png").write_bytes(self.png(np.asarray(values, np.uint8)))

    def png(self, values: npt.NDArray[np.uint8], pix_fmt: str = "pal8") -> bytes:
        """A PNG image with a palette, so that its pixels are not what a decoder to colours would show."""
        palette = np.full((256, 4), 255, np.uint8)
        palette[:, 1:] = np.arange(256)[::-1, None]
        data = (values, palette) if pix_fmt == "pal8" else np.repeat(values[..., None], 3, axis=2)
        context = av.CodecContext.create("png", "w")
        context.height, context.width = values.shape
        context.pix_fmt, context.time_base = pix_fmt, Fraction(1, 1)
        return b"".join(bytes(packet) for packet in context.encode(av.VideoFrame.from_ndarray(data, format=pix_fmt)))


@pytest.fixture(scope="session")
def layouts() -> MaskLayouts:
    """Writes sources with masks of their own."""
    return MaskLayouts()


@dataclass(frozen=True)
class HttpReply:
    """What a `ChatServer` sends; status 0 resets the connection."""

    status: int = 200
    body: str = ""
    retry_after: str = ""


class ChatServer:
    """A real HTTP server on loopback that answers chat completions as its `script` says and counts them.

    `received` and `answered` hold the payloads of all questions and of those whose answer was sent whole.
    """

    reply = HttpReply
    version = "9.9.1"

    def __init__(self, script: Callable[[dict[str, Any]], HttpReply]) -> None:
        self.script = script
        self.is_well = True
        self.received: list[dict[str, Any]] = []
        self.answered: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                told = {"/version": json.dumps({"version": outer.version})}
                if outer.is_well:
                    told["/health"] = ""
                self.send(HttpReply(200 if self.path in told else 404, told.get(self.path, "")))

            def do_POST(self) -> None:
                payload = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer._lock:
                    outer.received.append(payload)
                    outer.headers.append(dict(self.headers))
                    outer._at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer._at_once)
                try:
                    reply = outer.script(payload)
                finally:
                    with outer._lock:
                        outer._at_once -= 1
                if reply.status:
                    self.send(reply)
                if reply.status == 200:
                    with outer._lock:
                        outer.answered.append(payload)
                if not reply.status:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    os.close(self.connection.detach())  # a close of the server's own would say goodbye first

            def send(self, reply: HttpReply) -> None:
                body = reply.body.encode()
                self.send_response(reply.status)
                if reply.retry_after:
                    self.send_header("retry-after", reply.retry_after)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *parts: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64

            def handle_error(self, *parts: object) -> None:
                pass  # clients are killed on purpose

        self._http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def said(self, text: str | None, finish_reason: str = "stop", **message: object) -> HttpReply:
        """A chat completion with the text."""
        choice = {"index": 0, "message": {"role": "assistant", "content": text} | message}
        body = {
            "model": "served-judge",
            "system_fingerprint": "fp_1",
            "choices": [choice | {"finish_reason": finish_reason}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7},
        }
        return HttpReply(200, json.dumps(body))

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture(scope="session")
def chat_servers() -> type[ChatServer]:
    """The class of `chat_server`, for one that outlives a test."""
    return ChatServer


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    """A server whose `script` the test sets; it says `hello` until then."""
    server = ChatServer(lambda _: server.said("hello"))
    yield server
    server.stop()
