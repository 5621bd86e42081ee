"""The reviewer's questions about one track, each answered with agrees, disagrees or cannot_tell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.check_scale import AGREES_FROM, DISAGREES_BELOW, cannot_tell, scored
from agents.class_vote import Vote
from agents.movement import against_ground, direction_score, in_frame
from agents.nouns import NounMatch
from agents.second_look import BoxPath, ColourLook, Look, box_path, colours_of, outline_support, ring_contrast
from agents.vocabulary import STAYING_VERBS
from schemas.caption import MotionFacts, ObjectCaption
from schemas.jobs import ReviewerJob
from schemas.mention import Mention
from schemas.quarantine import Reason
from schemas.track import Track
from schemas.verdict import Check
from schemas.words import Colour, Direction, Place

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

PLACE_AXES: dict[Place, tuple[int, float]] = {"left": (0, 0.0), "right": (0, 1.0), "top": (1, 0.0), "bottom": (1, 1.0)}

ABSENT_LABELS = 0.2
AGREEING_LABELS = 0.3
SURE_RIVAL = 0.8
"""Probabilities of a class's labels: under which it is absent, from which it is there, and from which it is another."""

NEAR_S = 0.3
LEAP_DIAG = 0.15
LEAP_OVER_USUAL = 4.0
"""A leap goes to a box apart, this far and this many times as far as the track usually goes, within `NEAR_S`."""
AREA_JUMP = 1.7
ABSENT_COLOUR = 0.12
SPAN_SLACK_S = 0.25


@dataclass(frozen=True)
class Evidence:
    """Everything that the reviewer has on one track; `mention` and `caption` are None where the job holds none.

    `noun` is where the reviewer's own word list puts the noun, None where the claimed class is not one of its own.
    """

    job: ReviewerJob
    track: Track
    mention: Mention | None
    caption: ObjectCaption | None
    path: BoxPath
    looks: list[Look]
    noun: NounMatch | None
    vote: Vote | None


def all_checks(evidence: Evidence) -> tuple[Check, ...]:
    """Every check on one track, those of the whole track first."""
    colours = colours_of(evidence.looks)
    return (
        names(evidence),
        presence(evidence.track, evidence.path),
        outline(evidence.looks),
        steadiness(evidence.path),
        class_vote(evidence.vote),
        count(evidence.job, evidence.mention),
        said_colours(evidence.mention, colours),
        told_colours(evidence.caption, colours),
        said_directions(evidence.mention, evidence.path, evidence.looks),
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
        return scored("names", 0.0, f"no mention {track.mention_id} in the clip")
    nouns = {mention.noun, track.noun} | ({caption.noun} if caption else set())
    classes = {mention.detector_class, track.masks.detector_class}
    if caption:
        classes.add(caption.appearance_facts.detector_class)
        if caption.mention_id != mention.mention_id:
            return scored("names", 0.0, f"caption is of mention {caption.mention_id}, track of {mention.mention_id}")
    if len(nouns) > 1 or len(classes) > 1:
        return scored("names", 0.0, f"nouns {sorted(nouns)}, classes {sorted(classes)}")
    if noun is not None and noun.kind == "class" and noun.detector_class != mention.detector_class:
        return scored(
            "names", 0.0, f"{mention.noun!r} is nearest {noun.detector_class!r}, not {mention.detector_class!r}"
        )
    return scored("names", 1.0, f"{mention.noun!r} is a {mention.detector_class!r} to all")


def class_vote(vote: Vote | None) -> Check:
    """Whether the classifier's labels leave room for the claimed class.

    The score grows with the probability of the class's labels, which disagree under `ABSENT_LABELS` and agree from
    `AGREEING_LABELS`. A person has no labels, so there no other class may have `SURE_RIVAL`. See
    `tests/flows/test_quality_review.py` for how many wrong nouns this drops.
    """
    if vote is None:
        return cannot_tell("class_vote", "no crop is large enough, or no labels are known to stand for the class")
    detail = f"{vote.rival_class!r} {vote.rival:.2f}; top {vote.top_label!r} {vote.top_probability:.2f}"
    if vote.own is None:
        score = 0.5 if vote.rival < SURE_RIVAL else 1 - vote.rival
        return scored("class_vote", score, f"labels of {detail}")
    score = float(np.interp(vote.own, [0, ABSENT_LABELS, AGREEING_LABELS, 1], [0, DISAGREES_BELOW, AGREES_FROM, 1]))
    return scored("class_vote", score, f"labels of the noun {vote.own:.2f}, of {detail}")


def presence(track: Track, path: BoxPath) -> Check:
    """Whether the object is seen long and large enough to be spoken of."""
    share = len(path.boxes) / len(track.masks.rle)
    area = float(np.median(path.areas)) if len(path.areas) else 0.0
    score = min(1.0, share / 0.25, area / 0.0005)
    return scored("presence", score, f"seen in {share:.0%} of {len(track.masks.rle)} frames, median area {area:.2%}")


def outline(looks: Sequence[Look]) -> Check:
    """Whether the mask's outline lies on edges of the picture, in most looks; a drifted mask's does not."""
    supports = [support for look in looks if (support := outline_support(look)) is not None]
    if not supports:
        return cannot_tell("outline", "no outline inside the frame")
    off = float(np.mean([support < 0.93 for support in supports]))
    contrast = float(np.median([ring_contrast(look) for look in looks]))
    # at most a third of the looks off is the middle of the band; three of six are drift
    score = 1.0 - off * 1.25
    figures = " ".join(f"{support:.2f}" for support in supports)
    return scored("outline", score, f"edge support {figures}; colours inside and around differ by {contrast:.2f}")


def steadiness(path: BoxPath) -> Check:
    """Whether the box goes from frame to frame without leaps, and the mask without jumps in area."""
    if len(path.boxes) < 3:
        return cannot_tell("steadiness", f"{len(path.boxes)} frames")
    leaps = np.linalg.norm(path.in_diagonals(np.diff(path.centres, axis=0)), axis=1)
    near = np.diff(path.times_s) <= NEAR_S
    if not near.any():
        return cannot_tell("steadiness", "no two seen frames close in time")
    before, after = path.boxes[:-1], path.boxes[1:]
    apart = (np.maximum(before[:, :2], after[:, :2]) > np.minimum(before[:, 2:], after[:, 2:])).any(axis=1)
    sudden = leaps > np.maximum(LEAP_DIAG, LEAP_OVER_USUAL * np.median(leaps))
    num_leaps = int((near & apart & sudden).sum())
    jumps = np.abs(np.diff(np.log(np.maximum(path.areas, 1e-9)))) > np.log(AREA_JUMP)
    jumping = float((jumps & near).sum() / near.sum())
    score = 0.0 if num_leaps else 1.0 - min(1.0, 2.5 * jumping)
    return scored("steadiness", score, f"{num_leaps} leaps, area jumps at {jumping:.0%} of steps")


def count(job: ReviewerJob, mention: Mention | None) -> Check:
    """Whether there are as many tracks of the mention as the caption says objects."""
    if mention is None or mention.said.count is None:
        return cannot_tell("count", "no number said")
    found = sum(track.mention_id == mention.mention_id for track in job.tracks.tracks)
    score = 1.0 if found == mention.said.count else 0.0
    return scored("count", score, f"{mention.said.count} said, {found} tracks")


def said_colours(mention: Mention | None, colours: ColourLook | None) -> Check:
    """Whether each colour that the caption says is on the object."""
    if mention is None or not mention.said.colours:
        return cannot_tell("said_colours", "no colour said")
    return _colours("said_colours", mention.said.colours, colours)


def told_colours(caption: ObjectCaption | None, colours: ColourLook | None) -> Check:
    """Whether each colour that the annotator tells is on the object."""
    if caption is None or not caption.appearance_facts.colours:
        return cannot_tell("told_colours", "no colour told")
    return _colours("told_colours", [item.colour for item in caption.appearance_facts.colours], colours)


def said_directions(mention: Mention | None, path: BoxPath, looks: Sequence[Look]) -> Check:
    """Whether the object goes where the caption says, or stays where it says so, in the frame or against the ground.

    With several directions said, it need go only one of them. Where the ground cannot be followed, a still object
    tells nothing: the camera may go with it.
    """
    claims = _said_movements(mention)
    if not claims or len(path.boxes) < 2:
        return cannot_tell("said_directions", "no direction said" if len(path.boxes) > 1 else "seen once")
    frame, ground = in_frame(path), against_ground(looks)
    if ground is None:
        scores = [0.5 if claim == "none" else direction_score(claim, frame, still_tells=False) for claim in claims]
    else:
        scores = [max(direction_score(claim, way, still_tells=True) for way in (frame, ground)) for claim in claims]
    told = f"against the ground: {ground.told()}" if ground else "ground not found"
    return scored("said_directions", max(scores), f"{', '.join(claims)} said; {frame.told()}; {told}")


def told_direction(caption: ObjectCaption | None, track: Track) -> Check:
    """Whether the object goes where the annotator tells, over the whole span and over both of its parts."""
    if caption is None:
        return cannot_tell("told_direction", "no caption")
    details, scores = [], []
    for facts in (caption.motion_facts, caption.seen_facts, caption.rest_facts):
        path = _path_of(facts, track)
        if facts is not None and path is not None:
            movement = in_frame(path)
            # the annotator's "hardly moves" allows for growth that is small in the frame
            score = direction_score(facts.direction, movement, still_tells=not movement.trimmed, swelling_tells=False)
            scores.append(score)
            details.append(f"{facts.direction} told; {movement.told()}")
    if not scores:
        return cannot_tell("told_direction", "seen too briefly")
    return scored("told_direction", min(scores), details[int(np.argmin(scores))])


def said_places(mention: Mention | None, path: BoxPath) -> Check:
    """Whether the object is ever where the caption says.

    "On the left" may mean left of something else, so it disagrees only where the object never comes near that half.
    """
    if mention is None or not mention.said.places or not len(path.boxes):
        return cannot_tell("said_places", "no place said")
    scores = [max(_place_score(place, centre) for centre in path.centres) for place in mention.said.places]
    return scored("said_places", min(scores), f"{', '.join(mention.said.places)} said; {_centre_range(path)}")


def told_places(caption: ObjectCaption | None, track: Track) -> Check:
    """Whether the object starts and ends where the annotator tells."""
    path = _path_of(caption.motion_facts, track) if caption else None
    if caption is None or path is None:
        return cannot_tell("told_places", "no caption" if caption is None else "seen too briefly")
    facts, scores = caption.motion_facts, []
    for places, centre in ((facts.start_places, path.centres[0]), (facts.end_places, path.centres[-1])):
        scores += [_place_score(place, centre) for place in places]
    told = f"from {'-'.join(facts.start_places)} to {'-'.join(facts.end_places)} told"
    return scored("told_places", min(scores), f"{told}; {_centre_range(path)}")


def told_span(caption: ObjectCaption | None, path: BoxPath) -> Check:
    """Whether the object is in sight from when to when the annotator tells."""
    if caption is None or not len(path.times_s):
        return cannot_tell("told_span", "no caption")
    first, last = float(path.times_s[0]), float(path.times_s[-1])
    off_s = max(abs(caption.visible_from_s - first), abs(caption.visible_to_s - last))
    detail = f"{caption.visible_from_s:.2f} to {caption.visible_to_s:.2f} s told; {first:.2f} to {last:.2f} s seen"
    return scored("told_span", 1.0 if off_s <= SPAN_SLACK_S else 0.0, detail)


def told_size(caption: ObjectCaption | None, path: BoxPath) -> Check:
    """Whether the object's median size is what the annotator tells; another size means another object."""
    if caption is None or not len(path.areas):
        return cannot_tell("told_size", "no caption" if caption is None else "never seen")
    told, seen = max(caption.appearance_facts.area_share, 1e-6), max(float(np.median(path.areas)), 1e-6)
    ratio = min(told, seen) / max(told, seen)
    return scored("told_size", ratio, f"{told:.2%} of the frame told, {seen:.2%} seen")


def _said_movements(mention: Mention | None) -> tuple[Direction, ...]:
    if mention is None:
        return ()
    staying = bool(mention.said.actions) and STAYING_VERBS.issuperset(mention.said.actions)
    return mention.said.directions or (("none",) if staying else ())


def _colours(name: str, claimed: Sequence[Colour], colours: ColourLook | None) -> Check:
    if colours is None:
        return cannot_tell(name, "no pixels")
    # under that share of the pixels in any light, a colour is not on the object
    scores = [DISAGREES_BELOW * colours.may_be[colour] / ABSENT_COLOUR for colour in claimed]
    seen = [f"{colour} {share:.0%}" for colour, share in sorted(colours.seen.items(), key=_by_share) if share >= 0.05]
    return scored(name, min(scores), f"{', '.join(claimed)} claimed; seen {', '.join(seen)}")


def _by_share(item: tuple[Colour, float]) -> float:
    return -item[1]


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


def _centre_range(path: BoxPath) -> str:
    (x0, y0), (x1, y1) = path.centres[0], path.centres[-1]
    return f"box centre from {x0:.2f}, {y0:.2f} to {x1:.2f}, {y1:.2f} of the frame"
