"""The list of runs, with states and verdicts; enter opens one."""

import asyncio
import time
from collections.abc import Sequence
from typing import ClassVar

from microscope_tui.diagnosis import Severity
from microscope_tui.draw.columns import Table
from microscope_tui.draw.spans import ROLE_OF_SEVERITY, Line, Span, dim, pad, with_notes
from microscope_tui.draw.words import matches
from microscope_tui.kit import keys
from microscope_tui.kit.base import ListScreen
from microscope_tui.kit.glossary import ALERTS, HEADER, RUNS
from microscope_tui.kit.keys import key, screen_class
from microscope_tui.kit.prompts import Filter, filter_note
from microscope_tui.runlog import plural
from microscope_tui.screens.runs import text as run_list
from microscope_tui.watch import RunCard

_FRAME_LINES = 4
_PATIENCE_S = 1.0
_UP, _DOWN = keys.pair(
    "run",
    key("run.previous", "up,k", "move(-1)", "previous run"),
    key("run.next", "down,j", "move(1)", "next run"),
)


class _Filter(Filter):
    async def begin(self) -> None:
        """Also where no run is open."""
        self.open()


class RunsScreen(ListScreen):
    WORDS: ClassVar = {**RUNS, **HEADER, **ALERTS}
    BINDINGS: ClassVar = [
        keys.BACK,
        _UP,
        key("run.open", "enter", "open_run", "open this run", "open"),
        _DOWN,
        *keys.in_list("run"),
        key("run.select", "space", "select", "select this run", "select"),
        key("run.solo", "s", "solo", "selected runs only; again: all", "solo"),
        key("run.together", "T", "together", "selected runs in one chart", "together"),
        key("run.pin", "p", "pin", "compare the open run with this one", "pin"),
        keys.FILTER,
        *keys.EVERYWHERE,
    ]
    PARTS = ("runs",)
    PROMPTS: ClassVar = {"filter": _Filter}

    _count = 0
    _cards: Sequence[RunCard] = ()
    _layout: Table | None = None
    """``None`` if the list must be rebuilt."""
    _listed = ""

    def state_now(self) -> tuple[object, ...]:
        """Updated at every poll: ages grow without events."""
        self._layout = None
        return (time.monotonic(),)

    async def draw_all(self) -> None:
        columns, rows = self.room
        layout = self._layout
        if layout is None or layout.width != columns or self._listed != self.pattern:
            layout = self._layout = self._rebuilt(columns)
        shown = self.in_view(self.at, len(self._cards), max(1, rows - _FRAME_LINES))
        lines = [self._title(layout), pad([], columns), layout.heads()]
        lines += [run_list.run_line(self._cards[at], layout, chosen=at == self.at) for at in shown]
        if not self._cards:
            why = "no run matches" if self._count else "no runs yet: new ones appear automatically"
            lines.append(pad([dim(f"   {why}")], columns))
        lines += [pad([], columns)] * (rows - 1 - len(lines))
        self.show("runs", lines)
        self.draw_last_line()

    def _rebuilt(self, columns: int) -> Table:
        _ = self.session.pinned  # released first, if the reference is gone
        fleet, pattern = self.session.fleet, self.pattern
        cards = fleet.cards()
        self._count, self._listed = len(cards), pattern
        if fleet.solo:
            selected = [card for card in cards if card.selected]
            fleet.solo = bool(selected)  # they may be gone
            cards = selected or cards
        if pattern:
            cards = [card for card in cards if matches(pattern, run_list.card_text(card))]
        self._cards = cards
        paths = [card.file.path for card in cards]
        opened = next((at for at, card in enumerate(cards) if card.open), 0)
        named = next((at for at, path in enumerate(paths) if path in fleet.critical), opened)
        self.keep_chosen(paths, start=named)
        fleet.critical.clear()
        return run_list.fit_list(cards, columns)

    def _title(self, layout: Table) -> Line:
        shown, fleet = len(self._cards), self.session.fleet
        of_all = f"{shown:,} of " if shown < self._count else ""
        left = [Span(f" {of_all}{plural(self._count, 'run')}", "title")]
        if fleet.solo:
            left.append(Span("   solo", "accent"))
        elif fleet.selected:
            left.append(Span(f"   {len(fleet.selected):,} selected", "accent"))
        if self.pattern:
            left.append(Span(f"   {filter_note(self.pattern, 30)}", "accent"))
        left += _counted(self._cards)
        hides = shown > self.list_rows
        part = f"{self.first + 1:,} to {self.first + self.list_rows:,}" if hides else ""
        notes = part, layout.no_room(" and ")
        return with_notes(left, notes, layout.width, gap=1)

    @property
    def _card(self) -> RunCard | None:
        return self._cards[self.at] if self.at < len(self._cards) else None

    async def action_select(self) -> None:
        if self._card is not None:
            self.session.fleet.selected ^= {self._card.file.path}
            self._layout = None
            await self.redraw()

    async def action_together(self) -> None:
        await self.app.push_screen(screen_class("together")(self.session))

    async def action_solo(self) -> None:
        fleet = self.session.fleet
        if not fleet.solo and not fleet.selected:
            self.show_message("no run is selected: space selects one", "dim")
            return
        fleet.solo = not fleet.solo
        self._layout = None
        await self.redraw()

    async def action_pin(self) -> None:
        card = self._card
        if card is None:
            return
        if card.pinned:
            self.session.fleet.pinned = None
            self.session.compare_with(None)
            self.show_message("unpinned", "accent")
        elif card.open:
            self.show_message("this is the open run: b compares with one of its steps", "dim")
        elif problem := await self.session.pin_run(card.file):
            self.show_message(problem)
        else:
            self.show_message(f"pinned: {card.file.name} is A of 5 compare, 9 mismatch", "accent")
        self._layout = None
        await self.redraw()

    async def action_open_run(self) -> None:
        if self._card is None:
            return
        session, file = self.session, self._card.file
        session.reader.choose(file)  # at its next iteration
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            opened = session.watch is not None and session.watch.path == file.path
            if opened and (session.has_run or session.is_blank):
                break
            await asyncio.sleep(0.01)
        await self.app.pop_screen()


def _counted(cards: Sequence[RunCard]) -> Line:
    live = sum(card.life.state.live for card in cards)
    worst = [max(f.severity for f in card.findings) for card in cards if card.findings]
    sick = [severity for severity in worst if severity >= Severity.WARN]
    recovered = sum(bool(card.recovered) and not card.findings for card in cards)
    queued = sum(card.queued for card in cards)
    line = [
        Span(f"   {live:,} live", "ok" if live else "dim"),
        Span(f"   {len(sick):,} with alerts", ROLE_OF_SEVERITY[max(sick, default=Severity.INFO)]),
    ]
    if recovered:
        line.append(dim(f"   {recovered:,} recovered"))
    if queued:
        line.append(dim(f"   {queued:,} to judge"))
    return line
