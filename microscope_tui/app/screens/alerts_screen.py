"""All alerts of the run, with evidence; enter jumps to one."""

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import BindingType

from microscope_tui.app import keys
from microscope_tui.app.keys import key, pair
from microscope_tui.app.screens.base import AIRY_FROM_ROWS, ListScreen
from microscope_tui.lines import Entry, Line, Span, alerts, pad
from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunView, view_of

_FRAME_LINES = 5  # header, title, track, ribbon, keys
_LEAST_LIST = 5
_DETAIL_LINES = 12  # height of the details below the list
_GAP = 3


class AlertsScreen(ListScreen):
    """A list of alerts, with the details of the chosen one."""

    CSS = """
    #alerts-title, #track { height: 1; }
    #alerts { height: 1fr; layout: vertical; }
    .beside #alerts { layout: horizontal; }
    .airy #alerts { margin: 1 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        keys.BACK,
        *pair(
            "alert",
            key("alert.up", "up,k", "move(-1)", "previous alert"),
            key("alert.down", "down,j", "move(1)", "next alert"),
        ),
        key("alert.first", "home,g", "move(-9999)", "first alert"),
        key("alert.last", "end,G", "move(9999)", "last alert"),
        key("alert.open", "enter", "open_onset", "show the layer at the onset", "onset"),
        key("alert.acknowledge", "A", "acknowledge", "mark the alert as seen", "seen"),
        *keys.FILTER,
        *keys.OUT,
        *keys.EVERYWHERE,
    ]
    PARTS = (
        "header",
        "alerts-title",
        ("alerts", "alert-list", "alert-detail"),
        "track",
        "ribbon",
        "keys",
    )

    _entries: Sequence[Entry] = ()

    def points(self) -> int:
        return 12

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        self._take(view)
        visible = self._draw_alerts(view, columns, rows)
        title = alerts.title_line(self._entries, columns, self._title(visible))
        self.show("alerts-title", [title])

    def _take(self, view: RunView) -> None:
        """Update the alerts."""
        watch, session = self.session.watch, self.session
        pinned = watch is not None and not session.time.following
        known = view_of(watch, 1, 1, None, range(0)).findings if watch and pinned else ()
        entries = alerts.entries_of(view, known, session.seen, self.pattern)
        self._entries, here = entries, session.selected
        of_layer = (
            at
            for at, entry in enumerate(entries)
            if any(episode.router_index == here for episode in entry.finding.episodes)
        )
        self.keep_chosen((entry.id for entry in entries), start=next(of_layer, 0))

    def _title(self, visible: int) -> str:
        """Which part of the list is in view, and the filter."""
        count = len(self._entries)
        part = f"{self.first + 1:,} to {self.first + visible:,} of {count:,}"
        said = [part if count > visible else "", self.filter_said()]
        return "  ·  ".join(text for text in said if text)

    def _draw_alerts(self, view: RunView, columns: int, rows: int) -> int:
        """Draw the list and the chosen alert; returns how many alerts fit."""
        entries = self._entries
        beside = columns >= alerts.BESIDE_FROM and bool(entries)
        airy = rows >= AIRY_FROM_ROWS
        room = rows - _FRAME_LINES - 2 * airy
        width = alerts.list_width(entries, columns) if beside else columns
        height = room if beside or not entries else self._list_lines(room)
        self.set_class(beside, "beside")
        self.set_class(airy, "airy")
        if not entries:
            nothing = self._nothing(view, columns)[:height]
            self.show("alert-list", nothing, width=width, height=height)
            self.show("alert-detail", [])
            self.show("track", [])
            return height
        layout, visible = alerts.fit_alerts(entries, width), height - 1
        lines = [layout.heads()]
        for at in self.in_view(self.at, len(entries), visible):
            lines.append(alerts.entry_line(entries[at], layout, chosen=at == self.at))
        self.show("alert-list", lines, width=width, height=height)
        chosen = entries[self.at]
        gap = _GAP if beside else 1
        size = (columns - width - gap, room) if beside else (columns - gap, room - height - 1)
        unfolded = [[Span(" " * gap), *line] for line in alerts.unfolded(chosen, *size)]
        self.show("alert-detail", unfolded if beside else [[], *unfolded])
        track = alerts.track(chosen, view, columns, self.ribbon_columns())
        self.show("track", [track])
        return visible

    def _list_lines(self, room: int) -> int:
        """Lines of the list where the details are below it."""
        least = min(_LEAST_LIST, room // 2)
        return min(len(self._entries) + 1, max(least, room - _DETAIL_LINES))

    def _nothing(self, view: RunView, columns: int) -> list[Line]:
        if not self.pattern.text:
            return alerts.no_alerts(view, columns)
        text = f"  no alert matches /{safe_text(self.pattern.text, 60)}"
        return [pad([], columns), pad([Span(text, "dim")], columns)]

    @property
    def _entry(self) -> Entry | None:
        """The chosen alert."""
        return self._entries[self.at] if self.at < len(self._entries) else None

    def copy(self, what: str) -> None:
        """The verdict is that of the chosen alert."""
        entry, view = self._entry, self.session.glance()
        if entry is not None and what != "verdict":  # of the layer that the alert is about
            self.session.selected = max(0, entry.finding.worst.router_index)
            self.session.expert = None
        if what != "verdict" or entry is None or view is None:
            super().copy(what)
            return
        self.put_in_clipboard(alerts.copied_text(entry, view), entry.finding.rule)

    async def action_acknowledge(self) -> None:
        """Mark the chosen alert as seen, or as not seen."""
        entry, seen = self._entry, self.session.seen
        if entry is None:
            self.tell("no alert", "dim")
            return
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
