"""What tests of several screens do first: wait until a run is read, judged and shown."""

from collections.abc import Awaitable, Callable

from textual.pilot import Pilot

from microscope_tui.app.microscope import Microscope
from microscope_tui.app.screens.main_screen import MainScreen
from microscope_tui.app.widgets.rows import Rows

Until = Callable[..., Awaitable[None]]
Seen = Callable[[Pilot[None], str], str]


async def judged(pilot: Pilot[None], until: Until) -> Microscope:
    """The app on its main screen, once everything is read and judged."""
    app = pilot.app
    assert isinstance(app, Microscope)

    def ready() -> bool:
        watch = app.session.watch
        shown = isinstance(app.screen, MainScreen)
        return bool(watch and watch.complete and watch.judged >= 1) and shown

    await until(pilot, ready, "the whole log")
    return app


def charts_shown(pilot: Pilot[None]) -> list[str]:
    """Names of the charts that are on the screen, with room of their own."""
    parts = pilot.app.screen.query("#charts Rows").results(Rows)
    return [(p.id or "").removeprefix("chart-") for p in parts if p.display and p.size.height > 1]
