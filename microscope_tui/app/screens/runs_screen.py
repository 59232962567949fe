"""The list of runs, with states and verdicts; enter opens one."""

import asyncio
import time
from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType

from microscope_tui.app import keys
from microscope_tui.app.actions.pin_actions import PinActions
from microscope_tui.app.actions.prompt_actions import PromptActions
from microscope_tui.app.prompt import Kind
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.diagnosis import Severity
from microscope_tui.lines import (
    ROLE_OF_SEVERITY,
    Line,
    Pattern,
    Span,
    first_visible,
    line_width,
    pad,
    run_list,
    spread,
)
from microscope_tui.lines.spans import listed
from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunCard

_FRAME_LINES = 4
_PATIENCE_S = 1.0


class RunsScreen(PromptActions, PinActions):
    """All runs below the path, newest first, or the selected or filtered ones."""

    BINDINGS: ClassVar[list[BindingType]] = [*keys.RUNS]

    _at = 0
    _first = 0
    _count = 0
    _cards: Sequence[RunCard] = ()
    _layout_of_list: run_list.RunListLayout | None = None
    _pattern = Pattern.parse("")

    def compose(self) -> ComposeResult:
        yield Rows(self.session.glyphs, id="runs")
        yield Rows(self.session.glyphs, id="keys")

    def on_mount(self) -> None:  # type: ignore[override]  # Textual calls that of BaseScreen too
        self._take()
        self._at = next((at for at, card in enumerate(self._cards) if card.open), 0)

    def state_now(self) -> tuple[object, ...]:
        """Updated at every poll: ages grow without events."""
        self._take()
        return (time.monotonic(),)

    def _take(self) -> None:
        """Update the list; the chosen run stays chosen."""
        chosen = self._cards[self._at].file.path if self._at < len(self._cards) else None
        fleet, _ = self.session.fleet, self.pinned  # release it first
        cards = fleet.cards()
        self._count = len(cards)
        if fleet.solo and not any(card.selected for card in cards):
            fleet.solo = False  # they are gone
        self._cards = [
            card
            for card in cards
            if (card.selected or not fleet.solo)
            and (not self._pattern.text or self._pattern.matches(run_list.card_text(card)))
        ]
        self._layout_of_list = None
        paths = [card.file.path for card in self._cards]
        self._at = paths.index(chosen) if chosen in paths else min(self._at, len(paths) - 1)
        self._at = max(0, self._at)

    async def redraw(self) -> None:
        """Draw the visible part of the list; unchanged lines cost nothing."""
        columns, rows = self.room
        glyphs, room = self.session.glyphs, max(1, rows - _FRAME_LINES)
        self._first = first_visible(room, self._at, self._first, len(self._cards))
        layout = self._layout_of_list
        if layout is None or layout.columns != columns:
            layout = self._layout_of_list = run_list.fit_list(self._cards, columns)
        lines = [self._title(layout, room), pad([], columns), run_list.run_heads(layout)]
        lines += [
            run_list.run_line(card, layout, glyphs, chosen=at == self._at)
            for at, card in enumerate(self._cards[self._first : self._first + room], self._first)
        ]
        if not self._cards:
            why = "no run matches" if self._count else "no runs yet: new ones appear automatically"
            lines.append(pad([Span(f"   {why}", "dim")], columns))
        lines += [pad([], columns)] * (rows - 1 - len(lines))
        self.query_one("#runs", Rows).show(lines)
        self.draw_last_line()

    def _title(self, layout: run_list.RunListLayout, room: int) -> Line:
        cards = self._cards
        live = sum(card.state.live for card in cards)
        worst = [max(f.severity for f in card.findings) for card in cards if card.findings]
        sick = [severity for severity in worst if severity >= Severity.WARN]
        was_sick = sum(bool(card.recovered) and not card.findings for card in cards)
        queued = sum(card.queued for card in cards)
        of_all = f" of {self._count:,}" if len(cards) < self._count else ""
        left: Line = [
            Span(f" {len(cards):,}{of_all} {'run' if self._count == 1 else 'runs'}", "title"),
            *self._asked_for(),
            Span(f"   {live:,} live", "ok" if live else "dim"),
            Span(f"   {len(sick):,} with alerts", ROLE_OF_SEVERITY[max(sick)] if sick else "dim"),
            Span(f"   {was_sick:,} recovered" if was_sick else "", "dim"),
            Span(f"   {queued:,} to judge" if queued else "", "dim"),
        ]
        part = f"{self._first + 1:,} to {self._first + room:,}" if len(cards) > room else ""
        right = [text for text in (part, layout.hidden, self.session.how_it_watches()) if text]
        said = listed(right, layout.columns - line_width(left) - 2)
        return pad(spread(left, [Span(f"{said} ", "faint")], layout.columns), layout.columns)

    def _asked_for(self) -> Line:
        """Why not all runs are listed, and how many are selected."""
        fleet, text = self.session.fleet, self._pattern.text
        selected = f"   {len(fleet.selected):,} selected" if fleet.selected else ""
        return [
            Span("   solo" if fleet.solo else selected, "accent"),
            Span(f"   /{safe_text(text, 30)}" if text else "", "accent"),
        ]

    @property
    def _card(self) -> RunCard | None:
        """The chosen run."""
        return self._cards[self._at] if self._at < len(self._cards) else None

    async def action_ask(self, kind: Kind) -> None:
        """Open the prompt, also where no run is open."""
        self.prompt.ask(kind, self.filter_text())
        self.draw_last_line()

    def filter_text(self) -> str:
        return self._pattern.text

    async def set_filter(self, pattern: Pattern) -> None:
        self._pattern = pattern
        self._take()
        await self.redraw()

    async def action_move(self, by: int) -> None:
        """Choose another run."""
        self._at = max(0, min(len(self._cards) - 1, self._at + by))
        await self.redraw()

    async def action_page(self, direction: int) -> None:
        """Move by a screenful."""
        await self.action_move(direction * max(1, self.size.height - _FRAME_LINES))

    async def action_select(self) -> None:
        """Select or deselect the chosen run."""
        if self._card is not None:
            self.session.fleet.selected ^= {self._card.file.path}
            self._take()
            await self.redraw()

    async def action_solo(self) -> None:
        """List only the selected runs; again: all."""
        fleet = self.session.fleet
        if not fleet.solo and not fleet.selected:
            self.tell("no run is selected: space selects one", "dim")
            return
        fleet.solo = not fleet.solo
        self._take()
        await self.redraw()

    async def action_pin(self) -> None:
        """Compare the open run with the chosen one at equal steps; again: stop."""
        card = self._card
        if card is None:
            return
        if card.pinned:
            self.unpin_run()
        elif card.open:
            self.tell("this is the open run: b compares with one of its steps", "dim")
        else:
            await self.pin_run(card.file)
        self._take()
        await self.redraw()

    async def action_open_run(self) -> None:
        """Open the chosen run and show it."""
        if self._card is None:
            return
        file = self._card.file
        self.session.choose(file)
        until = time.monotonic() + _PATIENCE_S
        while not self.session.shows(file.path) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await self.app.pop_screen()
