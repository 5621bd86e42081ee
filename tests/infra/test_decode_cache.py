"""The decode cache: equal to plain reading, decoded once by many processes, bounded in bytes."""

import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.decode_cache import DecodeCache
from infra.video import Image, VideoError, iter_frames, probe, read_frames, video_sha256
from schemas.clip import Clip

MakeVideo = Callable[..., Path]
AMPLE = 1 << 30


def clip_of(path: Path, start_frame: int = 0, end_frame: int | None = None) -> Clip:
    info = probe(path)
    end_frame = end_frame or info.num_frames
    return Clip(
        clip_id="c",
        source_id="s",
        video=path.name,
        video_sha256=video_sha256(path),
        license="",
        start_s=start_frame / 25,
        end_s=end_frame / 25,
        start_frame=start_frame,
        end_frame=end_frame,
        fps=info.fps,
        height_px=info.height_px,
        width_px=info.width_px,
        caption="a red square moves",
    )


def stored(cache_dir: Path) -> dict[str, int]:
    """The files of frames, by name: their inodes, which tell whether they were written again."""
    return {file.name: file.stat().st_ino for file in (cache_dir / "frames").glob("*") if file.name != "held_bytes"}


def stored_frames(cache_dir: Path) -> list[int]:
    return sorted(int(name.removesuffix(".npy").split("-")[2]) for name in stored(cache_dir))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every frame that is decoded for the cache, as it is."""
    seen: list[int] = []

    def noted(path: Path, frame_idx: Sequence[int], long_side_px: int) -> Iterator[tuple[int, Image]]:
        for index, image in iter_frames(path, frame_idx, long_side_px):
            seen.append(index)
            yield index, image

    monkeypatch.setattr("infra.decode_cache.iter_frames", noted)
    return seen


def read_in_process(root: Path, cache_dir: Path, clip: Clip, barrier: Any, inodes: Any) -> None:
    cache = DecodeCache(root, cache_dir, AMPLE)
    barrier.wait()
    cache.read(clip, range(clip.num_frames), 48)
    inodes.put(stored(cache_dir))


@pytest.mark.parametrize("long_side_px", [40, 96, 4096])
def test_frames_equal_plain_reading_cold_and_warm(make_video: MakeVideo, tmp_path: Path, long_side_px: int) -> None:
    path = make_video(num_frames=100)
    cache, clip = DecodeCache(tmp_path, tmp_path / "cache", AMPLE), clip_of(path, 7, 93)
    for frame_idx in ([50, 8, 50, 92], list(range(7, 93)), []):
        expected = read_frames(path, frame_idx, long_side_px)
        for _ in range(2):
            np.testing.assert_array_equal(cache.read(clip, frame_idx, long_side_px), expected)


def test_processes_that_want_the_same_clip_decode_it_once(make_video: MakeVideo, tmp_path: Path) -> None:
    clip = clip_of(make_video(num_frames=100))
    context = multiprocessing.get_context("spawn")
    barrier, inodes = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=read_in_process, args=(tmp_path, tmp_path / "cache", clip, barrier, inodes))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    first, second = inodes.get(timeout=60), inodes.get(timeout=60)
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert first == second == stored(tmp_path / "cache")
    assert len(first) == 100


def test_threads_that_want_frames_of_the_same_clips_have_each_decoded_once(
    make_video: MakeVideo, tmp_path: Path, decoded: list[int]
) -> None:
    path = make_video(num_frames=60)
    cache, whole = DecodeCache(tmp_path, tmp_path / "cache", AMPLE), clip_of(path)
    wanted = [[*range(first, first + 20, 3), first] for first in (*range(0, 40, 4), *range(0, 40, 4))]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda frame_idx: cache.read(whole, frame_idx, 48), wanted))
    for frame_idx, frames in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(frames, read_frames(path, frame_idx, 48))
    assert sorted(decoded) == sorted({index for frame_idx in wanted for index in frame_idx})


def test_what_is_asked_for_is_decoded_once_and_nothing_else_is(
    make_video: MakeVideo, tmp_path: Path, decoded: list[int]
) -> None:
    """As in the paper's wiring: a prompt frame, then tracked frames both ways from it, of a clip of a few seconds."""
    path = make_video(num_frames=120)
    clip, tracked = clip_of(path), list(range(0, 120, 4))
    for frame_idx in ([60], tracked[15:], tracked[14::-1], [0, 40, 116]):
        frames = DecodeCache(tmp_path, tmp_path / "cache", AMPLE).read(clip, frame_idx, 96)
        np.testing.assert_array_equal(frames, read_frames(path, frame_idx, 96))
    assert sorted(decoded) == tracked
    assert stored_frames(tmp_path / "cache") == tracked


def test_the_bound_holds_and_evicted_frames_are_decoded_again(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(num_frames=128)
    bound = int((64 * 96 * 3 + 256) * 20.5)
    cache, clip = DecodeCache(tmp_path, tmp_path / "cache", bound), clip_of(path)
    expected = read_frames(path, range(128), 96)
    cache.read(clip, range(20), 96)
    cache.read(clip, range(5), 96)
    cache.read(clip, [70], 96)
    assert set(stored_frames(tmp_path / "cache")) > {0, 1, 2, 3, 4, 70}  # the last used are kept
    for frame_idx in (range(128), [4, 100, 7]):
        np.testing.assert_array_equal(cache.read(clip, frame_idx, 96), expected[frame_idx])
        sizes = [(tmp_path / "cache" / "frames" / name).stat().st_size for name in stored(tmp_path / "cache")]
        assert bound * 0.7 < sum(sizes) <= bound


@pytest.mark.parametrize("tally", [b"", b"12x", None])
def test_the_bound_holds_whatever_became_of_the_count_of_bytes(
    make_video: MakeVideo, tmp_path: Path, tally: bytes | None
) -> None:
    bound = (64 * 96 * 3 + 256) * 10
    cache, clip = DecodeCache(tmp_path, tmp_path / "cache", bound), clip_of(make_video(num_frames=40))
    cache.read(clip, range(10), 96)
    file = tmp_path / "cache" / "frames" / "held_bytes"
    file.unlink() if tally is None else file.write_bytes(tally)
    cache.read(clip, range(10, 40), 96)
    assert 7 <= len(stored(tmp_path / "cache")) <= 10


def test_files_are_looked_through_only_where_room_is_short(
    make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of a cluster's node holds hundreds of thousands of frames."""
    looks: list[Path] = []
    scan = os.scandir

    def noted(folder: Path) -> object:
        looks.append(folder)
        return scan(folder)

    monkeypatch.setattr("infra.decode_cache.os.scandir", noted)
    clip = clip_of(make_video(num_frames=100))
    DecodeCache(tmp_path, tmp_path / "cache", AMPLE).read(clip, range(100), 96)
    assert len(looks) <= 1
    DecodeCache(tmp_path, tmp_path / "cache", (64 * 96 * 3 + 256) * 40).read(clip, range(100), 48)
    assert len(looks) <= 10


def test_a_frame_above_the_bound_is_served_and_not_kept(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(num_frames=40)
    frames = DecodeCache(tmp_path, tmp_path / "cache", 1000).read(clip_of(path), [5], 96)
    np.testing.assert_array_equal(frames, read_frames(path, [5], 96))
    assert not stored(tmp_path / "cache")


def test_torn_and_partial_files_do_no_harm(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(num_frames=40)
    cache, clip = DecodeCache(tmp_path, tmp_path / "cache", AMPLE), clip_of(path)
    expected = cache.read(clip, [5], 96)
    (file,) = (tmp_path / "cache" / "frames").glob("*.npy")
    os.truncate(file, 500)
    np.testing.assert_array_equal(cache.read(clip, [5], 96), expected)
    file.with_name("dead.partial").write_bytes(b"x")
    DecodeCache(tmp_path, tmp_path / "cache", 2 * (64 * 96 * 3 + 256)).read(clip, [6, 7], 96)
    assert 7 in stored_frames(tmp_path / "cache")  # where room is made, what a killed writer left goes too


def test_a_disk_that_takes_no_more_costs_no_frames_and_one_warning(
    make_video: MakeVideo, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecodeCache, "_has_warned", False)
    path = make_video(num_frames=100)
    cache, clip = DecodeCache(tmp_path, tmp_path / "cache", AMPLE), clip_of(path)
    expected = read_frames(path, range(100), 96)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the first kilobytes of a frame of 18 kB are written
    try:
        for _ in range(2):
            np.testing.assert_array_equal(cache.read(clip, range(100), 96), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not stored(tmp_path / "cache")
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "decoded frames are not kept, so each agent decodes for itself"
    ]


def test_locks_of_many_videos_and_sizes_are_a_bounded_number_of_files(tmp_path: Path, make_video: MakeVideo) -> None:
    cache, clip = DecodeCache(tmp_path, tmp_path, AMPLE), clip_of(make_video(num_frames=2))
    clips = [clip.model_copy(update={"video_sha256": f"{number * 2**200 + number:064x}"}) for number in range(600)]
    names = {cache._lock_file(clip, side_px) for clip in clips for side_px in (96, 480)}
    assert len(names) == 256


def test_frames_outside_the_clip_and_changed_videos_are_refused(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(num_frames=40)
    cache, clip = DecodeCache(tmp_path, tmp_path / "cache", AMPLE), clip_of(path, 10, 20)
    with pytest.raises(ValueError, match=r"got frame 20; the clip spans \[10, 20\)"):
        cache.read(clip, [10, 20], 96)
    make_video(num_frames=41)
    with pytest.raises(VideoError, match="has changed"):
        cache.read(clip, [10], 96)
