"""Truth: what is known exactly of a synthetic clip, in a file beside its video."""

from pathlib import Path

from pydantic import Field, ValidationError

from schemas.record import Record
from schemas.track import ObjectMasks
from schemas.words import Colour, Direction


class ObjectTruth(Record):
    """One object of a synthetic clip: what its caption says of it, and its masks in every frame.

    `colour` is None where the cut-out kept its own colours. `masks` hold what is visible: pixels behind nearer objects
    are left out, None where the object is out of sight.
    """

    object_id: str
    noun: str
    colour: Colour | None
    direction: Direction
    masks: ObjectMasks


class MentionTruth(Record):
    """The objects that one noun phrase of a caption names; `ambiguous` where its words fit another object as well."""

    object_ids: tuple[str, ...] = Field(min_length=1)
    ambiguous: bool = False


class ClipTruth(Record):
    """The truth of one video; `video` is its file name.

    `mentions` follow the caption's noun phrases; left empty where each names one object, in the order of `objects`.
    """

    video: str
    caption: str
    objects: tuple[ObjectTruth, ...]
    mentions: tuple[MentionTruth, ...] = ()

    @property
    def named(self) -> tuple[MentionTruth, ...]:
        """What each noun phrase of the caption names, in order."""
        return self.mentions or tuple(MentionTruth(object_ids=(item.object_id,)) for item in self.objects)


def truth_path(video: Path) -> Path:
    """Where the truth of a video rests: `a.mp4` has `a.truth.json`."""
    return video.with_suffix(".truth.json")


def write_truth(video: Path, truth: ClipTruth) -> None:
    """Write the truth of a video beside it."""
    truth_path(video).write_text(truth.model_dump_json(exclude_defaults=True), encoding="utf-8")


def read_truth(video: Path) -> ClipTruth:
    """The truth of a video; raises ValueError where there is none, or one that does not belong to it."""
    path = truth_path(video)
    try:
        truth = ClipTruth.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{video.name} has no truth: {path.name} is missing; only synthetic clips have one") from error
    except ValidationError as error:
        raise ValueError(f"{path.name} holds no truth of a clip: {error.errors()[0]['msg']}") from error
    if truth.video != video.name:
        raise ValueError(f"{path.name} is the truth of {truth.video}, not of {video.name}")
    return truth
