"""The last line of a screen as a function of its bindings."""

from collections.abc import Iterable, Mapping, Sequence

from textual.binding import Binding

from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import Line, Span, line_width, pad
from microscope_tui.kit.keys import shown_key
from microscope_tui.runlog import plural

_GIVE_WAY = ("look.overlay", "alert.onset", "time.go_to", "look.compare", "chart.smooth")
"""Ids that are left out first."""
_OF_A_PROBE = ("screen.tokens", "screen.slices")
_ASCII_NAMES = {"↑": "up", "↓": "down", "⏎": "enter", "←": "left", "→": "right"}


def last_line(
    bindings: Iterable[Binding],
    glyphs: Glyphs,
    width: int,
    *,
    paused: bool = False,
    probed: bool = False,
) -> Line:
    """Those of a probe first; help and quit always stay."""
    places = _places(bindings, _OF_A_PROBE if probed else (), paused)
    shown = {
        name: [Span("  "), *said([(_keys_of(of, glyphs), f" {does}")])]
        for name, (of, does) in places.items()
    }
    for name in (*_GIVE_WAY, *list(shown)[-3::-1]):
        if sum(map(line_width, shown.values())) - 1 <= width:
            break
        shown.pop(name, None)
    line = [span for part in shown.values() for span in part]
    line[:1] = [Span(" ")]
    return pad(line, width)


def _places(
    bindings: Iterable[Binding], leading: Sequence[str], paused: bool
) -> Mapping[str, tuple[list[Binding], str]]:
    """The bindings of each place and what they do; those of ``leading`` first."""
    places: dict[str, tuple[list[Binding], str]] = {}
    for binding in sorted(bindings, key=lambda one: one.id not in leading):
        name = binding.id or ""
        does = binding.description
        if binding.group:
            name = does = binding.group.description
        if name in places:
            places[name][0].append(binding)
        elif name in leading:
            places[name] = [binding], name.removeprefix("screen.")
        elif paused and binding.id == "time.follow":
            places[name] = [binding], "live"
        elif binding.show:
            places[name] = [binding], does
    return places


def playback_line(bindings: Iterable[Binding], glyphs: Glyphs, speed: int, faster: int) -> Line:
    """The last line during playback: the speed, and the keys that change it.

    ``faster``: the next speed; 0 if there is none.
    """
    does = {"time.follow": "stop"}
    if faster:
        does["time.play"] = f"{faster} a second"
    keys = [
        (f"   {plain_key(shown_key(one.key.split(',')[0]), glyphs)}", f" {does[one.id]}")
        for one in bindings
        if one.id in does
    ]
    return [Span(f" playing {plural(speed, 'column')} a second", "accent"), *said(keys)]


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
    between = "" if all(len(key) == 1 for key in keys) else "/"
    return between.join(keys)


def said(keys: Iterable[tuple[str, str]]) -> Line:
    """Keys and what they do, in turn."""
    return [span for key, does in keys for span in (Span(key, "accent"), Span(does, "dim"))]
