import json
import random
from collections.abc import Callable, Sequence

import pytest

from benchmark.judge_reply import DIMENSIONS, read_reply

NAMES = list(DIMENSIONS.values())
SNAKE = [name.lower().replace(" ", "_") for name in NAMES]
REMARKS = [
    "Explanation: 3 of the 4 colours are right, 2 are not; a 5 would be too much.",
    "Explanation: Both tell of 2 dogs. See point 4. Score: 1 would be harsh, 4/5 too.",
    "Explanation: In [0.5, 2.5] s the dog runs: 3 times.",
    "**Explanation:** At 1:30 it is gone (5 frames). 4. Rest: 2",
    "Explanation: The 10. detail: 0 matches.",
]


def lines(scores: Sequence[object], form: str, remark: str = REMARKS[0], between: str = "\n") -> str:
    return "\n".join(
        form.format(i=place, name=name, score=score) + between + remark
        for place, (name, score) in enumerate(zip(NAMES, scores, strict=True), 1)
    )


LINE_FORMS = [
    "{i}. {name}: {score}",
    "{i}. {name}:{score}",
    "{i}. **{name}**: {score}",
    "{i}. **{name}:** {score}",
    "**{i}. {name}: {score}**",
    "{i}. {name}: **{score}**",
    "{i}. **{name}**: **{score}**",
    "{i}. {name}: [{score}]",
    "{i}. [{name}]: [{score}]",
    "{i}. **{name}**:[{score}]",
    "{i}. {name}: {score}/5",
    "{i}. {name}: {score} / 5",
    "{i}. {name}: **{score}/5**",
    "{i}. {name}: [{score}/5]",
    "{i}. {name}: {score} out of 5",
    "{i}. {name}: {score}.0",
    "{i}. {name}: {score}.",
    "{i}. {name}: <{score}>",
    "{i}. {name}: ({score})",
    "{i}. {name}: `{score}`",
    "{i}. {name}: Score: {score}",
    "{i}. {name} Score: {score}",
    "{i}) {name}: {score}",
    "{name}: {score}",
    "- **{name}**: {score}",
    "### {i}. {name}: {score}",
    "### {i}. {name}\n**Score:** {score}/5",
    "{i}. **{name}**\n   - **Score**: {score}",
    "{i}. {name}:\n- {score}",
    "> {i}. {name}: {score}",
    "  {i}.  {name} :  {score}  ",
    "{i}. {name} - {score}",
    "{i}. {name} = {score}",
    "{i}. {name}:\n{score}",
    "### {i}. {name}:\nScore: {score}",
    "| {name} | {score} | fine |",
    "{i}. {name}\uff1a{score}",
    "{i}. {name}: {score} (a good match of 2 dogs)",
    "{i}. {name}: {score}, because 2 of 3 are right",
    "{i}. {name}: {score} \u2013 it says 3 dogs",
    "{i}. {name}: {score}\u5206",
    "{i}. {name}: {score} points",
]


def as_lines(form: str) -> Callable[[Sequence[int], str], str]:
    return lambda scores, remark: lines(scores, form, remark)


def as_lower(form: str) -> Callable[[Sequence[int], str], str]:
    return lambda scores, remark: lines(scores, form, remark).lower().replace("explanation", "Explanation")


def explained(keys: Sequence[str], scores: Sequence[int], remark: str) -> str:
    return json.dumps({k: {"explanation": remark, "score": s} for k, s in zip(keys, scores, strict=True)})


GOOD: list[Callable[[Sequence[int], str], str]] = [
    *map(as_lines, LINE_FORMS),
    as_lower("{i}. {name}: {score}"),
    lambda scores, remark: lines(scores, "{i}. {name}: {score}", remark).replace("\n", "\r\n"),
    lambda scores, remark: lines(scores, "{i}. {name}: {score}", between=" ").replace("\n", " "),
    lambda scores, remark: lines(scores, "**{i}. {name}**: {score}", between=" ").replace("\n", " "),
    lambda scores, remark: "My 4 marks from 0 to 5:\n\n" + lines(scores, "{i}. {name}: {score}", remark, "\n\n"),
    lambda scores, remark: "<think>1. Subject Correspondence: 0? No.</think>" + lines(scores, "{i}. {name}: {score}"),
    lambda scores, remark: "\n".join(f"{short}: {score}" for short, score in zip(DIMENSIONS, scores, strict=True)),
    lambda scores, remark: lines(scores, "{i}. {name}: {score}", remark) + "\n\nAverage: 2.75\nTotal: 11/20",
    lambda scores, remark: "\n".join(reversed(lines(scores, "{name}: {score}", between=" ").splitlines())),
    lambda scores, remark: json.dumps(dict(zip(SNAKE, scores, strict=True))),
    lambda scores, remark: explained(SNAKE, scores, remark),
    lambda scores, remark: explained(NAMES, scores, remark),
    lambda scores, remark: json.dumps(dict(zip(DIMENSIONS, map(float, scores), strict=True))),
    lambda scores, remark: json.dumps({k: str(s) for k, s in zip(NAMES, scores, strict=True)}),
    lambda scores, remark: json.dumps({k: f"{s}/5" for k, s in zip(NAMES, scores, strict=True)}),
    lambda scores, remark: json.dumps({"scores": dict(zip(NAMES, scores, strict=True)), "total": 9}),
    lambda scores, remark: "```json\n" + json.dumps(dict(zip(SNAKE, scores, strict=True)), indent=2) + "\n```",
    lambda scores, remark: "Sure {ok}: " + json.dumps(dict(zip(SNAKE, scores, strict=True))) + " 5 marks, {} done",
    lambda scores, remark: "<think>{\"SC\": 1}</think>\n" + json.dumps(dict(zip(SNAKE, scores, strict=True))),
]  # fmt: skip

BAD_VALUES: dict[str, str] = {
    "7": "out_of_range",
    "-1": "out_of_range",
    "\u22122": "out_of_range",
    "5.5": "out_of_range",
    "40": "out_of_range",
    "1000000000000": "out_of_range",
    "8/10": "other_scale",
    "3/4": "other_scale",
    "85/100": "other_scale",
    "4 out of 10": "other_scale",
    "N/A": "not_one_number",
    "four": "not_one_number",
    "<score>": "not_one_number",
    "3-4": "not_one_number",
    "3 to 4": "not_one_number",
    "80%": "not_one_number",
    "3,5": "not_one_number",
    "4.5.1": "not_one_number",
    "4th": "not_one_number",
    "4 of the 5 details are right": "not_one_number",
    "the score is 4": "not_one_number",
    "3 dogs are named": "not_one_number",
    "1\u20442": "other_scale",
    "": "missing",
    "**": "missing",
}
BAD_WHOLE: dict[str, tuple[str, str]] = {
    "nothing": ("", "empty"),
    "blanks": (" \n\t", "empty"),
    "prose": ("I would say 4, 3, 2 and 5.", "unreadable"),
    "bare numbers": ("4\n3\n2\n5", "unreadable"),
    "other names": ("1. Accuracy: 4\n2. Style: 5\n3. Detail: 3\n4. Rest: 1", "unreadable"),
    "refusal": ("I'm sorry, but I cannot rate 2 descriptions.", "unreadable"),
    "cut JSON": ('{"subject_correspondence": 4, "appearance_description": 3, "temporal', "unreadable"),
    "cut JSON of many lines": (
        '{\n  "Subject Correspondence": 4,\n  "Appearance Description": 3,\n  "Tem',
        "unreadable",
    ),
    "endless thoughts": ("<think>1. Subject Correspondence: 4\n2. Appearance Description: 4", "empty"),
    "name inside a sentence": ("The Subject Correspondence: 4 would be my choice.", "unreadable"),
    "deep JSON": ('{"a":' * 5000, "unreadable"),
    "braces": ("{" * 10_000, "unreadable"),
}


def test_of_400_scripted_replies_every_score_is_found_and_every_unscorable_counted() -> None:
    draw = random.Random(5)
    wrong = list(BAD_VALUES.items())
    whole = list(BAD_WHOLE.values())
    scored = unscored = 0
    for number in range(400):
        truth: dict[str, object] = {key: draw.randint(0, 5) for key in DIMENSIONS}
        kind = number % 4
        if kind < 2:
            reply = GOOD[(number // 4 * 2 + kind) % len(GOOD)](list(truth.values()), draw.choice(REMARKS))
        elif kind == 2:
            bad, reason = wrong[number // 4 % len(wrong)]
            broken = draw.choice(list(DIMENSIONS))
            given = truth | {broken: bad}
            reply = lines(list(given.values()), draw.choice(LINE_FORMS[:9]), draw.choice(REMARKS))
            truth[broken] = reason
        else:
            reply, reason = whole[number // 4 % len(whole)]
            truth = dict.fromkeys(DIMENSIONS, reason)
        read = read_reply(reply)
        assert read.scores | read.unscored == truth, reply
        scored += len(read.scores)
        unscored += len(read.unscored)
        assert bool(read.detail) == bool(read.unscored)
    assert (scored, unscored) == (200 * 4 + 100 * 3, 100 + 100 * 4)


@pytest.mark.parametrize("form", GOOD)
@pytest.mark.parametrize("remark", REMARKS)
def test_every_form_gives_its_scores_whatever_numbers_the_explanations_hold(
    form: Callable[[Sequence[int], str], str], remark: str
) -> None:
    for scores in ([0, 5, 2, 3], [4, 4, 1, 0]):
        read = read_reply(form(scores, remark))
        assert read.scores == dict(zip(DIMENSIONS, scores, strict=True)), form(scores, remark)


@pytest.mark.parametrize("bad", BAD_VALUES)
def test_a_value_that_is_no_score_is_told_and_costs_only_its_dimension(bad: str) -> None:
    read = read_reply(lines([4, bad, 2, 5], "{i}. {name}: {score}"))
    assert read.scores == {"SC": 4, "TD": 2, "HD": 5}
    assert read.unscored == {"AD": BAD_VALUES[bad]}
    assert "Appearance Description" in read.detail
    assert bad.strip("*\u22122\u2044")[:8] in read.detail


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (6, "out_of_range"),
        (-1, "out_of_range"),
        (10**400, "out_of_range"),
        (float("inf"), "out_of_range"),
        (float("nan"), "not_one_number"),
        (True, "not_one_number"),
        ([4], "not_one_number"),
        ("good", "not_one_number"),
        ("8/10", "other_scale"),
        (None, "missing"),
        ({"explanation": "4 of 5"}, "missing"),
        ({"score": None, "explanation": ""}, "missing"),
        ({"score": {"score": 4}}, "missing"),
    ],
)
def test_a_json_value_that_is_no_score_is_told(value: object, wanted: str) -> None:
    read = read_reply(json.dumps({"SC": 4, "AD": value, "TD": 2, "HD": 5}))
    assert read.scores == {"SC": 4, "TD": 2, "HD": 5}
    assert read.unscored == {"AD": wanted}


@pytest.mark.parametrize("name", BAD_WHOLE)
def test_a_reply_without_any_score_says_why(name: str) -> None:
    reply, reason = BAD_WHOLE[name]
    read = read_reply(reply)
    assert read.unscored == dict.fromkeys(DIMENSIONS, reason)
    assert 0 < len(read.detail) < 200


def test_a_dimension_left_out_is_missing() -> None:
    text = lines([4, 3, 2, 5], "{i}. {name}: {score}")
    without = text[: text.index("3. Temporal")] + text[text.index("4. Hallucination") :]
    assert read_reply(without).unscored == {"TD": "missing"}
    assert read_reply('{"SC": 1, "AD": 2, "HD": 3}').unscored == {"TD": "missing"}


def test_two_different_scores_for_one_dimension_are_none_and_the_same_twice_is_one() -> None:
    text = lines([4, 3, 2, 5], "{i}. {name}: {score}")
    assert read_reply(f"{text}\nSummary\n{text}").complete
    assert read_reply(f"{text}\nTemporal Description: 3").unscored == {"TD": "contradictory"}
    assert read_reply('{"SC": 1, "AD": 2, "TD": 4, "HD": 3, "SC": 2}').unscored == {"SC": "contradictory"}


def test_a_rubric_repeated_before_the_scores_does_not_count() -> None:
    said = "\n".join(f"{i}. {name}: (0-5) how well it fits" for i, name in enumerate(NAMES, 1))
    assert read_reply(f"{said}\n\n{lines([4, 3, 2, 5], '{i}. **{name}**: {score}')}").scores == {
        "SC": 4,
        "AD": 3,
        "TD": 2,
        "HD": 5,
    }


def test_a_fraction_is_kept() -> None:
    assert read_reply(lines([3.5, "4.5/5", "[2.25]", ".5"], "{i}. {name}: {score}")).scores == {
        "SC": 3.5,
        "AD": 4.5,
        "TD": 2.25,
        "HD": 0.5,
    }


@pytest.mark.parametrize("reply", ['{"SC": 4, "AD": 3, "TD": 2, "HD": 5}', lines([4, 3, 2, 5], "{i}. {name}: {score}")])
def test_a_reply_cut_off_by_the_server_gives_no_score(reply: str) -> None:
    assert read_reply(reply).complete
    assert read_reply(reply, "length").unscored == dict.fromkeys(DIMENSIONS, "truncated")
    assert read_reply(reply, "content_filter").unscored == dict.fromkeys(DIMENSIONS, "refused")


def test_no_text_is_too_odd_or_too_long() -> None:
    draw = random.Random(0)
    pieces = [
        *"{}[]:,.*\"'\n0123456789/- ",
        *NAMES,
        *DIMENSIONS,
        *SNAKE,
        "Explanation",
        "1. ",
        "score",
        "\u00bd",
        "\ud800",
    ]
    for _ in range(1500):
        text = "".join(draw.choice(pieces) for _ in range(draw.randint(0, 60)))
        read = read_reply(text)
        assert set(read.scores) | set(read.unscored) == set(DIMENSIONS)
        assert all(0 <= score <= 5 for score in read.scores.values())
    for piece in ("1. " * 40_000, "Subject " * 20_000, " " * 100_000 + "x", "*" * 100_000, '{"SC":' * 20_000):
        assert not read_reply(piece).scores
        assert set(read_reply(f"1. Subject Correspondence: {piece}").unscored) >= {"AD", "TD", "HD"}
