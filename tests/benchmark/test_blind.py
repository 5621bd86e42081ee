"""Items with four options, and what a baseline without the video makes of them."""

import numpy as np
import pytest

from benchmark.blind import blind_answers, blind_figures
from benchmark.choices import NUM_OPTIONS, choice_items, without_nouns
from schemas.sample import Provenance, Sample, SampleObject, Turn

NOUNS = ("cat", "dog", "bus", "car", "cup")
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")
PROVENANCE = Provenance(engines=(), weights=(), prompt_hashes=(), revisions=(), verdict="", wording="template")


def sample_of(number, question, answer, nouns, video=None, kind="qa"):
    objects = tuple(
        SampleObject(object_id=f"o{i}", noun=noun, frame_idx=(0,), frame_time_s=(0.0,), rle=("x",))
        for i, noun in enumerate(nouns)
    )
    return Sample(
        sample_id=f"s{number:04d}", kind=kind, qa_type="basic", split="train", clip_id="c", source_id="r",
        video="a.mp4", video_sha256=f"{video if video is not None else number // 4:064x}", license="CC0",
        start_s=0, end_s=2, visible_until_s=2, fps=10, height=10, width=10, objects=objects, provenance=PROVENANCE,
        conversations=(Turn(speaker="human", value=f"<video>\n{question}"), Turn(speaker="gpt", value=answer)),
    )  # fmt: skip


def places(num, draw=None):
    """Samples on where an object is; `draw` gives each one's place."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(num):
        noun = NOUNS[int(rng.integers(len(NOUNS)))]
        place = draw(number) if draw else PLACES[int(rng.integers(len(PLACES)))]
        made.append(sample_of(number, "Where is <region>?", f"The {noun} is {place} of the frame.", [noun]))
    return made


def test_an_item_has_the_right_answer_and_three_others_of_its_own_noun():
    samples = places(80)
    made = choice_items(samples, seed=3)
    by_id = {sample.sample_id: sample for sample in samples}
    assert len(made.items) == 80
    for item in made.items:
        sample = by_id[item.item_id]
        assert item.options[item.answer] == sample.conversations[1].value
        assert len(set(item.options)) == NUM_OPTIONS
        assert all(f"The {sample.objects[0].noun} is " in option for option in item.options)
        assert item.question == "Where is <region>?"
    letters = np.bincount([item.answer for item in made.items])
    assert letters.tolist() == [20] * NUM_OPTIONS


def test_items_do_not_hang_on_the_order_of_samples():
    samples = places(40)
    assert choice_items(samples, 3) == choice_items(samples[::-1], 3)
    assert choice_items(samples, 3) != choice_items(samples, 4)


def test_names_keep_their_nouns_and_a_question_with_too_few_answers_is_left_out():
    named = [sample_of(i, "What is <region>?", f"It is a {noun}.", [noun]) for i, noun in enumerate(NOUNS)]
    lone = [sample_of(10 + i, "Does <region> move?", "No, it does not.", ["cat"]) for i in range(5)]
    caption = sample_of(20, "Describe <region>.", "A cat.", ["cat"], kind="detailed_caption")
    made = choice_items([*named, *lone, caption], seed=1)
    assert {item.options[item.answer] for item in made.items} == {f"It is a {noun}." for noun in NOUNS}
    assert made.skipped == tuple(sample.sample_id for sample in lone)


def test_numbers_that_a_reader_would_pass_over_are_no_other_answer():
    shares = (10, 10.5, 11, 20, 40)
    samples = [sample_of(i, "How large is <region>?", f"About {share} %.", ["cat"]) for i, share in enumerate(shares)]
    assert choice_items(samples, seed=1).items == ()
    samples.append(sample_of(9, "How large is <region>?", "About 80 %.", ["cat"]))
    options = [item.options for item in choice_items(samples, seed=1).items]
    assert options
    assert all(
        sum(text in option for text in ("About 10 %.", "About 10.5 %.", "About 11 %.")) == 1 for option in options
    )


@pytest.mark.parametrize(
    ("right", "right_too", "others"),
    [
        (
            "The {} is mostly gray, with some brown.",
            ["The {} is mostly gray.", "The {} is mostly gray, with some black and brown."],
            ["The {} is mostly black, with some brown.", "The {} is mostly brown, with some gray.", "The {} is red."],
        ),
        (
            "The main colours seen are black and green.",
            ["The main colour seen is green.", "The main colours seen are black, blue and green."],
            [
                "The main colour seen is red.",
                "The main colours seen are green and blue.",
                "The main colour seen is white.",
            ],
        ),
        (
            "The {} stays at the top left of the frame.",
            ["The {} stays at the top of the frame.", "The {} stays on the left of the frame."],
            ["The {} stays in the middle of the frame.", "The {} stays on the right.", "The {} stays at the bottom."],
        ),
        (
            "The {} moves to the left of the frame.",
            ["The {} moves slowly to the left of the frame."],
            ["The {} hardly moves.", "The {} moves to the right of the frame.", "The {} moves up."],
        ),
        (
            "It moves from the left to the right.",
            ["It moves from the left to the middle to the right."],
            ["It moves from the right to the left.", "It does not move.", "It moves from the top to the bottom."],
        ),
    ],
)
def test_no_two_options_can_both_be_right(right, right_too, others):
    texts = [right, *right_too, *others]
    samples = [sample_of(number, "What of <region>?", text.format("cat"), ["cat"]) for number, text in enumerate(texts)]
    for seed in range(20):
        items = {item.item_id: item for item in choice_items(samples, seed).items}
        assert sorted(items["s0000"].options) == sorted(text.format("cat") for text in (right, *others))


def test_nouns_become_places_of_a_format_and_braces_survive():
    text = without_nouns("The cat touches the dog {x}.", ["cat", "dog"])
    assert text == "The {0} touches the {1} {{x}}."
    assert text.format("cup", "car") == "The cup touches the car {x}."


def test_what_is_drawn_evenly_cannot_be_guessed():
    figures = blind_figures(places(600), seed=2)
    assert set(figures) == {"all", "basic"}
    assert figures["all"].n == 600
    assert abs(figures["all"].over_chance) < 0.08
    assert figures["all"].standard_error == pytest.approx(0.018, abs=0.002)


def test_an_answer_that_is_nearly_always_right_is_found_out():
    skewed = places(400, lambda number: PLACES[0] if number % 5 else PLACES[1 + number // 5 % 4])
    items, right = blind_answers(skewed, seed=2)
    assert len(items) == 400
    assert right["logit"].mean() > 0.6
    assert right["most frequent answer"].mean() > 0.6


def test_one_video_cannot_be_halved():
    with pytest.raises(ValueError, match="got 1 video, needs 2"):
        blind_answers([sample_of(0, "Where is <region>?", "Here.", ["cat"])], seed=1)


def test_halves_without_an_item_are_refused():
    with pytest.raises(ValueError, match="more videos are needed"):
        blind_answers(places(6), seed=1)
