"""The screens and the keys: bindings, the last line, the help and the palette derive from here.

The keys of one screen are in its file. The config file gives other keys by the id of a binding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

from textual.binding import Binding, BindingType
from textual.keys import REPLACED_KEYS, key_to_character
from textual.screen import Screen

from microscope_tui.kit.screen_table import SCREENS

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
_FAR = 10**12


def screen_class(name: str) -> type[Any]:
    """Imported now; ``name_of`` is the way back."""
    place = f"microscope_tui.{SCREENS[name].module}:{name.title()}Screen"
    found: type[Any] = resolve_name(place)
    return found


def name_of(screen: Screen[Any]) -> str:
    """Name of a screen as in ``SCREENS``; see ``screen_class``."""
    return type(screen).__name__.removesuffix("Screen").lower()


def key(id: str, keys: str, action: str, does: str, short: str = "", shown: str = "") -> Binding:
    """``short``: its label in the last line, if it is there; ``shown``: its key there."""
    display = shown or None
    return Binding(keys, action, short or does, bool(short), display, id=id, tooltip=does)


def pair(short: str, *bindings: Binding, compact: bool = True) -> list[Binding]:
    """Two bindings that share a place in the last line: ``↑↓ layer``, or ``[ ] step``."""
    group = Binding.Group(short, compact)
    return [replace(one, show=True, group=group) for one in bindings]


def in_list(id: str, action: str = "move", what: str = "", down: str = "pagedown") -> list[Binding]:
    """The keys of a list: its ends, and one page up or down.

    ``id``: first part of the ids; ``action``: moves by so many entries; ``what``: an entry, in
    words.
    """
    return [
        key(f"{id}.first", "home,g", f"{action}(-{_FAR})", f"first {what or id}"),
        key(f"{id}.last", "end,G", f"{action}({_FAR})", f"last {what or id}"),
        key(f"{id}.page_up", "pageup", "page(-1)", "one page up"),
        key(f"{id}.page_down", down, "page(1)", "one page down"),
    ]


_LEADS = [
    key(f"screen.{name}", row.keys, f"app.go('{name}')", row.does, *row.shown)
    for name, row in SCREENS.items()
    if row.keys
]
UP_AND_DOWN = pair(
    "layer",
    key("layer.previous", "up,k", "move(-1)", "previous layer"),
    key("layer.next", "down,j", "move(1)", "next layer"),
)
LAYERS = [*UP_AND_DOWN, *in_list("layer")]
EXPERTS = [
    key("expert.previous", "left,h", "expert(-1)", "previous expert"),
    key("expert.next", "right,l", "expert(1)", "next expert"),
]
TIME = [
    *pair(
        "step",
        key("time.back", "left_square_bracket", "step(-1)", "previous logged step"),
        key("time.on", "right_square_bracket", "step(1)", "next logged step"),
        compact=False,
    ),
    key("time.back_ten", "left_curly_bracket", "step(-10)", "ten steps back"),
    key("time.on_ten", "right_curly_bracket", "step(10)", "ten steps forward"),
    key("time.go_to", "colon,comma", "ask('place')", "go to a step, percentage or time", "go to"),
    key("time.follow", "f,space", "toggle_follow", "pause or follow live; stop playback", "pause"),
    key("time.play", "P", "play", "play back 1, 4, 16 columns a second"),
    key("time.zoom_in", "plus,equals_sign", "zoom(0.5)", "zoom in: half as much time"),
    key("time.zoom_out", "minus", "zoom(2)", "zoom out: twice as much time"),
    key("time.show_all", "0", "zoom(1e15)", "show the whole run"),
    key("time.axis", "x", "next_axis", "time axis: step, run time, clock"),
]
ALERTS = [
    key("alert.next", "a", "next_alert", "next alert, unseen first", "alert"),
    key("alert.acknowledge", "A", "acknowledge", "mark the alert as seen"),
    key("alert.onset", "o", "onset", "jump to the onset of the alert", "onset"),
]
PALETTE = key("look.palette", "c", "look('palette')", "palette")
FILTER = key("filter.ask", "slash", "ask('filter')", "filter: text, !text", "filter")
SVG = key("out.svg", "S", "app.write('svg')", "export the screen as SVG")
OUT = [
    key("out.copy", "Y", "copy", "copy the verdict"),
    key("out.csv", "w", "app.write('csv')", "export the loads of this step as CSV"),
    key("out.json", "W", "app.write('json')", "export this step as JSON"),
    SVG,
]
EVERYWHERE = [
    *_LEADS,
    key("app.palette", "ctrl+p", "app.command_palette", "all commands"),
    key("app.repaint", "ctrl+l", "app.repaint", "repaint the screen"),
    key("app.help", "question_mark", "app.help", "help", "help"),
    key("app.quit", "q", "app.quit", "quit", "quit"),
]
BACK = key("screen.back", "escape", "app.pop_screen", "back", "back")
OPEN_LAYER = key("layer.open", "enter", "open_layer", "open the layer", "open")
OPEN_EXPERT = key("expert.open", "enter", "open_expert", "open the expert", "expert")


def with_keymap(bindings: Iterable[BindingType], keymap: Mapping[str, str]) -> list[Binding]:
    """The bindings with an id, with the keys of the config file where it names them."""
    ours = []
    for one in bindings:
        if isinstance(one, Binding) and one.id:
            keys = keymap.get(one.id)
            ours.append(one.with_key(keys) if keys else one)
    return ours


def all_bindings(keymap: Mapping[str, str] | None = None) -> dict[str, list[Binding]]:
    """By screen, with the keys of the config file where it names them."""
    return {name: with_keymap(screen_class(name).BINDINGS, keymap or {}) for name in SCREENS}


def key_table(keymap: Mapping[str, str]) -> dict[str, list[tuple[str, str, str]]]:
    """Id, keys as the config file takes them, and what they do, by screen."""
    return {
        screen: [
            (one.id or "", "  ".join(map(written_key, one.key.split(","))), one.tooltip)
            for one in bindings
        ]
        for screen, bindings in all_bindings(keymap).items()
    }


def shown_key(key: str) -> str:
    """As a screen shows it: ``↑``, ``[``, ``page up``."""
    return _SHOWN.get(key) or character_of(key) or key


def written_key(key: str) -> str:
    """As the config file takes it: ``up``, ``[``, ``comma``."""
    if key == "comma":
        return key
    return character_of(key) or key


def character_of(key: str) -> str | None:
    """The visible character behind one of Textual's names, ``question_mark`` for one."""
    character = key_to_character(REPLACED_KEYS.get(key, key))
    if character and len(character) == 1 and character.isprintable() and character != " ":
        return character
    return None
