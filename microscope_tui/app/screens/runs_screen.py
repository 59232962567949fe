"""The list of runs: how each is doing, the live ones with their verdict; enter opens one."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen

from microscope_tui.app import keys
from microscope_tui.app.session import Session
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.report import run_list
from microscope_tui.report.spans import Line, Span, pad, spread
from microscope_tui.watch.fleet import RunCard

_REFRESH_S = 1.0
_FRAME_LINES = 4


class RunsScreen(Screen[None]):
    """All runs below the path, newest first."""

    AUTO_FOCUS: ClassVar[str | None] = None
    BINDINGS: ClassVar[list[BindingType]] = [*keys.RUNS, *keys.EVERYWHERE]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._at = 0
        self._first = 0
        self._cards: list[RunCard] = []
        self._seen = -1

    def compose(self) -> ComposeResult:
        yield Rows(self.session.glyphs, id="runs")

    def on_mount(self) -> None:
        self._cards = self.session.fleet.cards()
        self._at = next((at for at, card in enumerate(self._cards) if card.open), 0)
        self.set_interval(_REFRESH_S, self._look)

    def on_resize(self) -> None:
        self.redraw()

    def _look(self) -> None:
        """Take the list again where something changed; the chosen run stays the chosen one."""
        version = self.session.fleet.list_version
        if not self.is_current:
            return
        if version != self._seen:
            self._seen = version
            chosen = self._cards[self._at].file.path if self._at < len(self._cards) else None
            self._cards = self.session.fleet.cards()
            paths = [card.file.path for card in self._cards]
            self._at = paths.index(chosen) if chosen in paths else min(self._at, len(paths) - 1)
            self._at = max(0, self._at)
            self.redraw()

    def redraw(self) -> None:
        """Draw the visible part of the list."""
        columns, rows = self.size
        room = max(1, rows - _FRAME_LINES)
        self._first = max(min(self._first, self._at), self._at - room + 1, 0)
        shown = self._cards[self._first : self._first + room]
        name = run_list.name_width(self._cards, columns)
        body = [
            run_list.run_line(card, name, columns, selected=self._first + at == self._at)
            for at, card in enumerate(shown)
        ]
        body += [pad([], columns)] * (room - len(body))
        line = keys.key_line([*keys.RUNS, *keys.EVERYWHERE], self.session.glyphs)
        self.query_one(Rows).show(
            [
                self._title(columns),
                pad([], columns),
                run_list.run_heads(self._cards, columns),
                *body,
                pad(line, columns),
            ]
        )

    def _title(self, columns: int) -> Line:
        live = sum(card.state in ("live", "slow") for card in self._cards)
        noun = "run" if len(self._cards) == 1 else "runs"
        left: Line = [
            Span(" "),
            Span(f"{len(self._cards):,} {noun}", "title"),
            Span(f"   {live} live", "ok" if live else "dim"),
        ]
        how = self.session.how_it_watches()
        return pad(spread(left, [Span(f"{how} ", "dim")], columns), columns)

    def action_move(self, by: int) -> None:
        """Choose another run."""
        self._at = max(0, min(len(self._cards) - 1, self._at + by))
        self.redraw()

    def action_page(self, direction: int) -> None:
        """Move by a screenful."""
        self.action_move(direction * max(1, self.size.height - _FRAME_LINES))

    async def action_open_run(self) -> None:
        """Open the chosen run and go back to the main screen."""
        if self._at < len(self._cards):
            self.session.choose(self._cards[self._at].file)
        await self.app.pop_screen()

    async def action_back(self) -> None:
        """Back to the main screen."""
        await self.app.pop_screen()
