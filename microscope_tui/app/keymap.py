"""Custom keys: the ``[keys]`` table of the config file, applied to the bindings.

```toml
[keys]
layer.next = "n,down"
time.back = "["
```

The left side is the id of a binding, which ``moe-microscope keys`` lists; the right side replaces
all its keys. An id that several screens share changes on all of them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import combinations
from typing import Any

from textual.binding import Binding
from textual.keys import REPLACED_KEYS, Keys, key_to_character
from textual.screen import Screen

from microscope_tui.runlog import safe_text

Keymap = Mapping[str, str]
"""Id of a binding → its keys: Textual's names, separated by commas."""

_QUIT = "app.quit"
_ALWAYS_QUIT = frozenset({"ctrl+c", "ctrl+q"})
_MODIFIERS = frozenset({"alt", "ctrl", "hyper", "meta", "shift", "super"})
_NAMED = frozenset(key.value for key in Keys if key.value.isalnum()) - {"return"}
_MOVING = ("up", "down", "left", "right", "home", "end", "insert", "delete", "pageup", "pagedown")
# Most terminals send tab, enter, backspace and escape for the first four; for the others they
# disagree what to send.
_NOT_SENT = frozenset(
    {"ctrl+i", "ctrl+m", "ctrl+h", "ctrl+left_square_bracket", "ctrl+at", "ctrl+space"}
)
_EVERYWHERE = frozenset(
    # What Textual knows by a sequence of its own, and what xterm sends for a key with modifiers.
    [key.value for key in Keys]
    + [
        "+".join([*modifiers, key])
        for count in (1, 2, 3)
        for modifiers in combinations(("alt", "ctrl", "shift"), count)
        for key in (*_MOVING, *(f"f{number}" for number in range(1, 13)))
    ]
)
"""Names with modifiers that any terminal sends; others need the keyboard protocol of kitty."""
# Digits with ctrl; f3 with modifiers, which is a cursor report; alt+b and alt+f, which are read as
# ctrl+left and ctrl+right; and the second dozen of function keys.
_RARE = re.compile(r"\+\d$|\+f3$|^alt\+[bf]$|f(1[3-9]|2\d)$")
_SHOWN = {
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "escape": "esc",
    "enter": "⏎",
    "pageup": "page up",
    "pagedown": "page down",
}


class BadKey(ValueError):
    """An unknown binding, an unknown key, or conflicting keys; the message says what to write."""


def keymap_of(
    table: Mapping[str, object], screens: Mapping[str, Sequence[Binding]]
) -> dict[str, str]:
    """The ``[keys]`` table, checked.

    Args:
        table: as TOML gives it: ``layer.next`` without quotes is a table in a table.
        screens: the bindings of every screen.

    Raises:
        BadKey: it cannot be laid over these bindings.
    """
    ids = list(dict.fromkeys(b.id for bindings in screens.values() for b in bindings if b.id))
    keymap: dict[str, str] = {}
    for name, value in _entries(table, ids):
        if name not in ids:
            near = " or ".join(get_close_matches(name[:80], ids))
            raise BadKey(
                f"[keys] {safe_text(name, 40)}: no such id; "
                f"{f'did you mean {near}? ' if near else ''}`moe-microscope keys` prints all"
            )
        if name in keymap:
            raise BadKey(f"[keys] {name}: is defined twice, with and without quotes; remove one")
        keymap[name] = _keys(name, value)
    if found := conflicts(screens, keymap):
        raise BadKey(f"[keys] conflicting keys: {'; '.join(found)}; bind one to another key")
    return keymap


def conflicts(screens: Mapping[str, Sequence[Binding]], keymap: Keymap) -> list[str]:
    """Conflicting keys of one screen: ``j: layer.next and screen.back on …``."""
    found = []
    for screen, bindings in screens.items():
        owners: dict[str, dict[str, None]] = {}
        for one in Binding.make_bindings(remapped(bindings, keymap)):
            owners.setdefault(one.key, {})[one.id or one.description or one.action] = None
        found += [
            f"{written_key(key)}: {' and '.join(names)} on the {screen} screen"
            for key, names in owners.items()
            if len(names) > 1
        ]
    return found


def remapped(bindings: Iterable[Binding], keymap: Keymap) -> list[Binding]:
    """The same bindings with the keys of ``keymap``, the first of them shown.

    A display that speaks for two bindings (``[ ]``) shows the first key of each.
    """
    bindings = list(bindings)
    given = {one.id: keys for one in bindings if one.id and (keys := keymap.get(one.id))}
    owners = {shown_key(key): one for one in bindings for key in one.key.split(",")}
    after = []
    for one in bindings:
        keys, display = given.get(one.id or "", one.key), one.key_display or ""
        parts = [display] if display in owners else [part for part in display if part in owners]
        own = [given.get(owners[part].id or "", "").split(",")[0] for part in parts]
        now = [shown_key(key) if key else part for part, key in zip(parts, own, strict=True)]
        if one.id in given or now != parts:
            one = one.with_key(keys, " ".join(now) or shown_key(keys.split(",")[0]))
        after.append(one)
    return after


def bindings_of(screen: Screen[Any], keymap: Keymap) -> list[Binding]:
    """The bindings of a screen with the user's keys."""
    return remapped([one for one in screen.BINDINGS if isinstance(one, Binding)], keymap)


def shown_key(key: str) -> str:
    """One of Textual's names of keys as a screen shows it: ``↑``, ``[``, ``page up``."""
    return _SHOWN.get(key) or _character(key) or key


def written_key(key: str) -> str:
    """One of Textual's names of keys as the config file takes it: ``up``, ``[``, ``comma``."""
    character = None if key == "comma" else _character(key)
    return character or key


def _entries(
    table: Mapping[str, object], ids: Sequence[str], prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Ids and values, however TOML nested them."""
    for part, value in table.items():
        name = f"{prefix}{part}"
        if isinstance(value, Mapping) and any(known.startswith(f"{name}.") for known in ids):
            yield from _entries(value, ids, f"{name}.")
        else:
            yield name, value


def _keys(name: str, value: object) -> str:
    """The keys of one binding by Textual's names, each once."""
    what = f"[keys] {name}"
    if not isinstance(value, str):
        raise BadKey(f'{what} is {safe_text(repr(value), 40)}: write a string, like "j,down"')
    if not value.strip():
        why = "would leave no key to quit" if name == _QUIT else "is empty"
        raise BadKey(f'{what} {why}: write at least one key, like "j" or "space"')
    keys = []
    for written in (part.strip() for part in value.split(",")):
        key = _named(written)
        if not written:
            raise BadKey(f'{what} has an empty key between commas: write "comma" for the comma key')
        if key is None:
            raise BadKey(
                f'{what}: no terminal sends a key "{safe_text(written, 30)}"; write a character '
                f"(j J [ ?) or a name (up pageup space comma f5 ctrl+p)"
            )
        if not _comes_from_any_terminal(key):
            raise BadKey(
                f"{what}: most terminals, and tmux, do not send {safe_text(key, 40)}; "
                "write another key"
            )
        if key in _ALWAYS_QUIT:
            raise BadKey(f"{what}: {key} always quits; write another key")
        keys.append(key)
    return ",".join(dict.fromkeys(keys))


def _named(written: str) -> str | None:
    """Textual's name of a key as users write it; ``None`` if no terminal sends such a key."""
    if len(written) == 1:
        return _name_of(written)
    *modifiers, key = written.lower().split("+")
    if modifiers == ["alt"] and written[-1].isupper():
        modifiers.append("shift")  # the capital of alt+j is a key of its own
    if key not in _NAMED:
        if modifiers == ["shift"]:  # a capital is a key of its own
            return None
        character = _character(key)
        named = _name_of(character) if character else None
        if named is None:
            return None
        key = named
    name = "+".join([*sorted(set(modifiers)), key])
    return name if set(modifiers) <= _MODIFIERS and name not in _NOT_SENT else None


def _comes_from_any_terminal(key: str) -> bool:
    """``key`` is a character, a named key, or known with its modifiers to every terminal."""
    if _RARE.search(key):
        return False
    if "+" not in key or key in _EVERYWHERE:
        return True
    *modifiers, name = key.split("+")
    return modifiers in (["alt"], ["alt", "shift"]) and len(name) == 1 and name.isalnum()


def _name_of(character: str) -> str | None:
    """Textual's name of a character."""
    if not character.isprintable():
        return None
    if character == ",":  # it separates keys elsewhere
        return "comma"
    return next(iter(Binding.make_bindings([Binding(character, "")]))).key


def _character(key: str) -> str | None:
    """The visible character behind one of Textual's names, ``question_mark`` for one."""
    character = key_to_character(REPLACED_KEYS.get(key, key))
    visible = character and len(character) == 1 and character.isprintable() and character != " "
    return character if visible else None
