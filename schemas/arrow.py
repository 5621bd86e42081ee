"""Arrow schemas derived from records, and rows to tables and back.

Two libraries were tried. `pydantic-to-pyarrow` 0.1.6 knows neither tuples nor 32-bit integers; `pydantic-arrow` 1.1.0
knows no tuples and wants pyarrow below 24; both turn literals into dictionary columns, which `datasets` cannot read.
Hence the walk below, over the few shapes that records use.
"""

import types
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, TypeVar, Union, get_args, get_origin

import pyarrow as pa

from schemas.record import Record

R = TypeVar("R", bound=Record)

_SCALARS: dict[object, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
}


def arrow_schema(record_type: type[Record]) -> pa.Schema:
    """The Arrow schema of a record type: one field each, under its serialised name.

    Tuples become lists, records structs, literals strings, `X | None` nullable fields. A type from `Annotated` that is
    an Arrow type stands for itself. Raises TypeError for any other annotation.
    """
    return pa.schema(_fields(record_type))


def to_table(records: Sequence[Record], record_type: type[Record]) -> pa.Table:
    """A table with one row per record, in order."""
    return pa.Table.from_pylist([record.model_dump() for record in records], schema=arrow_schema(record_type))


def from_table(table: pa.Table, record_type: type[R]) -> list[R]:
    """The records of a table, validated; columns that the record does not know are an error."""
    return [record_type.model_validate(row) for row in table.to_pylist()]


def _fields(record_type: type[Record]) -> list[pa.Field]:
    # pydantic keeps only its own part of Annotated in model_fields; the hints keep the Arrow type too
    hints = typing.get_type_hints(record_type, include_extras=True)
    return [_field(info.serialization_alias or name, hints[name]) for name, info in record_type.model_fields.items()]


def _field(name: str, annotation: object) -> pa.Field:
    inner, nullable = _without_none(annotation)
    return pa.field(name, _arrow_type(inner), nullable=nullable)


def _arrow_type(annotation: object) -> pa.DataType:
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *extras = get_args(annotation)
        given = next((extra for extra in extras if isinstance(extra, pa.DataType)), None)
        return given or _arrow_type(base)
    if origin is Literal:
        return pa.string()
    if origin is tuple:
        return pa.list_(_field("item", _item_of(get_args(annotation))))
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return pa.struct(_fields(annotation))
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    raise TypeError(
        f"no Arrow type for {annotation}; a record may hold str, int, float, bool, literals, records, "
        "tuples of one type, and any of these or None"
    )


def _item_of(args: Iterable[object]) -> object:
    kinds = {arg for arg in args if arg is not Ellipsis}
    if len(kinds) != 1:
        raise TypeError(f"a tuple column holds one type, got {kinds}")
    return kinds.pop()


def _without_none(annotation: object) -> tuple[object, bool]:
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [arg for arg in get_args(annotation) if arg is not type(None)]
        if len(kinds) == 1:
            return kinds[0], True
    return annotation, False
