"""How soon and how fast training samples come: `model.data` against the official way, over the same 20,000 rows.

The official way parses the whole JSON array, then reads each item's file from its start and keeps the frames it wants.
Both sides go through the same processor. Rows are as in the published file of detailed captions: about 45 kB, half of
them with one masked frame and half with 32; each is about one of a few clips of 20 s in 480p with a key frame a second.

Samples per second are given twice: "cold", every frame decoded anew from a file never seen before, and "cached", from
frames that an earlier pass left in the node's cache. The first sample is given as a parsed row, messages and masks, and
again with its pixels, prepared for the model. Both sides give the same frames and masks, which is checked first.
Processor time of one thread; medians of rounds taken in turns.
"""

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from pycocotools import mask as coco
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SiglipImageProcessorPil, SiglipVisionConfig

from infra.builds import BuildWriter, Manifest
from infra.lake import Lake
from infra.video import Image, iter_frames, probe, video_sha256
from infra.video_index import forget_indexes
from infra.weights import fetch, weight_path
from model.configuration import VideoReferConfig
from model.data.item import TrainItem
from model.data.official import official_item
from model.data.order import Order, Part
from model.data.scene import CachedReader, FrameReader, SceneConfig, mid_segment, read_plainly, request_of
from model.data.sources import FileSource, ShardSource
from model.processing import VideoReferProcessor, processor_for
from model.request import IMAGE, REGION, VIDEO, ObjectRegion, Request, Scene
from schemas.mask import encode
from schemas.sample import SCHEMA_VERSION, Provenance, Sample, SampleObject, Turn

CLIP = "clip-city"
ROWS, CLIPS, ITEMS, ROUNDS = 20_000, 4, 8, 5
FPS, SECONDS, HEIGHT_PX, WIDTH_PX = 30, 20, 480, 854
SIDE_PX, LONG_SIDE_PX, NUM_FRAMES = 384, 1024, 16
NEEDED_RATE, NEEDED_FIRST = 3.0, 50.0
SCENE = SceneConfig(NUM_FRAMES, LONG_SIDE_PX, single_frame_share=0.0)
QUESTION = f"{VIDEO}\nPlease describe in detail the object {REGION} in the video."


def make_clip(path: Path, images: list[Image], first: int) -> None:
    """20 s of the images to and fro in H.264 with a key frame every second."""
    to_and_fro = itertools.cycle([*images, *images[-2:0:-1]])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(FPS), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        for image in itertools.islice(to_and_fro, first, first + FPS * SECONDS):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def make_counts(seed: int) -> str:
    """COCO counts of an upright oval with a ragged edge, about 2.7 kB."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    reach = 0.7 + 0.3 * rng.random((2, WIDTH_PX))[(rows > HEIGHT_PX / 2).astype(np.int64), columns]
    oval = ((columns - WIDTH_PX / 2) / 400) ** 2 + ((rows - HEIGHT_PX / 2) / 220) ** 2
    return encode(oval < reach)


def samples(counts: list[str], sha256: list[str]) -> Iterator[Sample]:
    """The rows: even ones have one masked frame, odd ones 32."""
    made_by = Provenance(engines=(), weights=(), prompt_hashes=(), revisions=(), verdict="kept", wording="template")
    for number in range(ROWS):
        frames = tuple(mid_segment(FPS * SECONDS - number % 9, 32)) if number % 2 else (number % 600,)
        masks = tuple(counts[(number + place) % len(counts)] for place in range(len(frames)))
        dog = SampleObject(
            object_id="o", noun="dog", frame_idx=frames, frame_time_s=tuple(f / FPS for f in frames), rle=masks
        )
        yield Sample(
            sample_id=f"{number:06d}",
            kind="detailed_caption",
            qa_type="none",
            split="train",
            clip_id=f"{number:06d}",
            source_id=str(number),
            video=f"{number // 2 % CLIPS}.mp4",
            video_sha256=sha256[number // 2 % CLIPS],
            license="",
            start_s=0.0,
            end_s=float(SECONDS),
            visible_until_s=float(SECONDS),
            fps=FPS,
            height=HEIGHT_PX,
            width=WIDTH_PX,
            conversations=(
                Turn(speaker="human", value=QUESTION),
                Turn(speaker="gpt", value=f"Dog {number} walks. " * 15),
            ),
            objects=(dog,),
            provenance=made_by,
        )


def official_row(sample: Sample) -> dict[str, Any]:
    """The same row in schema A."""
    size = [sample.height, sample.width]
    annotation = [
        {str(f): {"segmentation": {"size": size, "counts": c}} for f, c in zip(one.frame_idx, one.rle, strict=True)}
        for one in sample.objects
    ]
    turns = [turn.model_dump() for turn in sample.conversations]
    return {"id": sample.sample_id, "video": sample.video, "conversations": turns, "annotation": annotation}


def write_rows(folder: Path) -> tuple[Lake, Path]:
    """All rows as shards of a build and as one JSON array."""
    counts = [make_counts(seed) for seed in range(64)]
    array, lake = folder / "rows.json", Lake(folder / "lake")
    writer = BuildWriter(lake, "perf")
    with array.open("w", encoding="utf-8") as file:

        def written() -> Iterator[Sample]:
            for sample in samples(counts, [video_sha256(folder / f"{clip}.mp4") for clip in range(CLIPS)]):
                file.write(("[" if sample.sample_id == "000000" else ", ") + json.dumps(official_row(sample)))
                yield sample

        writer.write_samples("detailed_caption", written())
        file.write("]")
    for kind in ("short_caption", "qa"):
        writer.write_samples(kind, ())
    writer.write_tracks(())
    writer.write_quarantine(())
    writer.commit(
        Manifest(
            build_id="perf",
            schema_version=SCHEMA_VERSION,
            created_at="2025-01-01T00:00:00+00:00",
            source="perf",
            videos_root=str(folder),
            profile_name="painted",
            profile_json="{}",
            labels=(),
            counts=(),
        )
    )
    return lake, array


def make_processor() -> VideoReferProcessor:
    """SigLIP's preparation of frames, and a tokenizer of bytes."""
    special = ("<pad>", "<end>")
    vocabulary = {token: place for place, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<end>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    ends = dict(zip(("pad_token", "eos_token"), special, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **ends)
    fast.add_tokens([AddedToken(name, special=True) for name in (VIDEO, IMAGE, REGION)], special_tokens=True)
    ids = {f"{name[1:-1]}_token_id": fast.convert_tokens_to_ids(name) for name in (VIDEO, IMAGE, REGION)}
    config = VideoReferConfig(
        vision_config=SiglipVisionConfig(image_size=SIDE_PX, patch_size=14),
        text_config={"model_type": "qwen2"},
        num_frames=NUM_FRAMES,
        **ids,
    )
    pictures = SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX})
    return processor_for(config, fast, pictures, 4096)


def official_request(row: dict[str, Any], root: Path) -> Request:
    """An item's frames by a full scan of its file, at their own size, and its masks by pycocotools."""
    messages = official_item(row | {"annotation": []}, 0, "").messages
    stored = [{int(f): value["segmentation"] for f, value in one.items()} for one in row["annotation"]]
    with av.open(str(root / row["video"])) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        shown = mid_segment(stream.frames, NUM_FRAMES)
        wanted = sorted({*shown, *itertools.chain(*stored)})
        chosen = set(wanted)
        kept = [f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(video=0)) if i in chosen]
    place = {frame: at for at, frame in enumerate(wanted)}
    scene = Scene(np.stack(kept), tuple(f / FPS for f in wanted), tuple(place[f] for f in shown), 0.0, float(SECONDS))
    objects = [
        ObjectRegion(tuple(place[f] for f in one), tuple(coco.decode(mask).astype(np.bool_) for mask in one.values()))
        for one in stored
    ]
    return Request(messages, scene, tuple(objects))


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def first_sample(lake: Lake, array: Path, processor: VideoReferProcessor) -> float:
    """How many times sooner the first row is there; prints it without and with its pixels."""
    root = array.parent

    def ours() -> TrainItem:
        source = ShardSource(lake, "perf")
        return source.item(Order([Part(source.groups)], seed=0).place(0).row)

    def official() -> dict[str, Any]:
        rows: list[dict[str, Any]] = json.loads(array.read_bytes())
        return rows[Order([Part((ROWS,))], seed=0).place(0).row]

    pairs = [(seconds(official), seconds(ours)) for _ in range(ROUNDS)]
    official_s, ours_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    row, item = official(), ours()
    official_px_s = official_s + seconds(lambda: processor.encode(official_request(row, root), with_labels=True))
    ours_px_s = ours_s + seconds(lambda: processor.encode(request_of(item, root, SCENE, 0, 0), with_labels=True))
    sys.stdout.write(
        f"first of {ROWS} rows: official {official_s:.2f} s, ours {ours_s:.3f}, {official_s / ours_s:.0f} times sooner"
        f"; with pixels {official_px_s:.2f} s and {ours_px_s:.2f}, {official_px_s / ours_px_s:.1f} times\n"
    )
    lazy_s = seconds(lambda: FileSource(array, root).item(0))
    index_s = seconds(lambda: len(FileSource(array, root)))
    kept_s = seconds(lambda: FileSource(array, root).item(ROWS - 1))
    sys.stdout.write(
        f"the same array, {array.stat().st_size / 1e6:.0f} MB, read by us: its first row {lazy_s:.4f} s, "
        f"indexed once {index_s:.2f}, any row after that {kept_s:.4f}\n"
    )
    return official_s / ours_s


def rates(lake: Lake, array: Path, processor: VideoReferProcessor) -> float:
    """How many times the official way's samples per second come from the cache; prints it, and decoded anew."""
    root, source, file = array.parent, ShardSource(lake, "perf"), json.loads(array.read_bytes())
    rows = [ROWS // ITEMS // 2 * 2 * number + number % 2 for number in range(ITEMS)]
    official_rows = [file[row] for row in rows]
    del file

    def official() -> None:
        for row in official_rows:
            processor.encode(official_request(row, root), with_labels=True)

    def ours(reader: FrameReader) -> None:
        for row in rows:
            processor.encode(request_of(source.item(row), root, SCENE, 0, 0, reader), with_labels=True)

    def cold() -> None:
        forget_indexes()
        ours(read_plainly)

    for row, official_one in zip(rows, official_rows, strict=True):
        check_same(official_request(official_one, root), request_of(source.item(row), root, SCENE, 0, 0))
    cached = CachedReader(root / "cache", 1 << 33)
    filling_s = seconds(lambda: ours(cached))
    taken = [(seconds(official), seconds(cold), seconds(lambda: ours(cached))) for _ in range(ROUNDS)]
    official_s, cold_s, cached_s = (statistics.median(side) / ITEMS for side in zip(*taken, strict=True))
    sys.stdout.write(
        f"samples per second of one thread: official {1 / official_s:.2f}; ours cold {1 / cold_s:.2f}, "
        f"{official_s / cold_s:.1f} times; cached {1 / cached_s:.2f}, {official_s / cached_s:.1f} times "
        f"(while the cache fills {ITEMS / filling_s:.2f})\n"
    )
    return official_s / cached_s


def check_same(official: Request, ours: Request) -> None:
    """Exits where the two sides give other pixels or masks."""
    assert official.scene is not None
    assert ours.scene is not None
    same = np.array_equal(official.scene.frames, ours.scene.frames) and official.scene.shown == ours.scene.shown
    for one, other in zip(official.objects, ours.objects, strict=True):
        same = same and one.frames == other.frames and np.array_equal(np.stack(one.masks), np.stack(other.masks))
    if not same:
        sys.exit("the official way and ours give other frames or masks")


def main() -> None:
    """Print what was found; exits 1 where samples come too slowly or the first one too late."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    fetch([CLIP], print)
    source = weight_path(CLIP)
    frames = iter_frames(source, range(probe(source).num_frames), WIDTH_PX)
    images: list[Image] = [cv2.resize(image, (WIDTH_PX, HEIGHT_PX)) for _, image in frames]
    processor = make_processor()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VIDEOREFER_CACHE"] = str(Path(folder) / "user-cache")
        for clip in range(CLIPS):
            make_clip(Path(folder) / f"{clip}.mp4", images, 10 * clip)
        lake, array = write_rows(Path(folder))
        sooner = first_sample(lake, array, processor)
        faster = rates(lake, array, processor)
    if sooner < NEEDED_FIRST or faster < NEEDED_RATE:
        sys.exit(f"needed: the first row {NEEDED_FIRST:g} times sooner, {NEEDED_RATE:g} times the samples per second")


if __name__ == "__main__":
    main()
