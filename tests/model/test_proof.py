"""What the proof's figures rest on: its items and options, the four ways of asking, and the interval over clips."""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from agents.questions import basic
from infra.lake import Lake
from infra.sources import ClipSet
from infra.video import video_sha256
from model.answering import OptionScore, option_scores
from model.data.scene import SceneConfig
from model.inputs import MaskBatch
from model.object_encoder import SpatialTemporalObjectEncoder
from model.request import Message, Request
from schemas.arrow import to_table
from schemas.caption import AppearanceFacts, CaptionSet, ColourShare, MotionFacts, ObjectCaption
from schemas.clip import Clip
from schemas.mask import encode
from schemas.record import Record
from schemas.sample import Provenance, Sample, SampleObject
from schemas.words import Colour, Direction

PROOF = Path(__file__).parents[2] / "proof"
HEIGHT_PX, WIDTH_PX, FPS = 64, 96, 25
Values = np.ndarray[tuple[int], np.dtype[np.float64]]


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules `items` and `scoring`, which the proof's script imports from beside itself."""
    monkeypatch.syspath_prepend(str(PROOF))
    yield SimpleNamespace(items=importlib.import_module("items"), scoring=importlib.import_module("scoring"))
    for name in ("items", "scoring"):
        del sys.modules[name]


class Thing(NamedTuple):
    """An object of a clip, a square that starts at `left_px`."""

    track_id: str
    noun: str
    colour: Colour
    direction: Direction
    left_px: int


THINGS = (
    Thing("t0", "cat", "red", "left", 4),
    Thing("t1", "dog", "blue", "none", 34),
    Thing("t2", "bird", "green", "up", 64),
    Thing("t3", "dog", "red", "down", 80),
)


def clip_of(clip_id: str = "clip", sha256: str = "0" * 64) -> Clip:
    return Clip(
        clip_id=clip_id, source_id="source", video="a.mp4", video_sha256=sha256, license="CC0", start_s=0, end_s=1.6,
        start_frame=0, end_frame=40, fps=FPS, height_px=HEIGHT_PX, width_px=WIDTH_PX, caption="Things.",
    )  # fmt: skip


def caption_of(thing: Thing) -> ObjectCaption:
    still = thing.direction == "none"
    motion = MotionFacts(
        start_s=0, end_s=1.6, start_places=("left",), end_places=("right",), direction=thing.direction,
        speed="still" if still else "slow", displacement_x_diag=0 if still else 0.3, displacement_y_diag=0,
        speed_diag_per_s=0 if still else 0.2, growth=1,
    )  # fmt: skip
    look = AppearanceFacts(
        detector_class=thing.noun, colours=(ColourShare(colour=thing.colour, share=0.9),), size="small", area_share=0.02
    )
    return ObjectCaption(
        track_id=thing.track_id, mention_id=thing.track_id, noun=thing.noun, visible_from_s=0, visible_to_s=1.6,
        visible_until_s=0.8, appearance_facts=look, motion_facts=motion, seen_facts=None, rest_facts=None, contacts=(),
        appearance="It is seen.", motion="It moves.", moving=not still,
    )  # fmt: skip


def mask_of(thing: Thing, frame: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    mask = np.zeros((HEIGHT_PX, WIDTH_PX), np.bool_)
    mask[10 + frame // 4 : 22 + frame // 4, thing.left_px : thing.left_px + 12] = True
    return mask


def samples_of(clip: Clip, things: Sequence[Thing], split: str = "held_out") -> list[Sample]:
    """All that the engine asks of single facts, as it stands in a shard."""
    return [
        Sample.model_validate(
            {
                "sample_id": f"{clip.clip_id}-{thing.track_id}-{number}", "kind": "qa", "qa_type": "basic",
                "split": split, "clip_id": clip.clip_id, "source_id": "source", "video": clip.video,
                "video_sha256": clip.video_sha256, "license": "CC0", "start_s": 0.0, "end_s": 1.6,
                "visible_until_s": 1.6, "fps": FPS, "height": HEIGHT_PX, "width": WIDTH_PX,
                "conversations": (
                    {"from": "human", "value": f"<video>\n{pair.question}"}, {"from": "gpt", "value": pair.answer}
                ),
                "objects": (
                    SampleObject(
                        object_id=thing.track_id, noun=thing.noun, frame_idx=(4, 20), frame_time_s=(0.16, 0.8),
                        rle=tuple(encode(mask_of(thing, frame)) for frame in (4, 20)),
                    ),
                ),
                "provenance": Provenance(
                    engines=(), weights=(), prompt_hashes=(), revisions=(), verdict="kept", wording="template"
                ),
            }
        )
        for thing in things
        for number, pair in enumerate(basic(clip, caption_of(thing)))
    ]  # fmt: skip


class Held(NamedTuple):
    """A clip of a build, with its objects and the split of its samples."""

    clip: Clip
    things: Sequence[Thing]
    split: str = "held_out"


def write_output(lake: Lake, agent: str, records: Sequence[Record]) -> None:
    """What an agent left in the lake, in one part."""
    folder = Path(lake.root) / "agents" / agent / "run"
    folder.mkdir(parents=True)
    table = to_table(records, type(records[0]))
    pq.write_table(table.append_column("key", pa.array(["k"] * len(records))), folder / "part-0.parquet")


@pytest.fixture
def items_of(proof: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """`items_of(held, ...)`: the items of a build of these clips."""

    def build(*held: Held) -> list[Any]:
        lake = Lake(tmp_path / "lake")
        write_output(lake, "source", [ClipSet(source_id="s", clips=tuple(one.clip for one in held), rejected=())])
        captions = [
            CaptionSet(clip_id=one.clip.clip_id, captions=tuple(map(caption_of, one.things)), rejected=())
            for one in held
        ]
        write_output(lake, "annotator", captions)
        samples = [sample for one in held for sample in samples_of(*one)]
        monkeypatch.setattr(proof.items, "read_samples", lambda _lake, _build, _kind: iter(samples))
        return list(proof.items.held_out_items(lake, "build"))

    return build


def by_object(items: Sequence[Any], topic: str) -> dict[str, Any]:
    return {item.sample.objects[0].object_id: item for item in items if item.topic == topic}


def test_the_first_option_is_the_sample_s_own_answer_and_options_differ(items_of: Callable[..., list[Any]]) -> None:
    items = items_of(Held(clip_of(), THINGS))
    assert {item.topic for item in items} == {"identity", "colour", "direction"}
    for item in items:
        assert item.options[0] == item.sample.conversations[1].value
        assert len(set(item.options)) == len(item.options) == 3
        assert item.others[0].conversations[1].value != item.options[0]
        assert item.others[0].objects[0].object_id != item.sample.objects[0].object_id
    colour = by_object(items, "colour")["t0"]
    assert ["red" in option for option in colour.options] == [True, False, False]
    assert all("cat" in option for option in colour.options)
    assert ["cat" in option for option in by_object(items, "identity")["t0"].options] == [True, False, False]


def test_direction_is_asked_of_what_moves_alone(items_of: Callable[..., list[Any]]) -> None:
    directions = by_object(items_of(Held(clip_of(), THINGS)), "direction")
    assert set(directions) == {"t0", "t2", "t3"}


def test_clips_of_two_answers_and_of_training_give_no_item(items_of: Callable[..., list[Any]]) -> None:
    items = items_of(
        Held(clip_of("few"), THINGS[:2]), Held(clip_of("learnt"), THINGS, "train"), Held(clip_of("good"), THINGS)
    )
    assert {item.sample.clip_id for item in items} == {"good"}


class Filmed(NamedTuple):
    """A folder with a video, and the items on t0 in it, by topic."""

    root: Path
    items: dict[str, Any]


@pytest.fixture
def filmed(items_of: Callable[..., list[Any]], make_video: Callable[..., Path]) -> Filmed:
    video = make_video("a.mp4", num_frames=40, size_px=(HEIGHT_PX, WIDTH_PX), fps=FPS)
    items = items_of(Held(clip_of(sha256=video_sha256(video)), THINGS))
    return Filmed(video.parent, {item.topic: item for item in items if item.sample.objects[0].object_id == "t0"})


class Asked(NamedTuple):
    """One call of the scorer."""

    encoder: torch.nn.Module
    request: Request
    options: tuple[str, ...]


class Recorder:
    """A scorer that finds every option as likely as it is told."""

    def __init__(self, likeliest: int | None) -> None:
        self.likeliest = likeliest
        self.asked: list[Asked] = []

    def __call__(self, model: Any, _processor: Any, request: Request, options: Sequence[str]) -> list[OptionScore]:
        self.asked.append(Asked(model.object_encoder, request, tuple(options)))
        return [OptionScore(-1.0 if place == self.likeliest else -2.0, 1) for place in range(len(options))]


class Asking(NamedTuple):
    """An Answerer with a recorder in place of its scorer, and the item on t0's colour."""

    answerer: Any
    recorder: Recorder
    item: Any
    model: Any


@pytest.fixture
def asking(proof: Any, filmed: Filmed, monkeypatch: pytest.MonkeyPatch) -> Asking:
    recorder, model = Recorder(likeliest=0), SimpleNamespace(object_encoder=torch.nn.Identity())
    monkeypatch.setattr(proof.scoring, "option_scores", recorder)
    config = SceneConfig(num_frames=4, side_px=HEIGHT_PX, single_frame_share=0.0)
    answerer = proof.scoring.Answerer(model, None, filmed.root, config)
    return Asking(answerer, recorder, filmed.items["colour"], model)


def masks_in(request: Request) -> list[tuple[int, int]]:
    """Left edge and area of each mask of the only object."""
    (region,) = request.objects
    found = [np.argwhere(mask) for mask in region.masks if mask is not None]
    return [(int(cells[:, 1].min()), len(cells)) for cells in found]


def test_an_item_is_asked_as_it_stands_without_its_answer(asking: Asking) -> None:
    assert asking.answerer.is_right(asking.item, "object tokens")
    (asked,) = asking.recorder.asked
    assert asked.options == asking.item.options
    assert [turn.content for turn in asked.request.messages] == [asking.item.sample.conversations[0].value]
    assert masks_in(asked.request) == [(THINGS[0].left_px, 144)] * 2
    assert asked.encoder is asking.model.object_encoder


@pytest.mark.parametrize(("likeliest", "right"), [(0, True), (1, False), (None, False)])
def test_only_the_likeliest_option_counts_and_a_tie_does_not(
    asking: Asking, likeliest: int | None, right: bool
) -> None:
    asking.recorder.likeliest = likeliest
    for arm in ("object tokens", "zeroed", "permuted", "text only"):
        assert asking.answerer.is_right(asking.item, arm) is right


def test_permuted_asks_this_question_with_the_other_object_s_masks(asking: Asking) -> None:
    asking.answerer.is_right(asking.item, "object tokens")
    asking.answerer.is_right(asking.item, "permuted")
    own, permuted = asking.recorder.asked
    other = next(thing for thing in THINGS if thing.track_id == asking.item.others[0].objects[0].object_id)
    assert permuted.request.messages == own.request.messages
    assert permuted.options == own.options
    assert masks_in(permuted.request) == [(other.left_px, 144)] * 2
    assert own.request.scene is not None
    assert permuted.request.scene is not None
    assert np.array_equal(permuted.request.scene.frames, own.request.scene.frames)


def test_text_only_has_neither_scene_nor_region(asking: Asking) -> None:
    asking.answerer.is_right(asking.item, "text only")
    (asked,) = asking.recorder.asked
    assert asked.request.scene is None
    assert asked.request.objects == ()
    (turn,) = asked.request.messages
    question = asking.item.sample.conversations[0].value.removeprefix("<video>\n")
    assert turn.content == question.replace("<region>", "the object")
    assert "<" not in turn.content
    assert asked.options == asking.item.options


def test_zeroed_is_asked_with_another_encoder_that_goes_again(proof: Any, asking: Asking) -> None:
    before = asking.model.object_encoder
    asking.answerer.is_right(asking.item, "object tokens")
    asking.answerer.is_right(asking.item, "zeroed")
    own, zeroed = asking.recorder.asked
    assert isinstance(zeroed.encoder, proof.scoring.Zeroed)
    assert zeroed.encoder.encoder is before
    assert asking.model.object_encoder is before
    assert zeroed.request.messages == own.request.messages
    assert masks_in(zeroed.request) == masks_in(own.request)


def test_zeroed_keeps_the_number_of_tokens(proof: Any) -> None:
    torch.manual_seed(0)
    encoder = SpatialTemporalObjectEncoder(6, 5, 2, object_position=False, paper_exact=False)
    frames = torch.tensor([0, 1, 2, 1])
    masks = MaskBatch(torch.rand(4, 2, 2), frames, torch.tensor([0, 0, 0, 1]), torch.rand(4, 4), frames / 3)
    features = torch.randn(3, 2, 2, 6)
    plain, zeroed = encoder(features, masks), proof.scoring.Zeroed(encoder)(features, masks)
    assert zeroed.num_tokens.tolist() == plain.num_tokens.tolist() == [2, 1]
    assert zeroed.tokens.shape == plain.tokens.shape
    assert plain.tokens.any()
    assert not zeroed.tokens.any()


def test_a_model_is_right_where_its_own_scores_say_so(
    proof: Any, filmed: Filmed, tiny_model: Callable[..., Any], tiny_processor: Callable[..., Any]
) -> None:
    model = tiny_model()
    processor = tiny_processor(model.config)
    answerer = proof.scoring.Answerer(model, processor, filmed.root, SceneConfig(num_frames=4, side_px=28))
    item = filmed.items["identity"]
    text = item.sample.conversations[0].value.removeprefix("<video>\n").replace("<region>", "the object")
    asked = Request((Message("user", text),), None, ())
    scores = [score.log_probability for score in option_scores(model, processor, asked, item.options)]
    turned = [tuple(np.roll(item.options, -place).tolist()) for place in range(len(scores))]
    right = [answerer.is_right(item.model_copy(update={"options": options}), "text only") for options in turned]
    assert right == [score == max(scores) for score in scores]
    for arm in ("object tokens", "zeroed", "permuted"):
        wins = [answerer.is_right(item.model_copy(update={"options": options}), arm) for options in turned]
        assert sum(wins) == 1


def test_a_figure_of_equal_values_has_no_width(proof: Any) -> None:
    figure = proof.scoring.figure(np.ones(6), ["a", "a", "b", "b", "c", "d"])
    assert (figure.mean, figure.low, figure.high) == (1, 1, 1)


def test_the_mean_is_that_of_items_not_of_clips(proof: Any) -> None:
    assert proof.scoring.figure(np.array([1.0, 0, 0, 0]), ["a", "b", "b", "b"]).mean == 0.25


def test_clips_not_items_are_independent(proof: Any) -> None:
    values = np.repeat([0.0, 1.0] * 5, 20)
    alone = proof.scoring.figure(values, [str(number) for number in range(200)])
    together = proof.scoring.figure(values, [f"clip {number // 20}" for number in range(200)])
    half_width = 1.96 * (0.25 / 200) ** 0.5
    assert alone.mean == together.mean == 0.5
    assert (alone.low, alone.high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.01)
    # of ten clips, right or wrong as a whole, the quantiles of a binomial distribution
    assert (together.low, together.high) == pytest.approx((0.2, 0.8), abs=1e-9)


def test_about_95_of_100_intervals_hold_the_true_mean(proof: Any) -> None:
    random = np.random.default_rng(1)
    clips = [str(number // 5) for number in range(150)]
    held = 0
    for _ in range(100):
        values = (random.random(150) < np.repeat(random.random(30), 5)).astype(np.float64)
        figure = proof.scoring.figure(values, clips)
        held += figure.low <= 0.5 <= figure.high
    assert 88 <= held <= 99
