"""The app under Textual's pilot: open it on a run, press keys, read what the screen shows."""

import gzip
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from textual.pilot import Pilot
from textual.screen import Screen

from microscope_tui.app.microscope import Microscope
from microscope_tui.app.remembered import begin
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.kit.rows import Rows, Tiles
from microscope_tui.kit.session import Preferences, Session
from microscope_tui.screens.main.screen import MainScreen
from microscope_tui.watch import Fleet, RunView, RunWatch

QUICK = Preferences(interval_s=0.05)


def compressed(log: Path) -> Path:
    packed = log.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(log.read_bytes()))
    return packed


class AppPilot:
    def __init__(self, pilot: Pilot[None]) -> None:
        assert isinstance(pilot.app, Microscope)
        self.app, self._pilot = pilot.app, pilot

    @property
    def session(self) -> Session:
        return self.app.session

    @property
    def screen(self) -> Screen[object]:
        return self.app.screen

    @property
    def watch(self) -> RunWatch:
        return self.session.watch

    @property
    def newest_step(self) -> int:
        return self.session.time.newest_step

    def view(self) -> RunView:
        return self.session.glance()

    def text(self, *parts: str) -> str:
        """The text of parts of the present screen; nothing for a part that it lacks."""
        return "\n".join(filter(None, (self._text(part) for part in parts)))

    def _text(self, part: str) -> str:
        found = self.screen.query(f"#{part}")
        if not found:
            return ""
        tiles = found.first().query(Rows) if isinstance(found.first(), Tiles) else found
        columns = [tile.texts for tile in tiles.results(Rows)]
        return "\n".join("".join(row) for row in zip(*columns, strict=True))

    def charts(self) -> list[str]:
        """Names of the charts that are on the screen and have lines for a curve."""
        parts = self.screen.query("#charts Rows").results(Rows)
        shown = [part.id or "" for part in parts if part.display and part.size.height > 1]
        return [name.removeprefix("chart-") for name in shown]

    async def settle(self) -> None:
        """Let all messages be handled: a key passes from the app to the screen and back."""
        for _ in range(4):
            await self._pilot.pause(0)

    async def press(self, *keys: str) -> None:
        """Press keys by their characters or by Textual's names, one after the other."""
        for key in keys:
            await self._pilot.press(key)
            await self.settle()

    async def enter(self, text: str) -> None:
        """Type a text, then enter."""
        await self.press(*text, "enter")

    async def resize(self, columns: int, rows: int) -> None:
        await self._pilot.resize_terminal(columns, rows)
        await self.until(lambda: self.app._resize_timer is None, "Textual gathers sizes for 8 ms")
        await self.settle()

    async def pause(self, seconds: float) -> None:
        await self._pilot.pause(seconds)

    async def redraw(self) -> None:
        """Draw the screen now instead of at its next interval."""
        await self.screen.redraw()  # type: ignore[attr-defined]
        await self.settle()

    async def go(self, name: str) -> None:
        """Show a screen by its name."""
        await self.app.action_go(name)
        await self.settle()

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Let the app run until the condition holds."""
        end = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < end, f"never came about: {what}"
            await self._pilot.pause(0.005)

    async def sees(self, text: str, *parts: str) -> None:
        """Let the app run until the text is in one of these parts."""
        await self.until(lambda: text in self.text(*parts), f"{text!r} in {parts}")

    async def reads(self, step: int) -> None:
        """Let the app run until this is the newest step that was read."""
        await self.until(lambda: self.newest_step == step, f"step {step}")

    async def is_judged(self) -> None:
        """Let the app run until all of the open run is read and judged."""

        def judged() -> bool:
            watch = self.session.watch
            return watch is not None and watch.complete and not watch.unread

        await self.until(judged, "the whole log")

    async def opens(self, screen: type[Screen[object]]) -> None:
        """Let the app run until this screen is on top."""
        await self.until(lambda: isinstance(self.screen, screen), screen.__name__)
        await self.settle()


@asynccontextmanager
async def running(
    fleet: Fleet | Path,
    size: tuple[int, int] = (100, 30),
    glyphs: Glyphs = Glyphs.BRAILLE,
    preferences: Preferences = QUICK,
    system: Any = None,
) -> AsyncIterator[AppPilot]:
    """The app, just started; ``system``: Rich's name of how many colours the terminal has."""
    fleet = fleet if isinstance(fleet, Fleet) else Fleet(fleet)
    app = Microscope(begin(fleet, glyphs, preferences))
    if system is not None:
        app.console = Console(color_system=system, file=StringIO(), force_terminal=True)
    async with app.run_test(size=size) as pilot:
        yield AppPilot(pilot)


@asynccontextmanager
async def open_app(path: Path, *keys: str, **how: Any) -> AsyncIterator[AppPilot]:
    """The app on a run that is read, judged and shown, after these keys."""
    async with running(path, **how) as app:
        await app.is_judged()
        await app.opens(MainScreen)
        await app.redraw()
        await app.press(*keys)
        yield app
