"""One embedded build over every odd and every broken input at once: the odd give samples, the broken their reason.

All odd files show one synthetic clip of which the masks are known, so what comes out is held against the truth.
"""

import hashlib
import itertools
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from benchmark.masks import region_similarity
from flows.doctor import fetch_weights
from infra.builds import KINDS, latest_build, read_quarantine, read_samples, verify_build
from infra.collage import write_video
from infra.lake import Lake
from infra.settings import settings
from infra.synthetic import put_in_split, write_clips
from infra.truth import read_truth
from infra.video import read_frames
from schemas.clip import split_of
from schemas.mask import decode
from schemas.quarantine import QuarantineEntry
from schemas.sample import Sample

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.timeout(400)]

Images = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.bool_]

SEED = 7
FPS = 12
TWO_HOURS_S = 7200
CLIP_AT_S = 3600
LEAST_J = 0.8
TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
"""The upper left of the display matrix that turns stored frames clockwise by so many degrees."""
STRANGE_NAME = "день 犬 l'été & a#b?.gif"
STRANGE_TEXT = "<video> {} 🐈‍⬛ <region> in 2 <object0> seconds <b>🎉</b>"

ODD = [
    "plain", "uhd", "turned-90", "turned-180", "turned-270", "fast", "long", "strange-words", "named-gif", "folder",
    "cut-off",
]  # fmt: skip
BROKEN = {
    "empty": "empty_file",
    "text": "unreadable_video",
    "headless": "unreadable_video",
    "sound": "no_video_stream",
    "silent": "no_caption",
    "emoji-only": "no_caption",
    "long-caption": "caption_too_long",
    "chinese": "unsupported_language",
    "missing": "missing_file",
    "above": "outside_root",
    "link": "outside_root",
    "folder-link": "outside_root",
    "linked-frames": "outside_root",
    "still": "still_image",
    "png-bomb": "too_large",
    "gif-bomb": "too_large",
    "h264-bomb": "too_large",
    "past-the-end": "bad_span",
    "cut-off": "truncated",
}
"""Of which one gives samples too, from what decodes."""


@dataclass(frozen=True)
class Film:
    """One second of one moving object: frames, where it is in each, and a caption that is true."""

    frames: Images
    masks: Masks
    caption: str


@dataclass(frozen=True)
class Built:
    """What the build left: samples and entries by row of the source."""

    film: Film
    videos: Path
    lake: Lake
    build_id: str
    samples: dict[str, list[Sample]]
    entries: dict[str, list[QuarantineEntry]]


def make_film(folder: Path) -> Film:
    """Every third frame of the first synthetic clip with one object."""
    for row in write_clips(folder / "clips", 4, SEED):
        video = folder / str(row["video"])
        truth = read_truth(video)
        if len(truth.objects) == 1:
            masks = truth.objects[0].masks
            size_px = masks.height_px, masks.width_px
            kept = range(0, len(masks.rle), 3)
            seen = np.stack([decode(masks.rle[i] or "", *size_px) for i in kept])
            return Film(read_frames(video, kept, max(size_px)), seen, str(row["caption"]))
    raise AssertionError("no clip with one object")


def write_turned(path: Path, frames: Images, degrees: int) -> None:
    """Frames stored turned back, with the flag that has players turn them as they were."""
    write_video(path, list(np.rot90(frames, degrees // 90, (1, 2))), FPS)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in TURNS[degrees])
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def write_long(path: Path, film: Film) -> None:
    """Two hours of a still picture with the film in the middle; the still packets are encoded once and repeated."""
    still = np.full_like(film.frames[0], 96)
    length = 10 * FPS
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "bf": "0", "forced-idr": "1"})
        stream.height, stream.width, stream.pix_fmt = *still.shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        stream.codec_context.gop_size = length
        packets: list[Any] = []
        for number, image in enumerate([*[still] * length, *film.frames, *[still] * length]):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            if number in (length, length + len(film.frames)):
                frame.pict_type = av.video.frame.PictureType.I
            packets += stream.encode(frame)
        packets += stream.encode(None)
        before, shown, after = packets[:length], packets[length:-length], packets[-length:]
        repeats = CLIP_AT_S * FPS // length, (TWO_HOURS_S - CLIP_AT_S) * FPS // length
        data = [(bytes(p), p.is_keyframe) for p in [*before * repeats[0], *shown, *after * repeats[1]]]
        for number, (payload, is_key) in enumerate(data):
            packet = av.Packet(payload)
            packet.stream, packet.pts, packet.dts, packet.duration = stream, number, number, 1
            packet.time_base, packet.is_keyframe = Fraction(1, FPS), is_key
            container.mux(packet)


def write_encoded(path: Path, codec: str, pixels: str, frames: Sequence[Images]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode(None)])


def write_folder(folder: Path, frames: Images) -> None:
    folder.mkdir()
    for number, image in enumerate(frames):
        cv2.imwrite(str(folder / f"{number:05d}.png"), image[..., ::-1])


def write_odd(folder: Path, film: Film) -> dict[str, dict[str, Any]]:
    """The odd files; what their rows say besides a true caption."""
    frames = film.frames
    write_video(folder / "plain.mp4", list(frames), FPS)
    large = [cv2.resize(image, (3840, 2160), interpolation=cv2.INTER_CUBIC) for image in frames]
    write_video(folder / "uhd.mp4", large, FPS)
    for degrees in TURNS:
        write_turned(folder / f"turned-{degrees}.mp4", frames, degrees)
    write_video(folder / "fast.mp4", list(np.repeat(frames, 300 // FPS, axis=0)), 300)
    write_long(folder / "long.mp4", film)
    write_encoded(folder / STRANGE_NAME, "gif", "rgb8", list(frames))
    put_in_train(folder)
    write_folder(folder / "walk", frames)
    whole = folder / "cut-off.mkv"
    write_video(whole, list(np.tile(frames, (3, 1, 1, 1))), FPS)
    data = whole.read_bytes()
    whole.write_bytes(first_in_train(data[: len(data) // 2 + number] for number in itertools.count()))
    return {
        "plain": {"video": "plain.mp4"},
        "uhd": {"video": "uhd.mp4", "colour_space": "bt709", "licence": "CC0"},
        **{f"turned-{degrees}": {"video": f"turned-{degrees}.mp4"} for degrees in TURNS},
        "fast": {"video": "fast.mp4"},
        "long": {"video": "long.mp4", "start_s": CLIP_AT_S, "end_s": CLIP_AT_S + 1},
        "strange-words": {"video": "plain.mp4", "caption": STRANGE_TEXT.format(film.caption)},
        "named-gif": {"video": STRANGE_NAME},
        "folder": {"video": "walk", "fps": FPS},
        "cut-off": {"video": "cut-off.mkv"},
    }


def put_in_train(folder: Path) -> None:
    """Whichever of these files were held out, the others would be copies of it."""
    for video in folder.glob("*.mp4"):
        put_in_split(video, "train")
    gif = folder / STRANGE_NAME
    data = gif.read_bytes()
    gif.write_bytes(first_in_train(data + bytes(number) for number in itertools.count()))  # which decoders pass by


def first_in_train(candidates: Iterable[bytes]) -> bytes:
    return next(data for data in candidates if split_of(hashlib.sha256(data).hexdigest()) == "train")


def write_broken(folder: Path, film: Film) -> dict[str, dict[str, Any]]:
    """The broken files, beside the odd ones; what their rows say besides a caption that would do."""
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("These are words.")
    plain = (folder / "plain.mp4").read_bytes()
    (folder / "headless.mp4").write_bytes(plain[: len(plain) // 2])
    write_sound(folder / "sound.mp4")
    outside = folder.parent / "outside.mp4"
    outside.write_bytes(plain)
    (folder / "link.mp4").symlink_to(outside)
    (folder / "elsewhere").symlink_to(folder.parent)
    write_folder(folder.parent / "frames", film.frames)
    (folder / "linked").mkdir()
    for image in (folder.parent / "frames").iterdir():
        (folder / "linked" / image.name).symlink_to(image)
    picture = folder / "walk" / "00000.png"
    (folder / "still.png").write_bytes(picture.read_bytes())
    size_px = struct.pack(">II", 30_000, 30_000)
    (folder / "bomb.png").write_bytes(picture.read_bytes()[:16] + size_px + picture.read_bytes()[24:])
    gif = (folder / STRANGE_NAME).read_bytes()
    (folder / "bomb.gif").write_bytes(gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:])
    write_encoded(folder / "bomb.mp4", "libx264", "yuv420p", [np.zeros((2880, 5120, 3), np.uint8)] * 2)
    return {
        **{name: {"video": f"{name}.mp4"} for name in ("empty", "text", "headless", "sound", "missing", "link")},
        "silent": {"video": "plain.mp4", "caption": "  "},
        "emoji-only": {"video": "plain.mp4", "caption": "🐈 🎉"},
        "long-caption": {"video": "plain.mp4", "caption": "A cat. " * 14_300},
        "chinese": {"video": "plain.mp4", "caption": "一只猫向右移动"},
        "above": {"video": "../outside.mp4"},
        "folder-link": {"video": "elsewhere/outside.mp4"},
        "linked-frames": {"video": "linked"},
        "still": {"video": "still.png"},
        "png-bomb": {"video": "bomb.png"},
        "gif-bomb": {"video": "bomb.gif"},
        "h264-bomb": {"video": "bomb.mp4"},
        "past-the-end": {"video": "plain.mp4", "start_s": 50},
    }


def run(code: str, cache: Path, *args: object) -> str:
    """A fresh interpreter's standard output; the machine's weights, all else its own."""
    env = os.environ | {"VIDEOREFER_CACHE": str(cache), "PREFECT_HOME": str(cache / "prefect")}
    env.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The build, by the command line, of a manifest that names everything odd and everything broken."""
    fetch_weights("embedded", say=print)
    folder = tmp_path_factory.mktemp("odd input")
    cache, videos, lake = folder / "cache", folder / "videos", Lake(folder / "lake")
    cache.mkdir()
    (cache / "files").symlink_to(settings().cache_dir / "files")
    videos.mkdir()
    film = make_film(folder)
    rows = write_odd(videos, film)
    rows |= write_broken(videos, film)
    manifest = videos / "rows.jsonl"
    manifest.write_text("\n".join(json.dumps({"id": name, "caption": film.caption} | rows[name]) for name in rows))
    said = run(
        "from flows.cli import main; main()", cache, "build", "--source", manifest, "--lake", lake.root, "--json"
    )
    build_id = json.loads(said)["build_id"]
    samples = [sample for kind in KINDS for sample in read_samples(lake, build_id, kind)]
    entries = list(read_quarantine(lake, build_id))
    return Built(
        film,
        videos,
        lake,
        build_id,
        {name: [sample for sample in samples if sample.source_id == name] for name in rows},
        {name: [entry for entry in entries if entry.source_id == name] for name in rows},
    )


def truth_of(name: str, sample: Sample, frame: int, film: Film) -> Masks:
    """Where the object is in a displayed frame of an odd file, at that file's displayed size."""
    number = {"fast": frame * FPS // 300, "long": frame - CLIP_AT_S * FPS}.get(name, frame % len(film.masks))
    mask = film.masks[number].astype(np.uint8)
    return cv2.resize(mask, (sample.width, sample.height), interpolation=cv2.INTER_NEAREST).astype(bool)


@pytest.mark.parametrize("name", ODD)
def test_odd_input_gives_samples_whose_masks_fit_the_truth_as_displayed(built: Built, name: str) -> None:
    samples = built.samples[name]
    assert {sample.kind for sample in samples} == set(KINDS)
    height_px, width_px = (2160, 3840) if name == "uhd" else built.film.masks.shape[1:]
    assert {(sample.height, sample.width) for sample in samples} == {(height_px, width_px)}
    scores = [
        region_similarity(decode(rle, height_px, width_px), truth_of(name, sample, frame, built.film))
        for sample in samples
        for item in sample.objects
        for frame, rle in zip(item.frame_idx, item.rle, strict=True)
        if rle is not None
    ]
    assert np.mean(scores) >= LEAST_J


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_quarantined_under_its_own_reason(built: Built, name: str) -> None:
    entry = built.entries[name][0]
    assert (entry.stage, entry.reason, entry.retryable) == ("source", BROKEN[name], False)
    assert 10 < len(entry.evidence) < 200
    assert "\n" not in entry.evidence
    assert str(built.videos) not in entry.evidence  # it would make the build's bytes those of one machine
    assert bool(built.samples[name]) == (name in ODD)
    assert name in ODD or len(built.entries[name]) == 1


def test_broken_input_costs_itself_only(built: Built) -> None:
    from_source = {name for name, entries in built.entries.items() if any(e.stage == "source" for e in entries)}
    assert from_source == set(BROKEN)
    assert set(built.samples) == {*ODD, *BROKEN}
    assert latest_build(built.lake) == built.build_id
    assert verify_build(built.lake, built.build_id) == []


def test_words_of_a_caption_are_never_taken_for_tags(built: Built) -> None:
    samples = built.samples["strange-words"]
    assert any("‹region›" in turn.value and "🐈" in turn.value for sample in samples for turn in sample.conversations)
    for sample in samples:
        question, answer = (turn.value for turn in sample.conversations)
        assert question.count("<region>") == len(sample.objects)
        assert question.count("<video>") == 1
        assert not {"<region>", "<video>"} & set(answer.split())
        assert "<object" not in answer or len(sample.objects) > 1
    assert {entry.noun for entry in built.entries["strange-words"]} & {"video", "region", "object0", "🎉"} == set()


def test_one_video_under_two_captions_gives_samples_of_both(built: Built) -> None:
    plain, strange = built.samples["plain"], built.samples["strange-words"]
    assert plain[0].video == strange[0].video
    assert {s.sample_id for s in plain}.isdisjoint(s.sample_id for s in strange)
    assert {s.split for s in (*plain, *strange)} == {plain[0].split}


def test_a_clip_of_two_hours_and_bombs_cost_little_to_plan(built: Built) -> None:
    code = """
import json, resource, sys, time
from pathlib import Path
from infra.sources import ClipConfig, SourceRow, clips_of

def cost(video, start_s, end_s):
    row = SourceRow(source_id="s", video=video, caption="A cat.", start_s=start_s, end_s=end_s, license="")
    before_s, before_kib = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clips_of(row, Path(sys.argv[1]), ClipConfig())
    used_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    return time.process_time() - before_s, used_kib / 1024

cost("plain.mp4", None, None)
print(json.dumps([cost("bomb.png", None, None), cost("bomb.gif", None, None), cost("long.mp4", 3600, 3601)]))
"""
    for seconds, used_mib in json.loads(run(code, built.videos.parent / "cache", built.videos)):
        assert seconds < 5
        assert used_mib < 100
