"""Synthetic clips: cut-outs that move over real backgrounds, with the exact masks and a caption that is true.

Pixels and mattes come from packaged photos and clips, so a detector trained on photographs finds the objects; what
moves where is drawn from a seeded generator. One seed gives the same bytes wherever the encoder is the same.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from infra.collage import BACKGROUNDS, Sprite, background, paste, sprite_of, write_video
from infra.cutouts import Cutout, load_cutouts, tinted
from infra.truth import ClipTruth, ObjectTruth, write_truth
from infra.video import Image
from infra.weights import CATALOGUE
from schemas.mask import Mask, encode
from schemas.record import Record
from schemas.track import ObjectMasks
from schemas.words import Colour, Direction

Difficulty = Literal["easy", "crowd"]
_MARGIN_PX = 6
_MIN_TRAVEL = 0.26
_MAX_TRAVEL = 0.55
"""Of the frame's width."""
_MIN_GROWTH, _MAX_GROWTH = 1.6, 2.0
"""Of the height, between start and end."""
_MIN_SWELL = 0.11
"""Of the frame's diagonal: the least change of the root of the box's area, so that it is plain to see."""
_MAX_COVERED = 0.3
"""In a crowd, the mean share of an object's box behind nearer ones."""
_TRIES = 40
_DRAWS = 20
_SAID: dict[Direction, str] = {
    "left": "moves to the left",
    "right": "moves to the right",
    "up": "moves up",
    "down": "moves down",
    "toward": "comes toward the camera",
    "away": "moves away from the camera",
    "none": "stays still",
}


class Scene(Record):
    """What every clip of a set has in common.

    `easy`: 1 to 3 large objects whose boxes never meet, each moving clearly or not at all. `crowd`: 2 to 5, at least
    two of one class, which may hide each other, enter and leave.
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
    """One object of a clip: a cut-out, its tint, and where it goes; `eased` starts and stops gently."""

    cutout: Cutout
    colour: Colour | None
    direction: Direction
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
        width = height * _aspect(self.cutout)
        return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    @property
    def phrase(self) -> str:
        """Noun phrase without article."""
        return f"{self.colour} {self.cutout.noun}" if self.colour else self.cutout.noun


class Plan(Record):
    """What one clip shows: the actors from the farthest to the nearest, before background `background`."""

    background: int
    actors: tuple[Actor, ...] = Field(min_length=1)


def write_clips(folder: Path, num_clips: int, seed: int, difficulty: Difficulty = "easy") -> list[dict[str, object]]:
    """Write clips `synthetic-<seed>-<nn>.mp4`, each with its truth beside it, and return their manifest rows.

    A row has id, video (`<folder name>/<file>`), caption, start_s, end_s and license. Raises ValueError where no clip
    is asked for, WeightError where a packaged photo or clip was not fetched.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips must be at least 1, got {num_clips}")
    scene = Scene(difficulty=difficulty)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(num_clips):
        plan = draw_plan(np.random.default_rng([seed, number]), scene)
        video = folder / f"synthetic-{seed}-{number:02d}.mp4"
        truth = _write_clip(video, plan, scene)
        rows.append(
            {
                "id": video.stem,
                "video": f"{folder.name}/{video.name}",
                "caption": truth.caption,
                "start_s": 0.0,
                "end_s": scene.num_frames / scene.fps,
                "license": _licenses(plan),
            }
        )
    return rows


def draw_plan(rng: np.random.Generator, scene: Scene) -> Plan:
    """Draw a set of actors that has room and that a caption can tell apart; the largest found after several draws."""
    wanted = int(rng.integers(1, 4)) if scene.difficulty == "easy" else int(rng.integers(2, 6))
    best: list[Actor] = []
    draws = 0
    while len(best) < wanted and (draws < _DRAWS or not best):
        draws += 1
        actors: list[Actor] = []
        for cutout in _draw_cutouts(rng, scene, wanted):
            actors = _with_one_more(rng, actors, cutout, scene)
        classes = {actor.cutout.detector_class for actor in actors}
        if len(actors) > len(best) and (scene.difficulty == "easy" or len(classes) < len(actors)):
            best = actors
    return Plan(background=int(rng.integers(len(BACKGROUNDS))), actors=tuple(best))


def caption_of(actors: Sequence[Actor]) -> str:
    """One sentence that names every actor once, with its tint and where it goes."""
    phrases = [actor.phrase for actor in actors]
    clauses = [
        f"{'another' if phrase in phrases[:place] else 'a'} {phrase} {_SAID[actor.direction]}"
        for place, (phrase, actor) in enumerate(zip(phrases, actors, strict=True))
    ]
    text = " while ".join(clauses) if len(clauses) <= 2 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"
    return f"{text[0].upper()}{text[1:]}."


def compose(plan: Plan, scene: Scene) -> tuple[list[Image], list[list[Mask]]]:
    """Every frame, and for each the visible mask of every actor: alpha from 0.5, less what nearer ones cover."""
    ground = background(plan.background, scene.height_px, scene.width_px)
    sprites = [_sprite(actor) for actor in plan.actors]
    frames, masks = [], []
    for number in range(scene.num_frames):
        progress = number / (scene.num_frames - 1)
        canvas = ground.copy()
        seen: list[Mask] = []
        for actor, sprite in zip(plan.actors, sprites, strict=True):
            mask = paste(canvas, sprite, actor.box_xyxy_px(progress))
            seen = [behind & ~mask for behind in seen] + [mask]
        frames.append(np.round(canvas * 255).astype(np.uint8))
        masks.append(seen)
    return frames, masks


def _draw_cutouts(rng: np.random.Generator, scene: Scene, wanted: int) -> list[Cutout]:
    everything = load_cutouts()
    drawn = [everything[int(i)] for i in rng.integers(len(everything), size=wanted)]
    if scene.difficulty == "crowd":
        alike = [cutout for cutout in everything if cutout.detector_class == drawn[0].detector_class]
        drawn[1] = alike[int(rng.integers(len(alike)))]
    return drawn


def _with_one_more(rng: np.random.Generator, actors: list[Actor], cutout: Cutout, scene: Scene) -> list[Actor]:
    for _ in range(_TRIES):
        actor = _draw_actor(rng, cutout, scene)
        if actor is None or not all(_told_apart(actor, other) for other in actors):
            continue
        if _room_enough([*actors, actor], scene):
            return [*actors, actor]
    return actors


def _draw_actor(rng: np.random.Generator, cutout: Cutout, scene: Scene) -> Actor | None:
    """An actor at a random place with a random motion; None where it has no room or is hard to see."""
    direction: Direction = rng.choice(list(_SAID)).item()
    colour: Colour | None = rng.choice(list(cutout.tints)).item() if cutout.tints and rng.random() < 0.75 else None
    height = cutout.min_height_px * rng.uniform(1.0, 1.3) * scene.height_px / 360
    growth = rng.uniform(_MIN_GROWTH, _MAX_GROWTH) if direction in ("toward", "away") else 1.0
    travel = rng.uniform(_MIN_TRAVEL, _MAX_TRAVEL) * scene.width_px
    dx = travel * {"left": -1, "right": 1}.get(direction, 0)
    dy = travel * {"up": -1, "down": 1}.get(direction, 0)
    largest = height * growth
    room_x = scene.width_px - 2 * _MARGIN_PX - largest * _aspect(cutout) - abs(dx)
    room_y = scene.height_px - 2 * _MARGIN_PX - largest - abs(dy)
    x = _MARGIN_PX + largest * _aspect(cutout) / 2 + max(0.0, -dx) + rng.random() * room_x
    y = _MARGIN_PX + largest / 2 + max(0.0, -dy) + rng.random() * room_y
    swell = (largest - height) * float(np.sqrt(_aspect(cutout)))
    too_little = growth > 1 and swell < _MIN_SWELL * float(np.hypot(scene.width_px, scene.height_px))
    if too_little or min(room_x, room_y) < 0:
        return None
    first, last = Pose(x, y, height), Pose(x + dx, y + dy, largest)
    if direction == "away":
        first, last = last, first
    if scene.difficulty == "crowd" and dx and rng.random() < 0.4:
        first, last = _through_border(first, last, largest * _aspect(cutout), scene, enters=bool(rng.random() < 0.5))
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


def _told_apart(a: Actor, b: Actor) -> bool:
    """Whether the caption tells two actors apart: by class, by direction, or by two tints."""
    tints = a.colour is not None and b.colour is not None and a.colour != b.colour
    return a.cutout.detector_class != b.cutout.detector_class or a.direction != b.direction or tints


def _room_enough(actors: Sequence[Actor], scene: Scene) -> bool:
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
def _aspect(cutout: Cutout) -> float:
    left, top, right, bottom = cutout.box_xyxy_px
    return (right - left) / (bottom - top)


def _sprite(actor: Actor) -> Sprite:
    """The actor's pixels at the largest size that it is shown at."""
    rgba = actor.cutout.rgba()
    if actor.colour:
        rgba = tinted(rgba, actor.colour)
    return sprite_of(rgba, round(max(actor.start.height_px, actor.end.height_px)))


def _licenses(plan: Plan) -> str:
    used = [BACKGROUNDS[plan.background][0], *(actor.cutout.weight for actor in plan.actors)]
    return "; ".join(f"{name}: {CATALOGUE[name].license}" for name in dict.fromkeys(used))


def _write_clip(video: Path, plan: Plan, scene: Scene) -> ClipTruth:
    frames, masks = compose(plan, scene)
    write_video(video, frames, scene.fps)
    objects = []
    for place, actor in enumerate(plan.actors):
        seen = [frame_masks[place] for frame_masks in masks]
        objects.append(
            ObjectTruth(
                object_id=f"{video.stem}-{place}",
                noun=actor.cutout.noun,
                colour=actor.colour,
                direction=actor.direction,
                masks=ObjectMasks(
                    detector_class=actor.cutout.detector_class,
                    frame_idx=tuple(range(scene.num_frames)),
                    frame_time_s=tuple(number / scene.fps for number in range(scene.num_frames)),
                    rle=tuple(encode(mask) if mask.any() else None for mask in seen),
                    height_px=scene.height_px,
                    width_px=scene.width_px,
                    score=1.0,
                ),
            )
        )
    truth = ClipTruth(video=video.name, caption=caption_of(plan.actors), objects=tuple(objects))
    write_truth(video, truth)
    return truth
