"""Shown while there is no step yet: what it waits for, and how to start a run."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen

from microscope_tui.app.keys import EVERYWHERE
from microscope_tui.app.rows import Rows
from microscope_tui.app.session import Session
from microscope_tui.lines import Line, Span, line_width, pad, shortened, words
from microscope_tui.runlog import safe_text


class WaitingScreen(Screen[None]):
    """Waits for the first step; the application then shows the run."""

    BINDINGS: ClassVar[list[BindingType]] = [*EVERYWHERE]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def compose(self) -> ComposeResult:
        yield Rows(self.session.glyphs, id="waiting")

    def on_mount(self) -> None:
        self.set_interval(0.25, self.redraw)

    def on_resize(self) -> None:
        self.redraw()

    def redraw(self) -> None:
        """Draw the message, or why the log cannot be read."""
        columns, rows = self.size
        text: list[Line] = [[Span("MoE Microscope", "brand")], [], *self._message(columns), []]
        more = len(self.session.fleet.runs) > 1
        runs: Line = [Span("r", "accent"), Span(" all runs   ", "dim")] if more else []
        text.append([*runs, Span("q", "accent"), Span(" quit", "dim")])
        above = max(0, (rows - len(text)) // 2)
        blank: list[Line] = [[] for _ in range(above)]
        lines = blank + [
            [Span(" " * max(0, (columns - line_width(line)) // 2)), *line] for line in text
        ]
        self.query_one(Rows).show([pad(line, columns) for line in lines[:rows]])

    def _message(self, columns: int) -> list[Line]:
        watch, piped = self.session.watch, self.session.fleet.piped
        if watch is not None and watch.error:
            return [[Span(watch.file.name, "dim")], [Span(watch.error, "crit")]]
        bad: list[Line] = []
        if watch is not None and watch.defects.count:
            first = watch.defects.first[0] if watch.defects.first else ""
            bad = [[Span(f"{watch.defects.count:,} unreadable, the first: {first}", "warn")]]
        if self.session.pipe_ended:
            return [[Span("standard input ended without a step", "warn")], *bad]
        if piped:
            return [[Span("waiting for the first step on standard input", "dim")], *bad]
        if watch is not None and not watch.complete:
            return [[Span("reading ", "dim"), Span(watch.file.name)], *bad]
        if watch is not None:
            age = words.age(watch.state()[1])
            name = Span(shortened(watch.file.name, max(10, columns - 30)))
            since = [Span("last written ", "dim"), Span(age), Span(" ago", "dim")] if age else []
            return [[Span("waiting for the first step of ", "dim"), name], since, *bad]
        where = safe_text(self.session.fleet.root, max(10, columns - 24))
        return [
            [Span("waiting for a run in ", "dim"), Span(where)],
            [Span("start one with  ", "dim"), Span("python train.py", "accent")],
        ]
