"""All alerts of the run, with evidence; enter jumps to one."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container

from microscope_tui.app import keys
from microscope_tui.app.actions.prompt_actions import PromptActions
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.lines import Entry, Line, Pattern, Span, alerts, first_visible, pad
from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunView, view_of

_FRAME_LINES = 5  # header, title, track, ribbon, keys
_AIRY_FROM_ROWS = 30
_LEAST_LIST = 5
_DETAIL_LINES = 12  # height of the details below the list
_GAP = 3


class AlertsScreen(PromptActions):
    """A list of alerts, with the details of the chosen one."""

    CSS = """
    #alerts-title, #track { height: 1; }
    #alerts { height: 1fr; layout: vertical; }
    .beside #alerts { layout: horizontal; }
    .airy #alerts { margin: 1 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*keys.ALERT_LIST]

    _pattern = Pattern.parse("")
    _entries: Sequence[Entry] = ()
    _chosen: tuple[str, object] | None = None
    _at = 0
    _first = 0

    def compose(self) -> ComposeResult:
        glyphs = self.session.glyphs
        yield Rows(glyphs, id="header")
        yield Rows(glyphs, id="alerts-title")
        with Container(id="alerts"):
            yield Rows(glyphs, id="alert-list")
            yield Rows(glyphs, id="alert-detail")
        yield Rows(glyphs, id="track")
        yield Rows(glyphs, id="ribbon")
        yield Rows(glyphs, id="keys")

    async def redraw(self) -> None:
        columns, rows = self.room
        view = self.session.view(12, self.ribbon_columns(), range(0))
        if view is None:
            return
        if self.draw_small(view):
            return
        self._take(view)
        visible = self._draw_alerts(view, columns, rows)
        title = alerts.title_line(self._entries, columns, self._title(visible))
        self.query_one("#alerts-title", Rows).show([title])
        self.draw_frame(view)

    def _take(self, view: RunView) -> None:
        """Update the alerts; the chosen one stays chosen wherever it moved."""
        watch, session = self.session.watch, self.session
        pinned = watch is not None and not session.time.following
        known = view_of(watch, 1, 1, None, range(0)).findings if watch and pinned else ()
        entries = alerts.entries_of(view, known, session.seen, self._pattern)
        if self._chosen is None:
            self._at = next((n for n, e in enumerate(entries) if self._is_here(e)), 0)
        else:
            ids = [entry.id for entry in entries]
            self._at = ids.index(self._chosen) if self._chosen in ids else self._at
        self._entries = entries
        self._at = max(0, min(self._at, len(entries) - 1))
        self._chosen = entries[self._at].id if entries else self._chosen

    def _is_here(self, entry: Entry) -> bool:
        """Whether the alert is in the layer chosen on the previous screen."""
        here = self.session.selected
        return any(episode.router_index == here for episode in entry.finding.episodes)

    def _title(self, visible: int) -> str:
        """Which part of the list is in view, and the filter."""
        filter_ = f"/{safe_text(self._pattern.text, 40)}" if self._pattern.text else ""
        count = len(self._entries)
        part = f"{self._first + 1:,} to {self._first + visible:,} of {count:,}"
        return "  ·  ".join(text for text in (part if count > visible else "", filter_) if text)

    def _draw_alerts(self, view: RunView, columns: int, rows: int) -> int:
        """Draw the list and the chosen alert; returns how many alerts fit."""
        entries, glyphs = self._entries, self.session.glyphs
        beside = columns >= alerts.BESIDE_FROM and bool(entries)
        airy = rows >= _AIRY_FROM_ROWS
        room = rows - _FRAME_LINES - 2 * airy
        width = alerts.list_width(entries, columns) if beside else columns
        height = room if beside or not entries else self._list_lines(room)
        self.set_class(beside, "beside")
        self.set_class(airy, "airy")
        list_, detail = self.query_one("#alert-list", Rows), self.query_one("#alert-detail", Rows)
        list_.styles.width, list_.styles.height = width, height
        if not entries:
            list_.show(self._nothing(view, columns)[:height])
            detail.show([])
            self.query_one("#track", Rows).show([])
            return height
        layout, visible = alerts.fit_alerts(entries, width), height - 1
        self._first = first_visible(visible, self._at, self._first, len(entries))
        shown = entries[self._first : self._first + visible]
        lines = [alerts.heads(layout)]
        for at, entry in enumerate(shown, self._first):
            lines.append(alerts.entry_line(entry, layout, glyphs, chosen=at == self._at))
        list_.show(lines)
        chosen = entries[self._at]
        gap = _GAP if beside else 1
        size = (columns - width - gap, room) if beside else (columns - gap, room - height - 1)
        unfolded = [[Span(" " * gap), *line] for line in alerts.unfolded(chosen, *size)]
        detail.show(unfolded if beside else [[], *unfolded])
        cells = self.ribbon_columns()
        self.query_one("#track", Rows).show([alerts.track(chosen, view, columns, cells, glyphs)])
        return visible

    def _list_lines(self, room: int) -> int:
        """Lines of the list where the details are below it."""
        least = min(_LEAST_LIST, room // 2)
        return min(len(self._entries) + 1, max(least, room - _DETAIL_LINES))

    def _nothing(self, view: RunView, columns: int) -> list[Line]:
        if not self._pattern.text:
            return alerts.no_alerts(view, columns)
        text = f"  no alert matches /{safe_text(self._pattern.text, 60)}"
        return [pad([], columns), pad([Span(text, "dim")], columns)]

    @property
    def _entry(self) -> Entry | None:
        """The chosen alert."""
        return self._entries[self._at] if self._at < len(self._entries) else None

    def filter_text(self) -> str:
        return self._pattern.text

    async def set_filter(self, pattern: Pattern) -> None:
        self._pattern = pattern
        await self.redraw()

    def copy(self, what: str) -> None:
        """The verdict is that of the chosen alert."""
        entry, view = self._entry, self.session.view(1, 1, range(0))
        if entry is not None and what != "verdict":  # of the layer that the alert is about
            self.session.selected = max(0, entry.finding.worst.router_index)
            self.session.expert = None
        if what != "verdict" or entry is None or view is None:
            super().copy(what)
            return
        self.put_in_clipboard(alerts.copied_text(entry, view), entry.finding.rule)

    async def action_move(self, by: int) -> None:
        """Choose another alert."""
        if self._entries:
            self._at = max(0, min(len(self._entries) - 1, self._at + by))
            self._chosen = self._entries[self._at].id
            await self.redraw()

    async def action_acknowledge(self) -> None:
        """Mark the chosen alert as seen, or as not seen."""
        entry = self._entry
        if entry is None:
            self.tell("no alert", "dim")
            return
        seen = self.session.seen
        if entry.key in seen:
            del seen[entry.key]
        else:
            seen[entry.key] = None
        now = "seen" if entry.key in seen else "not seen"
        self.tell(f"{entry.finding.rule}: {now}", "accent")
        await self.redraw()

    async def action_open_onset(self) -> None:
        """Show all layers at the step where the chosen alert began in its worst layer."""
        entry = self._entry
        if entry is None:
            self.tell("no alert to go to", "dim")
            return
        worst = entry.finding.worst
        self.session.time.speed = 0
        await self.from_disk(self.session.time.go_to, worst.onset)
        if self.has_said:  # the problem
            return
        if worst.router_index >= 0:
            self.session.selected = worst.router_index
        await self.app.run_action("app.go('main')")
