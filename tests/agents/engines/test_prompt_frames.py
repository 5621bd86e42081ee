from collections.abc import Sequence

import pytest

from agents.base import Detection
from agents.engines.prompt_frames import FoundOn, PromptFramesConfig, Question, find_nouns


class Shown:
    """A detector that answers by place (`{place: {noun: score}}`) for each clip, and notes what it was asked.

    A box's left edge is its place, its top edge its clip's position.
    """

    def __init__(self, *shown: dict[int, dict[str, float]]) -> None:
        self.shown = shown
        self.rounds: list[list[tuple[int, list[int], list[str]]]] = []

    @property
    def asked(self) -> list[tuple[list[int], list[str]]]:
        """Of a single clip, places and nouns round by round."""
        return [(places, nouns) for ((_, places, nouns),) in self.rounds]

    def __call__(self, questions: Sequence[Question]) -> list[list[list[Detection]]]:
        self.rounds.append([(clip, list(places), list(nouns)) for clip, places, nouns in questions])
        return [
            [
                [
                    Detection(detector_class=noun, score=score, box_xyxy_px=(place, clip, place + 9, clip + 9))
                    for noun, score in self.shown[clip].get(place, {}).items()
                    if noun in nouns
                ]
                for place in places
            ]
            for clip, places, nouns in questions
        ]


def chosen(look: Shown, nouns: Sequence[str], config: PromptFramesConfig | None = None) -> dict[int, set[str]]:
    """Which nouns are prompted where, of 101 frames: a share of the clip is its place in hundredths."""
    (found,) = find_nouns(look, [(101, nouns)], config or PromptFramesConfig())
    return by_place(found, clip=0)


def by_place(found: Sequence[FoundOn], clip: int) -> dict[int, set[str]]:
    for place, detections in found:
        assert all(box.box_xyxy_px[:2] == (place, clip) for box in detections)
    return {place: {box.detector_class for box in detections} for place, detections in found}


def test_when_the_first_frame_shows_all_no_other_is_looked_at() -> None:
    look = Shown({50: {"dog": 0.5, "car": 0.9}, 25: {"dog": 0.99}})
    assert chosen(look, ["dog", "car"]) == {50: {"dog", "car"}}
    assert look.asked == [([50], ["dog", "car"])]


def test_nouns_not_found_are_looked_for_on_other_frames_and_only_they() -> None:
    look = Shown({50: {"dog": 0.5}, 75: {"car": 0.6, "dog": 0.9}, 0: {"car": 0.9}})
    assert chosen(look, ["dog", "car"]) == {50: {"dog"}, 75: {"car"}}
    assert look.asked == [([50], ["dog", "car"]), ([25], ["car"]), ([75], ["car"])]


def test_what_is_on_no_frame_is_looked_for_on_all_and_left_out() -> None:
    look = Shown({50: {"dog": 0.5}})
    assert chosen(look, ["dog", "unicorn"]) == {50: {"dog"}}
    assert [places for places, _ in look.asked] == [[50], [25], [75], [0], [100]]
    assert chosen(Shown({}), ["unicorn"]) == {}


def test_of_several_first_frames_as_few_as_possible_are_prompted() -> None:
    config = PromptFramesConfig(first=(0.2, 0.5, 0.8), others=())
    look = Shown({20: {"dog": 0.9}, 50: {"car": 0.9}, 80: {"dog": 0.4, "car": 0.4, "man": 0.4}})
    assert chosen(look, ["dog", "car", "man"], config) == {80: {"dog", "car", "man"}}
    assert [places for places, _ in look.asked] == [[20, 50, 80]]
    # of two that show as many, the surer one
    assert chosen(Shown({20: {"dog": 0.4}, 80: {"dog": 0.6}}), ["dog"], config) == {80: {"dog"}}
    # of equals, the one named first
    assert chosen(Shown({20: {"dog": 0.6}, 80: {"dog": 0.6}}), ["dog"], config) == {20: {"dog"}}


def test_all_boxes_of_a_noun_come_from_one_frame() -> None:
    config = PromptFramesConfig(first=(0.2, 0.8), others=())
    look = Shown({20: {"dog": 0.9, "car": 0.5}, 80: {"dog": 0.8, "man": 0.5}})
    found = chosen(look, ["dog", "car", "man"], config)
    assert found == {20: {"dog", "car"}, 80: {"man"}}


@pytest.mark.parametrize(("num_frames", "places"), [(1, [[0]]), (2, [[0], [1]]), (5, [[2], [1], [3], [0], [4]])])
def test_a_frame_of_a_short_clip_is_looked_at_once(num_frames: int, places: list[list[int]]) -> None:
    look = Shown({})
    assert find_nouns(look, [(num_frames, ["dog"])], PromptFramesConfig()) == [[]]
    assert [asked for asked, _ in look.asked] == places


def test_without_nouns_nothing_is_looked_at() -> None:
    look = Shown({50: {"dog": 0.9}})
    assert chosen(look, []) == {}
    assert look.asked == []


def test_clips_are_looked_at_together_and_only_those_with_nouns_missing_again() -> None:
    shown: list[dict[int, dict[str, float]]] = [
        {50: {"dog": 0.9, "car": 0.9}},
        {50: {"dog": 0.5}, 75: {"car": 0.6}},
        {50: {"dog": 0.9}},
        {0: {"man": 0.9}},
        {1: {"dog": 0.7}},
    ]
    look = Shown(*shown)
    wanted = [(101, ["dog", "car"]), (101, ["dog", "car"]), (101, []), (101, ["man"]), (3, ["dog"])]
    found = find_nouns(look, wanted, PromptFramesConfig())
    assert look.rounds == [
        [(0, [50], ["dog", "car"]), (1, [50], ["dog", "car"]), (3, [50], ["man"]), (4, [1], ["dog"])],
        [(1, [25], ["car"]), (3, [25], ["man"])],
        [(1, [75], ["car"]), (3, [75], ["man"])],
        [(3, [0], ["man"])],
    ]
    assert [by_place(own, clip) for clip, own in enumerate(found)] == [
        {50: {"dog", "car"}},
        {50: {"dog"}, 75: {"car"}},
        {},
        {0: {"man"}},
        {1: {"dog"}},
    ]
    for clip, (num_frames, nouns) in enumerate(wanted):
        alone = Shown(*[shown[clip]] * 5)
        (own,) = find_nouns(alone, [(num_frames, nouns)], PromptFramesConfig())
        assert by_place(own, 0) == by_place(found[clip], clip)
        assert alone.asked == [(places, asked) for one in look.rounds for seen, places, asked in one if seen == clip]


def test_a_short_clip_does_not_wait_out_rounds_whose_frames_it_has_seen() -> None:
    look = Shown({}, {})
    find_nouns(look, [(1, ["dog"]), (2, ["dog"])], PromptFramesConfig())
    assert look.rounds == [[(0, [0], ["dog"]), (1, [0], ["dog"])], [(1, [1], ["dog"])]]
