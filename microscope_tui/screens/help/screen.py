"""Help: the keys, generated from the bindings, and the words of the screen behind it."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from types import MappingProxyType
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import ModalScreen

from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import Line, Span, dim, pad, wrap
from microscope_tui.kit.key_line import plain_key
from microscope_tui.kit.keys import key, shown_key
from microscope_tui.kit.palette import Shades
from microscope_tui.kit.rows import Rows

_WORDS = 27
_WIDE, _WIDEST = 56, 112
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
_COLUMN, _KEYS = 53, 13  # cells of a column, and of the keys in it
_FRAME_LINES = 4  # the border, and the title with a blank line below it


class HelpScreen(ModalScreen[None]):
    CSS = """
    HelpScreen { align: center middle; background: $background 70%; }
    #help { border: round $faint; background: $background; }
    """
    BINDINGS: ClassVar = [
        key("help.close", "escape,question_mark,q,enter", "dismiss", "close"),
        key("help.up", "up,k", "scroll(-1)", "up"),
        key("help.down", "down,j", "scroll(1)", "down"),
        key("help.page_up", "pageup", "scroll(-10)", "ten lines up"),
        key("help.page_down", "pagedown,space", "scroll(10)", "ten lines down"),
        key("help.words", "w", "words", "what the words mean"),
    ]

    def __init__(
        self,
        bindings: Sequence[Binding],
        glyphs: Glyphs,
        shades: Shades,
        words: Mapping[str, str] = MappingProxyType({}),
        reading: Sequence[str] = (),
    ) -> None:
        """``words``, ``reading``: of the screen behind; empty if it shows no run yet."""
        super().__init__()
        self._bindings_shown = bindings
        self._words = words
        self._reading = reading
        self._glyphs = glyphs
        self._shades = shades
        self._at = self._words_at = 0

    def compose(self) -> ComposeResult:
        yield Rows(self._glyphs, self._shades, id="help")

    def on_resize(self) -> None:
        self.redraw()

    def redraw(self) -> None:
        width = min(self.size.width, _WIDEST)
        lines = help_lines(self._bindings_shown, self._glyphs, width - 4)
        self._words_at = len(lines) + 1
        if self._words:
            lines += [[], [Span("  Reading the screen", "title")]]
        for text in self._reading:
            lines += [[dim(f"  {part}")] for part in wrap(text, width - 6)]
        column = min(_WORDS, (width - 4) // 3)
        for words, means in self._words.items():
            names = wrap(words, column - 2)
            texts = wrap(means, width - column - 6)
            for name, text in zip_longest(names, texts, fillvalue=""):
                lines.append([Span(f"  {name:<{column}}", "value"), dim(text)])
        room = max(1, min(len(lines), self.size.height - _FRAME_LINES))
        self._at = max(0, min(self._at, len(lines) - room))
        below = len(lines) - room - self._at
        title: Line = [Span("  Help", "title"), Span("     esc", "accent"), dim(" close")]
        if self._words and width >= _WIDE:
            title += [Span("   w", "accent"), dim(" words")]
        if below or self._at:
            arrows = "up/down" if self._glyphs is Glyphs.ASCII else "↑↓"
            more = f" {below} more" if below else " scroll"
            title += [Span(f"   {arrows}", "accent"), dim(more)]
        help_ = self.query_one("#help", Rows)
        help_.styles.width, help_.styles.height = width, room + _FRAME_LINES
        shown = [title, [], *lines[self._at : self._at + room]]
        help_.show([pad(line, width - 2) for line in shown])

    def action_words(self) -> None:
        self._at = self._words_at
        self.redraw()

    def action_scroll(self, by: int) -> None:
        self._at += by
        self.redraw()


def help_lines(bindings: Iterable[Binding], glyphs: Glyphs, width: int) -> list[Line]:
    """In sections, those of other screens last; in two columns where there is room."""
    sections: dict[str, list[Line]] = {}
    for binding in bindings:
        kind = (binding.id or "").split(".")[0]
        lines = sections.setdefault(_SECTIONS.get(kind, "Here"), [])
        names = "  ".join(plain_key(shown_key(key), glyphs) for key in binding.key.split(","))
        texts = wrap(binding.tooltip or binding.description, min(width, _COLUMN) - _KEYS - 1)
        for text in texts:  # on as many lines as needed
            lines.append([Span(f"  {names:<{_KEYS - 3}} ", "accent"), Span(text, "value")])
            names = ""
    sections["Screens"] = sections.pop("Screens", [])
    blocks = [[[dim(f"  {name}")], *lines, []] for name, lines in sections.items()]
    if width < 2 * _COLUMN:
        return [line for block in blocks for line in block][:-1]
    total, left = sum(map(len, blocks)), 0
    one: list[Line] = []
    two: list[Line] = []
    for block in blocks:
        if left + len(block) // 2 > total / 2:
            two += block
        else:
            one += block
            left += len(block)
    height = max(len(one), len(two))
    one, two = (part + [[]] * (height - len(part)) for part in (one, two))
    return [[*pad(a, _COLUMN), *b] for a, b in zip(one, two, strict=True)][:-1]
