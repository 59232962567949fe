"""Keeps the pinned run at the step shown for the open one, on the screens that compare."""

import asyncio

from microscope_tui.app.actions.base_screen import BaseScreen
from microscope_tui.runlog import RunFile, safe_text
from microscope_tui.watch import NothingToCompare, PinnedRun, Reference, aligned

_DEBOUNCE_S = 0.1


class PinActions(BaseScreen):
    """Reads steps of the pinned run in a thread."""

    pin_problem: str = ""
    """Why the pinned run could not be moved to the shown step."""
    _wanted: tuple[object, ...] = ()

    @property
    def pinned(self) -> PinnedRun | None:
        """The pinned run; ``None`` once the reference was replaced or removed."""
        fleet, reference = self.session.fleet, self.session.reference
        name = fleet.pinned.file.name if fleet.pinned is not None else None
        if reference is None or reference.run != name:
            fleet.pinned = None
        return fleet.pinned

    def follow_pinned(self) -> None:
        """Move the pinned run to the shown step, after a short delay."""
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
        """Compare the open run with ``file``; returns the problem, if any."""
        session, pinned = self.session, self.session.fleet.comparable(file)
        found = await asyncio.to_thread(_moment, pinned, session.time.shown_step)
        if isinstance(found, str):
            self.tell(found)
            return
        self._compare_with(found)
        session.fleet.pinned = pinned
        session.look = session.look.compared(True)
        self.tell(f"pinned: {file.name} is A of 5 compare and 9 mismatch", "accent")

    def unpin_run(self) -> None:
        """Stop comparing with the pinned run."""
        self.session.fleet.pinned = None
        self.session.compare_with(None)
        self.tell("unpinned", "accent")


def _moment(pinned: PinnedRun, step: int) -> Reference | str:
    """The step of the pinned run, or why there is none. Reads from the disk."""
    try:
        return pinned.at(step)
    except NothingToCompare as problem:
        return str(problem)
    except OSError as error:
        return safe_text(f"{pinned.file.name}: {error.strerror or error}", 200)
