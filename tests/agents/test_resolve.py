import itertools

import numpy as np
import pytest

from agents.assignment import FORBIDDEN, best_assignment, total_score
from agents.resolve import Candidate, Resolution, ResolveConfig, agreements, resolve
from schemas.caption import ColourShare
from schemas.mention import Mention, Number, SaidAttributes
from schemas.words import Colour, Direction, Place

CONFIG = ResolveConfig()


def mention(
    mention_id: str,
    phrase: str,
    *,
    name: str = "person",
    number: Number = "singular",
    count: int | None = 1,
    colours: tuple[Colour, ...] = (),
    places: tuple[Place, ...] = (),
    directions: tuple[Direction, ...] = (),
) -> Mention:
    return Mention(
        mention_id=mention_id,
        clip_id="c",
        noun=phrase.split()[-1].removesuffix("s"),
        phrase=phrase,
        start_char=0,
        end_char=len(phrase),
        role="subject",
        number=number,
        detector_class=name,
        class_similarity=1.0,
        said=SaidAttributes(colours=colours, places=places, directions=directions, count=count),
    )


def candidate(
    *,
    name: str = "person",
    colour: Colour = "gray",
    x: float = 0.5,
    y: float = 0.5,
    dx: float = 0.0,
    dy: float = 0.0,
    growth: float = 1.0,
    score: float = 0.9,
    visible: float = 1.0,
) -> Candidate:
    return Candidate(
        detector_class=name,
        score=score,
        visible_share=visible,
        colours=(ColourShare(colour=colour, share=0.6),),
        x_share=x,
        y_share=y,
        travel_x_diag=dx,
        travel_y_diag=dy,
        growth=growth,
    )


def outcomes(results: list[Resolution]) -> list[tuple[int, ...] | str | None]:
    return [result.picked or result.reason for result in results]


def test_one_candidate_is_the_one_that_is_meant() -> None:
    assert outcomes(resolve([mention("a", "a man")], [candidate()], CONFIG)) == [(0,)]


def test_nothing_of_the_class_is_not_found() -> None:
    result = resolve([mention("a", "a dog", name="dog")], [candidate()], CONFIG)
    assert outcomes(result) == ["not_found"]
    assert result[0].evidence == "no dog found"


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_alike_candidates_are_refused_with_their_figures(count: int) -> None:
    (result,) = resolve([mention("a", "a man")], [candidate(score=0.9 - i / 100) for i in range(count)], CONFIG)
    assert result.reason == "ambiguous"
    assert f"{count} person found" in result.evidence
    assert "margin" in result.evidence


@pytest.mark.parametrize("right", range(4))
def test_the_said_colour_decides_among_four(right: int) -> None:
    cars = [candidate(name="car", colour="red" if i == right else "white", x=i / 4) for i in range(4)]
    result = resolve([mention("a", "a red car", name="car", colours=("red",))], cars, CONFIG)
    assert outcomes(result) == [(right,)]


def test_the_outer_one_is_on_the_left_even_with_both_in_the_right_half() -> None:
    people = [candidate(x=0.9), candidate(x=0.6)]
    assert outcomes(resolve([mention("a", "the man", places=("left",))], people, CONFIG)) == [(1,)]


def test_the_said_direction_decides() -> None:
    people = [candidate(dx=0.3), candidate(dx=-0.3), candidate()]
    results = resolve(
        [mention("a", "a man", directions=("left",)), mention("b", "a woman", directions=("right",))], people, CONFIG
    )
    assert outcomes(results) == [(1,), (0,)]


def test_toward_is_told_by_growth() -> None:
    cars = [candidate(name="car", growth=0.6), candidate(name="car", growth=1.8)]
    assert outcomes(resolve([mention("a", "a car", name="car", directions=("toward",))], cars, CONFIG)) == [(1,)]


def test_mentions_never_share_a_candidate_and_the_better_claim_wins() -> None:
    # both could be the gray one; only "a dog" that is said to be black must be
    dogs = [candidate(name="dog", colour="black"), candidate(name="dog", colour="white")]
    said = [mention("a", "a dog", name="dog"), mention("b", "a black puppy", name="dog", colours=("black",))]
    assert outcomes(resolve(said, dogs, CONFIG)) == [(1,), (0,)]


def test_a_contradicted_only_candidate_is_refused_not_taken() -> None:
    cars = [candidate(name="car", colour="blue")]
    (result,) = resolve([mention("a", "a red car", name="car", colours=("red",))], cars, CONFIG)
    assert result.reason == "not_found"
    assert "red said, blue 0.60 measured" in result.evidence


def test_a_neighbouring_colour_contradicts_nothing() -> None:
    cars = [candidate(name="car", colour="orange")]
    assert outcomes(resolve([mention("a", "a red car", name="car", colours=("red",))], cars, CONFIG)) == [(0,)]


def test_a_stray_detection_does_not_make_a_clear_object_ambiguous() -> None:
    assert outcomes(resolve([mention("a", "a man")], [candidate(), candidate(score=0.4, visible=0.3)], CONFIG)) == [
        (0,)
    ]


@pytest.mark.parametrize("found", [1, 2])
def test_later_words_for_one_thing_are_the_same_object(found: int) -> None:
    people = [candidate(x=0.2), candidate(x=0.8)][:found]
    said = [mention("a", "a man", places=("left",)), mention("b", "the man")]
    results = resolve(said, people, CONFIG)
    assert outcomes(results) == [(0,), "same_object"]
    assert "'the man' means 'a man', which has the track" in results[1].evidence


def test_another_man_is_not_the_same_man() -> None:
    (_, other) = resolve([mention("a", "a man"), mention("b", "another man")], [candidate()], CONFIG)
    assert other.reason != "same_object"


def test_two_different_people_cannot_both_be_the_only_person() -> None:
    results = resolve([mention("a", "a man"), mention("b", "a woman")], [candidate()], CONFIG)
    assert sorted(result.reason or "" for result in results) == ["ambiguous", "not_found"]


@pytest.mark.parametrize(
    ("count", "found", "expected"),
    [(2, 2, (0, 1)), (2, 3, "count_mismatch"), (3, 2, "count_mismatch"), (2, 0, "not_found"), (None, 3, "plural")],
)
def test_plurals_need_their_number(count: int | None, found: int, expected: tuple[int, ...] | str) -> None:
    said = mention("a", "two men", number="plural", count=count)
    assert outcomes(resolve([said], [candidate() for _ in range(found)], CONFIG)) == [expected]


def test_a_counted_plural_takes_what_singulars_leave_and_what_fits() -> None:
    cars = [candidate(name="car", colour=colour) for colour in ("white", "red", "white", "blue")]
    said = [
        mention("a", "two white cars", name="car", number="plural", count=2, colours=("white",)),
        mention("b", "a red car", name="car", colours=("red",)),
    ]
    assert outcomes(resolve(said, cars, CONFIG)) == [(0, 2), (1,)]


def test_what_was_not_said_or_measured_is_no_agreement() -> None:
    assert agreements(mention("a", "a man"), candidate()) == {}
    unseen = candidate().model_copy(update={"travel_x_diag": None, "colours": ()})
    assert agreements(mention("a", "a man", colours=("red",), directions=("left",)), unseen) == {}


def test_assignment_is_the_best_of_all() -> None:
    rng = np.random.default_rng(7)
    for _ in range(60):
        rows, columns = int(rng.integers(1, 4)), int(rng.integers(1, 5))
        scores = rng.normal(size=(rows, columns))
        scores[rng.random((rows, columns)) < 0.3] = FORBIDDEN
        ways = set(itertools.permutations([*range(columns), *[None] * rows], rows))
        allowed = [list(way) for way in ways if np.isfinite(total_score(scores, list(way)))]
        best = max((sum(c is not None for c in way), total_score(scores, way)) for way in allowed)
        chosen = best_assignment(scores)
        taken = [column for column in chosen if column is not None]
        assert len(set(taken)) == len(taken)
        assert (len(taken), total_score(scores, chosen)) == pytest.approx(best)
