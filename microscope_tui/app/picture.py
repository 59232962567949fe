"""A picture of any screen, drawn by the application without a terminal.

Snapshots, exports and tests show the same as a terminal.
"""

import asyncio
from dataclasses import dataclass

from textual.pilot import Pilot
from textual.widget import Widget

from microscope_tui.app.keys import SCREENS
from microscope_tui.app.microscope import Microscope
from microscope_tui.app.rows import Rows, in_truecolor
from microscope_tui.app.screens.base import BaseScreen
from microscope_tui.app.session import NO_PREFERENCES, Preferences
from microscope_tui.app.svg import stand_alone
from microscope_tui.lines import Glyphs, SteadyLevels, spelled
from microscope_tui.runlog import RunFile
from microscope_tui.watch import JUDGING_S, Fleet

SCREEN_NAMES = ("main", *sorted(SCREENS.keys() - {"main", "help", "waiting"}), "help")
_PATIENCE_S = 600.0
_LOOK_S = 0.02


class NoPicture(ValueError):
    """The screen, step, layer or expert does not exist; the message says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to draw."""

    screen: str = "main"
    columns: int = 120
    rows: int = 40
    step: int | None = None
    """The last logged step at or before this one; the newest by default."""
    layer: str = ""
    """Name of the chosen layer; the worst one by default."""
    expert: int | None = None
    token: int | None = None
    """The token at the cursor on the screen of the tokens; the first by default."""
    against: RunFile | None = None
    """The run to compare with."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The same screen twice."""

    text: str
    svg: str


async def draw(
    fleet: Fleet,
    wanted: Wanted,
    glyphs: Glyphs = Glyphs.BRAILLE,
    preferences: Preferences = NO_PREFERENCES,
) -> Picture:
    """Draw a screen of the newest run of ``fleet``.

    Raises:
        NoPicture: no such screen, layer, expert or step.
    """
    app = Microscope(fleet, glyphs, preferences)
    found: list[Picture | NoPicture] = []

    async def at_work(pilot: Pilot[object]) -> None:
        try:
            found.append(await _drawn(app, pilot, wanted))
        except NoPicture as problem:
            found.append(problem)
        app.exit()

    await app.run_async(headless=True, size=(wanted.columns, wanted.rows), auto_pilot=at_work)
    if not found:
        raise NoPicture("the screen could not be drawn")
    if isinstance(found[0], NoPicture):
        raise found[0]
    return found[0]


async def _drawn(app: Microscope, pilot: Pilot[object], wanted: Wanted) -> Picture:
    await _read(app)
    if wanted.screen == "runs":
        await _judge(app)
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
        while screen.busy:
            await asyncio.sleep(_LOOK_S)
        await pilot.pause()
    with in_truecolor(app):
        return Picture(_text(app), stand_alone(app.export_screenshot(title="", simplify=True)))


async def _read(app: Microscope) -> None:
    """Wait until the whole log has been read and judged."""
    session = app.session
    for _ in range(round(_PATIENCE_S / _LOOK_S)):
        watch = session.watch
        looked = session.reader.first_look.is_set()
        if looked and watch is None:
            return
        waiting = session.has_run and app.shown == "waiting"
        if watch is not None and watch.complete and not watch.unread and not waiting:
            return
        await asyncio.sleep(_LOOK_S)
    raise NoPicture(f"the log was not read in {_PATIENCE_S:.0f} s")


async def _judge(app: Microscope) -> None:
    """Wait until all finished runs are judged, or a timeout."""
    for _ in range(round(JUDGING_S / _LOOK_S)):
        if not app.session.fleet.is_judging:
            return
        await asyncio.sleep(_LOOK_S)


async def _choose(app: Microscope, wanted: Wanted) -> None:
    session = app.session
    run = session.watch.run if session.watch is not None else None
    if run is None:
        return
    if wanted.step is not None:
        problem = await asyncio.to_thread(session.time.go_to, wanted.step)
        if problem:
            raise NoPicture(f"step {wanted.step:,}: {problem}")
    names = [router.name for router in run.routers]
    if wanted.layer and wanted.layer not in names:
        shown = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
        raise NoPicture(f"no layer {wanted.layer!r}: there are {shown}")
    view = session.glance()
    worst = view.worst[0].worst.router_index if view is not None and view.worst else 0
    session.selected = names.index(wanted.layer) if wanted.layer else max(0, worst)
    if wanted.expert is not None:
        experts = run.routers[session.selected].num_experts if run.routers else 0
        if not 0 <= wanted.expert < experts:
            raise NoPicture(f"no expert {wanted.expert}: there are 0 to {experts - 1}")
        session.expert = wanted.expert
    if wanted.token is not None:
        routing = await session.anatomy.open(session.watch.path) if session.watch else None
        tokens = routing.tokens if routing is not None else 0
        if not 0 <= wanted.token < tokens:
            there = f"there are 0 to {tokens - 1:,}" if tokens else "this run has no probe"
            raise NoPicture(f"no token {wanted.token:,}: {there}")
        session.anatomy.token = wanted.token
    if wanted.against is not None:
        problem = await session.pin_run(wanted.against)
        if problem:
            raise NoPicture(f"--against {wanted.against.path}: {problem}")


def _text(app: Microscope) -> str:
    """The text of the screen, row by row."""
    columns, rows = app.size
    lines = [[" "] * columns for _ in range(rows)]
    for part in app.screen.query(Rows):
        if not _is_shown(part):
            continue
        region = part.content_region
        for y, text in enumerate(part.texts[: region.height], start=region.y):
            for x, char in enumerate(text[: region.width], start=region.x):
                if 0 <= y < rows and 0 <= x < columns:
                    lines[y][x] = char
    text = "\n".join("".join(line).rstrip() for line in lines).rstrip()
    return spelled(text, app.session.glyphs)


def _is_shown(widget: Widget) -> bool:
    return all(part.display for part in widget.ancestors_with_self if isinstance(part, Widget))
