"""Object caption: what was measured of one track, as typed facts, and texts, motion and appearance apart.

An annotator that works beside the segmenter knows no tracks: it writes the texts alone, one pair for each mention.
"""

from pydantic import Field

from schemas.quarantine import QuarantineEntry
from schemas.record import Record, Share
from schemas.words import Colour, Direction, Place, Size, Speed


class ColourShare(Record):
    """A colour and the share of mask pixels that bear it."""

    colour: Colour
    share: Share


class AppearanceFacts(Record):
    """What an object looks like over the whole span.

    `colours` are those of at least 15 % of its pixels, largest first. `area_share` is the median mask area over the
    frame's area.
    """

    detector_class: str
    colours: tuple[ColourShare, ...]
    size: Size
    area_share: Share


class MotionFacts(Record):
    """How an object moves between two moments, in the image plane.

    `displacement_*` is that of the mask centroid over [start_s, end_s), in frame diagonals; `speed_diag_per_s` is its
    length per second of visible time. `growth` is the ratio of mask areas, last third over first third (1 unchanged).
    """

    start_s: float
    end_s: float
    start_places: tuple[Place, ...]
    end_places: tuple[Place, ...]
    direction: Direction
    speed: Speed
    displacement_x_diag: float
    displacement_y_diag: float
    speed_diag_per_s: float = Field(ge=0)
    growth: float = Field(gt=0)

    @property
    def moves(self) -> bool:
        """Whether the object goes anywhere; the paper drops those that do not from its subjects (App. C)."""
        return self.direction != "none"


class Contact(Record):
    """Two masks that touch or overlap, from `start_s` to `end_s`."""

    track_id: str
    noun: str
    start_s: float
    end_s: float


class ObjectCaption(Record):
    """All that is measured of one track, and the annotator's two texts on it.

    `motion_facts` covers the whole span; `seen_facts` only up to `visible_until_s`, `rest_facts` what comes after it
    (None where the object is not seen long enough on that side): a future question is asked of the first and answered
    from the second. `moving` is whether a subject counts as moving, as the annotator judges it: by `motion_facts`, or
    by what it sees the object do.
    """

    track_id: str
    mention_id: str
    noun: str
    visible_from_s: float
    visible_to_s: float
    visible_until_s: float
    appearance_facts: AppearanceFacts
    motion_facts: MotionFacts
    seen_facts: MotionFacts | None
    rest_facts: MotionFacts | None
    contacts: tuple[Contact, ...]
    appearance: str = Field(min_length=1)
    motion: str = Field(min_length=1)
    moving: bool


class CaptionSet(Record):
    """The annotator's output for one clip."""

    clip_id: str
    captions: tuple[ObjectCaption, ...]
    rejected: tuple[QuarantineEntry, ...]


class MentionText(Record):
    """The annotator's two texts on one mention, written from the whole video and the noun alone.

    A mention with a stated count ("two dogs") has one pair of texts, which holds of each of its objects. `moving` is
    as in `ObjectCaption`.
    """

    mention_id: str
    noun: str
    appearance: str = Field(min_length=1)
    motion: str = Field(min_length=1)
    moving: bool


class MentionTextSet(Record):
    """The output for one clip of an annotator that needs no tracks; each mention has a text or one rejected entry."""

    clip_id: str
    texts: tuple[MentionText, ...]
    rejected: tuple[QuarantineEntry, ...]
