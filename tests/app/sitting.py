"""What tests of several screens do first: wait until a run is read, judged and shown."""

import time
from collections.abc import Awaitable, Callable

from textual.pilot import Pilot
from textual.screen import Screen

from microscope_tui.app import MainScreen, Microscope, Rows

Until = Callable[..., Awaitable[None]]
Seen = Callable[[Pilot[None], str], str]


async def until(pilot: Pilot[None], condition: Callable[[], object], what: str = "") -> None:
    """Let the app run until the condition holds."""
    end = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < end, f"never came about: {what}"
        await pilot.pause(0.02)


def latest_step(app: Microscope) -> int:
    watch = app.session.watch
    return watch.latest.record.step if watch is not None and watch.latest is not None else 0


async def read(pilot: Pilot[None], until: Until) -> Microscope:
    """The app on its main screen, once everything is read."""
    app = pilot.app
    assert isinstance(app, Microscope)

    def complete() -> bool:
        watch = app.session.watch
        return bool(watch and watch.complete) and isinstance(app.screen, MainScreen)

    await until(pilot, complete, "the whole log")
    return app


async def read_until(
    pilot: Pilot[None], until: Until, seen: Seen, selector: str, text: str
) -> Microscope:
    """The app on its main screen, once everything is read and ``text`` is in that part."""
    app = await read(pilot, until)
    await until(pilot, lambda: text in seen(pilot, selector), f"{text} in {selector}")
    return app


async def opened(
    pilot: Pilot[None], until: Until, screen: type[Screen[None]], *keys: str
) -> Microscope:
    """The screen that the keys open, once everything is judged."""
    app = await judged(pilot, until)
    await pilot.press(*keys)
    await until(pilot, lambda: isinstance(app.screen, screen), screen.__name__)
    await pilot.pause()
    return app


async def judged(pilot: Pilot[None], until: Until) -> Microscope:
    """The app on its main screen, once everything is read and judged."""
    app = await read(pilot, until)
    await until(pilot, lambda: app.session.watch and app.session.watch.judged >= 1, "judged")
    return app


def charts_shown(pilot: Pilot[None]) -> list[str]:
    """Names of the charts that are on the screen, with room of their own."""
    parts = pilot.app.screen.query("#charts Rows").results(Rows)
    return [(p.id or "").removeprefix("chart-") for p in parts if p.display and p.size.height > 1]
