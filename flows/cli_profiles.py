"""`videorefer profiles`: the profiles that come with the package, and every key of one."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli_common import JsonOption, one_line_errors, print_json
from flows.profile_config import load_profile
from flows.profile_schema import shown
from flows.profile_table import ListedProfile, ProfileKey, listed_profiles, profile_keys


def profiles(
    name: Annotated[
        str,
        typer.Argument(help="A profile that comes with the package, or a TOML file; all of the former if not given."),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """The profiles there are, and the engine of each agent; of one, every key: value, default, what is allowed."""
    with one_line_errors():
        if not name:
            listed = listed_profiles()
            if as_json:
                print_json({"profiles": [profile.model_dump(mode="json") for profile in listed]})
            else:
                Console().print(_list_table(listed))
            return
        profile = load_profile(name)
        keys = profile_keys(profile)
        if as_json:
            found = [key.model_dump(mode="json") for key in keys]
            print_json({"name": profile.name, "description": profile.description, "keys": found})
        else:
            Console().print(_key_table(keys))


def _list_table(listed: Sequence[ListedProfile]) -> Table:
    table = Table("profile", "for, and the engine of each agent", box=box.SIMPLE_HEAD, pad_edge=False)
    for profile in listed:
        engines = "".join(f"\n{role}: {engine}" for role, engine in profile.engines.items())
        table.add_row(Text(profile.name, "bold"), Text.assemble(profile.description, (engines, "dim")))
        table.add_section()
    return table


def _key_table(keys: Sequence[ProfileKey]) -> Table:
    """Two columns, as keys are long: what may stand there below the key, so that 80 characters are enough."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("key, value, what is allowed", overflow="fold", width=max(len(key.key) for key in keys))
    table.add_column("meaning", overflow="fold")
    for key in keys:
        value = Text(f"\n= {shown(key.value)}", "" if key.is_default else "bold")
        default = "no default" if key.required else "default" if key.is_default else f"default {shown(key.default)}"
        told = Text.assemble((key.key, "cyan"), value, f" ({default})", (f"\n{key.allowed}", "dim"))
        table.add_row(told, Text(key.meaning))
        table.add_section()
    return table
