"""Videos that broke off, were damaged, change their size midway or state one that must not be decoded."""

import contextlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from infra.scenes import shots
from infra.video import VideoError, probe, read_frames

MakeVideo = Callable[..., Path]

H264 = {"options": {"bf": "3", "g": "12", "sc_threshold": "0"}}
MOOV_FIRST = {"container_options": {"movflags": "faststart"}}
X265 = {"codec": "libx265", "options": {"x265-params": "keyint=12:log-level=none:pools=1"}}
FILES: dict[str, dict[str, object]] = {
    "h264.mp4": H264 | MOOV_FIRST,
    "fragments.mp4": H264 | {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc.mp4": X265 | MOOV_FIRST,
    "av1.mp4": {"codec": "libsvtav1", "options": {"g": "12", "preset": "12", "svtav1-params": "lp=1"}} | MOOV_FIRST,
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}} | MOOV_FIRST,
    "h264.mkv": H264,
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12"}},
    "h264.ts": H264,
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "no_stamps.avi": {"codec": "msmpeg4v2", "options": {"g": "12"}},
    "mjpeg.avi": {"codec": "mjpeg"},
}


def fully_decoded(path: Path) -> npt.NDArray[np.uint8]:
    """Every frame that decodes, from the start, damaged packets passed over."""
    packets, frames = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        with contextlib.suppress(av.FFmpegError):
            packets.extend(packet for packet in container.demux(stream) if packet.size)  # those before the error stay
        for packet in (*packets, None):
            with contextlib.suppress(av.FFmpegError):
                frames += [frame.to_ndarray(format="rgb24") for frame in stream.decode(packet)]
    return np.stack(frames)


def assert_read_as_by_a_full_decode(path: Path) -> None:
    every = fully_decoded(path)
    num_frames = probe(path).num_frames
    assert num_frames == len(every)
    np.testing.assert_array_equal(read_frames(path, range(num_frames), 4096), every)
    some = [num_frames - 1, num_frames // 2]
    np.testing.assert_array_equal(read_frames(path, some, 4096), every[some])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.9, 0.66])
def test_of_a_file_that_broke_off_what_decodes_is_used_and_it_is_said(
    make_video: MakeVideo, name: str, share: float
) -> None:
    path = make_video(name, num_frames=100, **FILES[name])
    whole = probe(path)
    assert not whole.is_truncated
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    info = probe(path)
    assert info.is_truncated
    assert info.num_frames <= 100
    assert info.stated_duration_s is None or name.endswith((".avi", "fragments.mp4")) or info.stated_duration_s == 4
    assert_read_as_by_a_full_decode(path)


@pytest.mark.parametrize("name", ["h264.mp4", "fragments.mp4", "hevc.mp4", "mpeg4.mp4", "mjpeg.avi"])
def test_of_a_file_laid_out_in_full_and_filled_in_part_what_decodes_is_used(make_video: MakeVideo, name: str) -> None:
    path = make_video(name, num_frames=100, **FILES[name])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3].ljust(len(data), b"\0"))
    assert probe(path).is_truncated
    assert_read_as_by_a_full_decode(path)


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4", "vp9.webm", "mpeg4.avi", "h264.ts"])
def test_a_video_with_flipped_bytes_shows_what_a_full_decode_shows_or_is_refused(
    make_video: MakeVideo, name: str
) -> None:
    path = make_video(name, num_frames=60, **FILES[name])
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(6):
        damaged = bytearray(data)
        for at in rng.integers(len(data) // 2, len(data) * 4 // 5, 3):
            damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        every = fully_decoded(path)
        try:
            frames = read_frames(path, range(probe(path).num_frames), 4096)
        except VideoError as error:
            assert error.reason == "unreadable_video"  # noqa: PT017
        else:
            np.testing.assert_array_equal(frames, every)
            for index in range(3, len(frames), 13):
                np.testing.assert_array_equal(read_frames(path, [index], 4096)[0], every[index])


def joined(path: Path, parts: list[Path]) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("suffix", ["h264", "ts"])
def test_frames_that_change_size_midway_are_stretched_to_the_first(make_video: MakeVideo, suffix: str) -> None:
    small = make_video(f"small.{suffix}", num_frames=30, **H264)
    large = make_video(f"large.{suffix}", num_frames=30, size_px=(96, 128), stamps=range(30, 60), **H264)
    path = joined(small.with_name(f"both.{suffix}"), [small, large])
    info = probe(path)
    assert (info.num_frames, info.height_px, info.width_px) == (60, 64, 96)
    frames = read_frames(path, range(60), 4096)
    np.testing.assert_array_equal(frames[:30], fully_decoded(small))
    shrunk = [cv2.resize(image, (96, 64), interpolation=cv2.INTER_AREA) for image in fully_decoded(large)]
    np.testing.assert_array_equal(frames[30:], shrunk)


def test_frames_that_grow_beyond_the_limit_midway_are_not_decoded(make_video: MakeVideo) -> None:
    small = make_video("small.h264", num_frames=30, **H264)
    huge = make_video("huge.h264", num_frames=3, size_px=(1440, 2560), **H264)
    path = joined(small.with_name("both.h264"), [small, huge])
    assert probe(path).num_frames == 30
    np.testing.assert_array_equal(read_frames(path, range(30), 4096), fully_decoded(small))


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Iterator[object]:
        raise AssertionError("a frame was decoded")

    monkeypatch.setattr("infra.video_index._demux", refuse)
    monkeypatch.setattr("cv2.imdecode", refuse)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm", "h264.ts", "mjpeg.avi", "raw.h264", "a.gif"])
def test_frames_above_the_callers_limit_are_refused_before_one_is_decoded(
    make_video: MakeVideo, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FILES.get(name) or ({"codec": "gif", "pix_fmt": "rgb8"} if name == "a.gif" else H264)
    path = make_video(name, num_frames=5, **settings)
    for limit in ("the caller's", "everybody's"):
        if limit == "everybody's":  # which FFmpeg itself is told too, so that it may not say the size
            monkeypatch.setattr("infra.video_stream.MAX_FRAME_PX", 64 * 96 - 1)
        with pytest.raises(VideoError, match=f"{name}: frames of 96 x 64 pixels; at most 6143 pixels") as caught:
            probe(path, max_frame_px=64 * 96 - 1)
        assert caught.value.reason == "too_large"


def bomb(name: str, make_video: MakeVideo) -> Path:
    """A small file that states 60 000 x 60 000 pixels."""
    if name == "bomb.gif":
        path = make_video(name, num_frames=3, codec="gif", pix_fmt="rgb8")
        data = bytearray(path.read_bytes())
        data[6:10] = struct.pack("<HH", 60_000, 60_000)
    else:
        path = make_video().with_name(name)
        data = bytearray(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
        data[16:24] = struct.pack(">II", 60_000, 60_000)
    path.write_bytes(data)
    return path


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("name", ["bomb.gif", "bomb.png"])
def test_no_reader_decodes_what_states_more_than_the_hard_limit(make_video: MakeVideo, name: str) -> None:
    path = bomb(name, make_video)
    for read in (probe, lambda path: read_frames(path, [0], 96), lambda path: shots(path, 0, 2)):
        with pytest.raises(VideoError, match="60000 x 60000") as caught:
            read(path)
        assert caught.value.reason == "too_large"
