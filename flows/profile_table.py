"""Tables of profiles: every key of one with its value, and docs/profiles.md, every key there is.

`python -m flows.profile_table > docs/profiles.md` writes the page anew.
"""

import sys
from collections import Counter
from collections.abc import Container, Iterator, Mapping

from pydantic import JsonValue

from flows.profile_config import ROLES, Profile, load_profile, shipped_profiles
from flows.profile_schema import Key, ProfileSchema, Schema, choices, shown
from schemas.record import Record

_HEAD = """# Profiles: every key

A profile is a TOML file that names the engine, the resources and the batch size of each agent. `videorefer profiles`
lists those that come with the package, and `videorefer profiles NAME` shows one in full, defaults included; NAME may be
a file of your own, which a build takes as `--profile mine.toml`. A key or value that these tables do not allow is
refused before any work, and the nearest valid key named.

Dotted keys are nested tables: `tracker.track_fps` under `[segmenter]` is `track_fps` under `[segmenter.tracker]`.

This page is made from the code: `python -m flows.profile_table > docs/profiles.md`.
"""
_COLUMNS = "| key | default | allowed | meaning |\n|---|---|---|---|\n"


class ListedProfile(Record):
    """A profile that comes with the package; `engines` are by agent, `chat:MODEL` for a model behind a chat server."""

    name: str
    description: str
    engines: dict[str, str]


class ProfileKey(Record):
    """One key of a profile, dotted. `default` counts for nothing where the key is `required`."""

    key: str
    value: JsonValue
    required: bool
    default: JsonValue
    is_default: bool
    allowed: str
    meaning: str


def listed_profiles() -> tuple[ListedProfile, ...]:
    """Those that come with the package, by name."""
    return tuple(_listed(load_profile(name)) for name in shipped_profiles())


def _listed(profile: Profile) -> ListedProfile:
    engines = {role: getattr(profile, role).engine for role in ROLES}
    for role in ROLES:
        chat = profile.chat(role)
        if chat is not None:
            engines[role] += f":{chat.model}"
    return ListedProfile(name=profile.name, description=profile.description, engines=engines)


def profile_keys(profile: Profile) -> tuple[ProfileKey, ...]:
    """Every key that the profile gives or has by default, in the order of the page."""
    schema = ProfileSchema()
    return tuple(_keys(schema, schema.top, profile.model_dump(mode="json"), "", {}))


def _keys(
    schema: ProfileSchema,
    section: Schema,
    values: Mapping[str, JsonValue],
    prefix: str,
    tags: Mapping[str, list[str]],
) -> Iterator[ProfileKey]:
    for name, field in section["properties"].items():
        value = values[name]
        chosen = schema.chosen(field, value)
        for place, inner, inner_values in chosen:
            path = ".".join(filter(None, (name, place)))
            yield from _keys(schema, inner, inner_values, f"{prefix}{path}.", schema.tags(field))
        if not chosen:
            key = schema.key(section, name, tags.get(name, ()))
            yield ProfileKey(
                key=prefix + name,
                value=value,
                required=key.required,
                default=key.default,
                is_default=not key.required and value == key.default,
                allowed=key.allowed,
                meaning=key.meaning,
            )


def profile_page() -> str:
    """docs/profiles.md: a table for each section, one for each engine where there is a choice.

    What stands in several sections has one table at the end.
    """
    schema = ProfileSchema()
    counts = Counter(schema.name_of(field) for field in schema.fields())
    shared = frozenset(name for name, count in counts.items() if name and count > 1)
    top = schema.top["properties"]
    mere = [_row(schema.key(schema.top, name)) for name, field in top.items() if not schema.sections(field)]
    parts = [_HEAD, f"## The profile\n\n{_COLUMNS}{''.join(mere)}"]
    for name, field in top.items():
        if schema.sections(field):
            parts += _section(schema, name, shared)
    parts.append("## Tables of several sections\n")
    by_name = {schema.name_of(field): section for field in schema.fields() for section in schema.sections(field)}
    for name in sorted(shared):
        rows = "".join(_rows(schema, by_name[name], "", shared, {}))
        parts.append(f"### {name}\n\n{_words(by_name[name])}\n\n{_COLUMNS}{rows}")
    return "\n".join(parts)


def _section(schema: ProfileSchema, name: str, shared: frozenset[str]) -> Iterator[str]:
    field = schema.top["properties"][name]
    tags = schema.tags(field)
    is_list = field.get("type") == "array"
    yield f"## `{f'[[{name}]]' if is_list else f'[{name}]'}`\n\n{schema.key(schema.top, name).meaning}\n"
    for section in schema.sections(field):
        engines = [f"`{value}`" for chooser in tags for value in choices(section["properties"][chooser])]
        if engines:
            yield f"### `{name}` by {' or '.join(engines)}\n"
        elif is_list:
            yield f"{_words(section)}\n"
        yield f"{_COLUMNS}{''.join(_rows(schema, section, '', shared, tags))}"


def _rows(
    schema: ProfileSchema, section: Schema, prefix: str, shared: frozenset[str], tags: Container[str]
) -> Iterator[str]:
    for name, field in section["properties"].items():
        key = schema.key(section, name, choices(field) if name in tags else ())
        inner = schema.sections(field)
        part = schema.name_of(field)
        if not inner:
            yield _row(key, prefix)
            continue
        allowed = f"table: [{part}](#{part.lower()})" if part in shared else "table"
        yield _row(key.model_copy(update={"allowed": allowed}), prefix, is_section=True)
        if part not in shared:
            for one in inner:
                yield from _rows(schema, one, f"{prefix}{name}.", shared, schema.tags(field))


def _row(key: Key, prefix: str = "", *, is_section: bool = False) -> str:
    default = "" if is_section else f"`{shown(key.default)}`"
    cells = (f"`{prefix}{key.name}`", "must be given" if key.required else default, key.allowed, key.meaning)
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |\n"


def _words(section: Schema) -> str:
    return " ".join(section["description"].split())


if __name__ == "__main__":
    sys.stdout.write(profile_page())
