"""Each agent's output on fixed inputs, against a golden file of its revision: new output asks for a new revision.

An agent's `REVISION` is part of the keys of its stored outputs, so output that changes without it would leave stale
records in the lake. Golden files hold all fields of the outputs but for what differs by processor (the embedder's
cosines, the optical flow's exact masks). Masks stand there as hashes, and figures, also those inside texts, count as
equal up to one step of their second decimal. Inputs lie far from the thresholds that decide.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from agents import analyzer, annotator, refiner, reviewer, segmenter, texts_on_tracks
from agents.base import Detection
from agents.engines.coco_classes import COCO_CLASSES
from agents.engines.flow_tracker import FlowTracker
from agents.engines.minilm import MiniLm
from agents.engines.spacy_nouns import SpacyNouns
from infra.video import Frames, Image
from schemas.caption import CaptionSet, MentionText, MentionTextSet, MotionFacts, ObjectCaption
from schemas.clip import Clip
from schemas.given import GivenMasks, GivenObject
from schemas.jobs import AnnotatorJob, RefinerJob, ReviewerJob, SegmenterJob, TextRefinerJob
from schemas.label import AgentLabel
from schemas.mask import box_xyxy_px, decode, encode
from schemas.mention import Mention, MentionSet
from schemas.record import BoxXyxyPx, Record, short_id
from schemas.track import ObjectMasks, Track, TrackSet
from schemas.verdict import Verdict, VerdictSet

GOLDEN = Path(__file__).parent / "golden"
FIGURE = re.compile(r"[-+]?\d+\.\d+|\d+(?= ?%)")
ONE_STEP = 0.0101

HEIGHT_PX, WIDTH_PX, NUM_FRAMES, FPS = 180, 320, 30, 10.0
RED_CAR, BLUE_CAR, MAN = range(3)
COLOURS = ((200, 30, 30), (40, 60, 210), (30, 150, 50))
CLASSES = ("car", "car", "person")
FRAMES = tuple(range(20, 20 + NUM_FRAMES))


def clip_of(caption: str = "A red car passes a blue car and a man.", clip_id: str = "clip") -> Clip:
    return Clip(
        clip_id=clip_id,
        source_id="row",
        video="a.mp4",
        video_sha256="ab" * 32,
        license="CC0-1.0",
        start_s=2.0,
        end_s=5.0,
        start_frame=20,
        end_frame=50,
        fps=FPS,
        height_px=HEIGHT_PX,
        width_px=WIDTH_PX,
        caption=caption,
    )


def grain(height_px: int, width_px: int, amount: int, seed: int) -> npt.NDArray[np.int64]:
    """Blocks of 4 px of noise from a hash of their place, as random generators may change between versions."""
    rows, columns = np.indices((height_px, width_px), dtype=np.uint32) // np.uint32(4)
    mixed = columns * np.uint32(374761393) + rows * np.uint32(668265263) + np.uint32(seed * 974711)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(1274126177)
    return (mixed ^ (mixed >> np.uint32(16))).astype(np.int64) % (2 * amount + 1) - amount


class Scene:
    """A red car crosses, a blue one stands in front of a man who comes in after a second and grows; as `FrameSource`.

    `masks` are the exact ones, by object and frame.
    """

    def __init__(self) -> None:
        self.masks = [[self._mask(item, number) for number in range(NUM_FRAMES)] for item in range(3)]
        ground = (125 + grain(HEIGHT_PX, WIDTH_PX, 25, 0))[..., None].repeat(3, axis=2)
        self.frames = np.stack([ground] * NUM_FRAMES)
        for item, masks in enumerate(self.masks):
            patch = grain(100, 100, 20, item + 1)[..., None] + np.array(COLOURS[item])
            for image, mask in zip(self.frames, masks, strict=True):
                rows, columns = np.nonzero(mask)
                if len(rows):
                    image[mask] = patch[rows - rows.min(), columns - columns.min()]
        self.frames = np.clip(self.frames, 0, 255).astype(np.uint8)

    def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        assert long_side_px >= WIDTH_PX, "the scene is small enough never to be shrunk"
        return self.frames[[index - clip.start_frame for index in frame_idx]]

    def times_s(self, clip: Clip, frame_idx: Sequence[int]) -> tuple[float, ...]:
        return tuple(index / FPS for index in frame_idx)

    def number_of(self, image: Image) -> int:
        """Which of the frames this is."""
        return next(number for number, frame in enumerate(self.frames) if np.array_equal(frame, image))

    def _mask(self, item: int, number: int) -> npt.NDArray[np.bool_]:
        mask = np.zeros((HEIGHT_PX, WIDTH_PX), np.bool_)
        if item == RED_CAR:
            mask[24:64, 10 + 8 * number : 74 + 8 * number] = True
        elif item == BLUE_CAR:
            mask[110:150, 200:264] = True
        elif number >= 10:
            mask[100 - (5 + number) : 100 + 5 + number, 176 - (2 + number) : 176 + 2 + number] = True
            mask[110:150, 200:264] = False
        return mask


SCENE = Scene()


def masks_of(item: int, *, detector_class: str = "", seen: range = range(NUM_FRAMES), drift: int = 0) -> ObjectMasks:
    moved = [np.roll(mask, drift, 0) for mask in SCENE.masks[item]]
    return ObjectMasks(
        detector_class=detector_class or CLASSES[item],
        frame_idx=FRAMES,
        frame_time_s=tuple(index / FPS for index in FRAMES),
        rle=tuple(encode(mask) if mask.any() and i in seen else None for i, mask in enumerate(moved)),
        height_px=HEIGHT_PX,
        width_px=WIDTH_PX,
        score=0.9,
    )


def mention(
    phrase: str, detector_class: str, *, role: str = "subject", number: str = "singular", **said: Any
) -> Mention:
    values = {"mention_id": phrase, "clip_id": "clip", "noun": phrase.split()[-1].removesuffix("s"), "phrase": phrase}
    values |= {"start_char": 0, "end_char": len(phrase), "role": role, "number": number, "class_similarity": 1.0}
    return Mention.model_validate(values | {"detector_class": detector_class, "said": {"count": 1} | said})


def mention_set(*mentions: Mention) -> MentionSet:
    return MentionSet(clip_id="clip", mentions=mentions, rejected=())


MENTIONS = (
    mention("a red car", "car", colours=("red",), directions=("right",), actions=("pass",)),
    mention("a blue car", "car", colours=("blue",), role="other"),
    mention("a man", "person", role="other"),
)


def track_of(item: Mention, masks: ObjectMasks) -> Track:
    return Track(track_id=f"t {item.phrase}", clip_id="clip", mention_id=item.mention_id, noun=item.noun, masks=masks)


TRACKS = tuple(track_of(item, masks_of(index)) for index, item in enumerate(MENTIONS))


def moving(direction: str, start: str, end: str, from_s: float = 2.0, to_s: float = 5.0, **more: Any) -> MotionFacts:
    still = {"speed": "still", "displacement_x_diag": 0.0, "displacement_y_diag": 0.0, "speed_diag_per_s": 0.0}
    values = still | {"start_s": from_s, "end_s": to_s, "start_places": (start,), "end_places": (end,), "growth": 1.0}
    return MotionFacts.model_validate(values | {"direction": direction} | more)


RIGHTWARD = {"speed": "moderate", "displacement_x_diag": 0.6, "speed_diag_per_s": 0.22}
MOTIONS = (
    (
        moving("right", "left", "right", **RIGHTWARD),
        moving("right", "left", "middle", to_s=3.8, **RIGHTWARD),
        moving("right", "middle", "right", 3.8, **RIGHTWARD),
    ),
    (moving("none", "right", "right"), moving("none", "right", "right", to_s=3.8), None),
    (
        moving("toward", "middle", "middle", speed="moderate", growth=2.8),
        moving("toward", "middle", "middle", to_s=3.8, speed="moderate", growth=1.9),
        moving("toward", "middle", "middle", 3.8, speed="slow", growth=1.6),
    ),
)


def caption_of(item: int, **changes: Any) -> ObjectCaption:
    """By hand, so that another annotator leaves the inputs of the agents after it as they are."""
    track, (motion, seen, rest) = TRACKS[item], MOTIONS[item]
    colour, size = ("red", "blue", "green")[item], ("medium", "medium", "small")[item]
    look = {"detector_class": CLASSES[item], "colours": ({"colour": colour, "share": 1.0},), "size": size}
    touched = ({"track_id": "t a man", "noun": "man", "start_s": 4.1, "end_s": 4.9},) if item == BLUE_CAR else ()
    values = {"track_id": track.track_id, "mention_id": track.mention_id, "noun": track.noun, "contacts": touched}
    values |= {"visible_from_s": 3.0 if item == MAN else 2.0, "visible_to_s": 4.9, "visible_until_s": 3.8}
    values |= {"appearance_facts": look | {"area_share": 0.044}, "motion_facts": motion, "moving": motion.moves}
    values |= {"seen_facts": seen, "rest_facts": rest, "motion": f"The {track.noun} goes on."}
    return ObjectCaption.model_validate(values | {"appearance": f"The {track.noun} is mostly {colour}."} | changes)


CAPTIONS = tuple(caption_of(item) for item in range(3))


class Part:
    """What all scripted models have in common."""

    name = "scripted"

    class NoConfig(Record):
        pass

    config = NoConfig()

    def weights(self) -> tuple[str, ...]:
        return ()

    def setup(self) -> None:
        pass


class ScriptedTracker(Part):
    def __init__(self, found: Sequence[ObjectMasks]) -> None:
        self._found = found

    def settings(self) -> dict[str, Any]:
        return {}

    def track_many(self, asked: Sequence[tuple[Clip, Sequence[str]]]) -> list[list[ObjectMasks]]:
        return [[item for item in self._found if item.detector_class in classes] for _, classes in asked]


class ScriptedDetector(Part):
    classes = ("car", "person")

    def detect(self, image: Image) -> list[Detection]:
        masks = [
            (name, of_object[SCENE.number_of(image)]) for name, of_object in zip(CLASSES, SCENE.masks, strict=True)
        ]
        return [
            Detection(detector_class=name, score=0.9, box_xyxy_px=box_xyxy_px(encode(mask), HEIGHT_PX, WIDTH_PX))
            for name, mask in masks
            if mask.any()
        ]


class ScriptedMasks(Part):
    def masks(self, image: Image, boxes_xyxy_px: Sequence[BoxXyxyPx]) -> tuple[npt.NDArray[np.bool_], list[float]]:
        exact = [of_object[SCENE.number_of(image)] for of_object in SCENE.masks]
        by_box = {box_xyxy_px(encode(mask), HEIGHT_PX, WIDTH_PX): mask for mask in exact}
        found = [by_box[box] for box in boxes_xyxy_px]
        return np.stack(found) if found else np.zeros((0, HEIGHT_PX, WIDTH_PX), np.bool_), [0.95] * len(found)


class ScriptedClassifier(Part):
    """A car in red and blue crops, and nothing known in others."""

    labels = ("car", "dog", "nothing")

    def probabilities(self, image: Image) -> npt.NDArray[np.float32]:
        red, green, blue = image[image.shape[0] // 2, image.shape[1] // 2].astype(int)
        return np.array([0.9, 0.05, 0.05] if max(red, blue) - green > 80 else [0.05, 0.05, 0.9], np.float32)


class WordEmbedder(Part):
    """Every word its own axis, so that only equal words are near."""

    def __init__(self) -> None:
        self._axes: dict[str, int] = {}

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        rows = np.zeros((len(texts), 2000), np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[self._axes.setdefault(text, len(self._axes))] = 1
        return rows


ANALYZED = (
    "A man in a red shirt rides a bicycle toward the camera.",
    "A red car drives from left to right while a dog runs away.",
    "A cat and a dog run to the left.",
    "The car does not move.",
    "Two brown dogs play in the park.",
    "Several people walk across the street.",
    "A black and white cat sits at the bottom of the frame.",
    "a blue car moves upward, a green bus moves downwards",
    "A dog is chased by a cat.",
    "He waves to them while a puppy barks",
    "A black man and a white woman hold a kitten",
    "Slowly and quietly.",
    "A cyclist on the left moves to the right while a dog in the middle of the frame sits.",
    "A 🚲 man rides a bicycle 🎉 <region>",
    "A dog running to the left",
    "a bird flying away and another bird sitting",
    "A plane landing, a bus passing and a dog barking.",
    "The car turns left.",
)
EXPRESSIONS = (
    "the turtle swimming left",
    "car turning left",
    "dog jumping and turning",
    "One of the fish swimming left",
    "two people dancing",
    "The white rabbit jumping over another rabbit",
    "the one on the left",
    "moving toward the camera",
    "<region>",
)
"""Of clips whose masks are given."""


def analyzed() -> dict[str, Any]:
    agent = analyzer.Analyzer(analyzer.AnalyzerConfig(), SpacyNouns(), MiniLm(), tuple(COCO_CLASSES.values()))
    agent.setup()
    texts = (*ANALYZED, *EXPRESSIONS)
    clips = [clip_of(caption, f"clip-{number}") for number, caption in enumerate(texts)]
    given = [clip.model_copy(update={"given_sha256": "cd" * 32}) for clip in clips[len(ANALYZED) :]]
    outputs = agent.process([*clips[: len(ANALYZED)], *given])
    # cosines differ by processor
    own = {"mentions": {"__all__": {"class_similarity"}}, "rejected": {"__all__": {"evidence"}}}
    return {text: output.model_dump(mode="json", exclude=own) for text, output in zip(texts, outputs, strict=True)}


def segmented() -> dict[str, Any]:
    said = {
        "each by what is said": MENTIONS,
        "refusals": (
            mention("a car", "car"),
            mention("a dog", "dog"),
            mention("a bird", "bird"),
            mention("a man", "person"),
            mention("the man", "person"),
        ),
        "a counted plural": (mention("two cars", "car", number="plural", count=2),),
        "a wrong count": (mention("three cars", "car", number="plural", count=3),),
        "no count": (mention("cars", "car", number="plural", count=None),),
        "by direction": (mention("a car", "car", directions=("right",)),),
        "a colour not there": (mention("a yellow car", "car", colours=("yellow",)),),
        "nothing": (),
    }
    found = [masks_of(item) for item in range(3)] + [masks_of(RED_CAR, detector_class="bird", seen=range(5, 7))]
    return {name: segment(found, items) for name, items in said.items()} | doubted() | {"given": passed_on()}


def segment(found: Sequence[ObjectMasks], mentions: Sequence[Mention], given: GivenMasks | None = None) -> TrackSet:
    agent = segmenter.Segmenter(segmenter.SegmenterConfig(), ScriptedTracker(found), SCENE)
    (output,) = agent.process([SegmenterJob(clip=clip_of(), mentions=mention_set(*mentions), given=given)])
    return output


def doubted() -> dict[str, TrackSet]:
    """What is refused because a track may be of another object."""
    red, blue = masks_of(RED_CAR), masks_of(BLUE_CAR)
    at_right = mention("another car", "car", places=("right",))
    truck = masks_of(RED_CAR, detector_class="truck", drift=3).model_copy(update={"score": 0.8})
    away = mention("a blue car", "car", colours=("blue",), directions=("left",))
    to_border = HEIGHT_PX - int(np.nonzero(SCENE.masks[BLUE_CAR][0])[0].max()) - 1
    brief = masks_of(BLUE_CAR, drift=to_border, seen=range(15))
    return {
        "a track that breaks off": segment([red, masks_of(BLUE_CAR, seen=range(20))], (MENTIONS[RED_CAR], at_right)),
        "a brief track": segment([red, brief], (MENTIONS[RED_CAR], at_right)),
        "one thing as two": segment([red, truck], (mention("a truck", "truck"), MENTIONS[RED_CAR])),
        "a direction that hardly fits": segment([red, blue], (MENTIONS[RED_CAR], away)),
    }


def passed_on() -> TrackSet:
    masks = [masks_of(item, seen=range(item, 12)) for item in (RED_CAR, MAN)]
    objects = tuple(
        GivenObject(object_id=str(number), frame_idx=item.frame_idx[::5], rle=item.rle[::5])
        for number, item in enumerate(masks)
    )
    return segment((), (mention("two leashes", "leash", number="plural", count=2),), GivenMasks(objects=objects))


def flow_tracked() -> dict[str, Any]:
    tracker = FlowTracker(ScriptedDetector(), ScriptedMasks(), SCENE)
    tracker.setup()
    (found,) = tracker.track_many([(clip_of(), ["car", "person"])])
    facts = []
    for item in found:
        means = [mean_iou(item, masks) for masks in SCENE.masks]
        of_object = int(np.argmax(means))
        facts.append(
            {"object": of_object, "class": item.detector_class, "frame_idx": item.frame_idx, "fits": max(means) > 0.8}
        )
    return {"tracks": sorted(facts, key=lambda fact: fact["object"])}


def mean_iou(got: ObjectMasks, exact: Sequence[npt.NDArray[np.bool_]]) -> float:
    """Over the frames in which either is seen."""
    ious = []
    for index, counts in zip(got.frame_idx, got.rle, strict=True):
        truth = exact[index - FRAMES[0]]
        mask = np.zeros_like(truth) if counts is None else decode(counts, HEIGHT_PX, WIDTH_PX)
        if either := int((mask | truth).sum()):
            ious.append(int((mask & truth).sum()) / either)
    return float(np.mean(ious))


def annotated() -> dict[str, Any]:
    once = track_of(mention("a bird", "bird"), masks_of(RED_CAR, detector_class="bird", seen=range(5, 6)))
    tracks = TrackSet(clip_id="clip", tracks=(*TRACKS, once), rejected=())
    job = AnnotatorJob(clip=clip_of(), mentions=mention_set(*MENTIONS), tracks=tracks)
    (output,) = annotator.Annotator(annotator.AnnotatorConfig(), SCENE).process([job])
    return {"all": output}


def reviewer_job(
    mentions: Sequence[Mention], tracks: Sequence[Track], captions: Sequence[ObjectCaption]
) -> ReviewerJob:
    return ReviewerJob(
        clip=clip_of(),
        mentions=mention_set(*mentions),
        tracks=TrackSet(clip_id="clip", tracks=tuple(tracks), rejected=()),
        captions=CaptionSet(clip_id="clip", captions=tuple(captions), rejected=()),
    )


def reviewed() -> dict[str, Any]:
    red, track, caption = MENTIONS[RED_CAR], TRACKS[RED_CAR], CAPTIONS[RED_CAR]
    back = moving("left", "right", "left", **RIGHTWARD)
    look = caption.appearance_facts.model_dump()

    def saying(**said: Any) -> ReviewerJob:
        return reviewer_job([mention("a red car", "car", **said)], [track], [caption])

    dog = mention("a dog", "dog")
    dog_masks = masks_of(RED_CAR, detector_class="dog")
    dog_caption = {"mention_id": "a dog", "noun": "dog", "track_id": "t a dog"}
    dog_caption |= {"appearance_facts": look | {"detector_class": "dog"}}
    cases = {
        "true": reviewer_job(MENTIONS, TRACKS, CAPTIONS),
        "another colour said": saying(colours=("green",)),
        "another direction said": saying(directions=("left",)),
        "another place said": saying(places=("bottom",)),
        "another count said": saying(count=2),
        "another direction told": reviewer_job([red], [track], [caption_of(RED_CAR, motion_facts=back)]),
        "another size told": reviewer_job(
            [red], [track], [caption_of(RED_CAR, appearance_facts=look | {"area_share": 0.4})]
        ),
        "masks beside the object": reviewer_job([red], [track_of(red, masks_of(RED_CAR, drift=18))], [caption]),
        "another class": reviewer_job([dog], [track_of(dog, dog_masks)], [caption_of(RED_CAR, **dog_caption)]),
        "no caption": reviewer_job([red], [track], []),
        "no track": reviewer_job([red], [], []),
    }
    agent = reviewer.Reviewer(
        reviewer.ReviewerConfig(), SCENE, ScriptedClassifier(), WordEmbedder(), tuple(COCO_CLASSES.values())
    )
    agent.setup()
    return dict(zip(cases, agent.process(list(cases.values())), strict=True))


def refined() -> dict[str, Any]:
    label = {"agent": "segmenter", "engine": "scripted", "weights": ("model@0123",), "config_json": "{}"}
    labels = (AgentLabel.model_validate(label | {"prompt_hash": "", "revision": 7}),)

    def run(config: refiner.RefinerConfig, kept: set[int], captions: Sequence[ObjectCaption]) -> Any:
        given = reviewer_job(MENTIONS, TRACKS, captions)
        check = {"name": "colour", "outcome": "agrees", "score": 0.75, "detail": "red"}
        verdicts = tuple(
            Verdict.model_validate(
                {"track_id": track.track_id, "keep": item in kept, "score": 0.75, "checks": (check,)}
                | {"reason": None if item in kept else "colour_mismatch"}
            )
            for item, track in enumerate(TRACKS)
        )
        judged = VerdictSet(clip_id="clip", verdicts=verdicts, rejected=())
        job = RefinerJob.model_validate(
            {name: getattr(given, name) for name in ReviewerJob.model_fields} | {"verdicts": judged}
        )
        (output,) = refiner.Refiner(config, None, labels).process([job])
        return output

    return {
        "all kept": run(refiner.RefinerConfig(), {RED_CAR, BLUE_CAR, MAN}, CAPTIONS),
        "one dropped, one without caption": run(refiner.RefinerConfig(), {BLUE_CAR, MAN}, CAPTIONS[:MAN]),
        "short captions as in the paper": run(refiner.RefinerConfig(paper_short=True), {BLUE_CAR}, CAPTIONS),
    }


def with_texts() -> dict[str, Any]:
    """Captions of measured facts and texts on mentions, and what is rejected; the samples are the refiner's matter."""
    once = track_of(mention("a bird", "bird"), masks_of(RED_CAR, detector_class="bird", seen=range(5, 6)))
    texts = tuple(
        MentionText.model_validate(
            {"mention_id": phrase, "noun": phrase.split()[-1], "moving": phrase != "a man"}
            | {"appearance": f"It is {phrase}.", "motion": "It goes on."}
        )
        for phrase in ("a red car", "a man", "a bird")
    )
    left_out = {"subject_id": "a blue car", "source_id": "row", "clip_id": "clip", "noun": "car", "stage": "annotator"}
    rejected = ({**left_out, "reason": "unusable_text", "evidence": "the text is empty"},)
    job = TextRefinerJob.model_validate(
        {"clip": clip_of(), "mentions": mention_set(*MENTIONS)}
        | {"tracks": {"clip_id": "clip", "tracks": (*TRACKS, once), "rejected": ()}}
        | {"verdicts": VerdictSet(clip_id="clip", verdicts=(), rejected=())}
        | {"texts": MentionTextSet.model_validate({"clip_id": "clip", "texts": texts, "rejected": rejected})}
    )
    facts = annotator.Annotator(annotator.AnnotatorConfig(), SCENE)
    agent = texts_on_tracks.RefinerOfTexts(refiner.Refiner(refiner.RefinerConfig(), None, ()), facts)
    (output,) = agent.process([job])
    return {"captions": texts_on_tracks.with_facts(job, facts).captions.captions, "rejected": output.rejected}


def plain(value: Any) -> Any:
    """Outputs for a golden file that people read: lists of values and records of values on one line each."""
    if isinstance(value, Record):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        rle = value.get("rle")
        value = value | ({"rle": f"{sum(map(bool, rle))} masks {short_id(*rle)}"} if rle else {})
        if not any(isinstance(item, dict | list | tuple | Record) for item in value.values()):
            return "; ".join(f"{key}={plain(item)}" for key, item in value.items())
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        simple = not any(isinstance(item, dict | list | tuple | Record) for item in value)
        return ", ".join(plain(item) for item in value) if simple else [plain(item) for item in value]
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def differences(got: Any, golden: Any, place: str = "") -> Iterator[str]:
    """`place: got, golden` for all that differs by more than the last step of a figure."""
    if isinstance(got, dict) and isinstance(golden, dict):
        for key in got | golden:
            yield from differences(got.get(key, "absent"), golden.get(key, "absent"), f"{place}/{key}")
    elif isinstance(got, list) and isinstance(golden, list) and len(got) == len(golden):
        for number, pair in enumerate(zip(got, golden, strict=True)):
            yield from differences(*pair, f"{place}/{number}")
    elif not (isinstance(got, str) and isinstance(golden, str) and same_text(got, golden)):
        yield f"{place}:\n  now    {got}\n  golden {golden}"


def same_text(got: str, golden: str) -> bool:
    if FIGURE.sub("#", got) != FIGURE.sub("#", golden):
        return False
    pairs = zip(FIGURE.findall(got), FIGURE.findall(golden), strict=True)
    return all(abs(float(a) - float(b)) <= (ONE_STEP if "." in a + b else 1) for a, b in pairs)


def compare(name: str, agent: ModuleType, outputs: dict[str, Any], folder: Path, *, update: bool) -> None:
    """Fail unless the outputs are those of the golden file; write it where it is missing and that is asked for."""
    path = folder / f"{name}-r{agent.REVISION}.json"
    write = "write the new golden file with `pytest tests/agents/test_revisions.py --update-golden`"
    got = plain(outputs)
    if update and not path.exists():
        path.write_text(json.dumps(got, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if not path.exists():
        pytest.fail(f"there is no {path.name}: look whether {name}'s output is right, then {write}", pytrace=False)
    changed = list(differences(got, json.loads(path.read_text(encoding="utf-8"))))
    if changed:
        source = agent.__name__.replace(".", "/") + ".py"
        told = f"{name}'s output changed: bump REVISION in {source} and {write}"
        if update:
            told += f"\n{path.name} is there already and stays as it is; delete it first to write that revision again"
        pytest.fail("\n".join([told, *changed]), pytrace=False)


CASES: dict[str, tuple[ModuleType, Callable[[], dict[str, Any]]]] = {
    "analyzer": (analyzer, analyzed),
    "segmenter": (segmenter, segmented),
    "flow_tracker": (segmenter, flow_tracked),
    "annotator": (annotator, annotated),
    "reviewer": (reviewer, reviewed),
    "refiner": (refiner, refined),
    "texts_on_tracks": (texts_on_tracks, with_texts),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.weights] if name == "analyzer" else []) for name in CASES]
)
def test_the_output_is_that_of_the_revision(name: str, request: pytest.FixtureRequest) -> None:
    agent, run = CASES[name]
    compare(name, agent, run(), GOLDEN, update=request.config.getoption("--update-golden"))


def test_a_golden_file_is_written_once_and_then_holds(tmp_path: Path) -> None:
    outputs = {"case": TRACKS[MAN], "score": 0.504, "evidence": "share 0.50 of 12%"}
    with pytest.raises(pytest.fail.Exception, match=r"no annotator-r\d+.json"):
        compare("annotator", annotator, outputs, tmp_path, update=False)
    compare("annotator", annotator, outputs, tmp_path, update=True)
    compare("annotator", annotator, outputs | {"score": 0.506, "evidence": "share 0.51 of 13%"}, tmp_path, update=False)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    for change in ({"score": 0.53}, {"evidence": "part 0.50 of 12%"}, {"case": TRACKS[RED_CAR]}, {"more": 1}):
        with pytest.raises(pytest.fail.Exception, match=r"bump REVISION in agents/annotator.py(.|\n)*stays as it is"):
            compare("annotator", annotator, outputs | change, tmp_path, update=True)
    assert path.read_bytes() == before
