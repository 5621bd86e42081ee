"""Mention: a noun of the caption worth describing, with what the caption says of it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.quarantine import QuarantineEntry
from schemas.record import Record, check_unique
from schemas.words import Colour, Direction, Place

Role = Literal["subject", "other"]
Number = Literal["singular", "plural"]


class SaidAttributes(Record):
    """What the caption claims of one mention; an empty tuple where it claims nothing.

    `actions` are verb lemmas. `count` is the number stated ("two dogs" is 2, "a dog" 1), None for a bare plural.
    """

    colours: tuple[Colour, ...] = ()
    places: tuple[Place, ...] = ()
    directions: tuple[Direction, ...] = ()
    actions: tuple[str, ...] = ()
    count: Annotated[int, Field(ge=1)] | None


class Mention(Record):
    """One noun of a caption, mapped to a class of the detector.

    `phrase` is the noun chunk as written, `[start_char, end_char)` its place in the caption, `noun` its head lemma.
    `class_similarity` is the cosine between noun and `detector_class` in the sentence embedding.
    """

    mention_id: str = Field(min_length=1)
    clip_id: str = Field(min_length=1)
    noun: str = Field(min_length=1)
    phrase: str = Field(min_length=1)
    start_char: int = Field(ge=0)
    end_char: int = Field(gt=0)
    role: Role
    number: Number
    detector_class: str = Field(min_length=1)
    class_similarity: float = Field(ge=-1.001, le=1.001)
    said: SaidAttributes


class MentionSet(Record):
    """The analyzer's output for one clip."""

    clip_id: str
    mentions: tuple[Mention, ...]
    rejected: tuple[QuarantineEntry, ...]

    @model_validator(mode="after")
    def _differ(self) -> Self:
        check_unique([mention.mention_id for mention in self.mentions])
        return self
