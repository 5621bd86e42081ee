"""Clips a second of the paper's segmenter at real sizes, what share of the time its GPU works, and its memory.

Run by `make perf-gpu` on a machine with a GPU; with `--tiny` it shows on any machine that it runs. Weights are random,
so nothing has to be fetched: what the models cost depends on the number of frames and objects, which are given, not on
what they see. The whole agent runs, from video files to masks, in processes of its own as on a cluster: what it does on
processors keeps a GPU waiting. Each row adds one change to those above it. Compiling and channels-last are tried on
the image encoders from outside, as the engines have no keys for them.
"""

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2

from flows.grid import Grid, size
from flows.profile_config import GroundedSegmenter, Profile, load_profile
from flows.wiring import UNKNOWN, Site, make_agent
from infra.video import iter_frames, probe, video_sha256
from infra.weights import fetch, weight_path
from perf.decode import CLIP, make_clip
from perf.random_checkpoints import Checkpoints, write_checkpoints
from schemas.clip import Clip
from schemas.jobs import SegmenterJob
from schemas.mention import Mention, MentionSet, SaidAttributes

NOUNS = ("dog", "car", "man", "ball", "bird", "cat", "tree", "umbrella")
SECONDS, FULL_HD = 10, (1920, 1080)
GOAL = 0.9


class Variant(NamedTuple):
    """One row: number format, clips to a micro-batch, what is done to the encoders, processes that share the GPU."""

    name: str
    dtype: Literal["bfloat16", "float32"] = "float32"
    batch_size: int = 1
    channels_last: bool = False
    compiled: bool = False
    workers: int = 1


VARIANTS = (
    Variant("float32, clip by clip"),
    Variant("+ bfloat16", "bfloat16"),
    Variant("+ 4 clips together", "bfloat16", 4),
    Variant("+ two workers", "bfloat16", 4, workers=2),
    Variant("+ channels-last", "bfloat16", 4, channels_last=True, workers=2),
    Variant("+ compiled encoders", "bfloat16", 4, channels_last=True, compiled=True, workers=2),
)


class Measured(NamedTuple):
    """What a row took; the GPU's figures are None where there is none."""

    wall_s: float
    busy_share: float | None
    memory_bytes: float | None
    num_masks: int


_worker: dict[str, Any] = {}
"""The agent of a worker's process: a pool's functions find it nowhere else."""


def profile_of(folders: Checkpoints, variant: Variant, num_objects: int) -> Profile:
    """The profile `paper` with random checkpoints, in which every noun finds one object that is never lost."""
    paper = load_profile("paper")
    segmenter = paper.segmenter
    assert isinstance(segmenter, GroundedSegmenter), "the paper's"
    detector, mask_model, video_model = (str(folder) for folder in folders)
    found = {"min_score": 0.0, "max_boxes": 1, "model": detector, "dtype": variant.dtype}
    kept = {"min_area_px": 1, "min_stability": 0.0, "model": video_model, "dtype": variant.dtype}
    changed = {
        "detector": segmenter.detector.model_copy(update=found),
        "mask_model": segmenter.mask_model.model_copy(update={"model": mask_model, "dtype": variant.dtype}),
        "video_model": segmenter.video_model.model_copy(update=kept),
        "tracker": segmenter.tracker.model_copy(
            update={"min_mask_iou": 0.0, "merge_iou": 1.0, "max_objects": num_objects}
        ),
    }
    return paper.model_copy(update={"segmenter": segmenter.model_copy(update=changed)})


def write_source(folder: Path, num_clips: int, size_px: tuple[int, int]) -> list[Clip]:
    """Files that differ by their last bytes alone, so that none of them is decoded already, each a clip of 10 s."""
    fetch([CLIP], print)
    known = weight_path(CLIP)
    images = [cv2.resize(image, size_px) for _, image in iter_frames(known, range(probe(known).num_frames), 4096)]
    first = folder / "first.mp4"
    make_clip(first, images, gop_s=2, seconds=SECONDS)
    content = first.read_bytes()
    clips = []
    for number in range(num_clips):
        video, note = folder / f"{number}.mp4", number.to_bytes(8, "big")
        video.write_bytes(content + (8 + len(note)).to_bytes(4, "big") + b"free" + note)
        clips.append(clip_of(video))
    return clips


def clip_of(video: Path) -> Clip:
    """The whole file as one clip."""
    info = probe(video)
    return Clip(
        clip_id=video.stem,
        source_id=video.stem,
        video=video.name,
        video_sha256=video_sha256(video),
        license="",
        start_s=0.0,
        end_s=info.num_frames / info.fps,
        start_frame=0,
        end_frame=info.num_frames,
        fps=info.fps,
        height_px=info.height_px,
        width_px=info.width_px,
        caption="things",
    )


def job_of(clip: Clip, num_objects: int) -> SegmenterJob:
    """The clip with a mention for each object."""
    mentions = tuple(
        Mention(
            mention_id=f"{clip.clip_id}-{noun}",
            clip_id=clip.clip_id,
            noun=noun,
            phrase=noun,
            start_char=0,
            end_char=1,
            role="other",
            number="singular",
            detector_class=noun,
            class_similarity=1.0,
            said=SaidAttributes(count=1),
        )
        for noun in NOUNS[:num_objects]
    )
    return SegmenterJob(clip=clip, mentions=MentionSet(clip_id=clip.clip_id, mentions=mentions, rejected=()))


def start_worker(profile: Profile, site: Site, variant: Variant) -> None:
    """Load the agent into this process."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    agent: Any = make_agent("segmenter", profile, site)
    agent.setup()
    tracker = agent._tracker
    for owner, name in (
        (tracker._detector._model.model, "backbone"),
        (tracker._mask_model._model, "vision_encoder"),
        (tracker._video_model._model, "vision_encoder"),
    ):
        encoder = getattr(owner, name)
        if variant.channels_last:
            encoder.to(memory_format=torch.channels_last)
        if variant.compiled:
            encoder.compile()
    _worker["agent"] = agent


def work(jobs: Sequence[SegmenterJob]) -> int:
    """Process a micro-batch; how many masks there are on tracks."""
    found = _worker["agent"].process(jobs)
    return sum(counts is not None for tracks in found for track in tracks.tracks for counts in track.masks.rle)


@contextmanager
def gpu_watch() -> Iterator[list[tuple[float, float]]]:
    """Pairs of the share of time in which a kernel ran and the bytes in use, each tenth of a second, once it ends."""
    seen: list[tuple[float, float]] = []
    query = ["--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "100"]
    with subprocess.Popen(["nvidia-smi", *query], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield seen
        finally:
            process.terminate()
            told, _ = process.communicate()
            for line in told.splitlines():
                share, mebibytes = line.split(",")
                seen.append((float(share) / 100, float(mebibytes) * 2**20))


def run(
    folder: Path, folders: Checkpoints, clips: Sequence[Clip], num_objects: int, variant: Variant, *, gpu: bool
) -> Measured:
    """One row: the first micro-batch of each worker, in which kernels are chosen and compiled, is not counted."""
    jobs = [job_of(clip, num_objects) for clip in clips]
    batches = [jobs[start : start + variant.batch_size] for start in range(0, len(jobs), variant.batch_size)]
    with tempfile.TemporaryDirectory(dir=folder) as frames_dir:
        site = Site(videos_root=str(folder), frames_dir=frames_dir, identity=UNKNOWN)
        given = (profile_of(folders, variant, num_objects), site, variant)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(variant.workers, spawn, start_worker, given) as pool:
            list(pool.map(work, batches[: variant.workers]))
            start_s = time.monotonic()
            with gpu_watch() if gpu else nullcontext([]) as seen:
                num_masks = sum(pool.map(work, batches[variant.workers :]))
                wall_s = time.monotonic() - start_s
    if not gpu:
        return Measured(wall_s, None, None, num_masks)
    shares, used = zip(*seen, strict=True)
    return Measured(wall_s, statistics.mean(shares), max(used), num_masks)


def main() -> None:
    """Print a row per variant; exits 1 where the GPU of the last one works less than the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200, help="of 10 s each (default: 200)")
    parser.add_argument("--objects", type=int, default=4, choices=range(1, len(NOUNS) + 1), help="in each clip")
    parser.add_argument("--tiny", action="store_true", help="tiny models and pictures: that it runs, not what it costs")
    given = parser.parse_args()

    import torch

    gpu = torch.cuda.is_available()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = write_checkpoints(folder / "models", tiny=given.tiny)
        clips = write_source(folder, given.clips, (192, 108) if given.tiny else FULL_HD)
        for variant in VARIANTS:
            measured = run(folder, folders, clips, given.objects, variant, gpu=gpu)
            counted = len(clips) - variant.workers * variant.batch_size
            busy = "" if measured.busy_share is None else f"{100 * measured.busy_share:.0f} %"
            memory = "" if measured.memory_bytes is None else size(measured.memory_bytes)
            rows.append((variant.name, f"{counted / measured.wall_s:.3f}", busy, memory, f"{measured.num_masks:,}"))
            sys.stdout.write(f"{'  '.join(rows[-1])}\n")
    titles = ("variant", "clips/s", "GPU busy", "GPU memory", "masks")
    device = torch.cuda.get_device_name() if gpu else "no GPU"
    sys.stdout.write(f"\n{device}, {len(clips)} clips of {SECONDS} s, {given.objects} objects each\n")
    sys.stdout.write(f"{Grid(titles=titles, rows=tuple(rows)).text()}\n")
    if measured.busy_share is not None and measured.busy_share < GOAL:
        sys.exit(f"the GPU works {100 * measured.busy_share:.0f} % of the time, {100 * GOAL:.0f} % is the goal")


if __name__ == "__main__":
    main()
