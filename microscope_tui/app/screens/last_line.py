"""The last line of a screen: its keys, or a prompt for a step, a filter, what to copy.

The prompt is no screen of its own: keys that are typed fast would still reach the screen below.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from textual.binding import Binding

from microscope_tui.app.keys import shown_key
from microscope_tui.lines import Glyphs, Line, Span, line_width, pad

Kind = Literal["", "place", "filter", "copy", "token", "find"]

COPY_CHOICES = {"v": "verdict", "r": "row", "x": "value"}
_MOST_CHARACTERS = 100
_LABELS: Mapping[Kind, str] = {"place": "go to step", "token": "go to token"}
_GIVE_WAY = ("look.overlay", "alert.onset", "time.go_to", "look.compare", "chart.smooth")
_OF_A_PROBE = ("screen.tokens", "screen.slices")
_ASCII_NAMES = {"↑": "up", "↓": "down", "⏎": "enter", "←": "left", "→": "right"}


class Prompt:
    """The state of the prompt: its kind and the typed text."""

    def __init__(self) -> None:
        self.kind: Kind = ""
        """What the prompt is for; empty while it is closed."""
        self.typed = ""

    @property
    def open(self) -> bool:
        """Whether the prompt is open."""
        return bool(self.kind)

    def ask(self, kind: Kind, typed: str = "") -> None:
        """Open."""
        self.kind, self.typed = kind, typed

    def take(self, key: str, character: str | None) -> str | None:
        """Handle one key. Returns the text on enter; escape closes; other keys do nothing."""
        if self.kind == "copy":
            self.kind = ""
            return character if character in COPY_CHOICES else None
        if key == "backspace":
            self.typed = self.typed[:-1]
        elif key == "ctrl+u":
            self.typed = ""
        elif key in ("enter", "escape"):
            self.kind = ""
            return self.typed if key == "enter" else None
        elif character is not None and character.isprintable():
            self.typed = (self.typed + character)[:_MOST_CHARACTERS]
        return None

    def line(self, hint: str, problem: str | None, glyphs: Glyphs) -> Line:
        """The prompt as a line; ``problem`` replaces the hint."""
        label = Span(f" {_LABELS.get(self.kind, self.kind)} ", "accent")
        if self.kind == "copy":
            choices = [(f"  {key}", f" {what}") for key, what in COPY_CHOICES.items()]
            return [label, *_said([*choices, ("   esc", " cancel")])]
        cursor = Span("_" if glyphs is Glyphs.ASCII else "▏", "accent")
        typed: Line = [label, Span(self.typed, "title"), cursor]
        if problem:
            return [*typed, Span(f"   {problem}", "warn")]
        does, leaves = ("keep", "all") if self.kind == "filter" else ("go", "stay")
        keys = [("enter", f" {does}   "), ("esc", f" {leaves}")]
        return [*typed, Span(f"   {hint}   ", "dim"), *_said(keys)]


def key_line(
    bindings: Iterable[Binding],
    glyphs: Glyphs,
    width: int,
    *,
    paused: bool = False,
    probed: bool = False,
) -> Line:
    """The line of keys at the bottom, with the shown bindings in their order.

    That of a run with a probe begins with the screens of the probe. Where the width is short,
    bindings are left out; help and quit always stay.
    """
    places: dict[str, tuple[list[Binding], str]] = {}
    first = _OF_A_PROBE if probed else ()
    for binding in sorted(bindings, key=lambda one: one.id not in first):
        name = binding.group.description if binding.group else binding.id or ""
        if name in places:
            places[name][0].append(binding)
        elif name in first:
            places[name] = [binding], name.removeprefix("screen.")
        elif binding.show:
            live = paused and binding.id == "time.follow"
            does = name if binding.group else binding.description
            places[name] = [binding], "live" if live else does
    shown = {
        name: [Span("  "), Span(_keys_of(of, glyphs), "accent"), Span(f" {does}", "dim")]
        for name, (of, does) in places.items()
    }
    for name in (*_GIVE_WAY, *list(shown)[-3::-1]):
        if sum(map(line_width, shown.values())) - 1 <= width:
            break
        shown.pop(name, None)
    lead, *rest = [span for part in shown.values() for span in part] or [Span("")]
    return pad([Span(lead.text[1:]), *rest], width)


def film_line(bindings: Iterable[Binding], glyphs: Glyphs, speed: int, faster: int) -> Line:
    """The line of keys while the run is played back: how fast, and how to stop it."""
    does = {"time.follow": "stop"} | ({"time.play": f"{faster} a second"} if faster else {})
    keys = [
        (f"   {plain_key(shown_key(one.key.split(',')[0]), glyphs)}", f" {does[one.id]}")
        for one in bindings
        if one.id in does
    ]
    playing = f" playing {speed} column{'s' if speed > 1 else ''} a second"
    return [Span(playing, "accent"), *_said(keys)]


def plain_key(key: str, glyphs: Glyphs) -> str:
    """A shown key in the characters of the terminal."""
    return _ASCII_NAMES.get(key, key) if glyphs is Glyphs.ASCII else key


def _keys_of(bindings: list[Binding], glyphs: Glyphs) -> str:
    """The key of a binding, or those of a pair: ``↑↓``, ``[ ]``, ``up/down``."""
    group = bindings[0].group
    shown = [one.key_display or shown_key(one.key.split(",")[0]) for one in bindings]
    keys = [plain_key(key, glyphs) for key in shown]
    if group is None or not group.compact:
        return " ".join(keys)
    return ("" if all(len(key) == 1 for key in keys) else "/").join(keys)


def _said(keys: Iterable[tuple[str, str]]) -> Line:
    """Keys and what they do."""
    return [span for key, does in keys for span in (Span(key, "accent"), Span(does, "dim"))]
