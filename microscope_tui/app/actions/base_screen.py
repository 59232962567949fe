"""Base of all screens: the session, the redraw interval, and the last line."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import ClassVar

from textual.binding import Binding
from textual.css.query import NoMatches
from textual.geometry import Size
from textual.screen import Screen

from microscope_tui.app import key_lines
from microscope_tui.app.keymap import bindings_of
from microscope_tui.app.prompt import Prompt
from microscope_tui.app.session import Session
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.lines import MIN_COLUMNS, MIN_ROWS, Line, Span, frame, pad, time_line, words
from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunView


class BaseScreen(Screen[None]):
    """Redraws when the session has changed; an unchanged session costs nothing."""

    SCOPED_CSS = False  # a scope would not reach the classes of the screen itself
    AUTO_FOCUS: ClassVar[str | None] = None

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.prompt = Prompt()
        self._shown: tuple[object, ...] = ()
        self._said: tuple[str, str] = ("", "")
        self._unsent = ExitStack()  # paints of a new screen are held back
        self._new = True

    async def on_mount(self) -> None:
        # Textual paints a new screen three times: laid out, resumed, and laid out again without
        # the toasts that it might have shown. Only the final state is sent.
        self._unsent.enter_context(self.app.batch_update())
        # Before the first layout: every paint of the whole screen that is saved is 50 KB.
        await self.redraw()
        self._look_again()

    async def on_screen_resume(self) -> None:
        await self.redraw()
        self.call_later(self.call_later, self._send)  # behind the events of the first layout

    def on_unmount(self) -> None:
        self._unsent.close()  # otherwise nothing would be sent again

    def _send(self) -> None:
        """Send the new screen, once."""
        if self._new:
            self._new = False
            self._unsent.close()
            self.refresh(layout=True)

    async def on_resize(self) -> None:
        await self.redraw()

    async def redraw(self) -> None:
        """Draw everything from the current state of the session."""
        raise TypeError(f"{type(self).__name__} does not draw itself")

    async def redraw_if_current(self) -> None:
        """Redraw after background work; a screen below another one redraws when it comes back."""
        if self.is_current:
            with suppress(NoMatches):  # at exit the parts of a screen are removed before the screen
                await self.redraw()

    @property
    def busy(self) -> bool:
        """Whether part of the screen is still being read."""
        return False

    def _look_again(self) -> None:
        self.set_timer(self.session.preferences.interval_s, self._look)

    async def _look(self) -> None:
        """Redraw if the run, its state or its age in words has changed."""
        now = self.state_now()
        if now != self._shown and self.app.screen is self:
            self._shown = now
            self.session.reader.hush()
            await self.redraw()
            if self.session.rings():
                self.app.bell()
        self._look_again()

    def state_now(self) -> tuple[object, ...]:
        """Everything that a redraw depends on and that changes without a key."""
        watch = self.session.watch
        if watch is None:
            return ()
        state, age = watch.state()
        return self.session.version, watch, state, words.age(age)

    @property
    def bindings_shown(self) -> Sequence[Binding]:
        """The bindings of this screen with the user's keys."""
        return bindings_of(self, self.session.keymap)

    @property
    def leads_to_probe(self) -> bool:
        """Whether the last line begins with the screens of the probe."""
        return False

    def draw_last_line(self) -> None:
        """The last line: keys, a message, or the prompt while it is open."""
        session, glyphs, width = self.session, self.session.glyphs, self.size.width
        (said, role), time = self._said, session.time
        if self.prompt.open:
            hint, problem = self.prompt_hint()
            line = self.prompt.line(hint, problem, glyphs)
        elif said:
            line = [Span(f" {said}", role)]
        elif time.speed:
            line = key_lines.film_line(self.bindings_shown, glyphs, time.speed, time.next_speed())
        else:
            paused = not time.following
            shown, probed = self.bindings_shown, self.leads_to_probe
            line = key_lines.key_line(shown, glyphs, width, paused=paused, probed=probed)
        self.query_one("#keys", Rows).show([pad(line, width)])

    def prompt_hint(self) -> tuple[str, str | None]:
        """The hint of the prompt, and why the input is invalid."""
        return "", None

    def tell(self, text: str | None, role: str = "warn") -> None:
        """Show a message in the last line until the next key."""
        self._said = (safe_text(text, 300), role) if text else ("", "")
        if self.is_current:
            self.draw_last_line()

    @property
    def has_said(self) -> bool:
        """Whether a message is shown."""
        return bool(self._said[0])

    async def from_disk(self, work: Callable[..., str | None], *arguments: object) -> None:
        """Run ``work`` in a thread, show the problem that it returns, and redraw."""
        self.tell(await asyncio.to_thread(work, *arguments))
        await self.redraw()

    def moment(self, view: RunView) -> str:
        """The state of the time cursor, in a word or two."""
        time = self.session.time
        if time.following:
            ended = self.session.pipe_ended and not view.state.ended
            return "pipe ended" if ended else view.state
        behind = f", now {view.newest_step:,}" if view.newest_step > view.step else ""
        return f"{f'PLAYING {time.speed}x' if time.speed else 'PAUSED'}{behind}"

    @property
    def room(self) -> Size:
        """Size of the screen in cells; that of the terminal before the first layout."""
        return self.size or self.app.size

    def ribbon_columns(self) -> int:
        """Columns of the ribbon on this screen."""
        return time_line.ribbon_width(self.room.width)

    def ribbon(self, view: RunView) -> Line:
        """The time ribbon of this screen."""
        session = self.session
        columns, moment = self.room.width, self.moment(view)
        return time_line.ribbon(view, columns, session.glyphs, moment, session.axis)

    def draw_small(self, view: RunView) -> bool:
        """In a window that is too small, show one line and the size that is needed."""
        columns, rows = self.room
        small = columns < MIN_COLUMNS or rows < MIN_ROWS
        self.set_class(small, "small")
        if small:
            self.query_one("#header", Rows).show(frame.smallest(view, columns, rows))
        return small

    def draw_frame(self, view: RunView) -> None:
        """The parts that every screen of a run has: header, ribbon, last line."""
        session, columns = self.session, self.room.width
        self.query_one("#header", Rows).show([frame.header(view, columns, session.glyphs)])
        self.query_one("#ribbon", Rows).show([self.ribbon(view)])
        self.draw_last_line()

    def put_in_clipboard(self, text: str, said: str) -> None:
        """Copy through the terminal (OSC 52)."""
        self.app.copy_to_clipboard(text)
        hint = "; in tmux it needs `set -g set-clipboard on`" if self.session.in_tmux else ""
        self.tell(f"copied: {said}{hint}", "ok")

    async def action_back(self) -> None:
        """Return to the screen before."""
        await self.app.pop_screen()
