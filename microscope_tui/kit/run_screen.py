"""A screen of a run: moving among layers, alerts and steps, and how loads are shown."""

import asyncio
from collections.abc import Sequence

from textual.timer import Timer

from microscope_tui.diagnosis import Episode, Finding, key_of
from microscope_tui.draw.heat import Order, after, order_of
from microscope_tui.draw.time_line import Axis
from microscope_tui.kit.base import BaseScreen, ribbon_columns
from microscope_tui.watch import PinnedRun, RunView

_TICK_S = 0.25
_DEBOUNCE_S = 0.1


class RunScreen(BaseScreen):
    layers_shown: Sequence[int] | None = None
    """Those that the filter shows, as last drawn; ``None`` for all."""
    _player: Timer | None = None
    _wanted: tuple[object, ...] = ()

    # Layers

    @property
    def pattern(self) -> str:
        """The filter for layers, which these screens share."""
        return self.session.filter

    @pattern.setter
    def pattern(self, pattern: str) -> None:
        self.session.filter = pattern

    def position(self) -> int:
        """Of the chosen layer among those shown, or of the nearest."""
        shown, selected = self.layers_shown, self.session.selected
        if shown is None:
            return selected
        if shown and selected not in shown:
            self.session.selected = min(shown, key=lambda index: abs(index - selected))
        return list(shown).index(self.session.selected) if shown else 0

    async def action_move(self, by: int) -> None:
        shown = self.layers_shown
        run = self.session.run
        if shown is None and run is not None:
            shown = range(len(run.routers))
        if shown:
            at = max(0, min(len(shown) - 1, self.position() + by))
            if shown[at] != self.session.selected:
                self.session.selected = shown[at]
                await self.redraw()

    async def action_open_layer(self) -> None:
        if self.session.run is not None and self.session.run.routers:
            await self.app.run_action("app.go('layer')")

    @property
    def expert_order(self) -> Order:
        """Of the experts from left to right, for the keys that move between them."""
        return self.session.look.order

    async def action_expert(self, by: int) -> None:
        session, view = self.session, self.session.glance()
        if view is None or session.selected >= len(view.layers):
            return
        order = list(order_of(view.layers[session.selected], self.expert_order))
        if not order:
            self.show_message("no counts in this layer at this step")
            return
        at = 0
        if session.expert in order:
            at = max(0, min(len(order) - 1, order.index(session.expert) + by))
        session.expert = order[at]
        await self.redraw()

    async def action_look(self, what: str) -> None:
        now = self.session.look = self.session.look.next(what)
        said = {"order": f"experts by {now.order}", "palette": f"palette: {now.palette}"}
        self.show_message(said.get(what, f"cells show: {now.measure}"), "accent")
        await self.redraw()

    def follow_pinned(self) -> None:
        """To the shown step, after a short delay."""
        pinned, watch, step = self.session.pinned, self.session.watch, self.session.time.shown_step
        wanted = (pinned, watch, step)
        if pinned is not None and watch is not None and wanted != self._wanted:
            self._wanted = wanted
            self.run_worker(self._follow(pinned, step), group="pinned", exclusive=True)

    async def _follow(self, pinned: PinnedRun, step: int) -> None:
        await asyncio.sleep(_DEBOUNCE_S)  # the next step may follow at once and cancel this worker
        if problem := await self.session.move_pinned(pinned, step):
            self.show_message(problem)
        await self.redraw_if_current()

    # Alerts

    async def action_next_alert(self) -> None:
        """Unseen alerts first, then the worst."""
        view, seen = self.session.glance(), self.session.seen
        if view is None:
            return
        found = sorted(view.alerts, key=lambda pair: key_of(view.name, pair[0]) in seen)
        layers = [e.router_index for finding, _ in found for e in finding.episodes if e.active]
        sick = list(dict.fromkeys(layer for layer in layers if layer >= 0))
        if not sick:
            judged = "no active alert" if view.judging.share >= 1.0 else "not judged yet"
            self.show_message(judged, "dim")
            return
        self.session.selected = after(self.session.selected, sick)
        await self.redraw()

    async def action_acknowledge(self) -> None:
        """The alerts of the chosen layer, or the topmost one."""
        view = self.session.glance()
        if view is None or not view.alerts:
            self.show_message("no active alert", "dim")
            return
        chosen = [finding for finding, _ in self._here(view)] or [view.alerts[0][0]]
        now = self.session.toggle_seen({key_of(view.name, finding) for finding in chosen})
        self.show_message(f"{chosen[0].rule}: {now}", "accent")
        await self.redraw()

    def _here(self, view: RunView) -> list[tuple[Finding, Episode]]:
        here, alerts = self.session.selected, view.alerts
        return [(f, e) for f, _ in alerts for e in f.episodes if e.router_index == here]

    async def action_onset(self) -> None:
        """The onset in the chosen layer, or of the topmost alert."""
        view = self.session.glance()
        if view is None or not view.alerts:
            self.show_message("no active alert at this step", "dim")
            return
        here = self._here(view)
        episode = here[0][1] if here else view.alerts[0][0].worst
        if episode.router_index >= 0:
            self.session.selected = episode.router_index
        await self.from_disk(self.session.time.go_to, episode.onset)

    # Time

    async def action_toggle_follow(self) -> None:
        self.session.time.toggle_follow()
        await self.redraw()

    async def action_step(self, by: int) -> None:
        self.session.time.speed = 0
        await self.from_disk(self.session.time.step_by, by)

    async def action_play(self) -> None:
        """From the shown step, or, at the end, from the first step in view."""
        time = self.session.time
        problem = time.why_no_past()
        if problem:
            self.show_message(problem)
            return
        if time.following:
            first, _ = time.window or (1, 1)
            await asyncio.to_thread(time.go_to, first)
        time.speed = time.next_speed()
        if self._player is None:
            self._player = self.set_interval(_TICK_S, self._play_on)
        self.show_message(None)
        await self.redraw()

    async def _play_on(self) -> None:
        time = self.session.time
        if not time.speed or self.app.screen is not self:
            if self._player is not None:
                self._player.stop()
                self._player = None
            return
        columns = time.speed * _TICK_S
        self.show_message(await asyncio.to_thread(time.play_on, columns, ribbon_columns(self)))
        await self.redraw()

    async def action_zoom(self, by: float) -> None:
        self.session.time.zoom(by)
        await self.redraw()

    async def action_next_axis(self) -> None:
        self.session.axis = axis = after(self.session.axis, list(Axis))
        self.show_message(f"time axis: {axis}", "accent")
        await self.redraw()
