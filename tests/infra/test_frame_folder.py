"""Folders of pictures as videos: the same calls as for files, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from infra.decode_cache import DecodeCache
from infra.frame_folder import IMAGE_SUFFIXES
from infra.image_header import stated_size
from infra.scenes import shots
from infra.video import VideoError, fitted_size, iter_frames, probe, read_frames, video_sha256
from schemas.clip import Clip

MakeFolder = Callable[..., Path]
SIZE_PX = (49, 65)


def picture(number: int, size_px: tuple[int, int] = SIZE_PX) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(number // 20)
    image = cv2.resize(rng.integers(0, 256, (5, 6, 3), np.uint8), size_px[::-1], interpolation=cv2.INTER_CUBIC)
    image[10:20, number % 40 : number % 40 + 10] = (0, 0, 255)
    return image


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Writes a folder of pictures, one for each name, of which the pixels follow from its place; returns it."""

    def make(names: list[str], size_px: tuple[int, int] = SIZE_PX) -> Path:
        folder = tmp_path / "frames"
        folder.mkdir()
        for number, name in enumerate(names):
            assert cv2.imwrite(str(folder / name), picture(number, size_px))
        return folder

    return make


def numbered(suffix: str = ".jpg", count: int = 40, step: int = 5) -> list[str]:
    return [f"{number * step:05d}{suffix}" for number in range(count)]


def reason_of(folder: Path, message: str) -> str:
    with pytest.raises(VideoError, match=message) as caught:
        read_frames(folder, range(probe(folder).num_frames), 4096)
    return caught.value.reason


@pytest.mark.parametrize("suffix", [*sorted(IMAGE_SUFFIXES), ".JPG"])
def test_frames_are_what_opencv_reads_of_each_picture(make_folder: MakeFolder, suffix: str) -> None:
    folder = make_folder(numbered(suffix))
    every = np.stack([cv2.imread(str(folder / name))[..., ::-1] for name in numbered(suffix)])
    info = probe(folder, folder_fps=6)
    assert (info.num_frames, info.height_px, info.width_px, info.fps) == (40, *SIZE_PX, 6)
    np.testing.assert_allclose(info.frame_time_s, np.arange(40) / 6)
    assert info.duration_s == pytest.approx(40 / 6)
    assert not info.is_truncated
    np.testing.assert_array_equal(read_frames(folder, [30, 2, 30, 39], 4096), every[[30, 2, 30, 39]])
    assert [index for index, _ in iter_frames(folder, [30, 2, 2], 96)] == [2, 30]
    small = read_frames(folder, [7], 32)[0]
    assert small.shape[:2] == fitted_size(info, 32)
    np.testing.assert_array_equal(small, cv2.resize(every[7], small.shape[1::-1], interpolation=cv2.INTER_AREA))


def test_numbers_in_names_count_as_numbers_and_other_files_do_not_count(make_folder: MakeFolder) -> None:
    names = ["frame9.png", "frame10.png", "frame100.png"]
    folder = make_folder(names)
    (folder / ".frame1.png").write_bytes(b"hidden")
    (folder / "notes.txt").write_text("no frame")
    (folder / "sub.png").mkdir()
    frames = read_frames(folder, range(3), 4096)
    np.testing.assert_array_equal(frames, [picture(number)[..., ::-1] for number in range(3)])


def test_an_exif_rotation_is_applied(make_folder: MakeFolder) -> None:
    folder = make_folder(numbered(count=2))
    turned = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    for path in folder.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[:2] + b"\xff\xe1" + (len(turned) + 2).to_bytes(2, "big") + turned + data[2:])
    info = probe(folder)
    assert (info.height_px, info.width_px) == SIZE_PX[::-1]
    expected = [cv2.imread(str(folder / name))[..., ::-1] for name in numbered(count=2)]
    np.testing.assert_array_equal(read_frames(folder, [0, 1], 4096), expected)


def test_shots_and_the_decode_cache_work_on_folders(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(numbered())
    assert shots(folder, 0, 40) == [(0, 20), (20, 40)]
    info = probe(folder, folder_fps=6)
    clip = Clip(
        clip_id="c",
        source_id="s",
        video=folder.name,
        video_sha256=video_sha256(folder),
        license="",
        start_s=0,
        end_s=info.duration_s,
        start_frame=0,
        end_frame=40,
        fps=6,
        height_px=info.height_px,
        width_px=info.width_px,
        caption="a red square moves",
    )
    cache = DecodeCache(tmp_path, tmp_path / "cache", 1 << 30)
    for _ in range(2):
        np.testing.assert_array_equal(cache.read(clip, [33, 4], 40), read_frames(folder, [33, 4], 40))
    assert cache.times_s(clip, [6, 12]) == pytest.approx((1, 2))
    (folder / "00195.jpg").rename(folder / "00200.jpg")
    with pytest.raises(VideoError, match="has changed"):
        cache.read(clip, [1], 48)


def test_the_hash_follows_names_contents_and_order(make_folder: MakeFolder) -> None:
    folder = make_folder(numbered(count=3))
    hashes = [video_sha256(folder)]
    (folder / "notes.txt").write_text("no frame")
    assert video_sha256(folder) == hashes[0]
    first, last = folder / "00000.jpg", folder / "00010.jpg"
    pixels = first.read_bytes(), last.read_bytes()
    first.write_bytes(pixels[1])
    last.write_bytes(pixels[0])
    hashes.append(video_sha256(folder))
    last.rename(folder / "00011.jpg")
    hashes.append(video_sha256(folder))
    assert len(set(hashes)) == 3


def test_folders_that_are_no_video_say_why(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(numbered(count=3))
    good = (folder / "00005.jpg").read_bytes()
    for damaged in (b"", good[: len(good) // 2], b"no picture at all"):
        (folder / "00005.jpg").write_bytes(damaged)
        assert reason_of(folder, r"frames/00005\.jpg") == "unreadable_video"
    cv2.imwrite(str(folder / "00005.jpg"), picture(1, (49, 66)))
    assert reason_of(folder, r"frames/00005\.jpg: 66 x 49 pixels; .* 65 x 49") == "unreadable_video"
    (folder / "00005.jpg").unlink()
    cv2.imwrite(str(folder / "00005.png"), picture(1))
    assert reason_of(folder, r"holds \.jpg and \.png files") == "unreadable_video"
    (folder / "00005.png").unlink()
    (folder / "00010.jpg").unlink()
    assert reason_of(folder, "holds 1 frame") == "still_image"
    (folder / "00000.jpg").unlink()
    assert reason_of(folder, "without a picture") == "missing_file"


def test_links_may_not_lead_out_of_the_folder(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(numbered(count=3))
    (folder / "00011.jpg").symlink_to("00010.jpg")
    assert probe(folder).num_frames == 4
    (folder / "00012.jpg").symlink_to("00012.jpg")
    assert reason_of(folder, "00012") == "unreadable_video"
    (folder / "00012.jpg").unlink()
    outside = tmp_path / "outside.jpg"
    (folder / "00005.jpg").rename(outside)
    (folder / "00005.jpg").symlink_to(outside)
    assert reason_of(folder, r"frames/00005\.jpg: a link") == "outside_root"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_pictures_above_a_limit_are_refused_before_one_is_decoded(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    folder = make_folder(numbered(suffix, count=3))
    monkeypatch.delattr("cv2.imdecode")
    with pytest.raises(VideoError, match=r"frames of 65 x 49 pixels; at most 3184 pixels") as caught:
        probe(folder, max_frame_px=49 * 65 - 1)
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 50]),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
        (".png", []),
        (".bmp", []),
        (".gif", []),
    ],
)
@pytest.mark.parametrize("size_px", [(1, 1), (49, 65), (300, 200)])
def test_the_size_is_read_off_the_first_bytes(suffix: str, options: list[int], size_px: tuple[int, int]) -> None:
    data = cv2.imencode(suffix, picture(0, (300, 200))[: size_px[0], : size_px[1]].copy(), options)[1].tobytes()
    assert stated_size(data) == size_px
    for cut in range(0, 60, 7):
        assert stated_size(data[:cut]) in (None, size_px)


def test_a_rate_must_be_above_zero(make_folder: MakeFolder) -> None:
    with pytest.raises(ValueError, match="folder_fps must be above 0, got 0"):
        probe(make_folder(numbered(count=3)), folder_fps=0)
