"""What the screens of a run have in common: the session, its tempo, and moving between layers."""

import asyncio
from typing import ClassVar

from textual import events
from textual.binding import Binding, NoBinding
from textual.screen import Screen

from microscope_tui.app import keys
from microscope_tui.app.session import Session
from microscope_tui.app.step_prompt import StepPrompt
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.report import words
from microscope_tui.report.spans import Span, pad
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.watch.state import ENDED
from microscope_tui.watch.view import RunView

REFRESH_S = 0.5


class RunScreen(Screen[None]):
    """Redraws when the session has something new; an unchanged session costs nothing."""

    AUTO_FOCUS: ClassVar[str | None] = None

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._shown: tuple[object, ...] = ()
        self._prompt = StepPrompt()
        self._problem = ""

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
        if now != self._shown and self.app.screen is self:
            self._shown = now
            self.session.hush()
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
            await self.select()

    async def select(self) -> None:
        """Show that another layer was chosen."""
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

    async def action_go_to(self) -> None:
        """Ask for a step and look at it."""
        if self.session.has_run:
            self._prompt.ask()
            self.draw_last_line()

    async def on_key(self, event: events.Key) -> None:
        """The prompt is served here, in the order of the keys, before any binding is."""
        self.session.hush()
        if self._problem:
            self._said(None)
        if self._prompt.open:
            event.stop()
            step = self._prompt.take(event.key, event.character)
            self.draw_last_line()
            if step is not None:
                self._said(await asyncio.to_thread(self.session.go_to, step))
                await self.redraw()
        elif self._asks_for_a_step(event.key):
            event.stop()
            await self.action_go_to()

    def on_paste(self, event: events.Paste) -> None:
        """A number may be pasted into the prompt."""
        if self._prompt.open:
            for character in event.text.strip():
                if character.isdecimal():
                    self._prompt.take(character, character)
            self.draw_last_line()

    def _asks_for_a_step(self, key: str) -> bool:
        try:
            bindings = self._bindings.get_bindings_for_key(key)
        except NoBinding:
            return False
        return any(binding.action == "go_to" for binding in bindings)

    def draw_last_line(self) -> None:
        """The keys, or the prompt while it is open."""
        session, glyphs = self.session, self.session.glyphs
        if self._prompt.open:
            line = self._prompt.line(session.newest_step, session.why_no_past(), glyphs)
        elif self._problem:
            line = [Span(f" {self._problem}", "warn")]
        else:
            bindings = [b for b in self.BINDINGS if isinstance(b, Binding)]
            paused = not self.session.following
            line = keys.key_line(bindings, glyphs, self.size.width, paused=paused)
        self.query_one("#keys", Rows).show([pad(line, self.size.width)])

    def _said(self, problem: str | None) -> None:
        """Why a key did nothing: stands in the last line until the next key."""
        self._problem = safe_text(problem, 200) if problem else ""
        self.draw_last_line()

    def moment(self, view: RunView) -> str:
        """Where on the time axis we are, in a word or two."""
        if self.session.following:
            ended = self.session.pipe_ended and view.state not in ENDED
            return "pipe ended" if ended else view.state
        newest = self.session.newest_step
        behind = f", now {newest:,}" if newest > view.step else ""
        return f"PAUSED{behind}"
