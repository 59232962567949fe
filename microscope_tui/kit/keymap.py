"""Custom keys: the ``[keys]`` table of the config file, checked for Textual's keymap.

```toml
[keys]
layer.next = "n,down"
time.back = "["
```

The right side replaces all keys of a binding, on all screens that have its id;
``moe-microscope keys`` lists the ids.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from textual.binding import Binding
from textual.keys import Keys

from microscope_tui.kit.keys import character_of, with_keymap, written_key
from microscope_tui.kit.screen_table import MISSING_IDS
from microscope_tui.runlog import safe_text

_ALWAYS_QUIT = frozenset({"ctrl+c", "ctrl+q"})
_NAMED = frozenset(key.value for key in Keys if key.value.isalnum()) - {"return"}
_MOVES = "up|down|left|right|home|end|pageup|pagedown|delete"
_FROM_ANY_TERMINAL = re.compile(
    # tab, enter and backspace are ctrl+i, ctrl+m and ctrl+h; alt+b and alt+f are read as moves.
    r"f([1-9]|1[0-2])|[a-eg-z]\w*|ctrl\+([a-gj-ln-z]|backslash)|shift\+tab"
    r"|alt\+(shift\+)?[ac-eg-z]"
    rf"|(alt\+)?(ctrl\+)?(shift\+)?({_MOVES})"
    r"|(alt\+)?(ctrl\+)?(shift\+)?f([1245-9]|1[0-2])"
)
"""Keys by Textual's names; others need the keyboard protocol of kitty."""
_OF_BEFORE = {
    "together.previous": "number.previous",
    "together.next": "number.next",
    "together.axis": "time.axis",
}
"""Ids of a screen that screen 6 has replaced, and what they are there."""


class BadKey(ValueError):
    """The message says what to write."""


def keymap_of(
    table: Mapping[str, object], screens: Mapping[str, Sequence[Binding]]
) -> dict[str, str]:
    """The ``[keys]`` table, checked, for ``App.set_keymap``: keys by the id of their binding.

    Args:
        table: as TOML gives it: ``layer.next`` without quotes is a table in a table.
        screens: the bindings of every screen.

    Raises:
        BadKey: an unknown id, a key that terminals do not send, or one that does two things.
    """
    ids = list(dict.fromkeys(b.id for bindings in screens.values() for b in bindings if b.id))
    keymap: dict[str, str] = {}
    for name, value in _entries(table):
        if name.startswith(MISSING_IDS):  # the file may be shared with a larger installation
            continue
        if name not in ids and name not in _OF_BEFORE:
            near = " or ".join(get_close_matches(name[:80], ids))
            meant = near and f"did you mean {near}? "
            raise BadKey(
                f"[keys] {safe_text(name, 40)}: no such id; {meant}`moe-microscope keys` prints all"
            )
        keymap[name] = _keys_of(name, value)
    before = [name for name in keymap if name in _OF_BEFORE]
    of_before = {_OF_BEFORE[name]: keymap.pop(name) for name in before}
    if found := conflicts(screens, keymap):
        raise BadKey(f"[keys] conflicting keys: {'; '.join(found)}; bind one to another key")
    for name, keys in of_before.items():
        wanted = {name: keys, **keymap}  # the name of today wins
        if not conflicts(screens, wanted):  # its screen has more keys than that of before
            keymap = wanted
    return keymap


def _keys_of(name: str, value: object) -> str:
    """The keys of one id by Textual's names, separated by commas."""
    if not isinstance(value, str) or not value.strip():
        shown = safe_text(repr(value), 40)
        raise BadKey(f'[keys] {name} is {shown}: write at least one key, like "j" or "j,down"')
    keys: dict[str, None] = {}
    for written in (part.strip() for part in value.split(",")):
        key = _named(written)
        if key is None:
            raise BadKey(
                f'[keys] {name}: terminals do not send a key "{safe_text(written, 30)}"; write '
                "a character (j J [ ?) or a name (up pageup space comma f5 ctrl+p)"
            )
        if key in _ALWAYS_QUIT:
            raise BadKey(f"[keys] {name}: {key} always quits; write another key")
        keys[key] = None
    return ",".join(keys)


def without_screen(table: Mapping[str, object]) -> list[str]:
    """The ids in a ``[keys]`` table whose screens this installation does not have."""
    return [name for name, _ in _entries(table) if name.startswith(MISSING_IDS)]


def conflicts(screens: Mapping[str, Sequence[Binding]], keymap: Mapping[str, str]) -> list[str]:
    """Conflicting keys of one screen: ``j: layer.next and screen.back on …``."""
    found = []
    for screen, bindings in screens.items():
        owners: dict[str, dict[str, None]] = {}
        for one in Binding.make_bindings(with_keymap(bindings, keymap)):
            owners.setdefault(one.key, {})[one.id or one.action] = None
        found += [
            f"{written_key(key)}: {' and '.join(names)} on the {screen} screen"
            for key, names in owners.items()
            if len(names) > 1
        ]
    return found


def _entries(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Ids and values: ``layer.next`` without quotes is a table in a table."""
    for part, value in table.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{part}.")
        else:
            yield f"{prefix}{part}", value


def _named(written: str) -> str | None:
    """Textual's name of a key; ``None`` if no terminal sends it."""
    if len(written) == 1:
        return _name_of(written)
    *modifiers, last = written.split("+")
    if not modifiers:
        last = last.lower()
    key = "+".join([*sorted(modifiers), last])
    if not modifiers and key not in _NAMED:
        character = character_of(key)
        return _name_of(character) if character else None
    return key if _FROM_ANY_TERMINAL.fullmatch(key) else None


def _name_of(character: str) -> str | None:
    if not character.isprintable():
        return None
    if character == ",":  # it separates keys elsewhere
        return "comma"
    return next(iter(Binding.make_bindings([Binding(character, "")]))).key
