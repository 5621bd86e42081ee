"""Captions that say where a thing is before they say what it does; hand-made, and every wording of a small grammar."""

import itertools

import pytest

from agents.analyzer import Analyzer, AnalyzerConfig
from agents.engines.coco_classes import COCO_CLASSES
from agents.engines.minilm import MiniLm
from agents.engines.place_phrases import place_phrases
from agents.engines.spacy_nouns import SpacyNouns
from infra.cutouts import load_cutouts
from schemas.clip import Clip

pytestmark = pytest.mark.weights

CAPTIONS = {
    "A cyclist on the left moves to the right.": "cyclist:left:right",
    "the man in the middle walks away": "man:middle:away",
    "The dog at the top runs to the left.": "dog:top:left",
    "The woman in the background waves.": "woman::",
    "A man in the background walks to the right while a dog sleeps.": "man::right dog::",
    "to the left of the car a dog runs": "car:: dog::",
    "To the left of the car, a dog runs.": "car:: dog::",
    "A dog to the left of the car runs away.": "dog::away car::",
    "A dog left of the car runs to the right.": "dog::right car::",
    "A dog on the left of the car runs.": "dog:: car::",
    "A dog on the left side of the car runs away.": "dog::away car::",
    "the left car moves right": "car::right",
    "a red car on the right side stays still while another moves away": "car:right:",
    "A red car on the left and a blue car on the right move toward the camera.": "car:left:toward car:right:toward",
    "Two dogs on the left run to the right.": "dog:left:right",
    "Three birds at the top fly away.": "bird:top:away",
    "The people in the middle stand still.": "people:middle:",
    "a man on left walks right": "man:left:right",
    "person on right moving left": "person:right:left",
    "The cat on the far right jumps down.": "cat:right:down",
    "The bird in the top left corner flies up.": "bird:top,left:up",
    "The bird in the upper right corner flies down.": "bird:top,right:down",
    "A boat at the bottom of the frame drifts to the left.": "boat:bottom:left",
    "A man in a red shirt on the left rides a bicycle.": "man:left: bicycle::",
    "A man on a horse on the right rides away.": "man:right:away horse::",
    "A woman with an umbrella in the middle crosses the street.": "woman:middle: umbrella::",
    "The man riding a horse on the left walks away.": "man:left:away horse::",
    "The man holding a cup on the left walks away.": "man:left:away cup::",
    "On the left a dog runs to the right.": "dog:left:right",
    "On the left, a dog runs to the right.": "dog:left:right",
    "In the middle of the screen a red ball rolls to the left.": "ball:middle:left",
    "on the left the cat jumps": "cat:left:",
    "at the top two dogs move to the right": "dog:top:right",
    "a bird sleeps while on the left the cat jumps": "bird:: cat:left:",
    "On the left a dog and a cat run away while a man stands in the middle.": "dog:left:away cat:left:away man:middle:",
    "A car goes left to the camera and stops.": "car::left,toward",
    "A cat sleeps and on the right a dog runs.": "cat:: dog:right:",
    "A cat sleeps while on the right two dogs run away.": "cat:: dog:right:away",
    "A dog runs on the left.": "dog:left:",
    "A man walks on the left and a dog runs to the right.": "man:left: dog::right",
    "A man moves on the right holding an umbrella.": "man:right: umbrella::",
    "The man who sits on the left reads a book.": "man:left: book::",
    "The man sitting on the left stands up.": "man:left:",
    "The man on the left who wears a hat walks to the right.": "man:left:right",
    "The man on the left slowly walks to the right.": "man:left:right",
    "The man on the left does not move.": "man:left:",
    "The shoe on the left foot is red.": "",
    "The book on the top shelf falls down.": "book::",
    "The book on the top shelves falls down.": "book::",
    "A car in the left lane moves away.": "car::away",
    "The car in the middle of the road moves left.": "car::left",
    "A cup on the bottom step stays still.": "cup::",
    "A man sits on the left bench and reads.": "man:: bench::",
    "A bird at the top of the tree flies away.": "bird::away",
    "A horse on the left gallops, a cow on the right lies down.": "horse:left: cow:right:",
    "A train on the right passes a car on the left.": "train:right: car:left:",
    "The man in the center of the picture throws a ball to the man on the right.": "man:middle: ball:: man:right:",
    "Cars on the left move away and cars on the right move toward the camera.": "car:left:away car:right:toward",
    "A kid on the left kicks a ball to the right.": "kid:left: ball::",
    "The two women on the right dance.": "woman:right:",
    "A group of dogs on the left run away.": "dog:left:away",
    "The dog in front runs to the left.": "dog::left",
    "A black cat on the left looks to the right.": "cat:left:",
    "There is a dog on the left that runs to the right.": "dog:left:right",
    "A man stands on the right side of the road.": "man::",
    "A ball moves from the left to the right.": "ball::right",
    "A dog runs at the right moment.": "dog::",
    "dog on the left barks, dog on the right runs away": "dog:left: dog:right:away",
    "A cat comes toward the camera and a woman moves to the left.": "cat::toward woman::left",
    "A man walks to the left and a woman walks to the right.": "man::left woman::right",
    "Two cats on the left and a dog in the middle sleep.": "cat:left: dog:middle:",
    "A dog on the left and a cat on the right.": "dog:left: cat:right:",
    "A ball on the left rolls to the right, hits a bottle in the middle, and stops.": "ball:left:right bottle:middle:",
}
"""Caption to its mentions, each as noun, places and directions."""

PLACES = {
    "on the left": ("left",),
    "on the right": ("right",),
    "at the bottom": ("bottom",),
    "in the middle": ("middle",),
    "on the far left": ("left",),
    "on the left-hand side of the screen": ("left",),
    "in the background": (),
}
WAYS = {
    "moves to the left": ("left",),
    "moves up": ("up",),
    "comes toward the camera": ("toward",),
    "moves away from the camera": ("away",),
    "stays still": (),
}


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


@pytest.mark.parametrize("caption", CAPTIONS)
def test_places_and_directions_are_of_the_noun_that_has_them(analyzer, caption):
    (result,) = analyzer.process([clip_of(caption)])
    told = [f"{m.noun}:{','.join(m.said.places)}:{','.join(m.said.directions)}" for m in result.mentions]
    assert " ".join(told) == CAPTIONS[caption]
    assert [caption[m.start_char : m.end_char] for m in result.mentions] == [m.phrase for m in result.mentions]


@pytest.mark.slow
def test_every_noun_place_and_way_is_read(analyzer):
    nouns = sorted({cutout.noun for cutout in load_cutouts()})
    clauses = [
        (f"a {noun} {place} {way}", (noun, PLACES[place], WAYS[way]))
        for noun, place, way in itertools.product(nouns, PLACES, WAYS)
    ]
    rows = [(f"A{clause[1:]}.", [said]) for clause, said in clauses]
    others = clauses[len(clauses) // 3 :] + clauses[: len(clauses) // 3]
    joints = itertools.cycle((" while ", " and ", ", "))
    pairs = zip(clauses, others, joints, strict=False)
    rows += [(f"A{one[1:]}{joint}{two}.", [a, b]) for (one, a), (two, b), joint in pairs]
    results = analyzer.process([clip_of(caption) for caption, _ in rows])
    told = [[(m.noun, m.said.places, m.said.directions) for m in result.mentions] for result in results]
    wrong = [caption for (caption, said), got in zip(rows, told, strict=True) if got != said]
    assert len(wrong) <= 0.01 * len(rows), wrong


@pytest.mark.parametrize("caption", CAPTIONS)
def test_words_and_spaces_stay_and_no_arc_is_lost(parser, caption):
    doc = parser.parse(caption)
    assert doc.text == caption
    assert all(token.dep_ and token.tag_ and token.lemma_ for token in doc)
    assert all(token.sent.root.is_ancestor(token) for token in doc if token.head.i != token.i)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a dog on the far left runs", ["on the far left"]),
        ("a dog in the middle of the frame runs", ["in the middle of the frame"]),
        ("a dog in the middle of the road runs", []),
        ("a dog at the top left - hand side runs", ["at the top left - hand side"]),
        ("a dog in the background runs", ["in the background"]),
        ("a dog in the foreground of the picture runs", ["in the foreground of the picture"]),
        ("a dog runs to the left and barks", ["to the left"]),
        ("a dog runs to left and barks", []),
        ("a dog runs on the left .", []),
        ("a dog on the left sees a cat on the right .", ["on the left", "on the right"]),
        ("a dog on a bench runs", []),
        ("on", []),
        ("on the", []),
        ("on the left of", []),
    ],
)
def test_phrases_are_found_by_their_words(text, found):
    words = text.split()
    assert [" ".join(words[phrase.start : phrase.end]) for phrase in place_phrases(words)] == found


def test_a_place_of_another_thing_stays_in_the_parse(parser):
    doc = parser.parse("A man sits on the left bench and reads.")
    assert [token.head.text for token in doc if token.text == "bench"] == ["on"]


def test_lemmas_are_those_of_the_words_where_a_phrase_was_put_back(parser):
    lemmas = {token.text: token.lemma_ for token in parser.parse("A dog on the left, which is brown, runs away.")}
    assert (lemmas["is"], lemmas["runs"], lemmas["left"]) == ("be", "run", "left")
