"""Windows of any size: what matters is shown, what is left out is named, and help can be read."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from textual.binding import Binding

from microscope_tui.app.microscope import Microscope
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import plain
from microscope_tui.kit.base import is_busy
from microscope_tui.kit.key_line import last_line
from microscope_tui.kit.keys import all_bindings, screen_class
from microscope_tui.kit.rows import Rows
from microscope_tui.kit.screen_table import SCREENS
from microscope_tui.screens.help.screen import HelpScreen, help_lines
from tests.app.pilot import AppPilot, open_app

Make = Callable[..., Path]
SIZES = [(60, 20), (80, 24), (40, 10), (120, 40)]


@pytest.mark.parametrize(("size", "keys"), [*zip(SIZES, ["", "2", "r", "3"], strict=True)])
async def test_all_help_can_be_read_in_any_window(collapsed: Path, size: Any, keys: str) -> None:
    async with open_app(collapsed, *keys, size=size) as app:
        bindings = [b for b in app.screen.BINDINGS if isinstance(b, Binding)]
        words = app.screen.WORDS  # type: ignore[attr-defined]
        await app.press("?")
        assert app.screen.query_one("#help").outer_size.height <= size[1]
        first = app.text("help")
        await app.press("down")
        assert (app.text("help") != first) == ("more " in first)
        await app.press("up")
        read = ""
        while not (read := read + app.text("help")).endswith(2 * app.text("help")):
            app.screen.action_scroll(3)  # type: ignore[attr-defined]  # fewer lines than any window
        for binding in bindings:
            assert (binding.tooltip or binding.description) in " ".join(read.split())
        assert "Reading the screen" in read
        assert all(word in read for names in words for word in names.split(" "))
        assert "…" not in read
        assert ("more " in first) == (read != 2 * first)
        await app.press("w")
        if size == (80, 24):  # the words are one key away
            assert "w words" in first
            assert "dropped" not in first
            assert "Reading the screen" in app.text("help").splitlines()[2]
        await app.press("q")
        assert not isinstance(app.screen, HelpScreen)


@pytest.mark.parametrize("name", sorted(SCREENS))
def test_help_has_one_entry_per_binding_and_every_binding_has_an_action(name: str) -> None:
    screen, bindings = screen_class(name), all_bindings()[name]
    assert len({b.id for b in bindings}) == len(bindings)
    keys = [key for b in bindings for key in b.key.split(",")]
    assert len(set(keys)) == len(keys)
    for binding in bindings:
        action = binding.action.split("(")[0]
        owner = Microscope if action.startswith("app.") else screen
        assert hasattr(owner, f"action_{action.removeprefix('app.')}"), binding
    lines = help_lines(bindings, Glyphs.BRAILLE, width=60)
    firsts = (line[0] for line in lines if line)
    named = [first.text for first in firsts if first.role == "accent" and first.text.strip()]
    assert len(named) == len(bindings)
    assert all(keys.endswith(" ") for keys in named)  # apart from what they do
    texts = [plain(line).strip() for line in lines]
    heads = [text for at, text in enumerate(texts) if at == 0 or not texts[at - 1]]
    if name != "help":  # its own keys come first, the way to other screens last
        assert heads[0] != "Screens"
        assert heads[-1] == "Screens"


@pytest.mark.parametrize("glyphs", [Glyphs.BRAILLE, Glyphs.ASCII])
def test_the_line_of_keys_fits_and_never_loses_help_and_quit(glyphs: Glyphs) -> None:
    screens = all_bindings()
    for width, name, probed in product(range(40, 121, 8), ("main", "layer", "runs"), (False, True)):
        own = screens[name]
        line = plain(last_line(own, glyphs, width, probed=probed))
        assert line.startswith(" 7 tokens  8 slices  ") == probed
        assert len(line) <= width
        assert line.endswith("? help  q quit")
        if width >= 120 and not probed and glyphs is Glyphs.BRAILLE:
            labels = [b.group.description if b.group else b.description for b in own if b.show]
            assert all(label in line for label in labels)


async def test_a_small_window_counts_bad_lines(make_run: Make, append: Any) -> None:
    log = make_run()
    with log.open("a") as file:
        file.write("torn{\n")
    append(log, [13])
    async with open_app(log, size=(60, 20)) as app:
        assert "1 bad line" in app.text("notes")
        await app.resize(120, 40)
        assert "1 bad line (line 14: not JSON)" in app.text("notes")


async def test_a_long_name_is_shortened_before_state_step_and_loss(scenario: Any) -> None:
    folder = scenario("healthy", routers=3, steps=30)
    long = folder.rename(folder.with_name("sweep-of-somebody-lr3e-4-batch512-wd0.1-seed-1234"))
    async with open_app(long) as app:
        for size in ((60, 20), (80, 24), (120, 40)):
            await app.resize(*size)
            header = app.text("header")
            assert header.strip().startswith("sweep")
            assert all(text in header for text in ("1234 ", "finished", "step 30", "loss 1."))


def everything(app: AppPilot) -> dict[str, str]:
    parts = app.screen.query(Rows).results(Rows)
    return {str(part.id): "\n".join(part.texts) for part in parts if part.size.area}


@pytest.mark.parametrize("size", [(39, 60), (200, 9)])
async def test_a_window_that_lacks_columns_or_rows_shows_what_it_needs(
    collapsed: Path, size: tuple[int, int]
) -> None:
    async with open_app(collapsed, size=size) as app:
        assert "needs 40x10, has {}x{}".format(*size) in app.text("header")
        assert app.screen.has_class("small")


async def test_a_storm_of_sizes_leaves_every_screen_as_it_was(make_run: Make) -> None:
    names = ["\x1b[31m[bold]L1", "w[gate]\u202e/" + "x" * 60, "層" * 30]
    sick = dict.fromkeys(range(3), range(80, 999))
    log = make_run("a\x1b[2Jb", range(1, 151), 1e9, names=names, sick=sick)  # its age stays
    async with open_app(log, "f") as app:
        for name in sorted(SCREENS.keys() - {"help"}):
            await app.go("main")
            await app.go(name)
            await app.resize(98, 30)
            await app.until(lambda: not is_busy(app.screen), name)
            await app.settle()
            before = everything(app)
            for columns, rows in ((30, 6), (200, 60), (10, 3), (1, 1), (39, 9)):
                await app.resize(columns, rows)
            await app.press("down", "up")
            if name not in ("main", "runs"):
                assert list(everything(app)) == ["header"], name
                assert "needs 40x10, has 39x9" in app.text("header")
            await app.resize(98, 30)
            await app.until(lambda: not is_busy(app.screen), name)
            await app.settle()
            assert everything(app) == before, name
            assert not set("\x1b\u202e\x07") & set("".join(before.values()))
