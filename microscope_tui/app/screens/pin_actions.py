"""Keeps the pinned run at the step that is shown of the open one, on the screens that compare."""

import asyncio

from microscope_tui.app.screens.base_screen import BaseScreen
from microscope_tui.runlog.discover import RunFile
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.watch.reference import NothingToCompare, PinnedRun, Reference, aligned

_DEBOUNCE_S = 0.1


class PinActions(BaseScreen):
    """Reads moments of the pinned run, off the thread that draws."""

    pin_problem: str = ""
    """Why the pinned run does not follow, in words."""
    _wanted: tuple[object, ...] = ()

    @property
    def pinned(self) -> PinnedRun | None:
        """The pinned run; a moment that was taken since as the reference has let it go."""
        fleet, reference = self.session.fleet, self.session.reference
        if fleet.pinned is not None and reference is not None:
            if reference.run != fleet.pinned.file.name:
                fleet.pinned = None
        return fleet.pinned

    def follow_pinned(self) -> None:
        """Bring the pinned run to the shown step if it is elsewhere, in a moment."""
        pinned, watch, step = self.pinned, self.session.watch, self.session.time.shown_step
        wanted = (pinned, watch, step)
        if pinned is not None and watch is not None and wanted != self._wanted:
            self._wanted = wanted
            self.run_worker(self._follow(pinned, step), group="pinned", exclusive=True)

    async def _follow(self, pinned: PinnedRun, step: int) -> None:
        await asyncio.sleep(_DEBOUNCE_S)  # another step may come at once, and end this worker
        found = await asyncio.to_thread(_moment, pinned, step)
        if self.session.fleet.pinned is pinned:
            self._compare_with(found)
            await self.redraw()

    def _compare_with(self, found: Reference | str) -> None:
        watch = self.session.watch
        if isinstance(found, str):
            self.pin_problem = found
        elif watch is not None and watch.run is not None:
            self.pin_problem = ""
            self.session.reference = aligned(found, watch.run)

    async def pin_run(self, file: RunFile) -> None:
        """Compare the open run with ``file`` from now on, and tell what is in the way."""
        fleet, session = self.session.fleet, self.session
        found = await asyncio.to_thread(_moment, fleet.pin_run(file), session.time.shown_step)
        self._compare_with(found)
        if isinstance(found, str):
            fleet.pinned = None
            self.tell(found)
        else:
            session.look = session.look.compared(True)
            self.tell(f"pinned: {file.name} is A of 5 compare", "accent")

    def unpin_run(self) -> None:
        """Compare with it no more."""
        session, pinned = self.session, self.pinned
        session.fleet.pinned = None
        if pinned is not None and session.reference is not None:
            session.compare_with(None)
        self.tell("no longer pinned", "accent")


def _moment(pinned: PinnedRun, step: int) -> Reference | str:
    """The moment of the pinned run, or why there is none. Reads from the disk."""
    try:
        return pinned.at(step)
    except NothingToCompare as problem:
        return str(problem)
    except OSError as error:
        return safe_text(f"{pinned.file.name}: {error.strerror or error}", 200)
