"""``moe-microscope snapshot``: any screen at any step, as text, data or picture."""

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec.structs import replace

from microscope_tui.commands.config import UserConfig, read_config
from microscope_tui.commands.console import (
    DEFAULT_PATH,
    NO_VERDICT,
    PIPE,
    USAGE,
    fail,
    fail_if_unreadable,
    newest,
    print_data,
    runs_at,
    say,
    to_file,
)
from microscope_tui.commands.options import (
    DEFAULT_SOURCE,
    PICTURE,
    RANKS,
    PictureOptions,
    Ranks,
    RunPath,
    SourceOptions,
    step_range,
)
from microscope_tui.draw.export import view_json
from microscope_tui.draw.glyphs import glyphs_for
from microscope_tui.kit.screen_table import SCREENS
from microscope_tui.kit.session import PictureRequest, Preferences
from microscope_tui.runlog import PipedLog, RunFile, safe_text
from microscope_tui.screens.main.as_text import snapshot_text
from microscope_tui.sources import Search
from microscope_tui.watch import Fleet, Pin, RunWatch, VerdictCache, pin_at, view_of
from microscope_tui.watch.cost import CostRequest, cost_of

_SMALLEST = (20, 5)
_WIDTH = 100
_FRAMES = 36
_WITHOUT_DATA = ("tokens", "mismatch", "runs")
if TYPE_CHECKING:
    ScreenName = str
else:
    ScreenName = Literal[tuple(SCREENS)]


def snapshot(
    path: RunPath = DEFAULT_PATH,
    /,
    *,
    screen: ScreenName = "main",
    step: int | None = None,
    layer: str = "",
    expert: int | None = None,
    token: int | None = None,
    against: Path | None = None,
    picture: PictureOptions = PICTURE,
    reading: SourceOptions = DEFAULT_SOURCE,
    placed: Ranks = RANKS,
) -> int:
    """Print a screen of the newest run: text to read, JSON to work with, SVG to show.

    Parameters
    ----------
    screen
        Which screen. The main screen as text lists all layers.
    step
        Show the last logged step at or before this one; the newest by default.
    layer
        Name of the layer to select; the worst one by default.
    expert
        Number of the expert to select in that layer.
    token
        Number of the token to show on the screen tokens; the first by default.
    against
        With compare or mismatch: path of the other run, which is A on the screen.
    """
    picture.refuse_invalid()
    user = read_config().with_options(theme=picture.theme)
    search = Search(path, reading.request(user, path))
    for note in reading.note(path):
        say(note)
    wanted = PictureRequest(
        screen=screen,
        step=step,
        played=_played(picture, screen, step),
        layer=layer,
        expert=expert,
        token=token,
        against=_other(against, screen, search),
        preferences=Preferences(cost=placed.request(), theme=user.view.theme),
        framed=picture.frame,
    )
    if picture.format == "json":
        text = _as_json(search, user, wanted)
    else:
        text = _drawn(search, user, wanted, picture)
    if picture.output in (None, PIPE):
        print_data(text)
    else:
        with to_file(picture.output) as file:
            file.write(text + "\n")
        say(f"written: {picture.output}")
    return 0


def _size(size: str) -> tuple[int, int] | None:
    if not size:
        return None
    columns, _, rows = size.lower().partition("x")
    if not (columns.isdecimal() and rows.isdecimal()):
        fail(f"--size {safe_text(size, 20)!r}: write COLUMNSxROWS, for example 120x40", USAGE)
    return max(_SMALLEST[0], int(columns)), max(_SMALLEST[1], int(rows))


def _played(picture: PictureOptions, screen: str, step: int | None) -> list[int]:
    if not picture.animate:
        return []
    first, last = (end or 0 for end in step_range("--animate", picture.animate))
    if first >= last or picture.format != "svg" or screen != "main" or step is not None:
        fail("--animate needs A:B with B after A, -o NAME.svg, no --screen, no --step", USAGE)
    return sorted({first + (last - first) * n // (_FRAMES - 1) for n in range(_FRAMES)})


def _other(against: Path | None, screen: str, search: Search) -> RunFile | None:
    if against is None:
        return None
    if screen not in ("compare", "mismatch"):
        fail(f"--against: the screen {screen} compares nothing; use compare or mismatch", USAGE)
    return runs_at(Search(against, search.request))[0]


def _as_json(search: Search, user: UserConfig, wanted: PictureRequest) -> str:
    if wanted.screen in _WITHOUT_DATA:
        how = "use text or svg, or --json of `mismatch` and `check --all`"
        fail(f"--format json: the screen {wanted.screen} shows no step of a run; {how}", USAGE)
    watched = newest(search, user.criteria)
    of_screen = SCREENS[wanted.screen].of_snapshot()
    if of_screen is not None:
        data: str = of_screen.as_json(wanted, watched)
        return data
    moment = _moment(watched, wanted.step)
    cost = cost_of(watched, moment, wanted.preferences.cost)
    return view_json(view_of(watched, 1, 1, moment), cost)


def _drawn(
    search: Search, user: UserConfig, wanted: PictureRequest, options: PictureOptions
) -> str:
    """As the application draws it; the main screen as text needs none."""
    columns, rows = _size(options.size) or (wanted.columns, wanted.rows)
    glyphs = glyphs_for(options.alphabet, sys.stdout)
    svg = options.format == "svg"
    nothing_selected = not wanted.layer and wanted.expert is wanted.token is None
    if wanted.screen == "main" and not svg and nothing_selected:
        watched = newest(search, user.criteria)
        moment = _moment(watched, wanted.step)
        width, height = (columns, rows) if options.size else (_WIDTH, None)
        return snapshot_text(watched, width, height, glyphs, moment, wanted.preferences.cost)
    if search.root == PIPE:
        fail("a pipe cannot be drawn like this: save it to a file first, or use text", USAGE)
    fleet = _fleet(search, user)
    of_screen = SCREENS[wanted.screen].of_snapshot()
    if of_screen is not None:
        of_screen.refuse(wanted, runs_at(search)[0], newest(search, user.criteria))
    # The exporter always uses truecolor; the palette has to match.
    os.environ["TEXTUAL_COLOR_SYSTEM"] = "truecolor"
    os.environ.pop("NO_COLOR", None)
    from microscope_tui.app.picture import NoPicture, draw

    try:
        picture = asyncio.run(draw(fleet, replace(wanted, columns=columns, rows=rows), glyphs))
    except NoPicture as problem:
        fail(str(problem), NO_VERDICT)
    return picture.svg if svg else picture.text


def _fleet(search: Search, user: UserConfig) -> Fleet:
    runs = runs_at(search)
    if len(runs) == 1:
        fail_if_unreadable(runs[0])
    kept = VerdictCache(user.criteria, keeps=False) if user.view.remember else None
    return Fleet(search.root, search=search, criteria=user.criteria, kept=kept)


def print_snapshot(search: Search, user: UserConfig, memory: int, cost: CostRequest) -> int:
    """Print the main screen to an output that is not a terminal."""
    if search.root == PIPE:
        say("no terminal here: printing a snapshot at the end of the input instead")
    watched = newest(search, user.criteria, memory)
    if search.root != PIPE:
        say("no terminal here: printing a snapshot instead")
    glyphs = glyphs_for(user.view.glyphs, sys.stdout)
    print_data(snapshot_text(watched, _WIDTH, None, glyphs, cost=cost))
    return 0


def _moment(watched: RunWatch, step: int | None) -> Pin | None:
    if step is None:
        return None
    if step < 1:
        fail(f"--step {step}: the first step of a run is 1", USAGE)
    if watched.latest is None:
        fail(f"--step {step}: no step in {watched.path} yet", NO_VERDICT)
    found = pin_at(watched, step)
    if found is None:
        how = "compressed logs cannot be rewound: decompress it first"
        if isinstance(watched.source, PipedLog):
            how = "a pipe cannot be read twice"
        fail(f"--step {step}: not found in {watched.path}; {how}", NO_VERDICT)
    if found.step != step:
        newest = watched.latest.record.step
        why = f"the newest is {newest:,}" if step > newest else f"showing {found.step:,}"
        say(f"--step {step}: not in the log, {why}")
    return found
