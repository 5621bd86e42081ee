import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    actions: tuple[str, ...] = (),
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
        said=SaidAttributes(colours=colours, places=places, directions=directions, actions=actions, count=count),
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
    back: float = 0.0,
    breaks_off: bool = False,
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
        back_x_diag=back,
        back_y_diag=back,
        breaks_off=breaks_off,
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


def test_a_track_that_broke_off_is_refused_in_company_and_taken_alone() -> None:
    lost = candidate(dx=0.3, visible=0.6, breaks_off=True)
    said = mention("a", "a man", directions=("right",))
    (result,) = resolve([said], [lost, candidate(dx=-0.3)], CONFIG)
    assert result.reason == "ambiguous"
    assert "breaks off in open view, in sight for 0.60" in result.evidence
    assert outcomes(resolve([said], [lost], CONFIG)) == [(0,)]
    whole = lost.model_copy(update={"visible_share": 0.9})
    assert outcomes(resolve([said], [whole, candidate(dx=-0.3)], CONFIG)) == [(0,)]


def test_one_of_a_counted_plural_that_broke_off_refuses_all() -> None:
    said = mention("a", "two men", number="plural", count=2)
    assert outcomes(resolve([said], [candidate(), candidate(visible=0.5, breaks_off=True)], CONFIG)) == ["ambiguous"]


def test_there_and_back_is_not_one_way() -> None:
    # two cars that met and were taken for one: the path turns round
    cars = [candidate(name="car", dx=0.2, back=0.15), candidate(name="car")]
    said = [mention("a", "a car", name="car", directions=("right",))]
    (result,) = resolve(said, cars[:1], CONFIG)
    assert result.reason == "not_found"
    assert "0.15 back and forth" in result.evidence
    assert outcomes(resolve(said, [candidate(name="car", dx=0.2, back=0.02), cars[1]], CONFIG)) == [(0,)]


def test_what_stays_is_not_what_moves() -> None:
    said = [mention("a", "a man", actions=("stay",))]
    assert outcomes(resolve(said, [candidate(dx=0.3), candidate()], CONFIG)) == [(1,)]
    assert outcomes(resolve(said, [candidate(dx=0.3)], CONFIG)) == ["not_found"]


def test_who_waits_and_then_runs_does_not_stay() -> None:
    said = mention("a", "a dog", name="dog", actions=("wait", "run"))
    assert agreements(said, candidate(name="dog", dx=0.3)).get("direction", 1.0) > 0
    assert outcomes(resolve([said], [candidate(name="dog", dx=0.3)], CONFIG)) == [(0,)]
    both_stay = mention("a", "a dog", name="dog", actions=("wait", "rest"))
    assert outcomes(resolve([both_stay], [candidate(name="dog", dx=0.3)], CONFIG)) == ["not_found"]


def test_who_crosses_the_frame_is_not_the_one_that_goes_away() -> None:
    crossing, going = candidate(dx=-0.37, growth=0.6), candidate(growth=0.6)
    said = mention("a", "a cyclist", directions=("away",))
    assert resolve([said], [crossing, going], CONFIG)[0].picked == (1,)
    other = candidate(dx=0.3)
    assert resolve([said], [crossing, other], CONFIG)[0].reason == "ambiguous"


def test_what_grows_on_the_spot_does_not_stay_still() -> None:
    said = mention("a", "a cyclist", actions=("stay",))
    other = candidate(dx=0.3)
    assert resolve([said], [candidate(growth=0.55), other], CONFIG)[0].reason == "ambiguous"
    assert resolve([said], [candidate(growth=1.05), other], CONFIG)[0].picked == (0,)


def test_one_found_for_two_told_of_is_taken_only_if_it_is_as_said() -> None:
    said = [mention("a", "a green car", directions=("toward",)), mention("b", "another car", directions=("left",))]
    assert not any(outcome.picked for outcome in resolve(said, [candidate(growth=0.9)], CONFIG))
    alone = [said[0], mention("b", "the car")]
    assert resolve(alone, [candidate(growth=0.9)], CONFIG)[0].picked == (0,)


def test_serving_one_more_mention_does_not_decide_who_is_meant() -> None:
    still = mention("a", "a man", places=("left",))
    coming = mention("b", "a woman", directions=("toward",))
    near, far = candidate(x=0.65, growth=1.7), candidate(x=0.85, growth=1.7)
    outcomes = resolve([still, coming], [near, far], CONFIG)
    assert [outcome.reason for outcome in outcomes] == ["ambiguous", "ambiguous"]


def test_in_company_a_pick_must_agree_with_what_is_said() -> None:
    said = [mention("a", "a man", directions=("left",)), mention("b", "a woman", directions=("up",))]
    assert outcomes(resolve(said, [candidate(dx=0.03), candidate(dy=-0.3)], CONFIG)) == ["ambiguous", (1,)]


COLOURS = st.sampled_from(["red", "blue", "white"])
WAYS = st.sampled_from(["left", "right", "none"])


@st.composite
def said_mentions(draw: st.DrawFn) -> list[Mention]:
    return [
        mention(
            f"m{number}",
            f"{draw(st.sampled_from(['a', 'the', 'another', 'two']))} {draw(st.sampled_from(['man', 'car']))}",
            name=draw(st.sampled_from(["person", "car"])),
            number=draw(st.sampled_from(["singular", "singular", "plural"])),
            count=draw(st.sampled_from([1, 2, 3, None])),
            colours=tuple(draw(st.lists(COLOURS, max_size=1))),
            directions=tuple(draw(st.lists(WAYS, max_size=2, unique=True))),
        )
        for number in range(draw(st.integers(0, 6)))
    ]


CANDIDATES = st.builds(
    candidate,
    name=st.sampled_from(["person", "car"]),
    colour=COLOURS,
    x=st.floats(0, 1),
    dx=st.floats(-0.5, 0.5),
    back=st.floats(0, 0.3),
    score=st.floats(0, 1),
    visible=st.floats(0.1, 1),
    breaks_off=st.booleans(),
)


@given(said=said_mentions(), found=st.lists(CANDIDATES, max_size=6))
def test_no_two_mentions_share_a_candidate_and_each_has_one_end(said: list[Mention], found: list[Candidate]) -> None:
    results = resolve(said, found, CONFIG)
    assert [result.mention_id for result in results] == [item.mention_id for item in said]
    taken = [index for result in results for index in result.picked]
    assert len(taken) == len(set(taken))
    for item, result in zip(said, results, strict=True):
        assert bool(result.picked) == (result.reason is None)
        assert all(found[index].detector_class == item.detector_class for index in result.picked)


@given(
    one=CANDIDATES,
    others=st.lists(CANDIDATES, max_size=3),
    colours=st.lists(COLOURS, max_size=1),
    ways=st.lists(WAYS, max_size=1),
    both=st.booleans(),
)
def test_two_alike_are_never_guessed(
    one: Candidate, others: list[Candidate], colours: list[Colour], ways: list[Direction], both: bool
) -> None:
    words = {"name": one.detector_class, "colours": tuple(colours), "directions": tuple(ways)}
    said = [mention("a", "a man", **words)] + [mention("b", "another man", **words)] * both
    for result in resolve(said, [one, one, *others], CONFIG):
        assert not set(result.picked) & {0, 1}


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


def test_a_track_that_changes_its_looks_went_over_to_another() -> None:
    said = mention("a", "a man", directions=("right",))
    changed = candidate(dx=0.3).model_copy(update={"likeness": 0.5})
    (result,) = resolve([said], [changed, candidate(dx=-0.3)], CONFIG)
    assert result.reason == "ambiguous"
    assert "early and late agree by 0.50 only" in result.evidence
    assert outcomes(resolve([said], [changed], CONFIG)) == [(0,)]
