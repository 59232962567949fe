"""What the screens of a run have in common: the session, its tempo, and moving between layers."""

import asyncio
from typing import ClassVar

from textual.screen import Screen

from microscope_tui.app.screens.goto_screen import GotoScreen
from microscope_tui.app.session import Session
from microscope_tui.report import words
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.watch.view import RunView

REFRESH_S = 0.5


class RunScreen(Screen[None]):
    """Redraws when the session has something new; an unchanged session costs nothing."""

    AUTO_FOCUS: ClassVar[str | None] = None

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._shown: tuple[object, ...] = ()

    async def on_mount(self) -> None:
        # Before the first layout: every paint of the whole screen that is saved is 25 KB.
        await self.redraw()
        self.set_interval(REFRESH_S, self._look)

    async def on_screen_resume(self) -> None:
        await self.redraw()

    async def on_resize(self) -> None:
        await self.redraw()

    async def redraw(self) -> None:
        """Draw everything from the present state of the session."""
        raise TypeError(f"{type(self).__name__} does not draw itself")

    async def _look(self) -> None:
        """Redraw if the run, its state or its age in words has changed."""
        now = self._state_now()
        if now != self._shown and self.is_current:
            self._shown = now
            await self.redraw()

    def _state_now(self) -> tuple[object, ...]:
        watch = self.session.watch
        if watch is None:
            return ()
        state, age = watch.state()
        return self.session.version, watch, state, words.age(age)

    def layer_count(self) -> int:
        """Number of routers of the run."""
        watch = self.session.watch
        return len(watch.run.routers) if watch is not None and watch.run is not None else 0

    async def action_move(self, by: int) -> None:
        """Choose another layer."""
        last = self.layer_count() - 1
        selected = max(0, min(last, self.session.selected + by))
        if selected != self.session.selected:
            self.session.selected = selected
            await self.redraw()

    async def action_page(self, direction: int) -> None:
        """Move by a screenful of layers."""
        await self.action_move(direction * self.page())

    def page(self) -> int:
        """Layers in a screenful."""
        return 10

    async def action_toggle_follow(self) -> None:
        """Hold this moment, or go back to the live run."""
        self.session.toggle_follow()
        await self.redraw()

    async def action_step(self, by: int) -> None:
        """Look at an earlier or later step."""
        self._said(await asyncio.to_thread(self.session.step_by, by))
        await self.redraw()

    def action_go_to(self) -> None:
        """Ask for a step and look at it."""
        watch = self.session.watch
        if watch is not None and watch.latest is not None:
            last = watch.latest.record.step
            self.app.push_screen(GotoScreen(last, self.session.glyphs), self._go_to)

    async def _go_to(self, step: int | None) -> None:
        if step is not None:
            self._said(await asyncio.to_thread(self.session.go_to, step))
            await self.redraw()

    def _said(self, problem: str | None) -> None:
        if problem is not None:
            self.notify(safe_text(problem, 200), severity="warning", markup=False)

    def moment(self, view: RunView) -> str:
        """Where on the time axis we are, in a word or two."""
        if not self.session.following:
            return f"PAUSED at step {view.step:,}"
        return view.state
