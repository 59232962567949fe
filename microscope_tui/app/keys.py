"""The keys, once: bindings, the line of keys and the help screen are all made from these lists."""

from collections.abc import Iterable

from textual.binding import Binding

from microscope_tui.report.glyphs import Glyphs
from microscope_tui.report.spans import Line, Span, line_width, pad

LAYERS = [
    Binding(
        "up,k", "move(-1)", "layer", id="layer.previous", key_display="↑↓", tooltip="previous layer"
    ),
    Binding("down,j", "move(1)", "next layer", id="layer.next", show=False),
    Binding("home,g", "move(-9999)", "first layer", id="layer.first", show=False),
    Binding("end,G", "move(9999)", "last layer", id="layer.last", show=False),
    Binding("pageup", "page(-1)", "one page up", id="layer.page_up", show=False),
    Binding("pagedown", "page(1)", "one page down", id="layer.page_down", show=False),
]
TIME = [
    Binding(
        "f,space",
        "toggle_follow",
        "pause",
        id="time.follow",
        key_display="f",
        tooltip="pause, or go live again",
    ),
    Binding(
        "left_square_bracket",
        "step(-1)",
        "step",
        id="time.back",
        key_display="[ ]",
        tooltip="one logged step back",
    ),
    Binding("right_square_bracket", "step(1)", "one step on", id="time.on", show=False),
    Binding("left_curly_bracket", "step(-10)", "ten steps back", id="time.back_ten", show=False),
    Binding("right_curly_bracket", "step(10)", "ten steps on", id="time.on_ten", show=False),
    Binding(
        "colon",
        "go_to",
        "go to",
        id="time.go_to",
        key_display=":",
        tooltip="go to a step of the past",
    ),
]
OPEN_RUNS = Binding(
    "4,r", "open_runs", "runs", id="runs.open", key_display="r", tooltip="list of all runs"
)
MAIN = [
    *LAYERS,
    Binding(
        "enter",
        "open_layer",
        "open",
        id="layer.open",
        key_display="⏎",
        tooltip="open the layer",
    ),
    Binding("a", "next_alert", "alert", id="alert.next", tooltip="next layer with an alert"),
    OPEN_RUNS,
    *TIME,
]
LAYER = [*LAYERS, Binding("escape", "back", "back", id="screen.back", key_display="esc"), *TIME]
RUNS = [
    Binding("up,k", "move(-1)", "run", id="run.previous", key_display="↑↓", tooltip="previous run"),
    Binding("down,j", "move(1)", "next run", id="run.next", show=False),
    Binding("home,g", "move(-99999)", "first run", id="run.first", show=False),
    Binding("end,G", "move(99999)", "last run", id="run.last", show=False),
    Binding("pageup", "page(-1)", "one page up", id="run.page_up", show=False),
    Binding("pagedown", "page(1)", "one page down", id="run.page_down", show=False),
    Binding("enter", "open_run", "open", id="run.open", key_display="⏎", tooltip="open this run"),
    Binding("escape,r,4", "back", "back", id="screen.back", key_display="esc"),
]
HELP = [
    Binding("escape,question_mark,q,enter", "dismiss_help", "close", id="help.close"),
    Binding("up,k", "scroll(-1)", "up", id="help.up"),
    Binding("down,j", "scroll(1)", "down", id="help.down"),
    Binding("pageup", "scroll(-10)", "ten lines up", id="help.page_up"),
    Binding("pagedown,space", "scroll(10)", "ten lines down", id="help.page_down"),
]
EVERYWHERE = [
    Binding("question_mark", "app.help", "help", id="app.help", key_display="?"),
    Binding("ctrl+l", "app.repaint", "repaint the screen", id="app.repaint", show=False),
    Binding("q", "app.quit", "quit", id="app.quit"),
]

_NAMES = {
    "up": "↑",
    "down": "↓",
    "escape": "esc",
    "enter": "⏎",
    "question_mark": "?",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "left_curly_bracket": "{",
    "right_curly_bracket": "}",
    "colon": ":",
    "pageup": "page up",
    "pagedown": "page down",
    "space": "space",
}
_ASCII_NAMES = {"↑↓": "up/down", "↑": "up", "↓": "down", "⏎": "enter"}


def key_line(
    bindings: Iterable[Binding], glyphs: Glyphs, width: int, *, paused: bool = False
) -> Line:
    """The line of keys at the bottom: the shown bindings, in their order.

    Where there is no room for all, those in the middle give way: help, which lists all, and
    quit stay.
    """
    shown = []
    for binding in bindings:
        if binding.show:
            does = "live" if paused and binding.action == "toggle_follow" else binding.description
            key = Span(_plain(binding.key_display or binding.key, glyphs), "accent")
            shown.append([Span("  "), key, Span(f" {does}", "dim")])
    while len(shown) > 3 and sum(map(line_width, shown)) - 1 > width:
        del shown[-3]
    first, *rest = [span for part in shown for span in part] or [Span("")]
    return pad([Span(first.text[1:]), *rest], width)


def help_lines(bindings: Iterable[Binding], glyphs: Glyphs, width: int) -> list[Line]:
    """Every binding with all its keys, in two columns where there is room."""
    cells: list[Line] = []
    for binding in bindings:
        names = [_plain(_NAMES.get(key, key), glyphs) for key in binding.key.split(",")]
        text = binding.tooltip or binding.description
        cells.append([Span(f"  {'  '.join(names):<11}", "accent"), Span(text, "value")])
    half = -(-len(cells) // 2)
    left, right = cells[:half], [*cells[half:], []]
    column = max(map(line_width, left), default=0) + 1
    if column + max(map(line_width, right)) > width:
        return cells
    return [[*pad(one, column), *other] for one, other in zip(left, right, strict=False)]


def _plain(key: str, glyphs: Glyphs) -> str:
    return _ASCII_NAMES.get(key, key) if glyphs is Glyphs.ASCII else key
