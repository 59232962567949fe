"""The keys of the time machine, on every screen of a run."""

import asyncio

from textual.timer import Timer

from microscope_tui.app.actions.base_screen import BaseScreen
from microscope_tui.lines import Axis

_TICK_S = 0.25


class TimeActions(BaseScreen):
    """Moves the shown step and zooms the window."""

    _player: Timer | None = None

    async def action_toggle_follow(self) -> None:
        """Pause at the shown step, or follow the live run."""
        self.session.time.toggle_follow()
        await self.redraw()

    async def action_step(self, by: int) -> None:
        """Show an earlier or later step."""
        self.session.time.speed = 0
        await self.from_disk(self.session.time.step_by, by)

    async def action_play(self) -> None:
        """Play back the run from the shown step, or, at its end, from the first step in view."""
        time = self.session.time
        problem = time.why_no_past()
        if problem:
            self.tell(problem)
            return
        if time.following:
            await asyncio.to_thread(time.go_to, time.window.first if time.window else 1)
        time.speed = time.next_speed()
        if self._player is None:
            self._player = self.set_interval(_TICK_S, self._play_on)
        self.tell(None)
        await self.redraw()

    async def _play_on(self) -> None:
        time = self.session.time
        if not time.speed or self.app.screen is not self:
            if self._player is not None:
                self._player.stop()
                self._player = None
            return
        columns = time.speed * _TICK_S
        self.tell(await asyncio.to_thread(time.play_on, columns, self.ribbon_columns()))
        await self.redraw()

    async def action_zoom(self, by: float) -> None:
        """Zoom the window around the shown step."""
        self.session.time.zoom(by)
        await self.redraw()

    async def action_show_all(self) -> None:
        """Show the whole run."""
        self.session.time.show_all()
        await self.redraw()

    async def action_next_axis(self) -> None:
        """Switch the time axis: steps, run time, clock."""
        axes = list(Axis)
        self.session.axis = axes[(axes.index(self.session.axis) + 1) % len(axes)]
        self.tell(f"time axis: {self.session.axis}", "accent")
        await self.redraw()
