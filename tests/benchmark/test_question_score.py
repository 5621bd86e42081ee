"""Letters and accuracies on Bench-Q, beside a slow reference written from the description of the official scorer."""

import json
import math
import random

import pytest

from benchmark.items import QuestionItem, question_items
from benchmark.letters import official_letter, option_letters, reference_letter
from benchmark.predictions import read_predictions
from benchmark.question_score import official_letters, question_score

CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TYPES = [
    "Basic Questions",
    "Sequential Questions",
    "Relationship Questions",
    "Reasoning Questions",
    "Future Predictions",
]
NO_ANSWER = object()


def slow_letter(pred):
    """Character by character; NO_ANSWER where the official scorer stops with an error."""
    if not isinstance(pred, str):
        return NO_ANSWER
    for i in range(len(pred) - 2):
        if pred[i] == "(" and pred[i + 1] in CAPITALS and pred[i + 2] == ")":
            return pred[i + 1]
    for i in range(len(pred) - 1):
        if pred[i] in CAPITALS and pred[i + 1] == ")":
            return pred[i]
    for char in pred:
        if char != ".":
            return char
    return NO_ANSWER


def slow_accuracies(items, preds):
    right, all_of = {}, {}
    for item, pred in zip(items, preds, strict=True):
        letter = slow_letter(pred)
        hit = letter is not NO_ANSWER and letter.lower() == item["Answer"][1].lower()
        for name in (item["type"], "micro"):
            right[name] = right.get(name, 0) + hit
            all_of[name] = all_of.get(name, 0) + 1
    return {name: (right[name], all_of[name]) for name in right}


def odd_answer(rng, letter):
    """One answer of many kinds, most of them about the letter."""
    low = letter.lower()
    return rng.choice([
        f"({letter})", f"{letter}", f"{low}", f"{letter}.", f"{low}.", f"({low})", f"{letter}) text", f"{low}) text",
        f"({letter}) A helmet", f"The answer is {letter}", f"The answer is {letter}.", f"The answer is ({letter}).",
        f"the answer is {letter}) a hat (in black)", f"Not (A) but ({letter})", f"see (HD) ({letter})",
        f"(see {letter})", f"({letter}", f"A or ({letter})",
        "", " ", ".", "...", f"..{letter}", f". {letter}", f" {letter}", f"\n{letter}", "()", "(", ")", "Z", "(Z)",
        None, 1, 0.5, True, False, [letter], [f"({letter})"], {"letter": letter}, [], {},
        "答案是B", f"答案是({letter})", f"选{letter})", "（A）", "甲", "\u212a", "ß", "ı", "Ａ", "\ud800",
        "x" * 10_240, "7" * 10_240, "." * 10_240, "." * 10_240 + letter, "x" * 10_240 + f"({letter})", "😀",
        "\x00", "*" + letter, "E)", f"\ud800({letter})",
        f"**({letter})**", f"[{letter}]", f"Option {letter}", f"{letter}:", f"{letter}/B", "null", "N/A", "1",
    ])  # fmt: skip


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    """The rows of 1,000 items with an odd answer to each, the items, and the predictions as read from a file."""
    rng = random.Random(5)
    folder = tmp_path_factory.mktemp("bench")
    rows, answers = [], []
    for number in range(1000):
        letters = CAPITALS[: rng.choice([2, 4, 4, 4, 12])]
        options = [f"({letter}) word {place}" for place, letter in enumerate(letters)]
        right = rng.randrange(len(letters))
        rows.append(
            {"id": number, "video": f"v{number % 198}", "Question": "Which?", "type": rng.choice([*TYPES, "Other"]),
             "options": options, "Answer": options[right]}
        )  # fmt: skip
        answers.append(odd_answer(rng, letters[right] if rng.random() < 0.7 else rng.choice(letters)))
    (folder / "items.json").write_text(json.dumps(rows))
    lines = [json.dumps({"id": row["id"], "pred": pred}) for row, pred in zip(rows, answers, strict=True)]
    (folder / "pred.json").write_text("\n".join(lines))
    items = question_items(folder / "items.json")
    return rows, answers, items, read_predictions(folder / "pred.json", items)


def test_letters_of_a_thousand_odd_answers_are_those_of_the_official_rule(scripted):
    _, answers, items, predictions = scripted
    letters = official_letters(predictions)
    assert len(letters) == len(items) == 1000
    given = [(letters[item.item_id], slow_letter(pred)) for item, pred in zip(items, answers, strict=True)]
    assert [letter is None for letter, _ in given] == [slow is NO_ANSWER for _, slow in given]
    assert all(
        letter.lower() == ("\ufffd" if slow == "\ud800" else slow).lower()
        for letter, slow in given
        if letter is not None
    )
    assert sum(letter is None for letter, _ in given) > 100
    assert len({letter for letter, _ in given}) > 20


def test_accuracies_of_a_thousand_odd_answers_are_those_of_the_official_rule(scripted):
    rows, answers, items, predictions = scripted
    score = question_score(items, official_letters(predictions))
    ours = {name: (figure.num_right, figure.n) for name, figure in (score.by_type | {"micro": score.micro}).items()}
    assert ours == slow_accuracies(rows, answers)
    assert set(score.by_type) == {*TYPES, "Other"}
    assert score.micro.num_unparsed == sum(slow_letter(pred) is NO_ANSWER for pred in answers)
    assert score.micro.num_missing == 0


@pytest.mark.parametrize(
    ("pred", "letter"),
    [
        ("(B)", "B"), ("b.", "B"), ("B) text", "B"), ("The answer is C", "T"), ("The answer is C)", "C"), ("(b)", "("),
        ("b) text", "B"), (" B", " "), ("(see D) or (A)", "A"), ("....c", "C"), ("答案", "答"), ("\u212a", "K"),
        ("ı", "ı"),
        ("", None), ("...", None), (None, None),
    ],
)  # fmt: skip
def test_the_official_rule_by_example(pred, letter):
    assert official_letter(pred) == letter


@pytest.mark.parametrize("answer", ["(C) Sunglasses", "C", "c", "maybe (C) or (D)"])
def test_a_reference_names_one_letter(answer):
    assert reference_letter(answer) == "C"


@pytest.mark.parametrize("answer", ["Sunglasses", "", "(c) Sunglasses", "1"])
def test_a_reference_without_a_letter_is_refused(answer):
    with pytest.raises(ValueError, match="names no option"):
        reference_letter(answer)


def test_options_have_letters_of_their_own():
    assert option_letters(["(B) x", " (A) y"]) == ("B", "A")


def question_rows(answers, types):
    options = ["(A) x", "(B) y", "(C) z"]
    return [
        {"video": "v", "Question": "?", "type": qtype, "options": options, "Answer": options["ABC".index(letter)]}
        for letter, qtype in zip(answers, types, strict=True)
    ]


@pytest.fixture
def six(tmp_path):
    (tmp_path / "items.json").write_text(json.dumps(question_rows("ABCABC", ["p", "p", "p", "p", "q", "q"])))
    return question_items(tmp_path / "items.json")


def test_unparsed_missing_and_unknown_letters_are_wrong_and_counted(six):
    score = question_score(six, {"0": "A", "1": "A", "2": None, "3": "T", "4": "B"})
    assert list(score.by_type) == ["p", "q"]
    p, q = score.by_type["p"], score.by_type["q"]
    assert (p.n, p.num_right, p.num_no_option, p.num_unparsed, p.num_missing) == (4, 1, 1, 1, 0)
    assert (q.n, q.num_right, q.num_no_option, q.num_unparsed, q.num_missing) == (2, 1, 0, 0, 1)
    micro = score.micro
    assert (micro.n, micro.num_right, micro.num_no_option, micro.num_unparsed, micro.num_missing) == (6, 2, 1, 1, 1)
    assert micro.accuracy == pytest.approx(1 / 3)
    assert micro.standard_error == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 6))


def test_the_standard_error_is_that_of_repeated_draws():
    rng = random.Random(0)
    n, accuracy = 50, 0.3
    shares = [sum(rng.random() < accuracy for _ in range(n)) / n for _ in range(4000)]
    mean = sum(shares) / len(shares)
    spread = math.sqrt(sum((share - mean) ** 2 for share in shares) / len(shares))
    rows = [(f"{number}", "A" if number < n * accuracy else "B") for number in range(n)]
    assert standard_error(rows) == pytest.approx(spread, rel=0.05)


def standard_error(letters):
    items = [
        QuestionItem(item_id=number, video="v", question="?", qtype="t", options=("(A) x", "(B) y"), answer="A", row=0)
        for number, _ in letters
    ]
    return question_score(items, dict(letters)).micro.standard_error


def test_letters_of_other_items_and_no_items_are_refused(six):
    with pytest.raises(ValueError, match="item 9, which is none of the 6 items"):
        question_score(six, {"9": "A"})
    with pytest.raises(ValueError, match="no items"):
        question_score([], {})
