"""The list of runs: how each is doing, the live ones with their verdict; enter opens one."""

import asyncio
import time
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen

from microscope_tui.app import key_lines, keys
from microscope_tui.app.keymap import remapped
from microscope_tui.app.session import Session
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.diagnosis.reading import Severity
from microscope_tui.report import run_list
from microscope_tui.report.spans import (
    ROLE_OF_SEVERITY,
    Line,
    Span,
    line_width,
    listed,
    pad,
    spread,
)
from microscope_tui.watch.fleet import RunCard

_REFRESH_S = 0.5
_FRAME_LINES = 4
_PATIENCE_S = 1.0


class RunsScreen(Screen[None]):
    """All runs below the path, newest first."""

    AUTO_FOCUS: ClassVar[str | None] = None
    BINDINGS: ClassVar[list[BindingType]] = [*keys.RUNS]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._at = 0
        self._first = 0
        self._cards: list[RunCard] = []
        self._layout: run_list.ListLayout | None = None

    def compose(self) -> ComposeResult:
        yield Rows(self.session.glyphs, id="runs")

    def on_mount(self) -> None:
        self._take()
        self._at = next((at for at, card in enumerate(self._cards) if card.open), 0)
        self.set_interval(_REFRESH_S, self._look)

    def on_resize(self) -> None:
        self.redraw()

    def _look(self) -> None:
        """Take the list again: ages grow also where nothing happens. The chosen run stays so."""
        if self.app.screen is not self:
            return
        chosen = self._cards[self._at].file.path if self._at < len(self._cards) else None
        self._take()
        paths = [card.file.path for card in self._cards]
        self._at = paths.index(chosen) if chosen in paths else min(self._at, len(paths) - 1)
        self._at = max(0, self._at)
        self.redraw()

    def _take(self) -> None:
        self._cards, self._layout = self.session.fleet.cards(), None

    def redraw(self) -> None:
        """Draw the visible part of the list; the lines that stayed the same cost nothing."""
        columns, rows = self.size
        glyphs, room = self.session.glyphs, max(1, rows - _FRAME_LINES)
        self._first = max(0, min(self._first, self._at, len(self._cards) - room))
        self._first = max(self._first, self._at - room + 1)
        layout = self._layout
        if layout is None or layout.columns != columns:
            layout = self._layout = run_list.fit_list(self._cards, columns)
        body = [
            run_list.run_line(card, layout, glyphs, chosen=at == self._at)
            for at, card in enumerate(self._cards[self._first : self._first + room], self._first)
        ]
        body += [pad([], columns)] * (room - len(body))
        lines = [self._title(layout, room), pad([], columns), run_list.run_heads(layout), *body]
        lines.append(key_lines.key_line(remapped(keys.RUNS, self.session.keymap), glyphs, columns))
        self.query_one(Rows).show(lines)

    def _title(self, layout: run_list.ListLayout, room: int) -> Line:
        cards = self._cards
        live = sum(card.state in run_list.LIVE for card in cards)
        worst = [max(f.severity for f in card.findings) for card in cards if card.findings]
        sick = [severity for severity in worst if severity >= Severity.WARN]
        left: Line = [
            Span(f" {len(cards):,} {'run' if len(cards) == 1 else 'runs'}", "title"),
            Span(f"   {live:,} live", "ok" if live else "dim"),
            Span(f"   {len(sick):,} with alerts", ROLE_OF_SEVERITY[max(sick)] if sick else "dim"),
        ]
        part = f"{self._first + 1:,} to {self._first + room:,}" if len(cards) > room else ""
        right = [text for text in (part, layout.hidden, self.session.how_it_watches()) if text]
        said = listed(right, layout.columns - line_width(left) - 2)
        return pad(spread(left, [Span(f"{said} ", "faint")], layout.columns), layout.columns)

    def action_move(self, by: int) -> None:
        """Choose another run."""
        self._at = max(0, min(len(self._cards) - 1, self._at + by))
        self.redraw()

    def action_page(self, direction: int) -> None:
        """Move by a screenful."""
        self.action_move(direction * max(1, self.size.height - _FRAME_LINES))

    async def action_open_run(self) -> None:
        """Open the chosen run and show it: the reader has it in a moment."""
        if self._at >= len(self._cards):
            return
        file = self._cards[self._at].file
        self.session.choose(file)
        until = time.monotonic() + _PATIENCE_S
        while not self.session.shows(file.path) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await self.app.pop_screen()

    async def action_back(self) -> None:
        """Back to the main screen."""
        await self.app.pop_screen()
