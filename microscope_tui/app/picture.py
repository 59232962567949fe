"""A picture of any screen, drawn by the application without a terminal.

Snapshots, exports and tests show the same as a terminal.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace
from textual.pilot import Pilot

from microscope_tui.app.microscope import Microscope
from microscope_tui.app.remembered import begin
from microscope_tui.draw.glyphs import Glyphs, spelled
from microscope_tui.draw.steady import SteadyLevels
from microscope_tui.kit.base import BaseScreen, is_busy
from microscope_tui.kit.rows import in_truecolor
from microscope_tui.kit.screen_table import SCREENS
from microscope_tui.kit.session import PictureRequest, Session
from microscope_tui.kit.svg import Screen, animation_of, lines_of
from microscope_tui.runlog import RouterInfo
from microscope_tui.watch import Fleet

_PATIENCE_S = 600.0
_JUDGING_S = 5.0  # for finished runs in the list
_LOOK_S = 0.02


class NoPicture(ValueError):
    """The message says what does not exist."""


@dataclass(frozen=True, slots=True)
class Picture:
    text: str
    """The last screen as lines without colours."""
    svg: str


async def draw(fleet: Fleet, wanted: PictureRequest, glyphs: Glyphs = Glyphs.BRAILLE) -> Picture:
    """Draw a screen of the newest run of ``fleet``.

    ``NoPicture``: there is no such step, layer, expert or token, nothing to compare with, or the
    log was not read in ten minutes.
    """
    app = Microscope(begin(fleet, glyphs, wanted.preferences))
    async with app.run_test(size=(wanted.columns, wanted.rows)) as pilot:
        return await _drawn(app, pilot, wanted)


async def _drawn(app: Microscope, pilot: Pilot[None], wanted: PictureRequest) -> Picture:
    if not await _until(lambda: _is_read(app), _PATIENCE_S):
        raise NoPicture(f"the log was not read in {_PATIENCE_S:.0f} s")
    if wanted.screen == "runs":
        await _until(lambda: not app.session.fleet.is_judging, _JUDGING_S)
    steps = wanted.played or (wanted.step,)
    newest = app.session.time.newest_step
    if wanted.played and wanted.played[-1] > newest:
        raise NoPicture(f"--animate: no step {wanted.played[-1]:,}; the newest is {newest:,}")
    screens = [await _screen(app, pilot, replace(wanted, step=step)) for step in steps]
    title = app.title if wanted.framed else None
    svg = animation_of(screens, wanted.columns, app.session.shades, title)
    text = "\n".join("".join(part.text for part in line).rstrip() for line in screens[-1])
    return Picture(spelled(text.rstrip(), app.session.glyphs), svg)


async def _screen(app: Microscope, pilot: Pilot[None], wanted: PictureRequest) -> Screen:
    await _choose(app, wanted)
    app.session.steady = SteadyLevels()  # discard intermediate frames
    if wanted.screen == "help":
        if isinstance(app.screen, BaseScreen):  # it shows around the help
            await app.screen.redraw()
        app.action_help()
    elif wanted.screen != "main":
        await app.action_go(wanted.screen)
    await pilot.pause()
    screen = app.screen
    if isinstance(screen, BaseScreen):
        await screen.redraw()
        await pilot.pause()
        await _until(lambda: not is_busy(screen), _PATIENCE_S)
        await pilot.pause()
    with in_truecolor(app):
        return lines_of(app)


async def _until(condition: Callable[[], bool], seconds: float) -> bool:
    for _ in range(round(seconds / _LOOK_S)):
        if condition():
            return True
        await asyncio.sleep(_LOOK_S)
    return False


def _is_read(app: Microscope) -> bool:
    session, watch = app.session, app.session.watch
    if watch is None:
        return session.reader.first_look.is_set()
    return watch.complete and not watch.unread


async def _choose(app: Microscope, wanted: PictureRequest) -> None:
    session, run = app.session, app.session.run
    if run is None:
        return
    if wanted.step is not None:
        problem = await asyncio.to_thread(session.time.go_to, wanted.step)
        if problem:
            raise NoPicture(f"step {wanted.step:,}: {problem}")
    session.numbers = tuple(wanted.numbers)
    _choose_expert(session, run.routers, wanted)
    of_screen = SCREENS[wanted.screen].of_snapshot()
    if of_screen is not None:
        problem = await of_screen.choose(session, wanted)
        if problem:
            raise NoPicture(problem)
    if wanted.against is not None:
        problem = await session.pin_run(wanted.against)
        if problem:
            raise NoPicture(f"--against {wanted.against.path}: {problem}")


def _choose_expert(session: Session, routers: Sequence[RouterInfo], wanted: PictureRequest) -> None:
    if wanted.layer:
        names = [router.name for router in routers]
        if wanted.layer not in names:
            shown = ", ".join(names[:8])
            if len(names) > 8:
                shown += " …"
            raise NoPicture(f"no layer {wanted.layer!r}: there are {shown}")
        session.selected = names.index(wanted.layer)
    else:
        view = session.glance()
        session.selected = 0
        if view is not None and view.worst:
            session.selected = max(0, view.worst[0].worst.router_index)
    if wanted.expert is not None:
        experts = routers[session.selected].num_experts if routers else 0
        if not 0 <= wanted.expert < experts:
            raise NoPicture(f"no expert {wanted.expert}: there are 0 to {experts - 1}")
        session.expert = wanted.expert
