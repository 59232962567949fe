"""When a screen is drawn: as it opens, and again when the session has changed."""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from time import monotonic

from textual.geometry import Size
from textual.screen import Screen

from microscope_tui.kit.session import Session

_WAITING_S = 0.25
_SOON_S = 0.05  # the end of reading and judging is shown at once


class Redraws:
    """Those of one screen. An unchanged session costs nothing.

    Textual paints a new screen three times: laid out, resumed, and laid out again without the
    toasts that it might have shown. Only the final state is sent: a paint is 50 KB.
    """

    def __init__(
        self,
        screen: Screen[None],
        session: Session,
        redraw: Callable[[], Awaitable[None]],
        state_now: Callable[[], tuple[object, ...]],
    ) -> None:
        """``state_now``: what ``redraw`` draws depends on it."""
        self._screen = screen
        self._session = session
        self._redraw = redraw
        self._state_now = state_now
        self._shown: tuple[object, ...] = ()
        self._stage: object = None  # whether the run was read and judged in the last picture
        self._due = 0.0
        self._unsent = ExitStack()  # paints of a new screen are held back
        self._new = True
        self._drawn_in = Size()

    async def begin(self) -> None:
        """The screen opens: draw it before the first layout, and look for changes from now on."""
        self._unsent.enter_context(self._screen.app.batch_update())
        self._drawn_in = room_of(self._screen)
        await self._redraw()
        self._look_again()

    async def resume(self) -> None:
        """The screen is the topmost one now: for the first time, or again."""
        if not self._new:
            await self._redraw()
        later = self._screen.call_later
        later(later, self._send)  # after the events of the first layout

    async def resize(self) -> None:
        """The screen may have another size."""
        if not self._new or room_of(self._screen) != self._drawn_in:
            await self._redraw()

    def end(self) -> None:
        """The screen is removed: otherwise nothing would be sent again."""
        self._unsent.close()

    def _send(self) -> None:
        if self._new:
            self._new = False
            self._unsent.close()
            self._screen.refresh(layout=True)
            self._screen.call_after_refresh(self._session.reader.painted.set)

    def _look_again(self) -> None:
        interval_s = _WAITING_S
        watch = self._session.watch
        if watch is not None and watch.latest is not None:
            interval_s = self._session.preferences.interval_s
            if watch.unread and watch.judged < 1.0:
                interval_s = _SOON_S
        self._screen.set_timer(interval_s, self._look)

    async def _look(self) -> None:
        screen = self._screen
        session = self._session
        now = self._state_now()
        watch = session.watch
        stage = watch and (watch.complete, watch.judged >= 1.0)
        due = stage != self._stage or monotonic() >= self._due
        if due and now != self._shown and screen.app.screen is screen:
            self._shown, self._stage = now, stage
            self._due = monotonic() + session.preferences.interval_s
            session.reader.pause()
            await self._redraw()
            if session.has_new_critical():
                screen.app.bell()
        self._look_again()


def room_of(screen: Screen[None]) -> Size:
    """In cells; of the terminal before the first layout."""
    return screen.size or screen.app.size
