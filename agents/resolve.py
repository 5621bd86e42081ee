"""Which found object each mention of a caption means: pure rules over measured facts, with a reason for every refusal.

Grounding DINO, in the paper's chain, is asked with the noun and returns what fits it best; a detector of closed
classes returns every object of the class. Hence the choice here is by what else the caption says, and where that does
not decide, the mention is refused rather than guessed.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from agents.assignment import FORBIDDEN, best_assignment, total_score
from agents.vocabulary import STAYING_VERBS
from schemas.caption import ColourShare
from schemas.mention import Mention
from schemas.quarantine import Reason
from schemas.record import Record, Share
from schemas.words import Colour, Direction, Place

_KIN: dict[Colour, frozenset[Colour]] = {
    "black": frozenset({"gray", "brown"}),
    "white": frozenset({"gray"}),
    "gray": frozenset({"black", "white", "blue"}),
    "red": frozenset({"orange", "pink", "brown", "purple"}),
    "orange": frozenset({"red", "yellow", "brown"}),
    "yellow": frozenset({"orange", "green", "brown"}),
    "green": frozenset({"yellow", "blue"}),
    "blue": frozenset({"purple", "green", "gray"}),
    "purple": frozenset({"blue", "pink", "red"}),
    "pink": frozenset({"red", "purple"}),
    "brown": frozenset({"red", "orange", "black", "yellow"}),
}
"""Colours that light turns into one another: finding one where the other is said contradicts nothing."""

_DEFINITE = re.compile(r"(?i)^(the|this|that|his|her|its|their)\b")
_ANOTHER = re.compile(r"(?i)\b(another|other|second|third|different)\b")
_FULL_COLOUR_SHARE = 0.3
_FULL_TRAVEL_DIAG = 0.15
_FULL_GROWTH = 1.6
_BACK_WEIGHT = 3.2
"""An object that went back half as far as it moved in all went no one way: its agreement is contradiction (-0.6)."""


class ResolveConfig(Record):
    """What a choice among objects must be worth."""

    margin: float = Field(default=0.25, gt=0)
    """How much better the best assignment must be than the best one without this pair."""
    contradicted_at: float = Field(default=-0.6, ge=-1, lt=0)
    """An attribute's agreement (-1 to 1) at or below which a candidate cannot be what is meant."""
    certainty_weight: Share = 0.5
    """Weight of the candidate's own score and visible share against the caption's attributes; a lone good track beats
    stray detections by it, two good ones are told apart by the caption alone.
    """
    whole_share: Share = 0.85
    """A track that breaks off in open view and covers less of the clip than this may have lost its object to another of
    the class.
    """
    brief_share: Share = 0.55
    """A track that covers less of the clip than this shows too little of what it does."""
    least_likeness: Share = 0.74
    """A track that looks less alike early and late has gone over from one object to another."""
    least_direction: Share = 0.4
    """Where there may be several of the class, a pick must agree with the direction said by this much, which jitter of
    the masks does not reach.
    """


class Candidate(Record):
    """What was measured of one found object.

    `x_share` and `y_share` are its median centre over the frame's sides; `travel_*` its displacement in frame
    diagonals and `growth` its mask's growth, None where it was seen too briefly. `back_*` is how far it went against
    its displacement on that axis. `visible_share` is the part of the tracked frames that show it. `breaks_off`: it
    comes or goes in open view, and not at the ends of the clip. `likeness` is that of its looks early and late.
    """

    detector_class: str
    score: Share
    visible_share: Share
    colours: tuple[ColourShare, ...]
    x_share: float
    y_share: float
    travel_x_diag: float | None
    travel_y_diag: float | None
    growth: float | None
    back_x_diag: float
    back_y_diag: float
    breaks_off: bool
    likeness: Share = 1.0


class Resolution(Record):
    """The candidates (by index) that one mention means, or the reason why none."""

    mention_id: str
    picked: tuple[int, ...]
    reason: Reason | None
    evidence: str


def resolve(mentions: Sequence[Mention], candidates: Sequence[Candidate], config: ResolveConfig) -> list[Resolution]:
    """One resolution per mention, in order; no two mentions share a candidate.

    Singular mentions of one class are assigned jointly at greatest total agreement; a pair stands only where every
    assignment without it is worse by the margin, even one that serves fewer mentions: a detector misses objects, so who
    is left over need not be who is meant. Later words for the same thing ("a man ... the man") are refused as
    `same_object`. Counted plurals then take what is left and not contradicted, if it is exactly that many.
    """
    done: dict[str, Resolution] = {}
    for name in dict.fromkeys(mention.detector_class for mention in mentions):
        own = [mention for mention in mentions if mention.detector_class == name]
        found = [index for index, item in enumerate(candidates) if item.detector_class == name]
        leaders = _leaders([mention for mention in own if mention.number == "singular"], len(found))
        singles = [mention for mention in own if leaders.get(mention.mention_id) is mention]
        done |= _resolve_singles(singles, found, candidates, config)
        for mention in own:
            leader = leaders.get(mention.mention_id)
            if leader is not None and leader is not mention:
                done[mention.mention_id] = _same(mention, leader, done[leader.mention_id])
        for mention in own:
            if mention.number == "plural":
                taken = {index for resolution in done.values() for index in resolution.picked}
                left = [index for index in found if index not in taken]
                done[mention.mention_id] = _resolve_plural(mention, left, candidates, config)
        if len(found) > 1 or sum(not _DEFINITE.match(mention.phrase) for mention in own) > 1:
            done |= {
                mention.mention_id: _if_sure(mention, done[mention.mention_id], candidates, config) for mention in own
            }
    return [done[mention.mention_id] for mention in mentions]


def agreements(mention: Mention, candidate: Candidate) -> dict[str, float]:
    """How well a candidate fits each thing said, -1 (the opposite) to 1; what was not said or measured is missing."""
    said = mention.said
    result: dict[str, float] = {}
    if said.colours and candidate.colours:
        result["colour"] = sum(_colour_fit(colour, candidate.colours) for colour in said.colours) / len(said.colours)
    if said.places:
        result["place"] = sum(_place_fit(place, candidate) for place in said.places) / len(said.places)
    fits = [fit for direction in _directions(mention) if (fit := _direction_fit(direction, candidate)) is not None]
    if fits:
        # a caption may tell of several legs of one path, of which the displacement shows the sum
        result["direction"] = max(fits)
    return result


def _resolve_singles(
    mentions: Sequence[Mention], found: Sequence[int], candidates: Sequence[Candidate], config: ResolveConfig
) -> dict[str, Resolution]:
    scores = np.array(
        [[_score(mention, candidates[index], config) for index in found] for mention in mentions]
    ).reshape(len(mentions), len(found))
    chosen = best_assignment(scores)
    total = total_score(scores, chosen)
    done: dict[str, Resolution] = {}
    for row, (mention, column) in enumerate(zip(mentions, chosen, strict=True)):
        if column is None:
            evidence = _why_none(mention, found, candidates, config, len(mentions))
            done[mention.mention_id] = _refused(mention, "not_found", evidence)
            continue
        without = scores.copy()
        without[row, column] = FORBIDDEN
        other = best_assignment(without)
        alone = len(mentions) == 1 and len(found) == 1
        margin = math.inf if alone else total - total_score(without, other)
        figures = ", ".join(f"{scores[row, i]:.2f}" for i in range(len(found)))
        evidence = f"{len(found)} {mention.detector_class} found, agreement {figures}, margin {margin:.2f}"
        if margin < config.margin:
            evidence += f" under {config.margin:.2f}"
            done[mention.mention_id] = _refused(mention, "ambiguous", evidence)
        else:
            done[mention.mention_id] = _picked(mention, (found[column],), evidence)
    return done


def _resolve_plural(
    mention: Mention, left: Sequence[int], candidates: Sequence[Candidate], config: ResolveConfig
) -> Resolution:
    name, count = mention.detector_class, mention.said.count
    if not left:
        return _refused(mention, "not_found", f"no {name} found that no other mention has taken")
    if count is None:
        return _refused(mention, "plural", f"{mention.phrase!r} states no number; {len(left)} {name} found")
    fitting = [index for index in left if _score(mention, candidates[index], config) > FORBIDDEN]
    if len(fitting) != count:
        evidence = f"{mention.phrase!r} states {count}; {len(fitting)} of {len(left)} free {name} fit what is said"
        return _refused(mention, "count_mismatch", evidence)
    return _picked(mention, tuple(fitting), f"{count} {name} stated and found")


def _if_sure(
    mention: Mention, outcome: Resolution, candidates: Sequence[Candidate], config: ResolveConfig
) -> Resolution:
    """The outcome, refused where a pick may be another one of the class."""
    for index in outcome.picked:
        item = candidates[index]
        fits = agreements(mention, item)
        seen = f"in sight for {item.visible_share:.2f} of the clip"
        doubt = ""
        if item.breaks_off and item.visible_share < config.whole_share:
            doubt = f"the track breaks off in open view, {seen}"
        elif item.visible_share < config.brief_share:
            doubt = f"the track is {seen}"
        elif item.likeness < config.least_likeness:
            doubt = f"its looks early and late agree by {item.likeness:.2f} only"
        elif fits.get("direction", 1.0) < config.least_direction:
            doubt = f"the direction said fits it no more than {fits['direction']:.2f}"
        if doubt:
            text = f"{outcome.evidence}; {doubt}, so that it may be another {item.detector_class}"
            return _refused(mention, "ambiguous", text)
    return outcome


def _leaders(mentions: Sequence[Mention], num_found: int) -> dict[str, Mention]:
    """Mention id to the first mention of the same thing (itself where it is the first).

    A later mention means an earlier thing where it is definite and has the same noun ("a man ... the man"), or where
    only one object of the class is there and it is definite or has the same noun; never where it says "another" or
    other colours or places.
    """
    leaders: dict[str, Mention] = {}
    for position, mention in enumerate(mentions):
        leaders[mention.mention_id] = mention
        definite = bool(_DEFINITE.match(mention.phrase))
        for earlier in mentions[:position]:
            same_noun = earlier.noun == mention.noun
            refers = (definite and same_noun) or (num_found == 1 and (definite or same_noun))
            if refers and not _ANOTHER.search(mention.phrase) and not _differ(earlier, mention):
                leaders[mention.mention_id] = leaders[earlier.mention_id]
                break
    return leaders


def _differ(a: Mention, b: Mention) -> bool:
    pairs = ((set(a.said.colours), set(b.said.colours)), (set(a.said.places), set(b.said.places)))
    return any(one and other and not one & other for one, other in pairs)


def _score(mention: Mention, candidate: Candidate, config: ResolveConfig) -> float:
    fits = agreements(mention, candidate)
    if any(fit <= config.contradicted_at for fit in fits.values()):
        return FORBIDDEN
    return sum(fits.values()) + config.certainty_weight * candidate.score * candidate.visible_share


def _colour_fit(said: Colour, measured: Sequence[ColourShare]) -> float:
    share = next((item.share for item in measured if item.colour == said), 0.0)
    if share:
        return min(1.0, 0.4 + share / _FULL_COLOUR_SHARE * 0.6)
    return 0.0 if any(item.colour in _KIN[said] for item in measured) else -1.0


def _place_fit(said: Place, candidate: Candidate) -> float:
    """Graded, so that of two objects in one half the outer one is "on the left"."""
    x, y = candidate.x_share, candidate.y_share
    fits: dict[Place, float] = {
        "left": 1 - 2 * x,
        "right": 2 * x - 1,
        "top": 1 - 2 * y,
        "bottom": 2 * y - 1,
        "middle": 1 - 4 * max(abs(x - 0.5), abs(y - 0.5)),
    }
    return max(-1.0, min(1.0, fits[said]))


def _directions(mention: Mention) -> tuple[Direction, ...]:
    stays = bool(mention.said.actions) and STAYING_VERBS.issuperset(mention.said.actions)
    return mention.said.directions or (("none",) if stays else ())


def _direction_fit(said: Direction, candidate: Candidate) -> float | None:
    dx, dy, growth = candidate.travel_x_diag, candidate.travel_y_diag, candidate.growth
    if dx is None or dy is None or growth is None:
        return None
    grown = math.log(growth) / math.log(_FULL_GROWTH)
    fits: dict[Direction, float] = {
        "left": _one_way(-dx, candidate.back_x_diag),
        "right": _one_way(dx, candidate.back_x_diag),
        "up": _one_way(-dy, candidate.back_y_diag),
        "down": _one_way(dy, candidate.back_y_diag),
        "toward": _along_view(grown, math.hypot(dx, dy)),
        "away": _along_view(-grown, math.hypot(dx, dy)),
        "none": min(1 - 2 * math.hypot(dx, dy) / _FULL_TRAVEL_DIAG, 1 - abs(grown)),
    }
    return max(-1.0, min(1.0, fits[said]))


def _along_view(fit: float, moved_diag: float) -> float:
    """Agreement with coming or going, from the growth alone, less where the object crosses the frame meanwhile."""
    return fit * max(0.0, min(1.0, 2 - moved_diag / _FULL_TRAVEL_DIAG)) if fit > 0 else fit


def _one_way(moved_diag: float, back_diag: float) -> float:
    """Agreement with going one way, from the displacement along it and how far the object went back in between."""
    fit = max(-1.0, min(1.0, moved_diag / _FULL_TRAVEL_DIAG))
    return fit * (1 - _BACK_WEIGHT * back_diag / moved_diag) if fit > 0 else fit


def _why_none(
    mention: Mention, found: Sequence[int], candidates: Sequence[Candidate], config: ResolveConfig, num_mentions: int
) -> str:
    name = mention.detector_class
    if not found:
        return f"no {name} found"
    against = [_against(mention, candidates[index], config) for index in found]
    if all(against):
        return f"{len(found)} {name} found, none as said: " + "; ".join(text for text in against if text)
    return f"{len(found)} {name} found for {num_mentions} mentions; others fit better"


def _against(mention: Mention, candidate: Candidate, config: ResolveConfig) -> str:
    """What of the caption a candidate contradicts, in figures; empty where nothing."""
    parts = []
    for kind, fit in agreements(mention, candidate).items():
        if fit > config.contradicted_at:
            continue
        if kind == "colour":
            seen = ", ".join(f"{item.colour} {item.share:.2f}" for item in candidate.colours)
            parts.append(f"colour {'/'.join(mention.said.colours)} said, {seen} measured")
        elif kind == "place":
            centre = f"({candidate.x_share:.2f}, {candidate.y_share:.2f})"
            parts.append(f"place {'/'.join(mention.said.places)} said, centre at {centre} of the frame")
        else:
            moved = f"({candidate.travel_x_diag:.2f}, {candidate.travel_y_diag:.2f}) diagonals"
            back = max(candidate.back_x_diag, candidate.back_y_diag)
            parts.append(f"direction {'/'.join(_directions(mention))} said, moved {moved}, {back:.2f} back and forth")
    return ", ".join(parts)


def _same(mention: Mention, leader: Mention, outcome: Resolution) -> Resolution:
    fate = "has the track" if outcome.picked else f"was refused as {outcome.reason}"
    return _refused(mention, "same_object", f"{mention.phrase!r} means {leader.phrase!r}, which {fate}")


def _picked(mention: Mention, indices: tuple[int, ...], evidence: str) -> Resolution:
    return Resolution(mention_id=mention.mention_id, picked=indices, reason=None, evidence=evidence)


def _refused(mention: Mention, reason: Reason, evidence: str) -> Resolution:
    return Resolution(mention_id=mention.mention_id, picked=(), reason=reason, evidence=evidence)
