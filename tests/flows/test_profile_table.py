"""Every key of a profile is described, shown with its value, and allowed what is told; the page is up to date."""

import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typer.testing import CliRunner

from flows.cli import app
from flows.cli_common import BAD_USAGE
from flows.profile_config import ROLES, Profile, load_profile, shipped_profiles
from flows.profile_schema import Key, ProfileSchema, field_docstrings, shown
from flows.profile_table import ProfileKey, listed_profiles, profile_keys, profile_page
from schemas.record import Record, Share

PAGE = Path(__file__).resolve().parents[2] / "docs" / "profiles.md"
CLUSTER = """
name = "mine"
description = "For a test."
[analyzer]
engine = "chat"
chat = { base_url = "vllm://words", model = "words" }
[segmenter]
engine = "grounding-dino+hq-sam+sam2"
detector = { model = "dino", min_score = 0.4, max_boxes = 8 }
mask_model = { model = "sam-hq" }
video_model = { model = "sam2" }
tracker = { prompt_frames = { first = [0.0, 1.0] } }
[annotator]
engine = "measured-facts"
[reviewer]
engine = "chat"
chat = { base_url = "http://127.0.0.1:8000/v1", model = "words" }
captioner = { base_url = "http://127.0.0.1:8000/v1", model = "pictures" }
[refiner]
engine = "template"
[[vllm]]
name = "words"
model = "llm"
[[vllm]]
name = "spare"
model = "llm"
gpus = 0.0
"""
BOUND = re.compile(r"(from|to|at least|above|at most|below) (-?[\d.]+)")


class Post(Record):
    """A section of a list."""

    port: int = 1
    """Where."""
    options: dict[str, str | bool] = Field(default_factory=dict)
    """More."""


class Odd(Record):
    """What profiles have none of today: a list of sections, a section that may be left out, a pattern."""

    posts: tuple[Post, ...] = ()
    """Posts."""
    spare: Post | None = None
    """Used where there is no other."""
    share: Share | None = None
    """Of all."""


class ByPydantic(Record):
    """Fields of which pydantic itself reads the docstrings."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    first: int = Field(default=1, ge=0)
    """One line."""
    second: tuple[float, ...] = ()
    """Several lines,
    with `code`.

        And more.
    """
    third: str = "no docstring"
    fourth: Post = Post()
    """A section."""

    def method(self) -> int:
        """No field."""
        return self.first


class Later(ByPydantic):
    """One that inherits."""

    model_config = ConfigDict(use_attribute_docstrings=False)

    second: tuple[float, ...] = (1.0,)
    """Anew."""
    last: int = 0
    """New."""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(CLUSTER)
    return path


@pytest.fixture
def keys(cluster: Path) -> dict[str, ProfileKey]:
    return {key.key: key for key in profile_keys(load_profile(str(cluster)))}


def records_in(annotation: Any) -> Iterator[type[Record]]:
    """The records that a type is made of, those within a list or a choice included."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, Record):
            yield annotation
        return
    for part in typing.get_args(annotation):
        yield from records_in(part)


def undescribed(record_type: type[Record], place: str = "") -> Iterator[str]:
    """Fields without a meaning: only a single section, and the key that chooses one, may have its record's."""
    for name, field in record_type.model_fields.items():
        inner = list(records_in(field.annotation))
        is_section = field.annotation in inner
        is_choice = name == "engine" and typing.get_origin(field.annotation) is typing.Literal
        told = field_docstrings(record_type).get(name)
        if not told and not ((is_section or is_choice) and (inner or [record_type])[0].__doc__):
            yield f"{place}{name} ({record_type.__module__}.{record_type.__qualname__})"
        for record in inner:
            yield from undescribed(record, f"{place}{name}.")


def values_in(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a record with their values as JSON has them."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from values_in(getattr(value, name), f"{place}.{name}" if place else name)
    elif isinstance(value, tuple) and value and all(isinstance(item, BaseModel) for item in value):
        for number, item in enumerate(value):
            yield from values_in(item, f"{place}.{number}")
    else:
        yield place, TypeAdapter(Any).dump_python(value, mode="json")


def changed(values: Any, key: str, value: Any) -> Any:
    """A profile with another value at a dotted key."""
    if not key:
        return value
    name, _, rest = key.partition(".")
    if isinstance(values, list):
        return [changed(item, rest, value) if number == int(name) else item for number, item in enumerate(values)]
    return values | {name: changed(values[name], rest, value)}


def is_taken(values: dict[str, Any], key: str, value: Any) -> bool:
    try:
        Profile.model_validate(changed(values, key, value))
    except ValidationError:
        return False
    return True


def fits(allowed: str, number: float) -> bool:
    """Whether a number is within the bounds that are told in words."""
    tests = {
        "from": number.__ge__,
        "at least": number.__ge__,
        "above": number.__gt__,
        "to": number.__le__,
        "at most": number.__le__,
        "below": number.__lt__,
    }
    return all(tests[word](type(number)(bound)) for word, bound in BOUND.findall(allowed))


def test_every_field_of_every_section_and_engine_is_described() -> None:
    missing = sorted(set(undescribed(Profile)))
    assert not missing, f"these fields need a docstring below them, which says what they mean: {missing}"


def test_docstrings_are_those_that_pydantic_finds() -> None:
    found = {name: field.description for name, field in ByPydantic.model_fields.items() if field.description}
    assert found == dict(field_docstrings(ByPydantic))
    assert set(found) == {"first", "second", "fourth"}
    assert field_docstrings(Later) == found | {"second": "Anew.", "last": "New."}


def test_the_page_is_what_the_code_gives() -> None:
    command = "python -m flows.profile_table > docs/profiles.md"
    is_current = PAGE.read_text() == profile_page()
    assert is_current, f"docs/profiles.md is not up to date; this command makes it anew: {command}"


def test_the_page_has_every_field_and_a_table_for_every_engine() -> None:
    page = profile_page()
    fields = {name.rpartition(".")[2] for name in re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)}
    fields |= set(re.findall(r"^## `\[+(\w+)\]+`$", page, re.MULTILINE))
    schema = Profile.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    assert fields == {name for section in sections for name in section["properties"]}
    for role in ROLES:
        for engine in schema["properties"][role]["discriminator"]["mapping"]:
            assert re.search(rf"^### `{role}` by .*`{re.escape(engine)}`", page, re.MULTILINE)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {5}
    anchors = {title.lower() for title in re.findall(r"^### (\w+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", page)) == anchors


@pytest.mark.parametrize("name", [*shipped_profiles(), "cluster"])
def test_every_key_of_a_profile_is_there_once_with_its_value(name: str, cluster: Path) -> None:
    profile = load_profile(str(cluster) if name == "cluster" else name)
    found = [(key.key, key.value) for key in profile_keys(profile)]
    assert found == list(values_in(profile))
    assert all(key.meaning and key.allowed for key in profile_keys(profile))


def test_what_is_given_is_told_from_what_is_the_default(keys: dict[str, ProfileKey]) -> None:
    score = keys["segmenter.detector.min_score"]
    assert (score.value, score.default, score.is_default, score.required) == (0.4, 0.35, False, False)
    assert score.allowed == "number from 0 to 1"
    assert score.meaning == "Boxes that fit a noun less are dropped (0.35 in the official demonstration)."
    assert keys["segmenter.detector.max_boxes"].is_default  # the file gives it, as it is anyhow
    model = keys["segmenter.detector.model"]
    assert (model.value, model.required, model.is_default) == ("dino", True, False)
    assert not keys["segmenter.tracker.prompt_frames.first"].is_default
    assert keys["segmenter.tracker.prompt_frames.others"].is_default


def test_sections_of_a_list_are_told_apart_by_their_place(keys: dict[str, ProfileKey]) -> None:
    assert (keys["vllm.0.name"].value, keys["vllm.1.name"].value) == ("words", "spare")
    assert [keys[f"vllm.{place}.gpus"].is_default for place in (0, 1)] == [True, False]


def test_an_engine_is_one_of_all_that_the_agent_may_have(keys: dict[str, ProfileKey]) -> None:
    engine = keys["segmenter.engine"]
    assert set(engine.allowed.removeprefix("one of ").split(", ")) >= {"sam3", "painted-truth", engine.value}
    assert engine.meaning.startswith("Mentions to tracks the paper's way")


def test_numbers_are_refused_exactly_where_the_words_say(cluster: Path, keys: dict[str, ProfileKey]) -> None:
    values = tomllib.loads(cluster.read_text())
    whole = json.loads(Profile.model_validate(values).model_dump_json())
    tried = 0
    for key in keys.values():
        if not key.allowed.startswith(("number", "whole number")):
            continue
        kind = int if key.allowed.startswith("whole") else float
        for _, bound in BOUND.findall(key.allowed):
            edge = kind(bound)
            near = (edge - 1, edge, edge + 1) if kind is int else (edge - 1e-6, edge, edge + 1e-6)
            for number in near:
                assert is_taken(whole, key.key, number) == fits(key.allowed, number), (key.key, number)
                tried += 1
        assert kind is float or not is_taken(whole, key.key, 1.5)
        assert not is_taken(whole, key.key, math.nan)
    assert tried > 100


def test_of_a_choice_each_is_taken_and_no_other(cluster: Path, keys: dict[str, ProfileKey]) -> None:
    whole = json.loads(load_profile(str(cluster)).model_dump_json())
    chosen = [key for key in keys.values() if key.allowed.startswith("one of ") and not key.key.endswith(".engine")]
    assert chosen
    for key in chosen:
        assert all(is_taken(whole, key.key, value) for value in key.allowed.removeprefix("one of ").split(", "))
        assert not is_taken(whole, key.key, "none of them")


def test_lists_of_sections_and_what_may_be_left_out_have_words() -> None:
    schema = ProfileSchema(Odd)
    posts, spare, share = (schema.key(schema.top, name) for name in ("posts", "spare", "share"))
    assert posts == Key(name="posts", required=False, default=[], allowed="list, each item: table", meaning="Posts.")
    assert (spare.allowed, shown(spare.default)) == ("table or left out", "left out")
    assert share.allowed == "number from 0 to 1 or left out"
    fields = schema.top["properties"]
    (section,) = schema.sections(fields["posts"])
    assert schema.sections(fields["spare"]) == [section]
    assert not schema.sections(fields["share"])
    options = schema.key(section, "options")
    assert (options.allowed, options.default) == ("table, each value: text or true or false", {})
    given = Odd(posts=(Post(port=2), Post())).model_dump(mode="json")
    places = [(place, values["port"]) for place, _, values in schema.chosen(fields["posts"], given["posts"])]
    assert places == [("0", 2), ("1", 1)]
    assert schema.chosen(fields["spare"], None) == []


def test_a_kind_of_field_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="no words"):
        ProfileSchema().allowed({"type": "array"})


def test_the_list_names_each_profile_with_what_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = CliRunner().invoke(app, ["profiles"])
    found = json.loads(CliRunner().invoke(app, ["profiles", "--json"]).stdout)["profiles"]
    assert [profile["name"] for profile in found] == list(shipped_profiles())
    assert found == [profile.model_dump() for profile in listed_profiles()]
    for profile in found:
        assert tuple(profile["engines"]) == ROLES
        assert profile["name"] in said.stdout
    assert found[0]["engines"]["refiner"] == load_profile("embedded").refiner.engine
    assert "refiner: smollm2-135m" in said.stdout


def test_a_profile_fits_eighty_columns_with_its_keys_unbroken(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = CliRunner().invoke(app, ["profiles", str(cluster)])
    lines = said.stdout.splitlines()
    assert said.exit_code == 0
    assert max(map(len, lines)) <= 80
    found = json.loads(CliRunner().invoke(app, ["profiles", str(cluster), "--json"]).stdout)
    assert (found["name"], len(found["keys"])) == ("mine", len(profile_keys(load_profile(str(cluster)))))
    words = {line.split()[0] for line in lines if line.split()}
    assert words >= {key["key"] for key in found["keys"]}
    assert "= 0.4 (default 0.35)" in said.stdout
    assert '= "dino" (no default)' in said.stdout


def test_a_profile_that_is_none_is_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(CLUSTER.replace("min_score", "min_scor"))
    for name, part in ((str(bad), "segmenter.detector.min_score"), ("embeded", "'embedded'")):
        said = CliRunner().invoke(app, ["profiles", name])
        assert (said.exit_code, said.stdout) == (BAD_USAGE, "")
        assert said.stderr.count("\n") == 1
        assert part in said.stderr
