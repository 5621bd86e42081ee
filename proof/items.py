"""Questions whose answers differ between the objects of one clip, from the held-out samples of a build.

An item is a sample of the build as it stands in a shard. Its options are its own answer and those that would be right
of the other objects of the clip, in the words in which the engine would have answered: only the object tells them
apart.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

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
MAX_COLOUR_SHARE = 0.6
MIN_ANSWERS = 3
"""Objects of a clip whose answers differ, at least."""

_NAMES: dict[Topic, str] = {"identity": "name", "colour": "colour", "direction": "direction"}
"""What the engine calls the topics."""


R = TypeVar("R", bound=Record)


class Item(Record):
    """One question on one object. `options[0]` is right, the rest are right of `others`, other objects of its clip."""

    topic: Topic
    sample: Sample
    others: tuple[Sample, ...]
    options: tuple[str, ...]


def held_out_items(lake: Lake, build_id: str) -> list[Item]:
    """Items of every topic, in the order of clips and samples.

    A clip counts only where at least `MIN_ANSWERS` of its objects have answers that differ; on direction, only objects
    that move are asked about, as where those at rest stay is another fact. Things of a noun that has one colour nearly
    always (a suit stays black in any tint) are not asked for it.
    """
    told = _learnt(lake, build_id)
    of_one_colour = {
        noun for noun, total in told.nouns.items() if max(told.colours[noun].values()) > MAX_COLOUR_SHARE * total
    }
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
        if topic != "colour" or item.sample.objects[0].noun not in of_one_colour
    ]


class Learnt(NamedTuple):
    """What `train` tells of its objects: how many of each noun, and of those how many of each colour and direction."""

    nouns: Counter[str]
    colours: dict[str, Counter[str]]
    directions: dict[str, Counter[str]]


def _learnt(lake: Lake, build_id: str) -> Learnt:
    tracks = {
        sample.objects[0].object_id
        for sample in read_samples(lake, build_id, "qa")
        if sample.split == "train" and len(sample.objects) == 1
    }
    found = Learnt(Counter(), defaultdict(Counter), defaultdict(Counter))
    for caption in (one for output in _outputs(lake, "annotator", CaptionSet) for one in output.captions):
        if caption.track_id in tracks:
            found.nouns[caption.noun] += 1
            found.colours[caption.noun][_value("colour", caption)] += 1
            found.directions[caption.noun][_value("direction", caption)] += 1
    return found


def train_prior(lake: Lake, build_id: str, items: Sequence[Item]) -> list[float]:
    """For each item, whether its right option is what `train` answers most often, of things of that noun; ties share.

    What a model could score that learnt the answers by heart and saw nothing. Clearly above chance, the items would
    prove nothing.
    """
    told = _learnt(lake, build_id)
    captions = [one for found in _outputs(lake, "annotator", CaptionSet) for one in found.captions]
    by_track = {caption.track_id: caption for caption in captions}
    shares = []
    for item in items:
        objects = [by_track[sample.objects[0].object_id] for sample in (item.sample, *item.others)]
        noun = objects[0].noun
        common = {"identity": told.nouns, "colour": told.colours[noun], "direction": told.directions[noun]}[item.topic]
        counts = [common[_value(item.topic, caption)] for caption in objects]
        best = [place for place, count in enumerate(counts) if count == max(counts)]
        shares.append(1 / len(best) if 0 in best else 0.0)
    return shares


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
        first = {answer: asked[name] for name, answer in reversed(answers.items())}
        own_answer = answers[track_id]
        others = {answer: first[answer] for answer in answers.values() if answer != own_answer}
        if len(others) >= MIN_ANSWERS - 1:
            yield Item(topic=topic, sample=sample, others=tuple(others.values()), options=(own_answer, *others))


def _told_of(own: ObjectCaption, other: ObjectCaption, topic: Topic) -> ObjectCaption:
    """`own` with the one fact that the topic asks for taken from `other`; of its colours the main one alone.

    Minor colours go with the picture that an object was cut from, so that they would tell an option by its noun.
    """
    if topic == "identity":
        return own.model_copy(update={"noun": other.noun})
    if topic == "direction":
        return own.model_copy(update={"motion_facts": other.motion_facts})
    ours, theirs = own.appearance_facts.colours, other.appearance_facts.colours
    main = tuple(ours[0].model_copy(update={"colour": share.colour}) for share in theirs[:1]) if ours else theirs[:1]
    look = own.appearance_facts.model_copy(update={"colours": main})
    return own.model_copy(update={"appearance_facts": look})


def _value(topic: Topic, caption: ObjectCaption) -> str:
    """The fact that the topic asks for, in a word."""
    if topic == "identity":
        return caption.noun
    if topic == "direction":
        return caption.motion_facts.direction
    return next((share.colour for share in caption.appearance_facts.colours), "none")


def _pair(topic: Topic, clip: Clip, caption: ObjectCaption) -> tuple[str, str]:
    pair = next(pair for pair in basic(clip, caption) if pair.topic == _NAMES[topic])
    return f"{VIDEO}\n{pair.question}", pair.answer


def _outputs(lake: Lake, agent: str, record_type: type[R]) -> Iterator[R]:
    for part in sorted(Path(lake.root).glob(f"agents/{agent}/*/part-*.parquet")):
        yield from from_table(pq.read_table(part).drop_columns(["key"]), record_type)
