"""Questions whose answers differ between the objects of one clip, from the held-out samples of a build.

An item is a sample of the build as it stands in a shard. Its options are its own answer and those that would be right
of the other objects of the clip, in the words in which the engine would have answered: only the object tells them
apart.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow.parquet as pq

from agents.questions import basic
from infra.builds import read_samples
from infra.lake import Lake
from infra.sources import ClipSet
from schemas.arrow import from_table
from schemas.caption import CaptionSet, ObjectCaption
from schemas.clip import Clip
from schemas.record import Record
from schemas.sample import VIDEO, Sample

Topic = Literal["identity", "colour", "direction"]
TOPICS: tuple[Topic, ...] = ("identity", "colour", "direction")
MIN_ANSWERS = 3
"""Objects of a clip whose answers differ, at least."""

_NAMES: dict[Topic, str] = {"identity": "name", "colour": "colour", "direction": "direction"}
"""What the engine calls the topics."""


R = TypeVar("R", bound=Record)


class Item(Record):
    """One question on one object; `options[0]` is right. `other` is another object of the clip, with another answer."""

    topic: Topic
    sample: Sample
    other: Sample
    options: tuple[str, ...]


def held_out_items(lake: Lake, build_id: str) -> list[Item]:
    """Items of every topic, in the order of clips and samples.

    A clip counts only where at least `MIN_ANSWERS` of its objects have answers that differ; on direction, only objects
    that move are asked about, as where those at rest stay is another fact.
    """
    clips = {clip.clip_id: clip for found in _outputs(lake, "source", ClipSet) for clip in found.clips}
    captions = {found.clip_id: found.captions for found in _outputs(lake, "annotator", CaptionSet)}
    by_clip: dict[str, list[Sample]] = defaultdict(list)
    for sample in read_samples(lake, build_id, "qa"):
        if sample.split == "held_out" and len(sample.objects) == 1:
            by_clip[sample.clip_id].append(sample)
    return [
        item
        for clip_id, samples in sorted(by_clip.items())
        for topic in TOPICS
        for item in _items(topic, clips[clip_id], captions[clip_id], samples)
    ]


def _items(topic: Topic, clip: Clip, captions: Iterable[ObjectCaption], samples: Iterable[Sample]) -> Iterator[Item]:
    by_track = {caption.track_id: caption for caption in captions}
    asked: dict[str, Sample] = {}
    for sample in samples:
        caption = by_track[sample.objects[0].object_id]
        is_asked = topic != "direction" or caption.motion_facts.moves
        if is_asked and _pair(topic, clip, caption) == tuple(turn.value for turn in sample.conversations):
            asked[caption.track_id] = sample
    for track_id, sample in asked.items():
        own = by_track[track_id]
        answers = {name: _pair(topic, clip, _told_of(own, by_track[name], topic))[1] for name in asked}
        options = tuple(dict.fromkeys((answers[track_id], *answers.values())))
        if len(options) >= MIN_ANSWERS:
            other = next(asked[name] for name, answer in answers.items() if answer == options[1])
            yield Item(topic=topic, sample=sample, other=other, options=options)


def _told_of(own: ObjectCaption, other: ObjectCaption, topic: Topic) -> ObjectCaption:
    """`own` with the one fact that the topic asks for taken from `other`."""
    if topic == "identity":
        return own.model_copy(update={"noun": other.noun})
    if topic == "direction":
        return own.model_copy(update={"motion_facts": other.motion_facts})
    look = own.appearance_facts.model_copy(update={"colours": other.appearance_facts.colours})
    return own.model_copy(update={"appearance_facts": look})


def _pair(topic: Topic, clip: Clip, caption: ObjectCaption) -> tuple[str, str]:
    pair = next(pair for pair in basic(clip, caption) if pair.topic == _NAMES[topic])
    return f"{VIDEO}\n{pair.question}", pair.answer


def _outputs(lake: Lake, agent: str, record_type: type[R]) -> Iterator[R]:
    for part in sorted(Path(lake.root).glob(f"agents/{agent}/*/part-*.parquet")):
        yield from from_table(pq.read_table(part).drop_columns(["key"]), record_type)
