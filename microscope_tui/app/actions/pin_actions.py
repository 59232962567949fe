"""Keeps the pinned run at the step that is shown of the open one, on the screens that compare."""

import asyncio

from microscope_tui.app.actions.base_screen import BaseScreen
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
        """The pinned run. Whoever took another reference since, or none, has let it go."""
        fleet, reference = self.session.fleet, self.session.reference
        name = fleet.pinned.file.name if fleet.pinned is not None else None
        if reference is None or reference.run != name:
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
        if self.pinned is pinned:
            self._compare_with(found)
            await self.redraw_if_current()

    def _compare_with(self, found: Reference | str) -> None:
        watch = self.session.watch
        if isinstance(found, str):
            if found != self.pin_problem:
                self.tell(found)
            self.pin_problem = found
            return
        self.pin_problem = ""
        run = watch.run if watch is not None else None
        self.session.reference = aligned(found, run) if run is not None else found

    async def pin_run(self, file: RunFile) -> None:
        """Compare the open run with ``file`` from now on, and tell what is in the way."""
        session, pinned = self.session, self.session.fleet.comparable(file)
        found = await asyncio.to_thread(_moment, pinned, session.time.shown_step)
        if isinstance(found, str):
            self.tell(found)
            return
        self._compare_with(found)
        session.fleet.pinned = pinned
        session.look = session.look.compared(True)
        self.tell(f"pinned: {file.name} is A of 5 compare", "accent")

    def unpin_run(self) -> None:
        """Compare with it no more."""
        self.session.fleet.pinned = None
        self.session.compare_with(None)
        self.tell("unpinned", "accent")


def _moment(pinned: PinnedRun, step: int) -> Reference | str:
    """The moment of the pinned run, or why there is none. Reads from the disk."""
    try:
        return pinned.at(step)
    except NothingToCompare as problem:
        return str(problem)
    except OSError as error:
        return safe_text(f"{pinned.file.name}: {error.strerror or error}", 200)
