"""Synthetic clips: cut-outs that move over real backgrounds, with the exact masks and a caption that is true.

Pixels and mattes come from packaged photos and clips, so a detector trained on photographs finds the objects; what
moves where is drawn from a seeded generator. One seed gives the same bytes wherever the encoder is the same.
"""

import hashlib
import itertools
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from infra.actors import Actor, Difficulty, Scene, draw_actor, room_enough, told_apart, with_place
from infra.collage import BACKGROUNDS, Sprite, background, paste, sprite_of, write_video
from infra.cutouts import Cutout, load_cutouts, tinted
from infra.truth import ClipTruth, MentionTruth, ObjectTruth, write_truth
from infra.video import Image
from infra.weights import CATALOGUE
from schemas.clip import Split, split_of
from schemas.mask import Mask, encode
from schemas.record import Record
from schemas.track import ObjectMasks
from schemas.words import Direction

_TRIES = 40
_DRAWS = 20
_NAMES_SIDE = 0.3
"""Of the actors of a clip of one class, the share whose side is told where they keep to one."""
_SAID: dict[Direction, tuple[str, str]] = {
    "left": ("moves", "to the left"),
    "right": ("moves", "to the right"),
    "up": ("moves", "up"),
    "down": ("moves", "down"),
    "toward": ("comes", "toward the camera"),
    "away": ("moves", "away from the camera"),
    "none": ("stays", "still"),
}
_IRREGULAR: dict[str, str] = {"man": "men", "woman": "women"}
"""Plurals that take no plain s."""


Pair = Literal["none", "same words", "counted"]
"""Whether the first two actors are told of in the same words, or as "two"."""


class Plan(Record):
    """What one clip shows: the actors from the farthest to the nearest, before background `background`."""

    background: int
    actors: tuple[Actor, ...] = Field(min_length=1)
    pair: Pair = "none"


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
        rows.append(write_clip(video, plan, scene))
    return rows


def write_clip(video: Path, plan: Plan, scene: Scene) -> dict[str, object]:
    """Write one clip and its truth; its manifest row, as those of `write_clips`."""
    truth = _write_clip(video, plan, scene)
    return {
        "id": video.stem,
        "video": f"{video.parent.name}/{video.name}",
        "caption": truth.caption,
        "start_s": 0.0,
        "end_s": scene.num_frames / scene.fps,
        "license": _licenses(plan),
    }


def put_in_split(video: Path, split: Split) -> None:
    """Append an empty box, which players skip, to an MP4 file, so that its bytes put it where it is wanted.

    The split of a video follows from the hash of its bytes: of clips as they come, one in ten would be held out.
    """
    data = video.read_bytes()
    for number in itertools.count():
        candidate = data + struct.pack(">I4sI", 12, b"free", number)
        if split_of(hashlib.sha256(candidate).hexdigest()) == split:
            video.write_bytes(candidate)
            return


def draw_plan(rng: np.random.Generator, scene: Scene) -> Plan:
    """Draw a set of actors that has room; the largest found after several draws.

    A caption can tell them apart, but for the first two of some `alike` clips.
    """
    wanted = int(rng.integers(1, 4)) if scene.difficulty == "easy" else int(rng.integers(2, 6))
    pair: Pair = "none"
    if scene.difficulty == "alike":
        pair = rng.choice(["none", "none", "same words", "counted"]).item()
    best: list[Actor] = []
    draws = 0
    while len(best) < wanted and (draws < _DRAWS or not best):
        draws += 1
        actors: list[Actor] = []
        for place, cutout in enumerate(_draw_cutouts(rng, scene, wanted)):
            of_pair = pair != "none" and place < 2
            like = actors[0] if of_pair and actors else None
            actors = _with_one_more(rng, actors, cutout, scene, like, sides=scene.difficulty == "alike" and not of_pair)
            if of_pair and len(actors) <= place:
                break
        classes = {actor.cutout.detector_class for actor in actors}
        if len(actors) > len(best) and (scene.difficulty == "easy" or len(classes) < len(actors)):
            best = actors
    return Plan(background=int(rng.integers(len(BACKGROUNDS))), actors=tuple(best), pair=pair)


def caption_of(actors: Sequence[Actor], pair: Pair = "none") -> str:
    """One sentence that tells of every actor once: its tint, its side where that is named, and where it goes."""
    phrases = [actor.phrase for actor in actors]
    clauses = []
    for place, (phrase, actor) in enumerate(zip(phrases, actors, strict=True)):
        verb, way = _SAID[actor.direction]
        side = f" on the {actor.place} side" if actor.place else ""
        if pair == "counted" and place < 2:
            noun = actor.cutout.noun
            many = f"{phrase.removesuffix(noun)}{_IRREGULAR.get(noun, noun + 's')}"
            clauses += [f"two {many} {verb.removesuffix('s')} {way}"] if place == 0 else []
        else:
            article = "another" if phrase in phrases[:place] else "a"
            clauses.append(f"{article} {phrase}{side} {verb} {way}")
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
    same_class = [cutout for cutout in everything if cutout.detector_class == drawn[0].detector_class]
    if scene.difficulty == "crowd":
        drawn[1] = same_class[int(rng.integers(len(same_class)))]
    elif scene.difficulty == "alike":
        drawn = [same_class[int(i)] for i in rng.integers(len(same_class), size=wanted)]
    return drawn


def _with_one_more(
    rng: np.random.Generator, actors: list[Actor], cutout: Cutout, scene: Scene, like: Actor | None, sides: bool
) -> list[Actor]:
    """The actors and another that has room: one that the caption tells apart, or one just like `like`.

    With `sides`, the side of some is named.
    """
    for _ in range(_TRIES):
        actor = draw_actor(rng, like.cutout if like else cutout, scene, like)
        if actor is not None and sides and rng.random() < _NAMES_SIDE:
            actor = with_place(actor, scene.width_px)
        if actor is None or not (like or all(told_apart(actor, other) for other in actors)):
            continue
        if room_enough([*actors, actor], scene):
            return [*actors, actor]
    return actors


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
    truth = ClipTruth(
        video=video.name,
        caption=caption_of(plan.actors, plan.pair),
        objects=tuple(objects),
        mentions=_mentions([item.object_id for item in objects], plan.pair),
    )
    write_truth(video, truth)
    return truth


def _mentions(object_ids: Sequence[str], pair: Pair) -> tuple[MentionTruth, ...]:
    """What each noun phrase of the caption names; empty where that is one object each, in order."""
    if pair == "none":
        return ()
    alone = [MentionTruth(object_ids=(name,)) for name in object_ids[2:]]
    if pair == "counted":
        return (MentionTruth(object_ids=tuple(object_ids[:2])), *alone)
    return (*(MentionTruth(object_ids=(name,), ambiguous=True) for name in object_ids[:2]), *alone)
