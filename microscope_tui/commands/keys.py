"""``moe-microscope keys``: every key of every screen, with the id for ``[keys]``."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from microscope_tui.commands.config import default_config, keymap_from, read_config
from microscope_tui.console import print_data, say

if TYPE_CHECKING:  # imported late: other commands do not need the UI
    from textual.binding import Binding

SCHEMA_VERSION = 1


def keys_command(
    *, as_json_: Annotated[bool, Parameter(name="--json", negative=())] = False
) -> int:
    """List the keys of every screen: id, keys, what they do.

    Parameters
    ----------
    as_json_
        Print the same as JSON.
    """
    from microscope_tui.app import keys, remapped

    own = keymap_from(read_config())  # invalid keys exit with a usage error
    screens = {name: remapped(bindings, own) for name, bindings in keys.screens().items()}
    if as_json_:
        print_data(json.dumps(keys_json(screens), indent=2, ensure_ascii=False))
    else:
        print_data(keys_text(screens))
        say(f'[keys] in {default_config()} changes them, for example layer.next = "n,down"')
    return 0


def keys_text(screens: Mapping[str, Sequence["Binding"]]) -> str:
    """A block for every screen, a line for every binding."""
    blocks = []
    rows = {screen: [_row(one) for one in bindings] for screen, bindings in screens.items()}
    every = [row for block in rows.values() for row in block]
    ids, keys = (max((len(row[at]) for row in every), default=0) for at in (0, 1))
    for screen, block in rows.items():
        lines = [f"  {id_:<{ids}}  {written:<{keys}}  {does}" for id_, written, does in block]
        blocks.append("\n".join([f"{screen} screen", *lines]))
    return "\n\n".join(blocks)


def keys_json(screens: Mapping[str, Sequence["Binding"]]) -> dict[str, Any]:
    """The same as data; the schema is versioned."""
    return {
        "schema_version": SCHEMA_VERSION,
        "screens": [
            {
                "screen": screen,
                "bindings": [
                    {"id": one.id, "keys": _written(one), "does": _does(one)} for one in bindings
                ],
            }
            for screen, bindings in screens.items()
        ],
    }


def _row(binding: "Binding") -> tuple[str, str, str]:
    return binding.id or "(fixed)", "  ".join(_written(binding)), _does(binding)


def _written(binding: "Binding") -> list[str]:
    from microscope_tui.app import written_key

    return [written_key(key.strip()) for key in binding.key.split(",")]


def _does(binding: "Binding") -> str:
    return binding.tooltip or binding.description
