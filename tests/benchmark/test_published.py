from decimal import Decimal
from importlib.resources import files
from pathlib import Path

import pytest

from benchmark.judging import JudgeRun
from benchmark.published import (
    UNKNOWN,
    PublishedError,
    PublishedJudge,
    Setting,
    load_published,
    published,
    split_descriptions,
    split_questions,
)
from benchmark.question_types import OFFICIAL_TYPES

SHIPPED = files("benchmark") / "published.toml"
JUDGE = JudgeRun(
    model_asked="gpt-4o-0806",
    models_answered=("gpt-4o-2024-08-06",),
    server_versions=(),
    system_fingerprints=(),
    rubric="own words",
    prompt_hash="ab12",
    temperature=0,
    max_tokens=512,
    reply_format="json",
    explained=True,
    max_reasks=2,
)
COUNTS = dict(zip(OFFICIAL_TYPES, (236, 255, 253, 142, 114), strict=True))
SINGLE = Setting(mode="single", machine_made=False)
MULTI = Setting(mode="multi", machine_made=False)


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = SHIPPED.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "figures.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def exact_mean(values: tuple[float, ...], weights: tuple[int, ...]) -> Decimal:
    total = sum((Decimal(repr(value)) * weight for value, weight in zip(values, weights, strict=True)), Decimal(0))
    return total / sum(weights)


def test_every_published_row_is_there_once() -> None:
    figures = published()
    descriptions = [(row.model, row.mode) for row in figures.descriptions]
    questions = [(row.model, row.mode) for row in figures.questions]
    assert len(set(descriptions)) == len(descriptions) == 40
    assert len(set(questions)) == len(questions) == 25
    assert all(row.source for row in (*figures.descriptions, *figures.questions))
    assert sum(bool(row.scores) for row in figures.descriptions) == 34
    assert sum(bool(row.percentages) for row in figures.questions) == 17


def test_figures_of_the_paper_are_as_printed() -> None:
    figures = published()
    multi = {row.model: row for row in figures.descriptions if row.mode == "multi"}
    assert multi["VideoRefer-7B"].scores == (4.44, 3.27, 3.10, 3.04)
    assert multi["VideoRefer-7B"].average == 3.46
    single = {row.model: row for row in figures.questions if row.mode == "single"}
    assert dict(zip(figures.question_types, single["GPT-4o"].percentages, strict=True)) == {
        "Basic Questions": 62.3,
        "Sequential Questions": 74.5,
        "Relationship Questions": 66.0,
        "Reasoning Questions": 88.0,
        "Future Predictions": 73.7,
    }


def test_averages_that_rounding_cannot_explain_are_marked() -> None:
    figures = published()
    wrong_d = {
        row.model
        for row in figures.descriptions
        if row.scores and abs(exact_mean(row.scores, (1, 1, 1, 1)) - Decimal(repr(row.average))) > Decimal("0.01")
    }
    wrong_q = {
        row.model
        for row in figures.questions
        if row.percentages
        and all(
            abs(exact_mean(row.percentages, counts) - Decimal(repr(row.average))) > Decimal("0.1")
            for counts in ((236, 255, 253, 142, 114), (235, 256, 252, 143, 114))
        )
    }
    assert {row.model for row in figures.descriptions if not row.average_agrees} == wrong_d
    assert {row.model for row in figures.questions if not row.average_agrees} == wrong_q
    assert wrong_d == {"PixelRefer-Lite-2B", "PixelRefer-Lite-7B"}
    assert wrong_q == {"Qwen2-VL-7B", "Osprey-7B", "Qwen2.5-VL-7B"}


def test_the_average_of_swims_qwen_row_is_the_plain_mean_of_the_types() -> None:
    (row,) = [row for row in published().questions if row.model == "Qwen2.5-VL-7B"]
    assert exact_mean(row.percentages, (1,) * 5) == Decimal("71.8")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("scores = [2.02, 1.45, 1.98, 1.12]", "scores = [2.02, 1.45, 1.98]", "LongVU-7B has 3 columns; there are 4"),
        (
            "percentages = [47.2, 61.3, 57.5, 85.3, 65.8]",
            "percentages = [47.2]",
            "LongVU-7B has 1 columns; there are 5",
        ),
        ("average = 1.64", "average = 5.64", "less than or equal to 5, got 5.64"),
        ("average = 61.0", "average = 161.0", "less than or equal to 100, got 161.0"),
        ('mode = "single"', 'mode = "double"', "mode"),
        ('judge = "videorefer-v1"', 'judge = "nobody"', "'nobody' is missing"),
        ('source = "videorefer"', 'source = "nowhere"', "'nowhere' is missing"),
        ('"Basic Questions", ', "", "question_types"),
        ("[source]", "[source", "is no TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_one_line(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    with pytest.raises(PublishedError, match=r"^figures\.toml") as error:
        load_published(edited(tmp_path, old, new))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ours", [SINGLE, MULTI])
def test_no_published_description_score_compares_while_its_prompt_is_unknown(ours: Setting) -> None:
    figures = published()
    split = split_descriptions(figures, ours, JUDGE, 400)
    assert split.comparable == ()
    assert len(split.not_comparable) == len(figures.descriptions)
    assert all("prompt hash" in reason for _, reason in split.not_comparable)


def test_description_scores_compare_where_judge_items_and_mode_all_match(tmp_path: Path) -> None:
    known = 'model = "gpt-4o-0806"\nversion = "unknown"\nprompt_hash = "unknown"\nsettings = "unknown"'
    told = f'model = "gpt-4o-0806"\nversion = "{JUDGE.version}"\nprompt_hash = "ab12"\nsettings = "{JUDGE.settings}"'
    figures = load_published(edited(tmp_path, known, told))

    def models(ours: Setting = SINGLE, judge: JudgeRun = JUDGE, num_items: int = 400) -> list[str]:
        return [row.model for row in split_descriptions(figures, ours, judge, num_items).comparable]

    assert models() == ["VideoRefer-VL3-2B", "VideoRefer-VL3-7B"]
    assert models(num_items=399) == []
    for ours in (MULTI, Setting(mode="unstated", machine_made=False), Setting(mode="single", machine_made=True)):
        assert models(ours) == []
    for change in (
        {"model_asked": "gpt-4o"},
        {"models_answered": ("other",)},
        {"models_answered": ()},
        {"server_versions": ("other",)},
        {"prompt_hash": "other"},
        {"temperature": 0.7},
        {"max_tokens": 800},
        {"max_reasks": 0},
        {"explained": False},
    ):
        assert models(judge=JUDGE.model_copy(update=change)) == []


def test_an_unknown_field_equals_nothing_even_if_ours_is_called_so() -> None:
    theirs = PublishedJudge(
        model="gpt-4o-0806", version="gpt-4o-2024-08-06", prompt_hash=UNKNOWN, settings=JUDGE.settings
    )
    assert theirs.differences(JUDGE.model_copy(update={"prompt_hash": UNKNOWN})) == ("prompt hash",)


def test_the_types_are_those_of_the_official_file() -> None:
    assert published().question_types == OFFICIAL_TYPES


def test_questions_compare_by_items_and_mode_without_a_judge() -> None:
    figures = published()
    split = split_questions(figures, SINGLE, "letters", COUNTS)
    assert {row.mode for row in split.comparable} == {"single"}
    assert {(row.mode, why) for row, why in split.not_comparable} == {
        ("multi", "mode multi, ours single"),
        ("unstated", "its mode is not stated, ours is single"),
    }
    assert len(split.comparable) == 14
    multi = split_questions(figures, MULTI, "letters", COUNTS)
    assert {row.model for row in multi.comparable} == {"VideoRefer-7B", "UniPixel-3B", "UniPixel-7B"}


@pytest.mark.parametrize(
    ("ours", "counts", "reason"),
    [
        (Setting(mode="single", machine_made=True), COUNTS, "other items (ours are machine-made)"),
        (SINGLE, {"Basic Questions": 20}, "other items (20 Basic Questions)"),
        (SINGLE, COUNTS | {"Basic Questions": 237}, "other items (237 Basic Questions, 255 Sequential Questions"),
        (SINGLE, COUNTS | {"More Questions": 1}, "114 Future Predictions, 1 More Questions)"),
        (Setting(mode="unstated", machine_made=False), COUNTS, "mode single, ours is not stated"),
        (Setting(mode="unstated", machine_made=False), COUNTS, "neither says its mode"),
        (Setting(mode="blind", machine_made=False), COUNTS, "mode single, ours blind"),
    ],
)
def test_questions_on_other_items_or_in_another_mode_are_not_comparable(
    ours: Setting, counts: dict[str, int], reason: str
) -> None:
    split = split_questions(published(), ours, "letters", counts)
    assert split.comparable == ()
    assert any(reason in told for _, told in split.not_comparable)


def test_figures_scored_by_likelihood_do_not_compare_with_letters() -> None:
    split = split_questions(published(), SINGLE, "likelihood", COUNTS)
    assert split.comparable == ()
    assert {why for row, why in split.not_comparable if row.mode == "single"} == {
        "scored by letters, ours by likelihood"
    }
