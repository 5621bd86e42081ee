"""Prediction files of the official scripts are read, and files are written that the official scorers take."""

import json
import random

import pytest

from benchmark.items import BenchFileError, DescriptionItem, QuestionItem
from benchmark.predictions import Prediction, prediction_files, read_predictions, write_predictions

OPTIONS = ("(A) Yes", "(B) No")
ODD = ["(A)", "", None, "...", " ", "b.", "\u2028 (B)", "答案", "x" * 10_240, '"\\', "null"]


def questions(count):
    """Two of each (video, answer, type), as the official file has some."""
    return [
        QuestionItem(
            item_id=str(number), video=f"v{number // 4}", question=f"Is it {number}?", options=OPTIONS, row=number,
            answer=OPTIONS[number % 2], qtype=("Basic Questions", "Sequential Questions")[number // 8 % 2],
        )
        for number in range(count)
    ]  # fmt: skip


def descriptions(count):
    return [
        DescriptionItem(item_id=str(n), video=f"v{n // 3}", caption=f"A man, {n}.", row=n) for n in range(count)
    ]  # fmt: skip


def of_one_video(items):
    """Most rows of a file without ids are then alike, and only their order tells them apart."""
    return [item.model_copy(update={"video": "v", "qtype": "Basic Questions"}) for item in items]


def preds(items):
    return tuple(Prediction(item_id=item.item_id, pred=f"(A) to {item.item_id}") for item in items)


def v1(item, pred):
    if isinstance(item, QuestionItem):
        return {"video": item.video, "Answer": item.answer, "pred": pred, "type": item.qtype}
    return {"video": item.video, "caption": item.caption, "pred": pred}


def vl3(item, pred):
    return {key.replace("caption", "Answer"): value for key, value in v1(item, pred).items()}


def raw(item, pred):
    """The v1 `_raw` script repeats the item without masks, its regions bracketed, and adds the prediction."""
    return {"id": item.row, "video": item.video, "Question": "[<region>]?", "options": list(item.options),
            "type": item.qtype, "Answer": item.answer, "answer": pred}  # fmt: skip


def as_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(form, items):
    return [form(item, one.pred) for item, one in zip(items, preds(items), strict=True)]


@pytest.mark.parametrize("items", [questions(32), descriptions(32)], ids=["questions", "descriptions"])
@pytest.mark.parametrize("form", [v1, vl3])
def test_official_lines_are_read_in_order(tmp_path, items, form):
    as_lines(tmp_path / "pred.json", rows_of(form, items))
    assert read_predictions(tmp_path / "pred.json", items) == preds(items)


def test_the_array_of_the_raw_script_is_read(tmp_path):
    items = questions(16)
    (tmp_path / "pred.json").write_text(json.dumps(rows_of(raw, items)))
    assert read_predictions(tmp_path / "pred.json", items) == preds(items)


@pytest.mark.parametrize("items", [of_one_video(questions(25)), descriptions(25)], ids=["questions", "descriptions"])
def test_shards_are_read_as_arrays_as_lines_and_of_one_record(tmp_path, items):
    rows = rows_of(vl3, items)
    for shard in range(12):
        piece = rows[2 * shard : 2 * shard + 2]
        if shard % 2:
            as_lines(tmp_path / f"pred_{shard}.json", piece)
        else:
            (tmp_path / f"pred_{shard}.json").write_text(json.dumps(piece))
    as_lines(tmp_path / "pred_12.json", rows[24:])
    (tmp_path / "pred_gpt.json").write_text("no predictions")
    (tmp_path / "predict_0.json").write_text("another run's")
    assert len(prediction_files(tmp_path / "pred.json")) == 13
    assert read_predictions(tmp_path / "pred.json", items) == preds(items)


def test_a_name_or_folder_with_gpt_is_no_judges_file(tmp_path):
    items = descriptions(2)
    folder = tmp_path / "gpt-4o"
    folder.mkdir()
    as_lines(folder / "chatgpt_0.json", rows_of(vl3, items))
    as_lines(folder / "chatgpt_0_gpt.json", [{"gpt": "5"}])
    assert read_predictions(folder / "chatgpt.json", items) == preds(items)


def test_a_partial_file_leaves_items_out(tmp_path):
    items = descriptions(9)
    as_lines(tmp_path / "pred.json", rows_of(v1, items)[4:7])
    assert read_predictions(tmp_path / "pred.json", items) == preds(items)[4:7]
    as_lines(tmp_path / "none.json", [])
    assert read_predictions(tmp_path / "none.json", items) == ()


def test_rows_in_any_order_find_their_items_by_id(tmp_path):
    items = questions(16)
    rows = [{"id": int(one.item_id), "pred": one.pred} for one in preds(items)]
    random.Random(0).shuffle(rows)
    as_lines(tmp_path / "pred.json", rows)
    assert read_predictions(tmp_path / "pred.json", items) == preds(items)


def test_rows_of_equal_texts_go_to_items_of_their_type(tmp_path):
    items = questions(16)
    items = [item.model_copy(update={"video": "v"}) for item in items]
    as_lines(tmp_path / "pred.json", rows_of(v1, items)[::-1])
    read = {one.item_id: one.pred for one in read_predictions(tmp_path / "pred.json", items)}
    by_id = {item.item_id: item for item in items}
    assert len(read) == 16
    for item_id, pred in read.items():
        source = by_id[pred.rpartition(" ")[2]]
        assert (source.answer, source.qtype) == (by_id[item_id].answer, by_id[item_id].qtype)


def test_ids_go_first_where_only_some_rows_have_them(tmp_path):
    first, second = questions(3)[::2]
    as_lines(tmp_path / "pred.json", [v1(first, "without"), {"id": first.item_id, "pred": "with"}])
    assert read_predictions(tmp_path / "pred.json", [first, second]) == (
        Prediction(item_id=first.item_id, pred="with"),
        Prediction(item_id=second.item_id, pred="without"),
    )


@pytest.mark.parametrize("pred", [None, 1, True, ["A"], {"a": "A"}])
def test_what_is_no_text_is_none(tmp_path, pred):
    as_lines(tmp_path / "pred.json", [{"id": 0, "pred": pred}])
    assert read_predictions(tmp_path / "pred.json", questions(1)) == (Prediction(item_id="0", pred=None),)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"id": 0, "pred": "A"}, {"id": 0, "pred": "B"}], r"row 1 .*second prediction for item 0"),
        ([{"id": 7, "pred": "A"}], "no item has id 7; predictions are of the 2 items given"),
        ([{"id": 0, "video": "w", "pred": "A"}], "id 0 is with 'w', but the item of that id has 'v0'"),
        ([{"id": 0, "Answer": "(B) No", "pred": "A"}], "the item of that id has '.A. Yes'"),
        ([{"id": 0, "Question": "?"}], "has no pred, only id, Question"),
        ([{"id": [0], "pred": "A"}], r"id is \[0\]; allowed is a whole number or a text"),
        ([{"pred": "A"}], "has no id, and not both video and Answer"),
        ([{"video": "v0", "Answer": "(C) ?", "pred": "A"}], "no item has video 'v0' and reference '.C. .'"),
        ([{"video": "v0", "Answer": "(A) Yes", "type": "Other", "pred": "A"}], "no item has video"),
        ([{"video": "v0", "Answer": "(A) Yes", "pred": "A"}] * 2, "one prediction too many .*1 of the items"),
        ([["A"]], "got list; allowed is a JSON object"),
    ],
)
def test_a_row_of_no_item_is_named(tmp_path, rows, told):
    (tmp_path / "pred.jsonl").write_text(json.dumps(rows))
    with pytest.raises(BenchFileError, match=rf"pred\.jsonl, row \d .*{told}|pred\.jsonl, {told}"):
        read_predictions(tmp_path / "pred.jsonl", questions(2))


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(BenchFileError, match=r"there is no file .*pred\.json, nor shards .*pred_\*\.json"):
        prediction_files(tmp_path / "pred.json")


@pytest.mark.parametrize("items", [questions(len(ODD)), descriptions(len(ODD))], ids=["questions", "descriptions"])
def test_what_is_written_is_read_back(tmp_path, items):
    given = tuple(Prediction(item_id=item.item_id, pred=pred) for item, pred in zip(items, ODD, strict=True))
    write_predictions(tmp_path / "out" / "pred_0.json", items, given[::-1])
    assert read_predictions(tmp_path / "out" / "pred_0.json", items) == given
    assert read_predictions(tmp_path / "out" / "pred.json", items) == given
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pred_0.json"]


def test_official_question_scorers_take_what_is_written(tmp_path):
    items = questions(len(ODD))
    write_predictions(
        tmp_path / "p.json", items, [Prediction(item_id=i.item_id, pred=p) for i, p in zip(items, ODD, strict=True)]
    )
    # both read a line at a time, in the machine's encoding
    lines = (tmp_path / "p.json").read_bytes().decode("ascii").splitlines()
    assert len(lines) == len(items)
    for item, pred, line in zip(items, ODD, lines, strict=True):
        row = json.loads(line)
        assert (row["Answer"], row["type"], row["id"]) == (item.answer, item.qtype, item.item_id)
        # they stop at null, and at an answer with nothing but full stops in it
        assert row["pred"].replace(".", "")
        assert row["pred"] == (" " if pred in (None, "", "...") else pred)


def test_official_description_scorers_take_what_is_written(tmp_path):
    items = descriptions(len(ODD))
    write_predictions(
        tmp_path / "p.json", items, [Prediction(item_id=i.item_id, pred=p) for i, p in zip(items, ODD, strict=True)]
    )
    text = (tmp_path / "p.json").read_bytes().decode("ascii")
    with pytest.raises(json.JSONDecodeError):  # the VideoLLaMA3 scorer reads lines where this fails
        json.loads(text)
    for item, pred, line in zip(items, ODD, text.splitlines(), strict=True):
        row = json.loads(line)
        assert (row["caption"], row["Answer"], row["video"]) == (item.caption, item.caption, item.video)
        assert row["pred"] == (pred or "")


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    items = questions(2)
    write_predictions(tmp_path / "p.json", items, preds(items))
    before = (tmp_path / "p.json").read_bytes()
    for wrong in ([*preds(items), Prediction(item_id="9", pred="A")], [*preds(items)[:1]] * 2):
        with pytest.raises(BenchFileError, match=r"item 9, which is none of the 2 items|two predictions for item 0"):
            write_predictions(tmp_path / "p.json", items, wrong)
    assert (tmp_path / "p.json").read_bytes() == before
    with pytest.raises(BenchFileError, match="cannot write"):
        write_predictions(tmp_path / "p.json" / "below.json", items, preds(items))
