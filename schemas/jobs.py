"""Jobs: what each agent is handed for one clip. The analyzer is handed the `Clip` itself."""

from schemas.caption import CaptionSet, MentionTextSet
from schemas.clip import Clip
from schemas.given import GivenMasks
from schemas.mention import MentionSet
from schemas.record import Record
from schemas.track import TrackSet
from schemas.verdict import VerdictSet


class SegmenterJob(Record):
    """A clip and its nouns, for the segmenter, and for an annotator that needs no tracks.

    `given` are the masks that came with the source, handed to the segmenter only.
    """

    clip: Clip
    mentions: MentionSet
    given: GivenMasks | None = None


class AnnotatorJob(Record):
    """A clip and the tracks to describe (an annotator that needs tracks)."""

    clip: Clip
    mentions: MentionSet
    tracks: TrackSet


class ReviewerJob(Record):
    """A clip, its tracks, and what an annotator that needs tracks says of them."""

    clip: Clip
    mentions: MentionSet
    tracks: TrackSet
    captions: CaptionSet


class TextReviewerJob(Record):
    """A clip, its tracks, and the texts on its mentions, by an annotator that knew no tracks."""

    clip: Clip
    mentions: MentionSet
    tracks: TrackSet
    texts: MentionTextSet


class RefinerJob(Record):
    """Everything known of a clip, with the verdicts."""

    clip: Clip
    mentions: MentionSet
    tracks: TrackSet
    captions: CaptionSet
    verdicts: VerdictSet


class TextRefinerJob(Record):
    """Everything known of a clip, with the verdicts, where the texts are on its mentions."""

    clip: Clip
    mentions: MentionSet
    tracks: TrackSet
    texts: MentionTextSet
    verdicts: VerdictSet
