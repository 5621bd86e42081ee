import time

import pytest

from benchmark.facts import Fact, FactReader

NOUNS = ["man", "woman", "person", "dog", "cat", "car", "cup", "knife", "bus", "orange", "traffic light"]
NOUNS += [
    "fire hydrant",
    "hot dog",
    "plant",
    "potted plant",
    "cell phone",
    "tv",
    "train",
    "leaf",
    "face",
    "ride",
    "head",
]


@pytest.fixture(scope="module")
def reader() -> FactReader:
    return FactReader({noun: noun for noun in NOUNS} | {"puppy": "dog"})


def read(reader: FactReader, text: str) -> set[str]:
    return {f"{kind} {value}" for kind, value in reader.facts(text)}


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("", set()),
        ("一只红色的狗", set()),
        ("The car is mostly RED, with some grey.", {"object car", "colour red", "colour gray"}),
        ("An orange cap, and a navy car", {"colour orange", "colour blue", "object car"}),
        ("It is orange. The orange and white cat", {"colour orange", "colour white", "object cat"}),
        ("A man eats an orange", {"object man", "object orange"}),
        ("Two oranges on a train; a peel of the orange", {"count 2 orange", "object orange", "object train"}),
        ("3 fire hydrants, one hot dog", {"count 3 fire hydrant", "object fire hydrant", "object hot dog"}),
        ("Potted plants by a TV", {"object potted plant", "object tv"}),
        ("two cell phones", {"count 2 cell phone", "object cell phone"}),
        ("Two on a bus, in his 20s with 3 dogs", {"object bus", "count 3 dog", "object dog"}),
        ("Two small dogs and three women", {"count 2 dog", "count 3 woman", "object dog", "object woman"}),
        ("12 buses; one man; 0.4 s", {"count 12 bus", "object bus", "object man"}),
        ("people with knives at traffic lights", {"object person", "object knife", "object traffic light"}),
        ("The puppy’s cup", {"object dog", "object cup"}),
    ],
)
def test_colours_objects_and_counts_are_read(reader: FactReader, text: str, stated: set[str]) -> None:
    assert read(reader, text) == stated


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("It moves slowly to the right.", {"speed slow", "direction right"}),
        ("It moves from the left to the right of the frame.", {"direction right", "place left"}),
        ("It goes left, then quickly turns right", {"direction left", "speed fast", "direction right"}),
        ("It runs upwards and walks down", {"direction up", "direction down"}),
        ("moves at moderate speed toward the camera", {"speed moderate", "direction toward"}),
        ("approaches the viewer", {"direction toward"}),
        ("It walks away from the camera", {"direction away"}),
        ("It rides into the distance", {"direction away"}),
        ("It hardly moves and stays in the middle of the frame", {"speed still", "place middle"}),
        ("It doesn't move", {"speed still"}),
        ("stays stationary at the top right of the picture", {"speed still", "place top", "place right"}),
        ("occupies the lower left corner", {"place bottom", "place left"}),
        ("on the left, in the centre of the image", {"place left", "place middle"}),
        ("rises to the top of the screen", {"direction up"}),
        ("climbs and drifts to the top of the screen", {"direction up"}),
    ],
)
def test_directions_speeds_and_places_are_told_apart(reader: FactReader, text: str, stated: set[str]) -> None:
    assert read(reader, text) == stated


@pytest.mark.parametrize(
    "text",
    [
        "It holds this in her right hand",
        "stands on the left of the road",
        "in the middle of the street",
        "walks down the street",
        "walks up to the gate",
        "walks to the left of the gate",
        "does not move to the left",
        "It isn't red, never blue, without a cat and with no dog",
        "It cannot see the dog, and none of the cars are black",
        "It gets going",
    ],
)
def test_what_is_of_other_things_or_denied_states_nothing(reader: FactReader, text: str) -> None:
    assert read(reader, text) == set()


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("The man leaves", {"object man"}),
        ("She rides past two men who ride", {"object man", "count 2 man"}),
        ("The dog faces the train", {"object dog", "object train"}),
        ("People ride to face a dog", {"object person", "object dog"}),
        ("The man's face, a dog's head", {"object man", "object face", "object dog", "object head"}),
        ("Leaves on two trains", {"object leaf", "object train", "count 2 train"}),
    ],
)  # fmt: skip
def test_verbs_that_look_like_nouns_are_no_objects(reader: FactReader, text: str, stated: set[str]) -> None:
    assert read(reader, text) == stated


@pytest.mark.parametrize(
    "text", ["He is still running", "He still holds this", "It moves right behind them", "It walks right past him",
             "It goes right up to them"]
)  # fmt: skip
def test_still_and_right_may_say_how_and_not_where(reader: FactReader, text: str) -> None:
    assert read(reader, text) == set()


@pytest.mark.parametrize("text", ["It stands still", "keeping still on a road", "It is still.", "almost still"])
def test_what_keeps_still_does_not_move(reader: FactReader, text: str) -> None:
    assert read(reader, text) == {"speed still"}


def test_what_is_not_denied_after_a_denial_is_read(reader: FactReader) -> None:
    assert read(reader, "The car is not red but blue") == {"object car", "colour blue"}
    assert read(reader, "not only red") == {"colour red"}


def test_a_fact_counts_once_however_often_it_is_said(reader: FactReader) -> None:
    assert reader.facts("A red car. The red car, red.") == {Fact("colour", "red"), Fact("object", "car")}


def test_longer_nouns_go_before_those_in_them() -> None:
    reader = FactReader({"bear": "bear", "teddy bear": "toy"})
    assert read(reader, "teddy bears") == {"object toy"}
    assert read(reader, "a teddy and a bear") == {"object bear"}


@pytest.mark.parametrize("words", ["The man moves ", "moves ", "left top ", "no red ", "moves to the left ", "2 "])
def test_long_answers_are_read_in_time_linear_in_their_length(reader: FactReader, words: str) -> None:
    started = time.process_time()
    reader.facts(words * (100_000 // len(words)))
    assert time.process_time() - started < 10


def test_a_reader_without_nouns_is_refused() -> None:
    with pytest.raises(ValueError, match="got no nouns"):
        FactReader({})
