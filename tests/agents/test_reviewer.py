"""Planted errors against true tracks, on painted clips with a scripted classifier.

How many of each kind are dropped with photographed objects and the real classifier: see
`tests/flows/test_quality_review.py`.
"""

import cv2
import numpy as np
import pytest

from agents.annotator import Annotator, AnnotatorConfig
from agents.check_scale import AGREES_FROM, DISAGREES_BELOW
from agents.class_vote import ON_PERSONS, RIDDEN_ANIMALS, ClassVote, Vote
from agents.engines.coco_classes import COCO_CLASSES
from agents.engines.efficientnet import EfficientNetLite3
from agents.engines.minilm import MiniLm
from agents.imagenet_table import LABELS
from agents.movement import against_ground, direction_score, in_frame
from agents.review_checks import ABSENT_LABELS, AGREEING_LABELS, REASONS, class_vote
from agents.reviewer import Reviewer, ReviewerConfig, judge, look_positions
from agents.second_look import Look, box_path, colours_of, outline_support
from schemas.clip import Clip
from schemas.jobs import AnnotatorJob, ReviewerJob
from schemas.mask import encode
from schemas.mention import Mention, MentionSet, SaidAttributes
from schemas.track import ObjectMasks, Track, TrackSet
from schemas.verdict import Check

HEIGHT_PX, WIDTH_PX, NUM_FRAMES, FPS = 180, 320, 24, 12
WORDS = ("person", "dog", "cat", "bus", "car", "sports ball", "elephant")
CLASSES = tuple(COCO_CLASSES.values())
RED, BLUE, GREEN = (200, 30, 30), (40, 60, 210), (30, 150, 50)


class WordEmbedder:
    """Every word its own axis, so that only equal words are near."""

    name = "words"

    def __init__(self):
        self._axes = {}

    def weights(self):
        return ()

    def setup(self):
        pass

    def embed(self, texts):
        rows = np.zeros((len(texts), 2000), np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[self._axes.setdefault(text, len(self._axes))] = 1
        return rows


class ScriptedClassifier:
    """Sees a bus in red crops, a dog in blue ones, and nothing much in others."""

    name = "scripted"
    labels = ("bus", "dog", "nothing")

    def weights(self):
        return ()

    def setup(self):
        pass

    def probabilities(self, image):
        centre = image[image.shape[0] // 2, image.shape[1] // 2].astype(int)
        if centre.max() - centre.min() < 80:
            return np.array([0.1, 0.1, 0.8], np.float32)
        return np.array([0.9, 0.05, 0.05] if centre.argmax() == 0 else [0.05, 0.9, 0.05], np.float32)


class Painted:
    """A textured ground with ellipses that move; `paths` gives each one's (colour, start xy, end xy, size) in px."""

    def __init__(self, *paths):
        rng = np.random.default_rng(1)
        coarse = rng.integers(90, 150, (HEIGHT_PX // 8, WIDTH_PX // 8, 1), np.uint8).repeat(3, axis=2)
        ground = cv2.resize(coarse, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_CUBIC)
        self.frames = np.stack([ground] * NUM_FRAMES)
        self.masks = []
        for colour, start, end, size in paths:
            masks = []
            for i in range(NUM_FRAMES):
                share = i / (NUM_FRAMES - 1)
                centre = tuple(round(a + share * (b - a)) for a, b in zip(start, end, strict=True))
                blank = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
                cv2.ellipse(blank, centre, size, 0, 0, 360, 1, -1)
                self.frames[i][blank > 0] = colour
                masks.append(blank > 0)
            self.masks.append(masks)
        noise = rng.integers(-6, 7, self.frames.shape)
        self.frames = np.clip(self.frames.astype(int) + noise, 0, 255).astype(np.uint8)

    def read(self, clip, frame_idx, long_side_px):
        return self.frames[list(frame_idx)]


def clip_of():
    return Clip(
        clip_id="clip-1",
        source_id="row-1",
        video="a.mp4",
        video_sha256="0" * 64,
        license="CC0",
        start_s=0,
        end_s=NUM_FRAMES / FPS,
        start_frame=0,
        end_frame=NUM_FRAMES,
        fps=FPS,
        height_px=HEIGHT_PX,
        width_px=WIDTH_PX,
        caption="A red bus moves to the right and a blue dog moves to the left.",
    )


def mention_of(noun, detector_class=None, **said):
    return Mention(
        mention_id=f"m-{noun}",
        clip_id="clip-1",
        noun=noun,
        phrase=f"a {noun}",
        start_char=0,
        end_char=5,
        role="subject",
        number="singular",
        detector_class=detector_class or noun,
        class_similarity=1,
        said=SaidAttributes(**({"count": 1} | said)),
    )


def masks_of(masks, detector_class):
    return ObjectMasks(
        detector_class=detector_class,
        frame_idx=tuple(range(NUM_FRAMES)),
        frame_time_s=tuple(i / FPS for i in range(NUM_FRAMES)),
        rle=tuple(encode(mask) if mask.any() else None for mask in masks),
        height_px=masks[0].shape[0],
        width_px=masks[0].shape[1],
        score=0.9,
    )


def track_of(mention, masks):
    return Track(
        track_id=f"t-{mention.noun}",
        clip_id="clip-1",
        mention_id=mention.mention_id,
        noun=mention.noun,
        masks=masks_of(masks, mention.detector_class),
    )


SCENE = Painted((RED, (60, 60), (250, 60), (40, 22)), (BLUE, (260, 130), (70, 135), (22, 26)))
BUS = mention_of("bus", colours=("red",), directions=("right",), places=("left",), actions=("move",))
DOG = mention_of("dog", colours=("blue",), directions=("left",), actions=("move",))


def job_of(mentions, tracks, scene=SCENE):
    """A job whose captions the real annotator measured on these tracks."""
    mention_set = MentionSet(clip_id="clip-1", mentions=tuple(mentions), rejected=())
    track_set = TrackSet(clip_id="clip-1", tracks=tuple(tracks), rejected=())
    job = AnnotatorJob(clip=clip_of(), mentions=mention_set, tracks=track_set)
    (captions,) = Annotator(AnnotatorConfig(), scene).process([job])
    return ReviewerJob(clip=job.clip, mentions=mention_set, tracks=track_set, captions=captions)


def true_job():
    return job_of((BUS, DOG), [track_of(BUS, SCENE.masks[0]), track_of(DOG, SCENE.masks[1])])


def replaced(record, **values):
    return type(record).model_validate(record.model_dump() | values)


def with_mention(job, mention):
    first = next(i for i, m in enumerate(job.mentions.mentions) if m.mention_id == mention.mention_id)
    mentions = (*job.mentions.mentions[:first], mention, *job.mentions.mentions[first + 1 :])
    return job.model_copy(update={"mentions": job.mentions.model_copy(update={"mentions": mentions})})


def with_track(job, index, track):
    tracks = (*job.tracks.tracks[:index], track, *job.tracks.tracks[index + 1 :])
    return job.model_copy(update={"tracks": job.tracks.model_copy(update={"tracks": tracks})})


def with_caption(job, index, caption):
    captions = (*job.captions.captions[:index], caption, *job.captions.captions[index + 1 :])
    return job.model_copy(update={"captions": job.captions.model_copy(update={"captions": captions})})


def said(mention, **values):
    return mention.model_copy(update={"said": mention.said.model_copy(update=values)})


@pytest.fixture(scope="module")
def reviewer():
    agent = Reviewer(ReviewerConfig(), SCENE, ScriptedClassifier(), WordEmbedder(), CLASSES)
    agent.setup()
    return agent


def verdict_on(reviewer, job, index=0):
    (result,) = reviewer.process([job])
    return result.verdicts[index]


def test_true_tracks_are_kept_with_every_check_listed(reviewer):
    (result,) = reviewer.process([true_job()])
    assert [verdict.keep for verdict in result.verdicts] == [True, True]
    assert not result.rejected
    for verdict in result.verdicts:
        assert {check.name for check in verdict.checks} == set(REASONS)
        assert verdict.reason is None
        assert verdict.score >= 0.6


@pytest.mark.parametrize(
    ("said_values", "reason"),
    [
        ({"colours": ("green",)}, "colour_mismatch"),
        ({"directions": ("left",)}, "direction_mismatch"),
        ({"directions": ("toward",)}, "direction_mismatch"),
        ({"places": ("bottom",)}, "place_mismatch"),
        ({"count": 3}, "count_claim_mismatch"),
    ],
)
def test_a_false_claim_of_the_caption_drops(reviewer, said_values, reason):
    verdict = verdict_on(reviewer, with_mention(true_job(), said(BUS, **said_values)))
    assert (verdict.keep, verdict.reason) == (False, reason)


@pytest.mark.parametrize(
    "said_values",
    [{"colours": ()}, {"directions": ("left", "right")}, {"places": ()}, {"count": None}],
)
def test_what_cannot_be_told_does_not_drop(reviewer, said_values):
    assert verdict_on(reviewer, with_mention(true_job(), said(BUS, **said_values))).keep


def test_what_the_annotator_makes_up_drops(reviewer):
    job = true_job()
    caption = job.captions.captions[0]
    colour = caption.appearance_facts.model_copy(
        update={"colours": (caption.appearance_facts.colours[0].model_copy(update={"colour": "green"}),)}
    )
    motion = caption.motion_facts.model_copy(update={"direction": "left"})
    still = caption.motion_facts.model_copy(update={"direction": "none"})
    for update, reason in (
        ({"appearance_facts": colour}, "colour_mismatch"),
        ({"motion_facts": motion}, "direction_mismatch"),
        ({"motion_facts": still}, "direction_mismatch"),
        ({"visible_to_s": 0.5}, "not_visible"),
        ({"noun": "dog"}, "class_mismatch"),
    ):
        verdict = verdict_on(reviewer, with_caption(job, 0, caption.model_copy(update=update)))
        assert (verdict.keep, verdict.reason) == (False, reason)


def test_another_noun_drops_whether_or_not_the_labels_agree(reviewer):
    words = with_mention(true_job(), replaced(BUS, noun="dog"))
    assert verdict_on(reviewer, words).reason == "class_mismatch"
    cat = mention_of("cat", directions=("right",))
    everywhere = job_of((cat,), [track_of(cat, SCENE.masks[0])])
    verdict = verdict_on(reviewer, everywhere)
    assert verdict.reason == "class_mismatch"
    assert [check.name for check in verdict.checks if check.outcome == "disagrees"] == ["class_vote"]


@pytest.mark.parametrize(
    ("noun", "phrase", "detector_class", "outcome"),
    [
        ("bike", "A dirt bike", "motorcycle", "agrees"),
        ("bike", "two dirt bikes", "motorcycle", "agrees"),
        ("bike", "a bike", "motorcycle", "disagrees"),
        ("light", "the traffic light", "traffic light", "agrees"),
        ("bike", "a bike", "bike", "agrees"),
    ],
)
def test_the_word_before_the_noun_may_make_the_class(reviewer, noun, phrase, detector_class, outcome):
    mention = replaced(mention_of(noun, detector_class), phrase=phrase)
    verdict = verdict_on(reviewer, job_of((mention,), [track_of(mention, SCENE.masks[0])]))
    assert {check.name: check.outcome for check in verdict.checks}["names"] == outcome


def test_a_noun_outside_the_classes_is_not_held_against_the_labels(reviewer):
    leash = mention_of("leash", directions=("right",))
    verdict = verdict_on(reviewer, job_of((leash,), [track_of(leash, SCENE.masks[0])]))
    assert verdict.keep
    assert {check.name: check.outcome for check in verdict.checks}["class_vote"] == "cannot_tell"


def test_swapped_tracks_drop(reviewer):
    bus, dog = true_job().tracks.tracks
    job = with_track(with_track(true_job(), 0, replaced(bus, masks=dog.masks)), 1, replaced(dog, masks=bus.masks))
    (result,) = reviewer.process([job])
    assert [verdict.keep for verdict in result.verdicts] == [False, False]


def test_swapped_tracks_of_one_class_drop_by_their_colours():
    scene = Painted((RED, (60, 50), (250, 50), (40, 22)), (BLUE, (60, 130), (250, 130), (40, 22)))
    first, second = (
        mention_of("bus", colours=("red",)),
        replaced(mention_of("bus", colours=("blue",)), mention_id="m-2"),
    )
    tracks = [track_of(first, scene.masks[1]), replaced(track_of(second, scene.masks[0]), track_id="t-2")]
    agent = Reviewer(ReviewerConfig(), scene, ScriptedClassifier(), WordEmbedder(), CLASSES)
    agent.setup()
    (result,) = agent.process([job_of((first, second), tracks, scene)])
    for verdict in result.verdicts:
        assert not verdict.keep
        assert "said_colours" in {check.name for check in verdict.checks if check.outcome == "disagrees"}


@pytest.mark.parametrize("share", [0.35, 0.9])
def test_a_mask_that_left_its_object_drops_although_the_annotator_went_along(reviewer, share):
    shift_px = int(share * np.sqrt(SCENE.masks[0][0].sum()))
    moved = [np.roll(mask, shift_px, axis=0) for mask in SCENE.masks[0]]
    plain = mention_of("bus")
    verdict = verdict_on(reviewer, job_of((plain,), [track_of(plain, moved)]))
    assert not verdict.keep
    assert "outline" in {check.name for check in verdict.checks if check.outcome == "disagrees"}


def test_a_leaping_or_flickering_mask_drops(reviewer):
    plain = mention_of("bus")
    leaping = [*SCENE.masks[0][:12], *SCENE.masks[1][12:]]
    flickering = [
        m if i % 2 else m & (np.arange(WIDTH_PX) < m.nonzero()[1].mean()) for i, m in enumerate(SCENE.masks[0])
    ]
    for masks in (leaping, flickering):
        verdict = verdict_on(reviewer, job_of((plain,), [track_of(plain, masks)]))
        steadiness = next(check for check in verdict.checks if check.name == "steadiness")
        assert steadiness.outcome == "disagrees"
        assert verdict.reason == "unstable_mask"


def test_an_object_hardly_ever_seen_drops(reviewer):
    plain = mention_of("bus")
    masks = [mask if i < 2 else np.zeros_like(mask) for i, mask in enumerate(SCENE.masks[0])]
    assert verdict_on(reviewer, job_of((plain,), [track_of(plain, masks)])).reason == "not_visible"


def test_a_track_without_mention_drops_and_one_without_caption_is_still_judged(reviewer):
    job = true_job()
    orphan = with_track(job, 0, job.tracks.tracks[0].model_copy(update={"mention_id": "m-none"}))
    assert verdict_on(reviewer, orphan).reason == "class_mismatch"
    bare = job.model_copy(update={"captions": job.captions.model_copy(update={"captions": ()})})
    assert verdict_on(reviewer, bare).keep


def test_dropped_tracks_are_rejected_with_the_figures(reviewer):
    (result,) = reviewer.process([with_mention(true_job(), said(BUS, colours=("green",)))])
    (entry,) = result.rejected
    assert (entry.subject_id, entry.stage, entry.reason, entry.retryable) == (
        "t-bus",
        "reviewer",
        "colour_mismatch",
        False,
    )
    assert "green claimed; seen red" in entry.evidence


def test_no_tracks_no_verdicts(reviewer):
    (result,) = reviewer.process([job_of((BUS,), [])])
    assert result.verdicts == result.rejected == ()


def test_the_rule_takes_the_lowest_disagreeing_check():
    checks = tuple(
        Check(name=name, outcome=outcome, score=score, detail="")
        for name, outcome, score in (
            ("count", "agrees", 1.0),
            ("said_places", "disagrees", 0.3),
            ("said_colours", "disagrees", 0.1),
            ("outline", "cannot_tell", 0.0),
        )
    )
    verdict = judge("t", checks)
    assert (verdict.keep, verdict.reason, verdict.score) == (False, "colour_mismatch", 0.1)
    assert judge("t", checks[:1]).keep
    assert (judge("t", checks[3:]).keep, judge("t", checks[3:]).score) == (True, 0.5)


def test_looks_fall_on_seen_frames_and_off_an_even_step_from_the_start():
    masks = masks_of([m if i != 5 else np.zeros_like(m) for i, m in enumerate(SCENE.masks[0])], "bus")
    positions = look_positions(masks, 6)
    assert len(positions) == 6
    assert 5 not in positions
    assert not {0, 4, 8, 12, 16, 20} & set(positions)
    assert look_positions(masks_of([SCENE.masks[0][0]] * NUM_FRAMES, "bus"), 1) == [9]


def test_box_paths_match_the_pixels():
    path = box_path(masks_of(SCENE.masks[0], "bus"))
    for mask, box, area in zip(SCENE.masks[0], path.boxes, path.areas, strict=True):
        ys, xs = mask.nonzero()
        np.testing.assert_allclose(
            box,
            [xs.min() / WIDTH_PX, ys.min() / HEIGHT_PX, (xs.max() + 1) / WIDTH_PX, (ys.max() + 1) / HEIGHT_PX],
        )
        assert area == pytest.approx(mask.mean())
    dx, dy = in_frame(path).displacement_diag()
    assert dx == pytest.approx(182 / np.hypot(HEIGHT_PX, WIDTH_PX), abs=0.01)
    assert dy == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((10, 10, 10), "black"),
        ((245, 245, 240), "white"),
        ((128, 128, 128), "gray"),
        ((200, 20, 30), "red"),
        ((250, 140, 20), "orange"),
        ((240, 220, 30), "yellow"),
        ((40, 150, 50), "green"),
        ((30, 60, 200), "blue"),
        ((120, 40, 160), "purple"),
        ((250, 150, 190), "pink"),
        ((110, 70, 35), "brown"),
    ],
)
def test_colours_have_their_usual_names(rgb, name):
    image = np.full((40, 40, 3), rgb, np.uint8)
    colours = colours_of([Look(image, np.pad(np.ones((20, 20), bool), 10))])
    assert colours.seen[name] == 1
    assert colours.may_be[name] == 1
    assert min(colours.may_be.values()) == 0


def test_the_outline_of_the_object_has_more_support_than_a_moved_one():
    mask = SCENE.masks[0][12]
    assert outline_support(Look(SCENE.frames[12], mask)) > 1.5
    assert outline_support(Look(SCENE.frames[12], np.roll(mask, 20, axis=1))) < 0.9


def test_only_the_claimed_class_s_own_labels_speak_for_it():
    labels = ("tabby, cat", "minibus", "school bus", "bow tie", "web site")
    votes = ClassVote(
        labels, {"cat": "tabby", "bus": "minibus..school bus", "tie": "bow tie", "truck": "minibus, no such"}
    )
    seen = np.array([0.1, 0.5, 0.2, 0.15, 0.05], np.float32)
    bus, person = (votes.vote(seen, claimed) for claimed in ("bus", "person"))
    assert (bus.own, bus.rival, bus.rival_class) == (pytest.approx(0.7), pytest.approx(0.15), "tie")
    assert (person.own, person.rival) == (None, pytest.approx(0.7))
    assert votes.vote(seen, "kite") is None
    assert votes.vote(np.array([0, 0, 0, 1, 0], np.float32), "person").rival == 0
    assert person.rival_class == "bus"


@pytest.mark.weights
def test_every_label_of_the_table_is_one_of_the_classifier_s():
    firsts = [label.split(", ")[0] for label in EfficientNetLite3().labels]
    named = {name for text in LABELS.values() for part in text.split(", ") for name in part.split("..")}
    assert named <= set(firsts)
    assert set(LABELS) <= set(CLASSES)
    assert set(RIDDEN_ANIMALS.split(", ")) <= set(firsts)


@pytest.mark.weights
def test_a_class_without_labels_is_left_to_the_other_checks(votes):
    assert [name for name in CLASSES if name not in LABELS] == ["person", "frisbee", "baseball glove"]
    assert set(ON_PERSONS) <= set(LABELS)
    for name in ("frisbee", "baseball glove"):
        assert votes.vote(seen_as(votes, "street sign"), name) is None
    assert class_vote(None).outcome == "cannot_tell"


@pytest.mark.weights
@pytest.mark.parametrize(
    ("claimed", "label", "outcome"),
    [
        ("stop sign", "street sign", "agrees"),
        ("scissors", "hair slide", "agrees"),
        ("toothbrush", "paintbrush", "agrees"),
        ("kite", "parachute", "agrees"),
        ("surfboard", "paddle", "agrees"),
        ("skateboard", "knee pad", "agrees"),
        ("kite", "sports car", "disagrees"),
        ("stop sign", "tabby", "disagrees"),
        ("person", "mountain bike", "cannot_tell"),
        ("person", "moped", "cannot_tell"),
        ("person", "sorrel", "cannot_tell"),
        ("person", "paddle", "cannot_tell"),
        ("person", "parachute", "cannot_tell"),
        ("person", "hair slide", "cannot_tell"),
        ("person", "ox", "disagrees"),
        ("person", "sports car", "disagrees"),
    ],
)
def test_a_sure_label_speaks_for_and_against_the_classes_it_should(votes, claimed, label, outcome):
    assert class_vote(votes.vote(seen_as(votes, label), claimed)).outcome == outcome


def test_the_vote_grows_with_the_labels_of_the_class():
    def score(own):
        return class_vote(Vote(own=own, rival=0, rival_class="cat", top_label="tabby", top_probability=0.1)).score

    scores = [score(own) for own in np.linspace(0, 1, 1001)]
    assert (np.diff(scores) > 0).all()
    assert (score(ABSENT_LABELS), score(AGREEING_LABELS)) == (DISAGREES_BELOW, AGREES_FROM)


def test_the_settings_name_the_table_of_labels(reviewer, monkeypatch):
    before = reviewer.label()
    monkeypatch.setitem(LABELS, "kite", "parachute")
    assert reviewer.label() != before


@pytest.fixture(scope="module")
def votes():
    return ClassVote(EfficientNetLite3().labels)


def seen_as(votes, label):
    """Probabilities of a classifier that is sure of one label, known by its first name."""
    names = [names.split(", ")[0] for names in EfficientNetLite3().labels]
    probabilities = np.full(len(names), 0.1 / (len(names) - 1), np.float32)
    probabilities[names.index(label)] = 0.9
    return probabilities


def looks_along(step_px, jump_px):
    """Six looks at a square that moves by `jump_px` a look over a ground that moves by `step_px`, both rightward."""
    rng = np.random.default_rng(3)
    ground = cv2.resize(rng.integers(0, 255, (36, 100, 3), np.uint8), (1000, 360), interpolation=cv2.INTER_CUBIC)
    looks = []
    for i in range(6):
        left = 300 - i * step_px
        image = ground[:, left : left + 480].copy()
        mask = np.zeros(image.shape[:2], bool)
        mask[150:210, 100 + i * jump_px : 160 + i * jump_px] = True
        image[mask] = RED
        looks.append(Look(image, mask))
    return looks


@pytest.mark.parametrize(("step_px", "jump_px"), [(0, 30), (20, 30), (20, 0), (0, 0), (-20, 0)])
def test_movement_against_the_ground_leaves_the_camera_out(step_px, jump_px):
    movement = against_ground(looks_along(step_px, jump_px))
    dx, dy = movement.displacement_diag()
    assert dx == pytest.approx(5 * (jump_px - step_px) / np.hypot(480, 360), abs=0.01)
    assert dy == pytest.approx(0, abs=0.01)
    assert direction_score("right", movement, still_tells=True) == float(jump_px > step_px)
    assert direction_score("none", movement, still_tells=True) == float(jump_px == step_px)


def test_ground_without_corners_cannot_be_followed():
    looks = looks_along(0, 30)
    blank = [Look(np.where(look.mask[..., None], look.image, np.uint8(90)), look.mask) for look in looks]
    assert against_ground(blank) is None


@pytest.mark.parametrize(
    ("actions", "directions", "keep"),
    [
        (("stay",), (), False),
        (("move",), (), True),
        (("stay",), ("right",), True),
        (("wait", "move"), (), True),
        ((), (), True),
        ((), ("up",), False),
    ],
)
def test_what_stays_may_not_move_and_what_moves_may_not_move_across(reviewer, actions, directions, keep):
    job = with_mention(true_job(), said(BUS, actions=actions, directions=directions, places=()))
    assert verdict_on(reviewer, job).keep == keep


@pytest.mark.weights
def test_true_painted_tracks_pass_the_real_models_too():
    agent = Reviewer(ReviewerConfig(), SCENE, EfficientNetLite3(), MiniLm(), CLASSES)
    agent.setup()
    ball = mention_of("ball", "sports ball", colours=("blue",), directions=("left",))
    verdict = verdict_on(agent, job_of((ball,), [track_of(ball, SCENE.masks[1])]))
    assert {check.name for check in verdict.checks if check.outcome == "disagrees"} <= {"class_vote"}
    assert agent.label().engine == "second-look+efficientnet-lite3+minilm"
