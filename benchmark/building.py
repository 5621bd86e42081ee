"""Items in the style of VideoRefer-Bench (Zhang et al., "VideoRefer Suite", CVPR 2025) from the held-out samples of a
build: descriptions from detailed captions, four-option questions from question-answer samples.

Rows have the fields of the official files, so what reads those reads these, and more: what an item was made from, the
span of the video it is about, and that a machine made it and nobody has checked it.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from benchmark.choices import NUM_OPTIONS, ChoiceItem, choice_items
from benchmark.question_types import OFFICIAL_TYPES, official_type, topic_of
from infra.builds import Manifest, read_manifest, read_samples, read_tracks
from infra.lake import Lake
from schemas.mask import area_px
from schemas.record import Record
from schemas.sample import Kind, Sample, SampleObject
from schemas.track import Track

LETTERS = "ABCD"

Row = dict[str, Any]
"""One item as the official file has it, with our keys after the official ones."""

_Masks = Mapping[int, str | None]
"""COCO counts by frame, None out of sight."""


class BenchBuildError(ValueError):
    """A bench cannot be made of this build, or not be written there; the text is one line and says what to do."""


class BenchPlan(Record):
    """What to draw. The limits are the sizes of the official files; clips share them as evenly as they can, and so do
    the types of questions.
    """

    seed: int = Field(default=0, ge=0)
    max_descriptions: int = Field(default=400, ge=0)
    max_questions: int = Field(default=1000, ge=0)
    min_clips: int = Field(default=10, ge=1)


class NewBench(NamedTuple):
    """The items drawn from one build. `left_out` counts by reason the held-out samples that gave none."""

    manifest: Manifest
    plan: BenchPlan
    descriptions: tuple[Row, ...]
    questions: tuple[Row, ...]
    left_out: Mapping[str, int]


def new_bench(lake: Lake, build_id: str, plan: BenchPlan) -> NewBench:
    """Draw items from the held-out clips of a committed build; the same for the same build and plan.

    Only frames before `visible_until_s` bear masks. Raises BenchBuildError where the build has too few held-out clips
    or they give no item, LakeError where it cannot be read.
    """
    manifest = read_manifest(lake, build_id)
    captions = _held_out(lake, build_id, "detailed_caption")
    asked = _held_out(lake, build_id, "qa")
    _check_enough(build_id, {sample.clip_id for sample in (*captions, *asked)}, plan)
    left_out: Counter[str] = Counter()
    captions = _with_masks(captions, left_out)
    asked = _with_masks(asked, left_out)

    choices = choice_items(asked, plan.seed, topic_of)
    by_id = {sample.sample_id: sample for sample in asked}
    answerable = [by_id[item.item_id] for item in choices.items]
    described = _spread(captions, plan.max_descriptions, plan.seed)
    questioned = _spread_over_types(answerable, plan)
    left_out["fewer than three other answers of its kind"] += len(choices.skipped)
    left_out["over the limit"] += len(captions) - len(described) + len(answerable) - len(questioned)
    if not described and not questioned:
        raise BenchBuildError(
            f"build {build_id}: its held_out samples give no item ({_told(left_out)}); build from more videos"
        )

    masks = _masks_of(lake, build_id, [*described, *questioned])
    made_by_id = {item.item_id: item for item in choices.items}
    return NewBench(
        manifest=manifest,
        plan=plan,
        descriptions=tuple(_description(number, s, build_id, masks) for number, s in enumerate(described)),
        questions=tuple(_questions([(s, made_by_id[s.sample_id]) for s in questioned], build_id, masks, plan.seed)),
        left_out={reason: n for reason, n in sorted(left_out.items()) if n},
    )


def _held_out(lake: Lake, build_id: str, kind: Kind) -> list[Sample]:
    return [sample for sample in read_samples(lake, build_id, kind) if sample.split == "held_out"]


def _check_enough(build_id: str, clips: set[str], plan: BenchPlan) -> None:
    if len(clips) < plan.min_clips:
        missing = plan.min_clips - len(clips)
        raise BenchBuildError(
            f"build {build_id} has {len(clips)} held_out clips with a detailed caption or a question, a bench needs "
            f"{plan.min_clips}; one video in ten is held out, so add about {10 * missing} videos and build again"
        )


def _with_masks(samples: Iterable[Sample], left_out: Counter[str]) -> list[Sample]:
    """The samples whose every object is masked before `visible_until_s`, cut to those frames, in the order of ids."""
    kept = []
    for sample in sorted(samples, key=lambda sample: sample.sample_id):
        objects = [_before(item, sample.visible_until_s) for item in sample.objects]
        if all(any(item.rle) for item in objects):
            kept.append(sample.model_copy(update={"objects": tuple(objects)}))
        else:
            left_out["an object without a mask before visible_until_s"] += 1
    return kept


def _before(item: SampleObject, until_s: float) -> SampleObject:
    frames = [frame for frame in zip(item.frame_idx, item.frame_time_s, item.rle, strict=True) if frame[1] < until_s]
    columns = list(zip(*frames, strict=True)) or [(), (), ()]
    return item.model_copy(update=dict(zip(("frame_idx", "frame_time_s", "rle"), columns, strict=True)))


def _spread(samples: Iterable[Sample], number: int, seed: int) -> list[Sample]:
    """So many samples, drawn by a hash of id and seed, clip by clip in turn; in the order of their ids."""
    drawn = sorted(samples, key=lambda s: hashlib.sha256(f"{seed}:{s.sample_id}".encode()).digest())
    turns: Counter[str] = Counter()
    ranked = []
    for place, sample in enumerate(drawn):
        ranked.append((turns[sample.clip_id], place))
        turns[sample.clip_id] += 1
    chosen = [drawn[place] for _, place in sorted(ranked)[:number]]
    return sorted(chosen, key=lambda sample: sample.sample_id)


def _spread_over_types(samples: Iterable[Sample], plan: BenchPlan) -> list[Sample]:
    """Type by type; what a type with few questions leaves free goes to the others."""
    pools: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        pools[official_type(sample)].append(sample)
    chosen: dict[str, list[Sample]] = {}
    free = plan.max_questions
    for done, (name, pool) in enumerate(sorted(pools.items(), key=lambda item: (len(item[1]), item[0]))):
        chosen[name] = _spread(pool, free // (len(pools) - done), plan.seed)
        free -= len(chosen[name])
    return [sample for name in OFFICIAL_TYPES for sample in chosen.get(name, ())]


def _masks_of(lake: Lake, build_id: str, samples: Sequence[Sample]) -> dict[str, Track]:
    """The tracks of the samples' objects: samples bear only some of their masked frames."""
    wanted = {item.object_id for sample in samples for item in sample.objects}
    return {track.track_id: track for track in read_tracks(lake, build_id) if track.track_id in wanted}


def _description(number: int, sample: Sample, build_id: str, tracks: Mapping[str, Track]) -> Row:
    return {
        "id": number,
        "video": sample.video,
        "caption": sample.conversations[1].value,
        **marked(sample, tracks),
        **_origin(sample, build_id),
    }


def _questions(
    chosen: Sequence[tuple[Sample, ChoiceItem]], build_id: str, tracks: Mapping[str, Track], seed: int
) -> Iterator[Row]:
    """Rows with the right answers dealt anew over the letters, as some were left out after `choice_items` dealt them.

    Items come type by type, and of each four in a row every letter is right once: over all items the letters differ by
    one at most, within a type by two.
    """
    rng = np.random.default_rng(seed)
    places = [int(place) for _ in range(0, len(chosen), NUM_OPTIONS) for place in rng.permutation(NUM_OPTIONS)]
    for number, ((sample, item), place) in enumerate(zip(chosen, places, strict=False)):
        texts = [option for index, option in enumerate(item.options) if index != item.answer]
        texts.insert(place, item.options[item.answer])
        # without the full stop: the official prompt puts one after the last option, and official options have none
        options = [f"({letter}) {text.removesuffix('.')}" for letter, text in zip(LETTERS, texts, strict=True)]
        yield {
            "id": number,
            "video": sample.video,
            "Question": item.question,
            "type": official_type(sample),
            "options": options,
            "Answer": options[place],
            **marked(sample, tracks),
            **_origin(sample, build_id),
        }


def marked(sample: Sample, tracks: Mapping[str, Track]) -> Row:
    """`frame_idx`, the frame of single-frame mode, and `annotation`, one dict of masks by frame for each object.

    Each object has the masks of its sample and, in every case, an entry for the single frame: null where it is out of
    sight there, or no mask of it is known.
    """
    known = [_known_masks(item, tracks, sample.visible_until_s) for item in sample.objects]
    frame = _single_frame(known)
    annotation = []
    for item, masks in zip(sample.objects, known, strict=True):
        shown = sorted({*item.frame_idx, frame})
        annotation.append({str(index): {"segmentation": _rle(masks.get(index), sample)} for index in shown})
    return {"frame_idx": str(frame), "annotation": annotation}


def _known_masks(item: SampleObject, tracks: Mapping[str, Track], until_s: float) -> _Masks:
    masks = dict(zip(item.frame_idx, item.rle, strict=True))
    if (track := tracks.get(item.object_id)) is not None:
        columns = zip(track.masks.frame_idx, track.masks.frame_time_s, track.masks.rle, strict=True)
        masks = {index: rle for index, time_s, rle in columns if time_s < until_s} | masks
    return masks


def _single_frame(known: Sequence[_Masks]) -> int:
    """The frame that shows most of the objects, of these the one whose smallest object is largest, then the first."""

    def merit(frame: int) -> tuple[int, int, int]:
        areas = [area_px(rle) for masks in known if (rle := masks.get(frame)) is not None]
        return len(areas), min(areas, default=0), -frame

    return max({frame for masks in known for frame in masks}, key=merit)


def _rle(counts: str | None, sample: Sample) -> Row | None:
    return None if counts is None else {"size": [sample.height, sample.width], "counts": counts}


def _origin(sample: Sample, build_id: str) -> Row:
    return {
        "start_s": sample.start_s,
        "end_s": sample.end_s,
        "visible_until_s": sample.visible_until_s,
        "fps": sample.fps,
        "made_by": "machine",
        "checked": False,
        "build_id": build_id,
        "sample_id": sample.sample_id,
        "clip_id": sample.clip_id,
        "source_id": sample.source_id,
        "video_sha256": sample.video_sha256,
        "license": sample.license,
    }


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()) if n) or "it has none"
