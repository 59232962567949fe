"""Bindings as lines: the keys in the last line of a screen, and the help."""

from collections.abc import Iterable

from textual.binding import Binding

from microscope_tui.app.keymap import shown_key
from microscope_tui.lines import Glyphs, Line, Span, line_width, pad, wrap

_SECTIONS = {
    "layer": "Layers and experts",
    "expert": "Layers and experts",
    "run": "Runs",
    "token": "Tokens",
    "slice": "Slices",
    "alert": "Alerts",
    "time": "Time",
    "look": "Cells",
    "chart": "Charts",
    "filter": "Filter",
    "out": "Copy and export",
    "screen": "Screens",
    "app": "Screens",
}
_GIVE_WAY = ("look.overlay", "alert.onset", "time.go_to", "look.compare", "chart.smooth")
_OF_A_PROBE = ("screen.tokens", "screen.slices")
_COLUMN, _KEYS = 53, 13  # cells of a column of the help, and of the keys in it
_ASCII_NAMES = {
    "↑↓": "up/down",
    "↑": "up",
    "↓": "down",
    "⏎": "enter",
    "←→": "left/right",
    "←": "left",
    "→": "right",
}


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
    shown: dict[str, Line] = {}
    first = _OF_A_PROBE if probed else ()
    for binding in sorted(bindings, key=lambda one: one.id not in first):
        if binding.show or binding.id in first:
            does = "live" if paused and binding.action == "toggle_follow" else binding.description
            key = Span(_plain(binding.key_display or shown_key(binding.key), glyphs), "accent")
            shown[binding.id or binding.key] = [Span("  "), key, Span(f" {does}", "dim")]
    for name in (*_GIVE_WAY, *list(shown)[-3::-1]):
        if sum(map(line_width, shown.values())) - 1 <= width:
            break
        shown.pop(name, None)
    lead, *rest = [span for part in shown.values() for span in part] or [Span("")]
    return pad([Span(lead.text[1:]), *rest], width)


def film_line(bindings: Iterable[Binding], glyphs: Glyphs, speed: int, faster: int) -> Line:
    """The line of keys while the run is played back: how fast, and how to stop it."""
    line = [Span(f" playing {speed} column{'s' if speed > 1 else ''} a second", "accent")]
    does = {"time.follow": "stop"} | ({"time.play": f"{faster} a second"} if faster else {})
    for binding in bindings:
        if binding.id in does:
            key = shown_key(binding.key.split(",")[0])
            line += [
                Span(f"   {_plain(key, glyphs)}", "accent"),
                Span(f" {does[binding.id]}", "dim"),
            ]
    return line


def help_lines(bindings: Iterable[Binding], glyphs: Glyphs, width: int) -> list[Line]:
    """Every binding with all its keys, in sections, in two columns where there is room.

    What leads to other screens comes last: it is the same everywhere.
    """
    sections: dict[str, list[Line]] = {}
    for binding in bindings:
        kind = (binding.id or "").split(".")[0]
        lines = sections.setdefault(_SECTIONS.get(kind, "Here"), [])
        lines += _entry(binding, glyphs, min(width, _COLUMN))
    sections["Screens"] = sections.pop("Screens", [])
    blocks = [[[Span(f"  {name}", "dim")], *lines, []] for name, lines in sections.items()]
    if width < 2 * _COLUMN:
        return [line for block in blocks for line in block][:-1]
    total, left = sum(map(len, blocks)), 0
    columns: tuple[list[Line], list[Line]] = ([], [])
    for block in blocks:
        at_right = left + len(block) // 2 > total / 2
        columns[at_right].extend(block)
        left += 0 if at_right else len(block)
    one, two = columns
    height = max(len(one), len(two))
    one, two = (part + [[]] * (height - len(part)) for part in (one, two))
    return [[*pad(a, _COLUMN), *b] for a, b in zip(one, two, strict=True)][:-1]


def _entry(binding: Binding, glyphs: Glyphs, width: int) -> list[Line]:
    """The keys of a binding and what it does, on as many lines as that takes."""
    names = "  ".join(_plain(shown_key(key), glyphs) for key in binding.key.split(","))
    texts = wrap(binding.tooltip or binding.description, max(12, width - _KEYS - 1))
    return [
        [Span(f"  {names if at == 0 else '':<{_KEYS - 3}} ", "accent"), Span(text, "value")]
        for at, text in enumerate(texts)
    ]


def _plain(key: str, glyphs: Glyphs) -> str:
    return _ASCII_NAMES.get(key, key) if glyphs is Glyphs.ASCII else key
