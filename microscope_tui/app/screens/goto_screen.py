"""Asks for a step: digits, enter. One line at the bottom; the picture stays in view."""

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from microscope_tui.app.widgets.rows import Rows
from microscope_tui.report.glyphs import Glyphs
from microscope_tui.report.spans import Line, Span, pad

_MOST_DIGITS = 12


class GotoScreen(ModalScreen[int | None]):
    """Returns the step, or ``None`` if the user thought better of it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "leave", id="goto.leave"),
        Binding("enter", "go", "go", id="goto.go"),
        Binding("backspace", "rub_out", "delete a digit", id="goto.delete"),
    ]

    def __init__(self, last: int, glyphs: Glyphs) -> None:
        super().__init__()
        self._last, self._glyphs = last, glyphs
        self._typed = ""

    def compose(self) -> ComposeResult:
        yield Rows(self._glyphs, id="goto")

    def on_mount(self) -> None:
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def on_key(self, event: events.Key) -> None:
        """Digits are the only text there is."""
        if event.character and event.character in "0123456789" and len(self._typed) < _MOST_DIGITS:
            self._typed += event.character
            self._draw()

    def action_rub_out(self) -> None:
        """Take the last digit back."""
        self._typed = self._typed[:-1]
        self._draw()

    def action_go(self) -> None:
        """Go to the step that was typed."""
        self.dismiss(int(self._typed) if self._typed else None)

    def action_leave(self) -> None:
        """Stay where we are."""
        self.dismiss(None)

    def _draw(self) -> None:
        cursor = "_" if self._glyphs is Glyphs.ASCII else "▏"
        line: Line = [
            Span(" go to step ", "accent"),
            Span(self._typed, "title"),
            Span(cursor, "accent"),
            Span(f"   1 to {self._last:,}; the last one follows the run again   ", "dim"),
            Span("esc", "accent"),
            Span(" stay", "dim"),
        ]
        self.query_one(Rows).show([pad(line, self.size.width)])
