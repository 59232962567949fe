"""What tests of the screens of a probe do first: open one of them on a probed run."""

from collections.abc import Sequence
from pathlib import Path

from textual.pilot import Pilot
from textual.screen import Screen

from microscope_tui.app import Anatomy, Microscope
from microscope_tui.routing import Routing
from tests.app.sitting import Until, read


async def shown(
    pilot: Pilot[None], until: Until, screen: type[Screen[None]], key: str
) -> tuple[Microscope, Anatomy, Routing]:
    """The app on the screen of that key, and the file that it shows."""
    app = await read(pilot, until)
    await pilot.press(key)
    await until(pilot, lambda: isinstance(app.screen, screen), screen.__name__)
    await pilot.pause()
    anatomy = app.session.anatomy
    assert anatomy.routing is not None, anatomy.problem
    return app, anatomy, anatomy.routing


async def typed(pilot: Pilot[None], key: str, text: str) -> None:
    """A prompt with its answer."""
    await pilot.press(key, *_keys(text), "enter")
    await pilot.pause()


def _keys(text: str) -> Sequence[str]:
    names = {" ": "space", "+": "plus", "-": "minus", "%": "percent_sign", ",": "comma"}
    return [names.get(char, char) for char in text]


def copied(run: Path, folder: Path) -> Path:
    """A run in a folder of its own, which a test may change."""
    target = folder / run.name
    target.mkdir(parents=True)
    for file in run.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target
