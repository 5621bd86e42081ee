"""Actors of a synthetic clip: a cut-out each, and where it goes; drawn at random within what a frame has room for."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from infra.cutouts import Cutout
from schemas.record import Record
from schemas.words import Colour, Direction, Place

Difficulty = Literal["easy", "crowd", "alike"]
_MARGIN_PX = 6
_MIN_TRAVEL = 0.26
_MAX_TRAVEL = 0.55
"""Of the frame's width."""
_MIN_GROWTH, _MAX_GROWTH = 1.6, 2.0
"""Of the height, between start and end."""
_MIN_SWELL = 0.11
"""Of the frame's diagonal: the least change of the root of the box's area, so that it is plain to see."""
_MAX_COVERED = 0.3
"""Unless the clip is easy, the mean share of an object's box behind nearer ones."""
DIRECTIONS: tuple[Direction, ...] = ("left", "right", "up", "down", "toward", "away", "none")


class Scene(Record):
    """What every clip of a set has in common.

    `easy`: 1 to 3 large objects whose boxes never meet, each moving clearly or not at all. `crowd`: 2 to 5, at least
    two of one class, which may hide each other, enter and leave. `alike`: such a crowd of one class, told apart by
    tint, direction or place; in some clips two are told of in the same words, or counted together.
    """

    difficulty: Difficulty = "easy"
    width_px: int = Field(default=640, ge=640)
    height_px: int = Field(default=360, ge=360)
    fps: int = Field(default=12, ge=1)
    duration_s: float = Field(default=3.0, gt=0)

    @property
    def num_frames(self) -> int:
        """Frames of one clip, at least two."""
        return max(2, round(self.duration_s * self.fps))


class Pose(NamedTuple):
    """The centre and the height of a cut-out, in pixels of the frame."""

    x_px: float
    y_px: float
    height_px: float


class Actor(Record):
    """One object of a clip: a cut-out, its tint, and where it goes; `eased` starts and stops gently.

    `place` is the side of the frame that its caption names, None where it names none.
    """

    cutout: Cutout
    colour: Colour | None
    direction: Direction
    place: Place | None = None
    start: Pose
    end: Pose
    eased: bool

    def pose(self, progress: float) -> Pose:
        """Where it is once `progress` (0 to 1) of the clip is over."""
        share = progress * progress * (3 - 2 * progress) if self.eased else progress
        return Pose(*(a + share * (b - a) for a, b in zip(self.start, self.end, strict=True)))

    def box_xyxy_px(self, progress: float) -> tuple[float, float, float, float]:
        """The box of its pose, which may reach out of the frame."""
        x, y, height = self.pose(progress)
        width = height * aspect(self.cutout)
        return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    @property
    def phrase(self) -> str:
        """Noun phrase without article."""
        return f"{self.colour} {self.cutout.noun}" if self.colour else self.cutout.noun


def draw_actor(rng: np.random.Generator, cutout: Cutout, scene: Scene, like: Actor | None = None) -> Actor | None:
    """An actor at a random place with a random motion; None where it has no room or is hard to see.

    With `like`, it goes where that one goes and has its tint, so that the same words tell of both.
    """
    direction: Direction = rng.choice(list(DIRECTIONS)).item()
    colour: Colour | None = rng.choice(list(cutout.tints)).item() if cutout.tints and rng.random() < 0.75 else None
    if like is not None:
        direction, colour = like.direction, like.colour
    height = cutout.min_height_px * rng.uniform(1.0, 1.3) * scene.height_px / 360
    growth = rng.uniform(_MIN_GROWTH, _MAX_GROWTH) if direction in ("toward", "away") else 1.0
    travel = rng.uniform(_MIN_TRAVEL, _MAX_TRAVEL) * scene.width_px
    dx = travel * {"left": -1, "right": 1}.get(direction, 0)
    dy = travel * {"up": -1, "down": 1}.get(direction, 0)
    largest = height * growth
    room_x = scene.width_px - 2 * _MARGIN_PX - largest * aspect(cutout) - abs(dx)
    room_y = scene.height_px - 2 * _MARGIN_PX - largest - abs(dy)
    x = _MARGIN_PX + largest * aspect(cutout) / 2 + max(0.0, -dx) + rng.random() * room_x
    y = _MARGIN_PX + largest / 2 + max(0.0, -dy) + rng.random() * room_y
    swell = (largest - height) * float(np.sqrt(aspect(cutout)))
    too_little = growth > 1 and swell < _MIN_SWELL * float(np.hypot(scene.width_px, scene.height_px))
    if too_little or min(room_x, room_y) < 0:
        return None
    first, last = Pose(x, y, height), Pose(x + dx, y + dy, largest)
    if direction == "away":
        first, last = last, first
    if scene.difficulty != "easy" and dx and rng.random() < 0.4:
        first, last = _through_border(first, last, largest * aspect(cutout), scene, enters=bool(rng.random() < 0.5))
    eased = bool(rng.random() < 0.5)
    return Actor(cutout=cutout, colour=colour, direction=direction, start=first, end=last, eased=eased)


def _through_border(first: Pose, last: Pose, width_px: float, scene: Scene, enters: bool) -> tuple[Pose, Pose]:
    """A sideways move shifted so that it starts, or ends, just out of sight."""
    rightward = last.x_px > first.x_px
    if rightward == enters:
        shift = -width_px / 2 - (first.x_px if enters else last.x_px)
    else:
        shift = scene.width_px + width_px / 2 - (first.x_px if enters else last.x_px)
    return first._replace(x_px=first.x_px + shift), last._replace(x_px=last.x_px + shift)


def with_place(actor: Actor, width_px: int) -> Actor:
    """The actor with its side named, where it keeps to the left or the right third of a frame of this width."""
    xs = (actor.start.x_px / width_px, actor.end.x_px / width_px)
    place: Place | None = "left" if max(xs) < 1 / 3 else "right" if min(xs) > 2 / 3 else None
    return actor.model_copy(update={"place": place})


def told_apart(a: Actor, b: Actor) -> bool:
    """Whether the caption tells two actors apart: by class, by direction, by two tints, or by two sides."""
    tints = a.colour is not None and b.colour is not None and a.colour != b.colour
    sides = a.place is not None and b.place is not None and a.place != b.place
    return a.cutout.detector_class != b.cutout.detector_class or a.direction != b.direction or tints or sides


def room_enough(actors: Sequence[Actor], scene: Scene) -> bool:
    """Whether the actors, from the farthest to the nearest, hide one another no more than the difficulty allows."""
    moments = np.linspace(0, 1, scene.num_frames)
    boxes = np.array([[actor.box_xyxy_px(float(moment)) for moment in moments] for actor in actors])
    for far in range(len(actors)):
        low = np.maximum(boxes[far, None, :, :2], boxes[far + 1 :, :, :2])
        high = np.minimum(boxes[far, None, :, 2:], boxes[far + 1 :, :, 2:])
        area = np.prod(boxes[far, :, 2:] - boxes[far, :, :2], axis=-1)
        covered = (np.prod(np.clip(high - low, 0, None), axis=-1) / area).sum(axis=0)
        if covered.max(initial=0.0) > 0 and (scene.difficulty == "easy" or covered.mean() > _MAX_COVERED):
            return False
    return True


@functools.lru_cache(maxsize=64)
def aspect(cutout: Cutout) -> float:
    """Width over height."""
    left, top, right, bottom = cutout.box_xyxy_px
    return (right - left) / (bottom - top)
