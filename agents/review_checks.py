"""The reviewer's questions about one track, each answered with agrees, disagrees or cannot_tell.

Scores run from 0 to 1; under `DISAGREES_BELOW` a check disagrees, from `AGREES_FROM` it agrees, and the band between is
where measurements of real objects waver, so that it tells nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.class_vote import Vote
from agents.nouns import NounMatch
from agents.second_look import BoxPath, Look, box_path, colour_shares, outline_support, ring_contrast, share_near
from schemas.caption import MotionFacts, ObjectCaption
from schemas.jobs import ReviewerJob
from schemas.mention import Mention
from schemas.quarantine import Reason
from schemas.track import Track
from schemas.verdict import Check, Outcome
from schemas.words import Colour, Direction, Place

DISAGREES_BELOW = 0.4
AGREES_FROM = 0.6

REASONS: dict[str, Reason] = {
    "names": "class_mismatch",
    "class_vote": "class_mismatch",
    "presence": "not_visible",
    "outline": "unstable_mask",
    "steadiness": "unstable_mask",
    "count": "count_claim_mismatch",
    "said_colours": "colour_mismatch",
    "told_colours": "colour_mismatch",
    "said_directions": "direction_mismatch",
    "told_direction": "direction_mismatch",
    "said_places": "place_mismatch",
    "told_span": "not_visible",
    "told_size": "class_mismatch",
    "told_places": "place_mismatch",
}
"""Why a track is dropped when a check disagrees. `said` is the source's caption, `told` the annotator's."""

HORIZONTAL_OR_VERTICAL: dict[Direction, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
PLACE_AXES: dict[Place, tuple[int, float]] = {"left": (0, 0.0), "right": (0, 1.0), "top": (1, 0.0), "bottom": (1, 1.0)}

FAR_RATIO = 0.7
CONFIDENT_NEARNESS = 0.42
NO_ANIMAL_BELOW = 0.1

SURE_MOVE_DIAG = 0.06
"""Twice the displacement from which the annotator speaks of movement."""
SURE_STILL_DIAG = 0.012
SURE_SWELLING = 1.25
NEAR_S = 0.3
LEAP_DIAG = 0.15
LEAP_OVER_USUAL = 4.0
"""A leap goes to a box apart, this far and this many times as far as the track usually goes, within `NEAR_S`."""
AREA_JUMP = 1.7
SPAN_SLACK_S = 0.25


@dataclass(frozen=True)
class Evidence:
    """Everything that the reviewer has on one track; `mention` and `caption` are None where the job holds none."""

    job: ReviewerJob
    track: Track
    mention: Mention | None
    caption: ObjectCaption | None
    path: BoxPath
    looks: list[Look]
    noun: NounMatch
    vote: Vote | None


def all_checks(evidence: Evidence) -> tuple[Check, ...]:
    """Every check on one track, those of the whole track first."""
    shares = colour_shares(evidence.looks)
    return (
        names(evidence),
        presence(evidence.track, evidence.path),
        outline(evidence.looks),
        steadiness(evidence.path),
        class_vote(evidence.vote),
        count(evidence.job, evidence.mention),
        said_colours(evidence.mention, shares),
        told_colours(evidence.caption, shares),
        said_directions(evidence.mention, evidence.path),
        told_direction(evidence.caption, evidence.track),
        said_places(evidence.mention, evidence.path),
        told_places(evidence.caption, evidence.track),
        told_span(evidence.caption, evidence.path),
        told_size(evidence.caption, evidence.path),
    )


def names(evidence: Evidence) -> Check:
    """Whether mention, track, masks and caption speak of one noun and one detector class."""
    track, mention, caption, noun = evidence.track, evidence.mention, evidence.caption, evidence.noun
    if mention is None:
        return _check("names", 0.0, f"no mention {track.mention_id} in the clip")
    nouns = {mention.noun, track.noun} | ({caption.noun} if caption else set())
    classes = {mention.detector_class, track.masks.detector_class}
    if caption:
        classes.add(caption.appearance_facts.detector_class)
        if caption.mention_id != mention.mention_id:
            return _check("names", 0.0, f"caption is of mention {caption.mention_id}, track of {mention.mention_id}")
    if len(nouns) > 1 or len(classes) > 1:
        return _check("names", 0.0, f"nouns {sorted(nouns)}, classes {sorted(classes)}")
    whole = mention.phrase.lower().removesuffix("s").endswith(mention.detector_class)
    if noun.kind == "class" and noun.detector_class != mention.detector_class and not whole:
        return _check(
            "names", 0.0, f"{mention.noun!r} is nearest {noun.detector_class!r}, not {mention.detector_class!r}"
        )
    return _check("names", 1.0, f"{mention.noun!r} is a {mention.detector_class!r} to all")


def class_vote(vote: Vote | None) -> Check:
    """Whether the classifier's labels lie nearer another class than the noun, by far and with confidence.

    A claimed animal without any animal among the labels is taken for no animal. See `tests/agents/test_reviewer.py`
    for how many true and wrong nouns this drops: it notices about every other wrong noun, and hardly ever another
    object that is called a person.
    """
    if vote is None or vote.rival <= 0:
        return _cannot_tell("class_vote", "no crop is large enough")
    ratio = min(1.0, max(0.0, vote.own) / vote.rival)
    detail = (
        f"labels near the noun {vote.own:.2f}, near {vote.rival_class!r} {vote.rival:.2f}; "
        f"top {vote.top_label!r} {vote.top_probability:.2f}"
    )
    if vote.animal_share is not None and vote.animal_share < NO_ANIMAL_BELOW:
        detail += f"; animals {vote.animal_share:.2f}"
        return Check(name="class_vote", outcome="disagrees", score=vote.animal_share, detail=detail)
    if ratio < FAR_RATIO and vote.rival >= CONFIDENT_NEARNESS:
        score = ratio * DISAGREES_BELOW / FAR_RATIO
        return Check(name="class_vote", outcome="disagrees", score=score, detail=detail)
    if ratio > 0.95 and vote.own >= CONFIDENT_NEARNESS:
        return Check(name="class_vote", outcome="agrees", score=ratio, detail=detail)
    return _cannot_tell("class_vote", detail)


def presence(track: Track, path: BoxPath) -> Check:
    """Whether the object is seen long and large enough to be spoken of."""
    share = len(path.boxes) / len(track.masks.rle)
    area = float(np.median(path.areas)) if len(path.areas) else 0.0
    score = min(1.0, share / 0.25, area / 0.0005)
    return _check("presence", score, f"seen in {share:.0%} of {len(track.masks.rle)} frames, median area {area:.2%}")


def outline(looks: Sequence[Look]) -> Check:
    """Whether the mask's outline lies on edges of the picture, in most looks; a drifted mask's does not."""
    supports = [support for look in looks if (support := outline_support(look)) is not None]
    if not supports:
        return _cannot_tell("outline", "no outline inside the frame")
    off = float(np.mean([support < 0.93 for support in supports]))
    contrast = float(np.median([ring_contrast(look) for look in looks]))
    # at most a third of the looks off is the middle of the band; three of six are drift
    score = 1.0 - off * 1.25
    figures = " ".join(f"{support:.2f}" for support in supports)
    return _check("outline", score, f"edge support {figures}; colours inside and around differ by {contrast:.2f}")


def steadiness(path: BoxPath) -> Check:
    """Whether the box goes from frame to frame without leaps, and the mask without jumps in area."""
    if len(path.boxes) < 3:
        return _cannot_tell("steadiness", f"{len(path.boxes)} frames")
    leaps = np.linalg.norm(path.in_diagonals(np.diff(path.centres, axis=0)), axis=1)
    near = np.diff(path.times_s) <= NEAR_S
    if not near.any():
        return _cannot_tell("steadiness", "no two seen frames close in time")
    before, after = path.boxes[:-1], path.boxes[1:]
    apart = (np.maximum(before[:, :2], after[:, :2]) > np.minimum(before[:, 2:], after[:, 2:])).any(axis=1)
    sudden = leaps > np.maximum(LEAP_DIAG, LEAP_OVER_USUAL * np.median(leaps))
    num_leaps = int((near & apart & sudden).sum())
    jumps = np.abs(np.diff(np.log(np.maximum(path.areas, 1e-9)))) > np.log(AREA_JUMP)
    jumping = float((jumps & near).sum() / near.sum())
    score = 0.0 if num_leaps else 1.0 - min(1.0, 2.5 * jumping)
    return _check("steadiness", score, f"{num_leaps} leaps, area jumps at {jumping:.0%} of steps")


def count(job: ReviewerJob, mention: Mention | None) -> Check:
    """Whether there are as many tracks of the mention as the caption says objects."""
    if mention is None or mention.said.count is None:
        return _cannot_tell("count", "no number said")
    found = sum(track.mention_id == mention.mention_id for track in job.tracks.tracks)
    score = 1.0 if found == mention.said.count else 0.0
    return _check("count", score, f"{mention.said.count} said, {found} tracks")


def said_colours(mention: Mention | None, shares: dict[Colour, float]) -> Check:
    """Whether each colour that the caption says is on the object."""
    if mention is None or not mention.said.colours:
        return _cannot_tell("said_colours", "no colour said")
    return _colours("said_colours", mention.said.colours, shares)


def told_colours(caption: ObjectCaption | None, shares: dict[Colour, float]) -> Check:
    """Whether each colour that the annotator tells is on the object."""
    if caption is None or not caption.appearance_facts.colours:
        return _cannot_tell("told_colours", "no colour told")
    return _colours("told_colours", [item.colour for item in caption.appearance_facts.colours], shares)


def said_directions(mention: Mention | None, path: BoxPath) -> Check:
    """Whether the object goes where the caption says; with several directions said, whether it goes any of them.

    A still object tells nothing: the camera may go with it.
    """
    if mention is None or not mention.said.directions or len(path.boxes) < 2:
        return _cannot_tell("said_directions", "no direction said" if len(path.boxes) > 1 else "seen once")
    scores = [_direction_score(direction, path, still_tells=False) for direction in mention.said.directions]
    return _check("said_directions", max(scores), f"{', '.join(mention.said.directions)} said; {_movement(path)}")


def told_direction(caption: ObjectCaption | None, track: Track) -> Check:
    """Whether the object goes where the annotator tells, over the whole span and over both of its parts."""
    if caption is None:
        return _cannot_tell("told_direction", "no caption")
    details, scores = [], []
    for facts in (caption.motion_facts, caption.seen_facts, caption.rest_facts):
        path = _path_of(facts, track)
        if facts is not None and path is not None:
            scores.append(_direction_score(facts.direction, path, still_tells=True))
            details.append(f"{facts.direction} told; {_movement(path)}")
    if not scores:
        return _cannot_tell("told_direction", "seen too briefly")
    return _check("told_direction", min(scores), details[int(np.argmin(scores))])


def said_places(mention: Mention | None, path: BoxPath) -> Check:
    """Whether the object is ever where the caption says.

    "On the left" may mean left of something else, so it disagrees only where the object never comes near that half.
    """
    if mention is None or not mention.said.places or not len(path.boxes):
        return _cannot_tell("said_places", "no place said")
    scores = [max(_place_score(place, centre) for centre in path.centres) for place in mention.said.places]
    return _check("said_places", min(scores), f"{', '.join(mention.said.places)} said; {_centre_range(path)}")


def told_places(caption: ObjectCaption | None, track: Track) -> Check:
    """Whether the object starts and ends where the annotator tells."""
    path = _path_of(caption.motion_facts, track) if caption else None
    if caption is None or path is None:
        return _cannot_tell("told_places", "no caption" if caption is None else "seen too briefly")
    facts, scores = caption.motion_facts, []
    for places, centre in ((facts.start_places, path.centres[0]), (facts.end_places, path.centres[-1])):
        scores += [_place_score(place, centre) for place in places]
    told = f"from {'-'.join(facts.start_places)} to {'-'.join(facts.end_places)} told"
    return _check("told_places", min(scores), f"{told}; {_centre_range(path)}")


def told_span(caption: ObjectCaption | None, path: BoxPath) -> Check:
    """Whether the object is in sight from when to when the annotator tells."""
    if caption is None or not len(path.times_s):
        return _cannot_tell("told_span", "no caption")
    first, last = float(path.times_s[0]), float(path.times_s[-1])
    off_s = max(abs(caption.visible_from_s - first), abs(caption.visible_to_s - last))
    detail = f"{caption.visible_from_s:.2f} to {caption.visible_to_s:.2f} s told; {first:.2f} to {last:.2f} s seen"
    return _check("told_span", 1.0 if off_s <= SPAN_SLACK_S else 0.0, detail)


def told_size(caption: ObjectCaption | None, path: BoxPath) -> Check:
    """Whether the object's median size is what the annotator tells; another size means another object."""
    if caption is None or not len(path.areas):
        return _cannot_tell("told_size", "no caption" if caption is None else "never seen")
    told, seen = max(caption.appearance_facts.area_share, 1e-6), max(float(np.median(path.areas)), 1e-6)
    ratio = min(told, seen) / max(told, seen)
    return _check("told_size", ratio, f"{told:.2%} of the frame told, {seen:.2%} seen")


def _colours(name: str, colours: Sequence[Colour], shares: dict[Colour, float]) -> Check:
    if not shares:
        return _cannot_tell(name, "no pixels")
    # a tenth of the pixels is where a colour is on the object, under a twentieth it is not
    scores = [min(1.0, AGREES_FROM * share_near(colour, shares) / 0.1) for colour in colours]
    seen = ", ".join(
        f"{colour} {share:.0%}" for colour, share in sorted(shares.items(), key=_by_share) if share >= 0.05
    )
    return _check(name, min(scores), f"{', '.join(colours)} claimed; seen {seen}")


def _by_share(item: tuple[Colour, float]) -> float:
    return -item[1]


def _direction_score(direction: Direction, path: BoxPath, *, still_tells: bool) -> float:
    """0 against, 0.5 cannot tell, 1 for."""
    moved, swelling = path.displacement_diag(), path.swelling()
    length = float(np.hypot(*moved))
    if direction == "none":
        # a box that the border cuts shrinks without its object moving
        return 0.0 if length > SURE_MOVE_DIAG and not path.touches_border() else 1.0 if length < 0.03 else 0.5
    if direction in ("toward", "away"):
        if path.touches_border():
            return 0.5
        growing = swelling if direction == "toward" else 1 / swelling
        return 0.0 if growing < 1 / SURE_SWELLING else 1.0 if growing > 1.1 else 0.5
    along = float(np.dot(moved, HORIZONTAL_OR_VERTICAL[direction]))
    if along < -0.03 and not (path.touches_border() and along > -SURE_MOVE_DIAG):
        return 0.0
    if along > 0.02 and along > 0.4 * length:
        return 1.0
    across_only = length > SURE_MOVE_DIAG and along < 0.1 * length
    still = length < SURE_STILL_DIAG
    return 0.0 if still_tells and (across_only or still) and not path.touches_border() else 0.5


def _place_score(place: Place, centre: npt.NDArray[np.float64]) -> float:
    if place == "middle":
        off = float(np.abs(centre - 0.5).max())
        return 1.0 if off < 0.2 else 0.0 if off > 0.3 else 0.5
    axis, end = PLACE_AXES[place]
    off = abs(float(centre[axis]) - end)
    return 1.0 if off < 0.45 else 0.0 if off > 0.58 else 0.5


def _path_of(facts: MotionFacts | None, track: Track) -> BoxPath | None:
    if facts is None:
        return None
    path = box_path(track.masks, facts.start_s, facts.end_s)
    return path if len(path.boxes) > 1 else None


def _movement(path: BoxPath) -> str:
    dx, dy = path.displacement_diag()
    return f"box centre moves {dx:+.3f}, {dy:+.3f} diagonals, size x {path.swelling():.2f}"


def _centre_range(path: BoxPath) -> str:
    (x0, y0), (x1, y1) = path.centres[0], path.centres[-1]
    return f"box centre from {x0:.2f}, {y0:.2f} to {x1:.2f}, {y1:.2f} of the frame"


def _check(name: str, score: float, detail: str) -> Check:
    score = round(min(1.0, max(0.0, score)), 4)
    outcome: Outcome = "cannot_tell"
    if score < DISAGREES_BELOW:
        outcome = "disagrees"
    elif score >= AGREES_FROM:
        outcome = "agrees"
    return Check(name=name, outcome=outcome, score=score, detail=detail)


def _cannot_tell(name: str, detail: str) -> Check:
    return Check(name=name, outcome="cannot_tell", score=0.5, detail=detail)
