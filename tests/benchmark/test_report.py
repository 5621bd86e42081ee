import re

import numpy as np
import pytest

from benchmark.description_score import DescriptionScore, description_score
from benchmark.facts import FactReader
from benchmark.heuristic import HeuristicScore, heuristic_score
from benchmark.items import QuestionItem
from benchmark.judging import Judgement, JudgeRun
from benchmark.paired import paired_score
from benchmark.published import Setting, published
from benchmark.question_score import question_score
from benchmark.question_types import OFFICIAL_TYPES
from benchmark.report import description_section, heuristic_section, paired_section, question_section

OFFICIAL_COUNTS = (236, 255, 253, 142, 114)
OPTIONS = ("(A) one", "(B) two", "(C) three", "(D) four")
SINGLE = Setting(mode="single", machine_made=False)
MADE = Setting(mode="single", machine_made=True)
JUDGE = JudgeRun(
    model_asked="judge-7b",
    models_answered=("judge-7b-v2",),
    server_versions=(),
    system_fingerprints=(),
    rubric="own words",
    prompt_hash="0123456789abcdef",
    temperature=0,
    max_tokens=256,
    reply_format="json",
    explained=True,
    max_reasks=2,
)


def items(counts: tuple[int, ...] = (4, 3, 2, 1, 2)) -> list[QuestionItem]:
    types = [qtype for qtype, n in zip(OFFICIAL_TYPES, counts, strict=True) for _ in range(n)]
    return [
        QuestionItem(item_id=str(i), video="v", question="q?", qtype=qtype, options=OPTIONS, answer="(A) one", row=i)
        for i, qtype in enumerate(types)
    ]


def judged(marks: list[int | None], judge: JudgeRun = JUDGE) -> DescriptionScore:
    """Items with the same mark in all four dimensions, None for one that got no reply."""
    names = ("SC", "AD", "TD", "HD")
    judgements = [
        Judgement(
            item_id=str(i),
            scores={} if mark is None else dict.fromkeys(names, mark),
            unscored=dict.fromkeys(names, "no_reply") if mark is None else {},
            detail="",
            reply="",
            asks=1,
        )
        for i, mark in enumerate(marks)
    ]
    return description_score(judgements, judge, seed=0)


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every table as rows by header."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.strip().splitlines()]
        header = [cell.strip() for cell in cells[0]]
        assert {len(row) for row in cells} == {len(header)}
        found.append([dict(zip(header, map(str.strip, row), strict=True)) for row in cells[2:]])
    return found


def test_question_scores_show_types_errors_and_what_is_wrong_by_default() -> None:
    asked = items()
    letters: dict[str, str | None] = {str(i): "A" for i in range(9)} | {"9": None, "10": "Z"}
    text = question_section({"ours": question_score(asked, letters)}, MADE, "letters", published())
    (row,) = tables(text)[0]
    assert list(row) == [
        "Model",
        "Basic (n 4)",
        "Sequential (n 3)",
        "Relationship (n 2)",
        "Reasoning (n 1)",
        "Future (n 2)",
        "All (n 12)",
        "No option",
        "Unparsed",
        "Missing",
        "Source",
    ]
    assert list(row.values()) == [
        "ours",
        "100.0 ± 0.0",
        "100.0 ± 0.0",
        "100.0 ± 0.0",
        "0.0 ± 0.0",
        "0.0 ± 0.0",
        "75.0 ± 12.5",
        "1",
        "1",
        "1",
        "this run",
    ]
    assert "The items are machine-made." in text


def test_models_stand_best_first_and_numbers_to_the_right() -> None:
    asked = items()
    scores = {
        name: question_score(asked, {str(i): "A" for i in range(right)})
        for name, right in (("worst", 1), ("best", 12), ("middle", 6))
    }
    text = question_section(scores, MADE, "letters", published())
    assert [row["Model"] for row in tables(text)[0]] == ["best", "middle", "worst"]
    marks = next(line for line in text.splitlines() if line.startswith("| :--"))
    assert marks == "| :-- " + "| --: " * 9 + "| :-- |"


def test_published_questions_share_the_table_only_on_official_items_in_the_same_mode() -> None:
    asked = items(OFFICIAL_COUNTS)
    score = question_score(asked, {item.item_id: "A" for item in asked[:719]})
    text = question_section({"ours": score}, SINGLE, "letters", published())
    shared, apart = tables(text)
    models = [row["Model"] for row in shared]
    assert models.index("UniPixel-3B") < models.index("ours") < models.index("GPT-4o") < models.index("Osprey-7B")
    assert len(shared) == 15
    assert {row["Mode"] for row in apart} == {"multi", "unstated"}
    assert all(row["Source"] and row["Why not"] for row in apart)
    only_ours, others = tables(question_section({"ours": score}, MADE, "letters", published()))
    assert [row["Model"] for row in only_ours] == ["ours"]
    assert len(others) == 25
    assert {row["Why not"] for row in others} >= {"other items (ours are machine-made)"}


def test_averages_that_do_not_agree_are_marked_and_explained() -> None:
    asked = items()
    text = question_section({"ours": question_score(asked, {})}, MADE, "letters", published())
    (row,) = [row for row in tables(text)[1] if row["Model"] == "Qwen2-VL-7B"]
    assert row["Average"] == "66.0 †"
    assert "- † Qwen2-VL-7B: the average is printed as 66.0, the columns give 67.2." in text
    described = description_section({"ours": judged([3, 4])}, MADE, published())
    assert "- † PixelRefer-Lite-7B: the average is printed as 3.64, the columns give 3.40." in described


def test_scores_over_other_items_share_no_table() -> None:
    scores = {"one": question_score(items(), {}), "two": question_score(items((4, 3, 2, 1, 1)), {})}
    with pytest.raises(ValueError, match=r"over different items \(one, two\)"):
        question_section(scores, MADE, "letters", published())
    with pytest.raises(ValueError, match="got no Bench-Q scores"):
        question_section({}, MADE, "letters", published())


def test_a_paired_comparison_shows_counts_and_changed_items() -> None:
    asked = items((30, 0, 0, 0, 0))
    first: dict[str, str | None] = {item.item_id: "A" for item in asked}
    second = first | {str(i): "B" for i in range(24)} | {"29": None}
    text = paired_section("old|model", "new", paired_score(asked, first, second))
    (counts,), changed = tables(text)
    assert counts == {
        "Items": "30",
        "Both right": "5",
        "Only old\\|model": "25",
        "Only new": "0",
        "Both wrong": "0",
        "Changed": "25",
        "McNemar p (exact)": "< 0.001",
    }
    assert changed[0] == {"Item": "0", "Right": "A", "old\\|model": "A", "new": "B"}
    assert len(changed) == 20
    assert "5 more items changed." in text
    assert "Left out" not in text
    some = dict.fromkeys(("0", "1"), "A")
    assert "28 of the 30 items" in paired_section("old", "new", paired_score(asked, some, some))


def test_description_scores_show_means_intervals_and_what_is_unscored_by_reason() -> None:
    score = judged([2, 4, 3, None])
    text = description_section({"ours": score}, MADE, published(), ["The judge is a stand-in."])
    summary, sure, apart = tables(text)
    (row,) = summary
    assert (row["SC"], row["HD"], row["Mean"], row["Scored"], row["Items"]) == ("3.00", "3.00", "3.00", "3", "4")
    assert [line["Score"] for line in sure] == ["SC", "AD", "TD", "HD", "Mean"]
    spread = score.total.spread
    assert spread is not None
    assert sure[-1] == {
        "Model": "ours",
        "Score": "Mean",
        "Mean": "3.00",
        "s.e.": "0.58",
        "95 % interval": f"{spread.low:.2f} to {spread.high:.2f}",
        "Scored": "3",
        "Items": "4",
        "Unscored": "1 no_reply",
        "With unscored as 0": "2.25",
    }
    assert len(apart) == 40
    assert "The judge is a stand-in." in text
    assert "A judge is only as good as its model: its figures mean nothing by themselves unless" in text
    assert "Judge: judge-7b; version judge-7b-v2; rubric own words, prompt hash `0123456789ab`; temperature 0" in text


def test_scores_of_two_judges_share_no_table() -> None:
    other = JUDGE.model_copy(update={"prompt_hash": "f" * 16})
    scores = {"low": judged([1, 2]), "high": judged([4, 5]), "elsewhere": judged([3, 3, 3], other)}
    text = description_section(scores, MADE, published())
    found = tables(text)
    assert [row["Model"] for row in found[0]] == ["high", "low"]
    assert [row["Model"] for row in found[3]] == ["elsewhere"]
    with pytest.raises(ValueError, match=r"over \[2, 3\] items"):
        description_section({"one": judged([1, 2]), "two": judged([1, 2, 3])}, MADE, published())
    with pytest.raises(ValueError, match="got no Bench-D scores"):
        description_section({}, MADE, published())


def test_an_item_without_any_score_has_no_mean_and_stands_last() -> None:
    text = description_section({"none": judged([None, None]), "some": judged([0, 0])}, MADE, published())
    rows = tables(text)[0]
    assert [(row["Model"], row["Mean"], row["Scored"]) for row in rows] == [("some", "0.00", "2"), ("none", "–", "0")]


def test_published_descriptions_of_our_judge_share_its_table() -> None:
    figures = published()
    theirs = figures.descriptions[0].judge.model_copy(
        update={
            "model": "judge-7b",
            "version": JUDGE.version,
            "prompt_hash": JUDGE.prompt_hash,
            "settings": JUDGE.settings,
        }
    )
    known = figures.descriptions[0].model_copy(update={"judge": theirs})
    figures = figures.model_copy(update={"descriptions": (known, *figures.descriptions[1:])})
    shared, _, apart = tables(description_section({"ours": judged([3] * 400)}, SINGLE, figures))
    assert [(row["Model"], row["Mean"]) for row in shared] == [("ours", "3.00"), ("LongVU-7B", "1.64")]
    assert len(apart) == 39


def heuristic(answers: dict[str, str | None], embedder: str) -> HeuristicScore:
    class Same:
        name = embedder

        def weights(self) -> tuple[str, ...]:
            return ()

        def embed(self, texts: list[str]) -> np.ndarray:
            return np.tile(np.array([[1.0, 0.0]], np.float32), (len(texts), 1))

    return heuristic_score({"a": "A red dog.", "b": "A blue dog."}, answers, FactReader({"dog": "dog"}), Same())


def test_the_heuristic_has_a_heading_of_its_own_and_no_name_of_the_benchmarks_scores() -> None:
    scores = {
        "half": heuristic({"a": "A red dog."}, "one"),
        "full": heuristic({"a": "A red dog.", "b": "A blue dog."}, "one"),
        "nothing": heuristic({}, "two"),
    }
    text = heuristic_section(scores)
    assert text.startswith("## Heuristic (no judge)\n")
    first, second = tables(text)
    assert [row["Model"] for row in first] == ["full", "half"]
    assert (first[1]["fact_recall"], first[1]["fact_precision"], first[1]["Missing"]) == ("50.0 ± 50.0", "100.0", "1")
    assert (second[0]["fact_precision"], second[0]["embedding_similarity"]) == ("–", "0.0 ± 0.0")
    assert not re.search(r"\b(SC|AD|TD|HD)\b", text)
