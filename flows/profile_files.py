"""Profiles as files: those that come with the package, by name, and one's own, by path; read into a record."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from schemas.record import Record

RecordT = TypeVar("RecordT", bound=Record)


class ProfileError(ValueError):
    """A profile that cannot be used, in one line."""


def shipped_names(folder: str) -> tuple[str, ...]:
    """Names of the profiles that come with the package in a folder of `flows`."""
    entries = (files("flows") / folder).iterdir()
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml")))


def read_profile(name_or_file: str, folder: str, record_type: type[RecordT]) -> RecordT:
    """The shipped profile of that name, or the one in that TOML file.

    Raises ProfileError, in one line, for an unknown name, bad TOML, or a key or value that is not allowed; for an
    unknown key the nearest valid one is named.
    """
    names = shipped_names(folder)
    if name_or_file in names:
        content = (files("flows") / folder / f"{name_or_file}.toml").read_bytes()
    elif Path(name_or_file).is_file():
        content = Path(name_or_file).read_bytes()
    else:
        near = difflib.get_close_matches(Path(name_or_file).stem, names, n=1)
        nearest = f"; the nearest is {near[0]!r}" if near else ""
        raise ProfileError(
            f"no profile {name_or_file!r}{nearest}: give one of {', '.join(names)}, or the path of a TOML file"
        )
    try:
        return record_type.model_validate(tomllib.loads(content.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {name_or_file}: not TOML: {error}") from error
    except ValidationError as error:
        raise ProfileError(f"profile {name_or_file}: {_one_line(error, record_type)}") from error


def _one_line(error: ValidationError, record_type: type[Record]) -> str:
    # a misspelt key also leaves its right form missing: the typo is what helps
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    if not first["loc"]:  # a rule over several sections, which says itself where to look
        return str(first.get("ctx", {}).get("error", first["msg"]))
    where = _place(first["loc"], record_type)
    if first["type"].startswith("union_tag"):
        return _of_choice(where, first["input"], first["ctx"])
    if first["type"] == "missing":
        return f"{where}: {first['msg']}"
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg']}, got {first['input']!r}"
    return _unknown(where, list(_keys(record_type)))


def _unknown(where: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(where, keys, n=1, cutoff=0.0)
    return f"unknown key {where!r}; the nearest valid one is {near[0]!r}"


def _of_choice(where: str, given: Mapping[str, Any], ctx: Mapping[str, Any]) -> str:
    """What is wrong with a section whose own key (`engine`, say) chooses what else may stand in it."""
    key = str(ctx["discriminator"]).strip("'")
    if "tag" in ctx:
        return f"{where}.{key}: must be one of {ctx['expected_tags']}, got {ctx['tag']!r}"
    typo = difflib.get_close_matches(key, list(given), n=1, cutoff=0.7)
    return _unknown(f"{where}.{typo[0]}", [f"{where}.{key}"]) if typo else f"{where}.{key}: Field required"


def _place(loc: tuple[int | str, ...], record_type: type[BaseModel]) -> str:
    """The key that an error is about, as the file has it: pydantic puts the choice made into it as well."""
    parts: list[str] = []
    models = [record_type]
    for part in loc:
        chosen = [model for model in models if part in _choices(model)] if len(models) > 1 else []
        if chosen:
            models = chosen
            continue
        parts.append(str(part))
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [inner for field in fields[:1] for inner in _records_in(field.annotation)]
    return ".".join(parts)


def _choices(model: type[BaseModel]) -> set[Any]:
    return {value for field in model.model_fields.values() for value in get_args(field.annotation)}


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _records_in(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def _records_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _records_in(part)
