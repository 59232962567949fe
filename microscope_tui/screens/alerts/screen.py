"""All alerts of the run, with evidence; enter jumps to one."""

from collections.abc import Sequence
from typing import ClassVar

from microscope_tui.diagnosis import Advice, Finding
from microscope_tui.draw.spans import Line, Span, pad
from microscope_tui.kit import keys
from microscope_tui.kit.base import AIRY_FROM_ROWS, ListScreen, ribbon_columns
from microscope_tui.kit.glossary import ALERTS, HEADER, LAYERS, TIME
from microscope_tui.kit.keys import key, pair
from microscope_tui.kit.prompts import filter_note
from microscope_tui.screens.alerts import text as alerts
from microscope_tui.screens.alerts.text import Entry
from microscope_tui.watch import RunView, view_of

_FRAME_LINES = 5  # header, title, track, ribbon, keys
_LEAST_LIST = 5
_DETAIL_LINES = 12  # height of the details below the list
_GAP = 3


_ALERT_LIST = {
    "rule": "the kind of trouble; `moe-microscope explain RULE` describes it in full",
    "cause": "what explains this alert and others; `next` is its remedy",
    "severity": "how bad it is, at its worst step",
    "crit, warn, info, error": "critical, warning, note; the measurement is at fault",
    "end": "the step of the recovery, or active",
    "value": "the worst value against its limit",
    "evidence, grades": "the steps that show it; when it became a warning, when critical",
    "before": "earlier alerts of this rule in this layer",
    "confidence": "where the numbers come from: exact counts, or summaries only",
}


class AlertsScreen(ListScreen):
    CSS = """
    #alerts-title, #track { height: 1; }
    #alerts { height: 1fr; layout: vertical; }
    .beside #alerts { layout: horizontal; }
    .airy #alerts { margin: 1 0; }
    """
    WORDS: ClassVar = {**ALERTS, **_ALERT_LIST, **LAYERS, **HEADER, **TIME}
    BINDINGS: ClassVar = [
        keys.BACK,
        *pair(
            "alert",
            key("alert.up", "up,k", "move(-1)", "previous alert"),
            key("alert.down", "down,j", "move(1)", "next alert"),
        ),
        *keys.in_list("alert"),
        key("alert.open", "enter", "open_onset", "show the layer at the onset", "onset"),
        key("alert.acknowledge", "A", "acknowledge", "mark the alert as seen", "seen"),
        keys.FILTER,
        *keys.OUT,
        *keys.EVERYWHERE,
    ]
    PARTS = ("header", "alerts-title", ("alerts", "alert-list", "alert-detail"), "track", "ribbon")

    _entries: Sequence[Entry] = ()

    def points(self) -> int:
        return 12

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        entries = self._entries = self._found(view)
        count = len(entries)
        beside = columns >= alerts.BESIDE_FROM and count > 0
        airy = rows >= AIRY_FROM_ROWS
        self.set_class(beside, "beside")
        self.set_class(airy, "airy")
        room = rows - _FRAME_LINES - 2 * airy
        width = columns
        height = room
        if beside:
            width = alerts.list_width(entries, columns)
        elif count:  # the details are below the list
            height = min(count + 1, max(min(_LEAST_LIST, room // 2), room - _DETAIL_LINES))
        heads = min(1, count)
        shown = self.in_view(self.at, count, height - heads)
        said = [filter_note(self.pattern)]
        if count > self.list_rows:
            part = f"{self.first + 1:,} to {self.first + self.list_rows:,} of {count:,}"
            said.insert(0, part)
        title = "  ·  ".join(filter(None, said))
        self.show("alerts-title", [alerts.title_line(entries, view, columns, title)])
        if not entries:
            nothing: Sequence[Line] = alerts.no_alerts(view, columns)
            if self.pattern:
                text = Span(f"  no alert matches {filter_note(self.pattern, 60)}", "dim")
                nothing = [[], pad([text], columns)]
            self.show("alert-list", nothing[:height], width=width, height=height)
            self.show("alert-detail", [])
            self.show("track", [])
            return
        layout = alerts.fit_alerts(entries, width)
        lines = [alerts.entry_line(entries[at], layout, chosen=at == self.at) for at in shown]
        self.show("alert-list", [layout.heads(), *lines], width=width, height=height)
        chosen = entries[self.at]
        if beside:
            detail = alerts.unfolded(chosen, columns - width - _GAP, room)
            self.show("alert-detail", [[Span(" " * _GAP), *line] for line in detail])
        else:
            detail = alerts.unfolded(chosen, columns - 1, room - height - 1)
            self.show("alert-detail", [[], *([Span(" "), *line] for line in detail)])
        self.show("track", [alerts.track(chosen, view, columns, ribbon_columns(self))])

    def _found(self, view: RunView) -> Sequence[Entry]:
        """With those that begin after a paused step; at first one of the layer."""
        session, watch = self.session, self.session.watch
        known: Sequence[tuple[Finding, Advice]] = ()
        if watch is not None and not session.time.following:
            known = view_of(watch, 1, 1, None, range(0)).findings
        entries = alerts.entries_of(view, known, session.seen, self.pattern)
        routers = [{e.router_index for e in entry.finding.episodes} for entry in entries]
        of_layer = (at for at, own in enumerate(routers) if session.selected in own)
        self.keep_chosen((entry.id for entry in entries), start=next(of_layer, 0))
        return entries

    @property
    def entry(self) -> Entry | None:
        """The one at the cursor."""
        return self._entries[self.at] if self.at < len(self._entries) else None

    def alert_to_copy(self, view: RunView) -> tuple[Finding, Advice] | None:
        if (entry := self.entry) is not None:
            return entry.finding, entry.advice
        return super().alert_to_copy(view)

    async def action_acknowledge(self) -> None:
        entry = self.entry
        if entry is None:
            self.show_message("no alert", "dim")
            return
        now = self.session.toggle_seen({entry.key})
        self.show_message(f"{entry.finding.rule}: {now}", "accent")
        await self.redraw()

    async def action_open_onset(self) -> None:
        entry = self.entry
        if entry is None:
            self.show_message("no alert to go to", "dim")
            return
        worst = entry.finding.worst
        self.session.time.speed = 0
        await self.from_disk(self.session.time.go_to, worst.onset)
        if self.message_shown:  # the problem
            return
        if worst.router_index >= 0:
            self.session.selected = worst.router_index
        await self.app.run_action("app.go('main')")
