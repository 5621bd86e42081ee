"""The keys that a profile may hold, read off the JSON schema of its record: what is allowed, the default, the meaning.

Meanings are the docstrings below the fields; that of a section without one is its record's docstring, and so is that of
the key that chooses an engine. They are read from the source when they are asked for: pydantic's
`use_attribute_docstrings` gives the same, but reads it at every import, a tenth of a second of each command's start.
"""

import ast
import functools
import inspect
import itertools
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import JsonValue
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import ModelSchema

from flows.profile_config import Profile
from schemas.record import Record

Schema = Mapping[str, Any]
"""JSON schema of a record or of one of its fields."""

_EMPTY: Mapping[str, JsonValue] = {"array": [], "object": {}}
"""The defaults that a schema does not tell, as a function makes them."""
_NUMBERS = {"integer": "whole number", "number": "number"}
_NO_NUMBER = {"string": "text", "boolean": "true or false", "null": "left out", "object": "table"}


class Key(Record):
    """One key of a section. `default` counts for nothing where the key is `required`."""

    name: str
    required: bool
    default: JsonValue
    allowed: str
    meaning: str


def field_docstrings(record_type: type[Record]) -> Mapping[str, str]:
    """The docstrings below a record's fields, inherited ones included, by field; fields without one are missing."""
    found: dict[str, str] = {}
    for base in reversed(record_type.__mro__):
        if issubclass(base, Record) and base is not Record:
            found |= _own_docstrings(base)
    return found


@functools.cache
def _own_docstrings(record_type: type[Record]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(record_type))).body
    assert isinstance(definition, ast.ClassDef), "the source of a class"
    for field, below in itertools.pairwise(definition.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text)
    return found


class _WithMeanings(GenerateJsonSchema):
    """JSON schemas in which fields bear their docstrings."""

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        """The schema of one record."""
        told = super().model_schema(schema)
        meanings = field_docstrings(schema["cls"])
        for name, field in told["properties"].items():
            if name in meanings:
                field["description"] = meanings[name]
        return told


class ProfileSchema:
    """The schema of a profile, or of another record that people fill in."""

    def __init__(self, record_type: type[Record] = Profile) -> None:
        self.top: Schema = record_type.model_json_schema(schema_generator=_WithMeanings)
        self._parts: Mapping[str, Schema] = self.top.get("$defs", {})

    def name_of(self, field: Schema) -> str:
        """The record that a section is of; empty for what is no section, and for one that an engine chooses."""
        ref = str(_given(field).get("$ref", ""))
        name = ref.rpartition("/")[2]
        return name if "properties" in self._parts.get(name, {}) else ""

    def sections(self, field: Schema) -> list[Schema]:
        """The sections that may stand there, one for each engine that there is a choice of; empty for a mere value."""
        names = map(self.name_of, _given(_items(field)).get("oneOf", [_items(field)]))
        return [self._parts[name] for name in names if name]

    def chosen(self, field: Schema, value: JsonValue) -> list[tuple[str, Schema, Mapping[str, JsonValue]]]:
        """The sections that do stand there, each with its place in a list (empty where there is none) and its values.

        Empty for a mere value, and for a section left out.
        """
        if isinstance(value, list):
            return [
                (str(number), section, inner)
                for number, item in enumerate(value)
                for _, section, inner in self.chosen(_items(field), item)
            ]
        sections = self.sections(field)
        if not isinstance(value, dict) or not sections:
            return []
        key = _given(field).get("discriminator", {}).get("propertyName", "")
        fits = [section for section in sections if not key or value[key] in choices(section["properties"][key])]
        return [("", fits[0], value)]

    def key(self, section: Schema, name: str, tags: Sequence[JsonValue] = ()) -> Key:
        """One key of a section; `tags` are the engines that there are where this key chooses among them."""
        field: Schema = section["properties"][name]
        own = field.get("description") or (
            section["description"] if tags else self._parts.get(self.name_of(field), {}).get("description", "")
        )
        return Key(
            name=name,
            required=name in section.get("required", ()),
            default=field.get("default", _EMPTY.get(str(field.get("type")))),
            allowed=_one_of(tags) if tags else self.allowed(field),
            meaning=" ".join(own.split()),
        )

    def tags(self, field: Schema) -> dict[str, list[str]]:
        """The key that chooses among the sections which may stand there, with its values; empty without a choice."""
        told = _given(_items(field)).get("discriminator", {})
        return {told["propertyName"]: list(told["mapping"])} if told else {}

    def allowed(self, field: Schema) -> str:
        """What may stand there, in words. Raises ValueError for a kind of field that no words are known for."""
        if "$ref" in field:
            return self.allowed(self._parts[field["$ref"].rpartition("/")[2]])
        if "anyOf" in field:
            return " or ".join(self.allowed(choice) for choice in field["anyOf"])
        if "oneOf" in field or isinstance(field.get("additionalProperties"), dict):
            return self._table(field)
        if choices(field):
            return _one_of(choices(field))
        kind = field.get("type")
        if kind in _NUMBERS:
            return f"{_NUMBERS[kind]}{_bounds(field)}"
        if kind == "array" and "items" in field:
            return f"list, each item: {self.allowed(field['items'])}"
        if kind not in _NO_NUMBER:
            raise ValueError(f"no words for the schema {field}; teach them to ProfileSchema.allowed")
        return f"{_NO_NUMBER[kind]}{_form(field)}"

    def _table(self, field: Schema) -> str:
        values = field.get("additionalProperties")
        return f"table, each value: {self.allowed(values)}" if isinstance(values, dict) else "table"

    def fields(self) -> Iterator[Schema]:
        """Every field of every section, once."""
        for section in (self.top, *self._parts.values()):
            yield from section.get("properties", {}).values()


def _given(field: Schema) -> Schema:
    """The field without the choice of leaving it out."""
    given = [choice for choice in field.get("anyOf", ()) if choice.get("type") != "null"]
    return given[0] if len(given) == 1 else field


def _items(field: Schema) -> Schema:
    items: Schema = field.get("items", field)
    return items


def choices(field: Schema) -> list[JsonValue]:
    """The values that a field must be one of; empty where it may be others."""
    return [field["const"]] if "const" in field else list(field.get("enum", ()))


def _one_of(values: Sequence[JsonValue]) -> str:
    said = ", ".join(map(str, values))
    return f"one of {said}" if len(values) > 1 else f"only {said}"


def _form(field: Schema) -> str:
    if "pattern" in field:
        return f" that matches `{field['pattern']}`"
    return ", not empty" if field.get("minLength") else ""


def _bounds(field: Schema) -> str:
    if "minimum" in field and "maximum" in field:
        return f" from {_short(field['minimum'])} to {_short(field['maximum'])}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    told = [f"{word} {_short(field[bound])}" for bound, word in words.items() if bound in field]
    return f" {' and '.join(told)}" if told else ""


def _short(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def shown(value: JsonValue) -> str:
    """A value as a profile has it, but for tables, which are shown as JSON."""
    return "left out" if value is None else json.dumps(value, ensure_ascii=False)
