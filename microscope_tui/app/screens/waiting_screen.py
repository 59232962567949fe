"""Shown while there is no run yet: what is waited for, and how to start one."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen

from microscope_tui.app import keys
from microscope_tui.app.session import Session
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.report.spans import Line, Span, line_width, pad
from microscope_tui.runlog.safe_text import safe_text


class WaitingScreen(Screen[None]):
    """Waits for the first record; the application moves on by itself."""

    BINDINGS: ClassVar[list[BindingType]] = [*keys.EVERYWHERE]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def compose(self) -> ComposeResult:
        yield Rows(self.session.glyphs, id="waiting")

    def on_resize(self) -> None:
        self.redraw()

    def redraw(self) -> None:
        """Draw the message, or why the log that is there cannot be read."""
        columns, rows = self.size
        error = self.session.watch.error if self.session.watch else None
        where = safe_text(self.session.path, max(10, columns - 24))
        text: list[Line] = [
            [Span("MoE Microscope", "brand")],
            [],
            [Span("waiting for a run in ", "dim"), Span(where)],
            [Span("start one with  ", "dim"), Span("python train.py", "accent")],
            [],
            [Span("q", "accent"), Span(" quit", "dim")],
        ]
        if error:
            text[2] = [Span(error, "crit")]
        above = max(0, (rows - len(text)) // 2)
        blank: list[Line] = [[] for _ in range(above)]
        lines = blank + [
            [Span(" " * max(0, (columns - line_width(line)) // 2)), *line] for line in text
        ]
        self.query_one(Rows).show([pad(line, columns) for line in lines[:rows]])
