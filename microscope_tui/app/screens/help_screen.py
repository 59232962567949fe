"""Help: the keys, generated from the bindings, and the words of the screen behind it."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from microscope_tui.app import key_lines, keys
from microscope_tui.app.renderables.palette import FAINT, GROUND
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.lines import GLOSSARY, Glyphs, Line, Span, pad, wrap

_READING = (
    "a row is a layer: load per expert, balance c, token entropy, dropped share",
    "load: grey is fair, amber to white overloaded, blue starving, × dead",
)
_READING_OF = {
    "tokens": (
        "a token has the colour of the expert with its largest weight in this layer; others grey",
        "beside or below: the token at the cursor, its experts, and the same token in all layers",
    ),
    "slices": (
        "a row is an expert: its share, how much more or less a slice chooses it, what it reads",
        "amber is more than overall, blue is less, a dot no more than chance",
    ),
}
"""Of the screens that show no loads."""
_WORDS = 27
"""Cells of the column of words."""
_WIDE, _WIDEST = 56, 112
_FRAME_LINES = 4  # the border, and the title with a blank line below it


class HelpScreen(ModalScreen[None]):
    """Lists the bindings and words of the screen it was opened from; scrolls."""

    CSS = f"""
    HelpScreen {{ align: center middle; background: {GROUND} 70%; }}
    #help {{ border: round {FAINT}; background: {GROUND}; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [*keys.HELP]

    def __init__(self, bindings: Sequence[Binding], glyphs: Glyphs, screen: str = "") -> None:
        """``screen``: the name of the screen behind, by which its words are found."""
        super().__init__()
        self._bindings_shown = bindings
        self._words = GLOSSARY.get(screen, ())
        self._reading = _READING_OF.get(screen, _READING)
        self._glyphs = glyphs
        self._at = self._words_at = 0

    def compose(self) -> ComposeResult:
        yield Rows(self._glyphs, id="help")

    def on_resize(self) -> None:
        self.redraw()

    def redraw(self) -> None:
        """Draw the visible part of the help."""
        width = min(self.size.width, _WIDEST)
        lines = self._lines(width - 4)
        room = max(1, min(len(lines), self.size.height - _FRAME_LINES))
        self._at = max(0, min(self._at, len(lines) - room))
        below = len(lines) - room - self._at
        title: Line = [
            Span("  Help", "title"),
            Span("     esc", "accent"),
            Span(" close", "dim"),
        ]
        if self._words and width >= _WIDE:
            title += [Span("   w", "accent"), Span(" words", "dim")]
        if below or self._at:
            arrows = "up/down" if self._glyphs is Glyphs.ASCII else "↑↓"
            more = f" {below} more" if below else " scroll"
            title += [Span(f"   {arrows}", "accent"), Span(more, "dim")]
        help_ = self.query_one("#help", Rows)
        help_.styles.width, help_.styles.height = width, room + _FRAME_LINES
        shown = [title, [], *lines[self._at : self._at + room]]
        help_.show([pad(line, width - 2) for line in shown])

    def _lines(self, width: int) -> list[Line]:
        lines = key_lines.help_lines(self._bindings_shown, self._glyphs, width)
        self._words_at = len(lines) + 1
        if self._words:
            lines += [[], [Span("  Reading the screen", "title")]]
        for text in self._reading if self._words else ():
            lines += [[Span(f"  {part}", "dim")] for part in wrap(text, width - 2)]
        column = min(_WORDS, width // 3)
        for words, means in self._words:
            names = wrap(words, column - 2)
            texts = wrap(means, width - column - 2)
            for name, text in zip_longest(names, texts, fillvalue=""):
                lines.append([Span(f"  {name:<{column}}", "value"), Span(text, "dim")])
        return lines

    def action_words(self) -> None:
        """Show the glossary of the screen."""
        self._at = self._words_at
        self.redraw()

    def action_scroll(self, by: int) -> None:
        """Scroll."""
        self._at += by
        self.redraw()

    def action_dismiss_help(self) -> None:
        """Close the help."""
        self.dismiss()
