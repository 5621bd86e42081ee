"""Bench-Q and Bench-D items in the official format, and the words in which they are asked."""

import json

import pytest

from benchmark.items import BenchFileError, DescriptionItem, QuestionItem, description_items, question_items, read_rows
from benchmark.wording import description_prompt, question_prompt

OPTIONS = ["(A) A helmet", "(B) A hat", "(C) Sunglasses", "(D) A watch"]


def question(number=0, **changed):
    row = {
        "id": number, "video": "DAVIS/JPEGImages/480p/aerobatics", "Question": "What is <object3><region> not wearing?",
        "type": "Basic Questions", "options": OPTIONS, "Answer": "(A) A helmet", "frame_idx": "57",
        "annotation": [{"0": {"segmentation": None}}],
    }  # fmt: skip
    return {key: value for key, value in (row | changed).items() if value is not ...}


def write(path, rows, form="array"):
    path.write_text(json.dumps(rows, indent=1) if form == "array" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("form", ["array", "lines"])
@pytest.mark.parametrize("count", [1, 3])
def test_questions_are_read_from_an_array_and_from_lines(tmp_path, form, count):
    items = question_items(write(tmp_path / "q.json", [question(number) for number in range(count)], form))
    assert len(items) == count
    assert items[-1] == QuestionItem(
        item_id=str(count - 1), video="DAVIS/JPEGImages/480p/aerobatics", qtype="Basic Questions",
        question="What is <object3><region> not wearing?", options=tuple(OPTIONS), answer="(A) A helmet", row=count - 1,
    )  # fmt: skip
    assert (items[0].letter, items[0].letters) == ("A", ("A", "B", "C", "D"))


def test_descriptions_are_read(tmp_path):
    rows = [{"id": 7, "video": "a_0:01_0:02.mp4", "caption": "A man.", "frame_idx": "36", "annotation": [{}]}]
    assert description_items(write(tmp_path / "d.json", rows)) == (
        DescriptionItem(item_id="7", video="a_0:01_0:02.mp4", caption="A man.", row=0),
    )


def test_unknown_types_and_any_number_of_options_are_taken(tmp_path):
    rows = [
        question(0, type="Reasoning Question?", options=OPTIONS[:2]),
        question(1, type="动作", options=[f"({letter}) {letter}" for letter in "ABCDEFGHIJKL"], Answer="(L) L"),
    ]
    items = question_items(write(tmp_path / "q.json", rows))
    assert [(item.qtype, len(item.options), item.letter) for item in items] == [
        ("Reasoning Question?", 2, "A"),
        ("动作", 12, "L"),
    ]


def test_rows_without_ids_are_named_by_their_place(tmp_path):
    items = question_items(write(tmp_path / "q.json", [question(id=...), question(id=...)]))
    assert [item.item_id for item in items] == ["0", "1"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"Answer": "(E) A ring"}, r"'\(E\) A ring' is none of the options A, B, C, D"),
        ({"Answer": "A helmet"}, "'A helmet' names no option"),
        ({"Answer": None}, "Answer is None; allowed is a text"),
        ({"Question": ...}, r"Question is absent \(the row has id, video, type"),
        ({"video": ""}, "video is ''"),
        ({"type": 3}, "type is 3"),
        ({"options": OPTIONS[:1]}, "allowed is a list of two or more texts"),
        ({"options": "(A) x (B) y"}, "allowed is a list of two or more texts"),
        ({"options": ["(A) x", "(A) y"]}, "letters A, A; each may stand once"),
        ({"options": ["(A) x", "y"]}, "option 'y' has no letter"),
        ({"options": ["(A) \ud800", "(B) x"]}, "half a surrogate pair"),
        ({"id": True}, "id is True"),
        ({"id": "\ud800"}, "half a surrogate pair"),
        ({"id": 0}, "id 0 is that of row 0 too"),
        ({"id": "0"}, "id 0 is that of row 0 too"),
        ({"Question": "\ud800"}, "half a surrogate pair"),
    ],
)
def test_a_row_that_is_no_item_is_named_in_one_line(tmp_path, changed, told):
    path = write(tmp_path / "q.json", [question(0), question(1, **changed)])
    with pytest.raises(BenchFileError, match=rf"row 1 \(counted from 0\): .*({told})") as error:
        question_items(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '[{"id": 0}', '{"id": 0}\n{"id"', "[1]", "7", '{"id": 0} {"id": 1}', "[" * 100_000, "nonsense"],
)
@pytest.mark.parametrize("reader", [question_items, description_items])
def test_a_file_that_is_none_of_items_is_refused(tmp_path, content, reader):
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(BenchFileError, match=r"q\.json"):
        reader(path)


def test_absent_files_and_other_encodings_are_refused(tmp_path):
    with pytest.raises(BenchFileError, match="cannot be read"):
        read_rows(tmp_path / "absent.json")
    (tmp_path / "q.json").write_bytes(b'[{"id": "\xff"}]')
    with pytest.raises(BenchFileError, match="cannot be read"):
        read_rows(tmp_path / "q.json")


def test_line_ends_that_only_unicode_knows_and_byte_order_marks_do_no_harm(tmp_path):
    (tmp_path / "q.json").write_bytes('\ufeff{"a": "x\u2028y\x85z"}\r\n\r\n{"a": "b"}'.encode())
    assert read_rows(tmp_path / "q.json") == [{"a": "x\u2028y\x85z"}, {"a": "b"}]


def test_a_question_is_asked_in_the_official_words(tmp_path):
    (item,) = question_items(write(tmp_path / "q.json", [question()]))
    assert question_prompt(item) == (
        "What is <object3><region> not wearing? (A) A helmet (B) A hat (C) Sunglasses (D) A watch."
        " Answer with the option's letter from the given choices directly."
    )


def test_a_description_is_asked_of_one_region():
    assert description_prompt().count("<region>") == 1
