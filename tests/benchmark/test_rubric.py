from pathlib import Path

import pytest

from benchmark.judge_reply import DIMENSIONS
from benchmark.rubric import RubricError, own_rubric, reply_schema, rubric_from


@pytest.mark.parametrize("reply_format", ["json", "text"])
def test_our_rubric_names_all_dimensions_and_the_form_of_a_reply(reply_format: str) -> None:
    system, user = own_rubric().messages("a red bus", "a bus", reply_format)
    assert [system.role, user.role] == ["system", "user"]
    assert all(name in system.content for name in DIMENSIONS.values())
    assert ("temporal_description" in system.content) == (reply_format == "json")
    assert ("3. Temporal Description: N" in system.content) == (reply_format == "text")
    assert user.content == "Reference:\na red bus\n\nCandidate:\na bus"


def test_texts_go_in_as_they_are() -> None:
    _, user = own_rubric().messages("{prediction} \\1 {}", "{reference} {error} \\g<0>", "json")
    assert user.content == "Reference:\n{prediction} \\1 {}\n\nCandidate:\n{reference} {error} \\g<0>"


def test_a_users_text_is_the_system_message_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "official.txt"
    path.write_bytes(b"Mark it.\r\n\tBe kind: {reference}\n")
    rubric = rubric_from(path)
    system, user = rubric.messages("r", "p", "text")
    assert rubric.name == "official.txt"
    assert system.content.encode() == path.read_bytes().replace(b"\r\n", b"\n")
    assert user == own_rubric().messages("r", "p", "text")[1]
    assert rubric.messages("r", "p", "json")[0].content.endswith(own_rubric().json_note)


def test_a_users_text_may_bring_the_users_message(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\ufeffMark it.\n<<<user>>>\n#A: {reference}\n#B: {prediction}\n", encoding="utf-8")
    system, user = rubric_from(path).messages("r", "p", "text")
    assert (system.content, user.content) == ("Mark it.\n", "#A: r\n#B: p\n")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no text"),
        (b" \n<<<user>>>\n{reference}{prediction}", "no text"),
        (b"\xff\xfe", "UTF-8"),
        (b"a\n<<<user>>>\n{reference}", "lacks {prediction}"),
        (b"a\n<<<judge>>>\nb", "<<<judge>>>"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(RubricError, match=rf"^mine\.txt: .*{told}"):
        rubric_from(path)
    with pytest.raises(RubricError, match=r"absent\.txt"):
        rubric_from(tmp_path / "absent.txt")


def test_the_hash_changes_with_every_text_that_is_sent_and_with_the_schema(tmp_path: Path) -> None:
    own = own_rubric()
    path = tmp_path / "mine.txt"
    path.write_text("Mark it.")
    mine = rubric_from(path)
    variants = [own, mine, *(own.model_copy(update={part: "x"}) for part in ("system", "user", "again", "json_note"))]
    hashes = {rubric.prompt_hash("json", explained=explained) for rubric in variants for explained in (True, False)}
    assert len(hashes) == 2 * len(variants)
    assert own.prompt_hash("text", explained=True) == own.prompt_hash("text", explained=False)
    assert own.prompt_hash("text", explained=True) not in hashes
    renamed = own.model_copy(update={"name": "other", "text_note": "x"})
    assert renamed.prompt_hash("json", explained=True) == own.prompt_hash("json", explained=True)
    assert all(len(value) == 64 for value in hashes)


@pytest.mark.parametrize("explained", [True, False])
def test_the_schema_is_one_that_strict_servers_take_and_holds_scores_to_0_to_5(explained: bool) -> None:
    schema = reply_schema(explained=explained)
    assert list(schema["properties"]) == [name.lower().replace(" ", "_") for name in DIMENSIONS.values()]
    for one in schema["properties"].values():
        score = one["properties"]["score"] if explained else one
        assert score == {"type": "integer", "enum": [0, 1, 2, 3, 4, 5]}

    def check(node: dict[str, object]) -> None:
        assert set(node) <= {"type", "properties", "required", "additionalProperties", "enum"}
        if node["type"] == "object":
            assert node["additionalProperties"] is False
            assert node["required"] == list(node["properties"])
            for part in node["properties"].values():
                check(part)

    check(schema)
