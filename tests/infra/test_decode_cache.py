"""The decode cache: equal to plain reading, decoded once by many processes, bounded in bytes."""

import multiprocessing
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infra.decode_cache import DecodeCache
from infra.video import VideoError, probe, read_frames, video_sha256
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
    return {file.name: file.stat().st_ino for file in (cache_dir / "frames").glob("*")}


def read_in_process(root: Path, cache_dir: Path, clip: Clip, barrier: object, inodes: object) -> None:
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
    assert len(first) == 4


def test_a_second_agent_reads_what_the_first_one_decoded(
    make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clip_of(make_video(num_frames=64))
    DecodeCache(tmp_path, tmp_path / "cache", AMPLE).read(clip, [3, 40], 96)
    monkeypatch.delattr("infra.decode_cache.iter_frames")
    frames = DecodeCache(tmp_path, tmp_path / "cache", AMPLE).read(clip, range(64), 96)
    assert len(frames) == 64


def test_the_bound_holds_and_evicted_frames_are_decoded_again(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(num_frames=128)
    window_bytes = 32 * 64 * 96 * 3
    bound = int(window_bytes * 2.5)
    cache, clip = DecodeCache(tmp_path, tmp_path / "cache", bound), clip_of(path)
    cache.read(clip, [0], 96)
    cache.read(clip, [40], 96)
    cache.read(clip, [0], 96)
    cache.read(clip, [70], 96)
    assert {name.split("-")[2] for name in stored(tmp_path / "cache")} == {"0", "64"}
    expected = read_frames(path, range(128), 96)
    np.testing.assert_array_equal(cache.read(clip, range(128), 96), expected)
    sizes = [file.stat().st_size for file in (tmp_path / "cache" / "frames").iterdir()]
    assert sum(sizes) <= bound


def test_a_window_above_the_bound_is_served_and_not_kept(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(num_frames=40)
    frames = DecodeCache(tmp_path, tmp_path / "cache", 1000).read(clip_of(path), [5], 96)
    np.testing.assert_array_equal(frames, read_frames(path, [5], 96))
    assert not stored(tmp_path / "cache")


def test_sparse_frames_of_a_long_clip_are_kept_one_by_one(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(num_frames=400)
    cache, clip = DecodeCache(tmp_path, tmp_path / "cache", AMPLE), clip_of(path)
    expected = read_frames(path, [10, 200, 390], 96)
    for _ in range(2):
        np.testing.assert_array_equal(cache.read(clip, [10, 200, 390], 96), expected)
    assert {name.split("-", 2)[2] for name in stored(tmp_path / "cache")} == {"10-11.npy", "200-201.npy", "390-391.npy"}
    cache.read(clip, range(0, 32, 4), 96)
    before = stored(tmp_path / "cache")
    cache.read(clip, [11], 96)
    assert stored(tmp_path / "cache") == before


def test_a_reader_that_comes_few_times_has_only_its_frames_of_a_long_clip_kept(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    path = make_video(num_frames=400)
    asked = range(0, 32, 4)
    cache = DecodeCache(tmp_path, tmp_path / "cache", AMPLE, fills_windows=False)
    for _ in range(2):
        np.testing.assert_array_equal(cache.read(clip_of(path), asked, 96), read_frames(path, asked, 96))
    names = {name.split("-", 2)[2] for name in stored(tmp_path / "cache")}
    assert names == {f"{index}-{index + 1}.npy" for index in asked}


def test_torn_and_partial_files_do_no_harm(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(num_frames=40)
    cache, clip = DecodeCache(tmp_path, tmp_path / "cache", AMPLE), clip_of(path)
    expected = cache.read(clip, [5], 96)
    (file,) = (tmp_path / "cache" / "frames").iterdir()
    os.truncate(file, 500)
    file.with_name("dead.partial").write_bytes(b"x")
    np.testing.assert_array_equal(cache.read(clip, [5], 96), expected)
    assert list(stored(tmp_path / "cache")) == [file.name]


def test_a_disk_that_takes_no_more_costs_no_frames_and_one_warning(
    make_video: MakeVideo, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecodeCache, "_has_warned", False)
    path = make_video(num_frames=100)
    cache, clip = DecodeCache(tmp_path, tmp_path / "cache", AMPLE), clip_of(path)
    expected = read_frames(path, range(100), 96)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the first kilobytes of a window of 590 kB are written
    try:
        for _ in range(2):
            np.testing.assert_array_equal(cache.read(clip, range(100), 96), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {name.split("-", 2)[2] for name in stored(tmp_path / "cache")} == {"96-100.npy"}
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
