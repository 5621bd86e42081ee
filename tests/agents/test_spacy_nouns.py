"""Captions whose verbs pass for nouns: the parser puts them right, and no noun of any caption is lost."""

import numpy as np
import pytest

from agents.analyzer import Analyzer, AnalyzerConfig
from agents.engines.coco_classes import COCO_CLASSES
from agents.engines.minilm import MiniLm
from agents.engines.spacy_nouns import SpacyNouns
from agents.said import nominals
from infra.actors import Actor, Pose
from infra.cutouts import load_cutouts
from infra.synthetic import caption_of
from schemas.clip import Clip

pytestmark = pytest.mark.weights

NATURAL = """
A boy kicks a ball.
A dog runs.
The car turns left and stops.
Cars drive by.
the dog that runs to the left then stops
two men walking
man in red shirt riding a horse jumps over the fence
A man walks from left to right past a parked bicycle.
walks from left to right past a parked bicycle
A skateboarder rides down the ramp while people watch.
The yellow bus turns right at the corner.
The man on the horse jumps over a fence.
A train passes through the station.
Planes fly over the city.
People stand on the sidewalk.
A cyclist rides past two parked cars.
A red sports car races another car.
A tennis player hits the ball with a racket.
Two dogs run after a ball.
A surfer rides a big wave.
A kid jumps on a bed.
The first bird to fly away
the rabbit eating on the left, not moving
puppy that turns around and walks toward us
A girl stands next to a horse and feeds it an apple.
Three sheep walk in a line behind a dog.
elephant with its trunk raised moving backward
The cat walks across the keyboard of a laptop.
A truck drives through mud while a man films it with his phone.
white car moving forward and turning left
the panda who stays on the ground all the time
A boat sails on the lake near a bridge.
A bird lands on a bench.
A giraffe bends down and drinks water.
The person with an umbrella crosses the road.
A chef cuts a carrot with a knife.
A baby plays with a teddy bear on the couch.
Children ride bicycles in the park.
The zebra runs ahead of the others.
A cow stands in a field; another cow lies down.
Woman walks dog.
Man rides horse along beach
A motorcycle rider falls off his bike.
A dancer turns, jumps and lands.
An old man sits on a bench, reading a book.
The biggest elephant leads the herd.
A horse jumps.
A ball rolls off the table.
A skier slides down a snowy hill between two trees.
He drives a car.
The airplane takes off and climbs into the sky.
A police officer stops a truck.
Someone throws a frisbee to a dog, which catches it.
A man in a black suit drives a car, then a woman drives a bus.
A black dog walks beside a brown dog; the black dog stops.
There is a cat that sleeps on a chair.
Bears fight in the river.
A runner passes another runner on the track.
Two boats race; one boat turns left.
A person pushes a stroller past a bus stop.
the bike that is being ridden by the man in blue
A cat walks on a fence, jumps down, and runs away.
A goat leads goats.
Elephants, zebras and giraffes drink at a waterhole.
A boy plays guitar, a girl plays drums.
A car stops and the driver gets out.
The dog looks left, looks right, then runs to the left.
A snowboarder jumps and turns in the air.
A rider moves slowly to the right.
Boy walks dog past parked cars and a fire hydrant
a clothes rack and a glass of wine
A man takes dog walks.
Kids enjoy pony rides at the fair.
""".strip().splitlines()


@pytest.fixture(scope="module")
def parser():
    engine = SpacyNouns()
    engine.setup()
    return engine


@pytest.fixture(scope="module")
def analyzer(parser):
    agent = Analyzer(AnalyzerConfig(), parser, MiniLm(), tuple(COCO_CLASSES.values()))
    agent.setup()
    yield agent
    agent.close()


def clip_of(caption):
    return Clip(
        clip_id="clip-1",
        source_id="row-1",
        video="a.mp4",
        video_sha256="0" * 64,
        license="CC0",
        start_s=0,
        end_s=2,
        start_frame=0,
        end_frame=50,
        fps=25,
        height_px=90,
        width_px=160,
        caption=caption,
    )


def draw_actors(rng):
    """One to five objects with any motion; where they go in the frame plays no part."""
    cutouts, directions = load_cutouts(), ["left", "right", "up", "down", "toward", "away", "none"]
    actors = []
    for _ in range(rng.integers(1, 6)):
        cutout = cutouts[int(rng.integers(len(cutouts)))]
        colour = rng.choice(list(cutout.tints)).item() if cutout.tints and rng.random() < 0.75 else None
        pose = Pose(0, 0, 50)
        direction = rng.choice(directions).item()
        actors.append(Actor(cutout=cutout, colour=colour, direction=direction, start=pose, end=pose, eased=False))
    return actors


SYNTHETIC = 440


@pytest.fixture(scope="module")
def drawn(analyzer):
    """Actors, their caption, and what the analyzer makes of it."""
    rng = np.random.default_rng(7)
    actors = [draw_actors(rng) for _ in range(SYNTHETIC)]
    captions = [caption_of(group) for group in actors]
    return list(zip(actors, captions, analyzer.process([clip_of(caption) for caption in captions]), strict=True))


def truth_of(actor):
    colours = (actor.colour,) if actor.colour else ()
    return actor.cutout.detector_class, colours, () if actor.direction == "none" else (actor.direction,)


def test_synthetic_captions_give_their_actors(drawn):
    wrong = [
        caption
        for actors, caption, result in drawn
        if [(m.detector_class, m.said.colours, m.said.directions) for m in result.mentions]
        != [truth_of(actor) for actor in actors]
    ]
    assert len(wrong) <= 0.01 * SYNTHETIC, wrong


def test_every_noun_ends_as_a_mention_or_a_rejection(analyzer, parser, drawn):
    natural = zip(NATURAL, analyzer.process([clip_of(caption) for caption in NATURAL]), strict=True)
    for caption, result in [*natural, *((caption, result) for _, caption, result in drawn)]:
        doc = parser.parse(caption)
        assert doc.text == caption
        items = nominals(doc)
        within = {i for item in items for i in range(item.start, item.end)}
        assert not [token for token in doc if token.pos_ in ("NOUN", "PROPN") and token.i not in within], caption
        assert len(result.mentions) + len(result.rejected) == len(items), caption
        assert all(m.phrase == caption[m.start_char : m.end_char] for m in result.mentions)


@pytest.mark.parametrize(
    ("caption", "mentions"),
    [
        ("A boy kicks a ball.", [("boy", "subject", "kick"), ("ball", "other", "")]),
        ("A dog runs.", [("dog", "subject", "run")]),
        ("The car turns left and stops.", [("car", "subject", "turn stop")]),
        ("Cars drive by.", [("car", "subject", "drive")]),
        ("A dancer turns, jumps and lands.", [("dancer", "subject", "turn jump land")]),
        ("A cat and a cyclist go left.", [("cat", "subject", "go"), ("cyclist", "subject", "go")]),
        ("The man on the horse jumps over a fence.", [("man", "subject", "jump"), ("horse", "other", "")]),
        (
            "man in red shirt riding a horse jumps over the fence",
            [("man", "subject", "ride jump"), ("horse", "other", "")],
        ),
        ("A red sports car races another car.", [("car", "subject", "race"), ("car", "other", "")]),
        ("walks from left to right past a parked bicycle", [("bicycle", "other", "")]),
        ("A person pushes a stroller past a bus stop.", [("person", "subject", "push")]),
        ("Three cats without tails sleep", [("cat", "subject", "sleep")]),
    ],
)
def test_verbs_that_pass_for_nouns_stay_verbs(analyzer, caption, mentions):
    (result,) = analyzer.process([clip_of(caption)])
    assert [(m.noun, m.role, " ".join(m.said.actions)) for m in result.mentions] == mentions


ING_EXPRESSIONS = {
    "the rickshaw turning left": "rickshaw 1  turn",
    "white rabbit jumping left": "rabbit 1 left jump",
    "small fish swimming upwards": "fish 1 up swim",
    "the turtle swimming left": "turtle 1 left swim",
    "car turning left": "car 1  turn",
    "dog jumping and turning": "dog 1  jump turn",
    "lizard crawling": "lizard 1  crawl",
    "the white horse walking left": "horse 1 left walk",
    "a zebra riding away": "zebra 1 away ride",
    "the parrot moving upwards": "parrot 1 up move",
    "tiger walking right": "tiger 1 right walk",
    "a goldfish crawling left": "goldfish 1 left crawl",
    "rickshaw standing and turning": "rickshaw 1  stand turn",
    "small dog turning left": "dog 1  turn",
    "turtle flying left": "turtle 1 left fly",
    "two rabbits jumping": "rabbit 2  jump",
    "the boy swimming": "boy 1  swim",
    "the elephant walking to the right": "elephant 1 right walk",
    "One of the fish swimming left": "fish 1 ",
    "a swimming pool": "pool 1 ",
    "the ice skating rink": "rink 1 ",
    "white running dog": "dog 1 ",
}


@pytest.mark.parametrize("expression", ING_EXPRESSIONS)
def test_an_expression_names_its_object_by_its_noun_and_not_by_what_that_does(analyzer, expression):
    (result,) = analyzer.process([clip_of(expression).model_copy(update={"given_sha256": "a" * 64})])
    (mention,) = result.mentions
    said = mention.said
    told = " ".join([mention.noun, str(said.count), ",".join(said.directions), *said.actions])
    assert told == ING_EXPRESSIONS[expression]
    assert mention.detector_class != "person" or mention.noun == "boy"


@pytest.mark.parametrize(
    ("caption", "mentions"),
    [
        ("A dog running to the left", [("dog", "left", "run")]),
        ("a bird flying away and another bird sitting", [("bird", "away", "fly"), ("bird", "", "sit")]),
        (
            "A plane landing, a bus passing and a dog barking.",
            [("plane", "", "land"), ("bus", "", "pass"), ("dog", "", "bark")],
        ),
        ("A horse jumping left and a dog crawling right", [("horse", "left", "jump"), ("dog", "right", "crawl")]),
        (
            "A cat sitting on a chair watches a bird flying outside.",
            [("cat", "", "sit watch"), ("chair", "", ""), ("bird", "", "fly")],
        ),
        ("The car turns left.", [("car", "", "turn")]),
        ("A woman turns to the camera.", [("woman", "", "turn")]),
        ("Horse riding is fun.", []),
        ("The boat racing team waits.", []),
        ("A man enjoys horse riding.", [("man", "", "enjoy")]),
    ],
)
def test_ing_forms_are_verbs_of_the_noun_before_them_where_it_does_them(analyzer, caption, mentions):
    (result,) = analyzer.process([clip_of(caption)])
    got = [(m.noun, ",".join(m.said.directions), " ".join(m.said.actions)) for m in result.mentions]
    assert got == mentions


def test_words_spaces_and_offsets_are_those_of_the_caption(parser):
    caption = "A  cyclist moves  to the left ,another cyclist moves right."
    doc = parser.parse(caption)
    assert doc.text == caption
    assert [(token.text, token.lemma_) for token in doc if token.pos_ == "VERB"] == [("moves", "move")] * 2


def test_a_left_out_word_is_taken_only_where_it_is_listed(analyzer):
    (result,) = analyzer.process([clip_of("the panda who stays on the ground all the time")])
    assert {entry.noun: entry.reason for entry in result.rejected}["time"] == "scenery"
