"""Windows of any size: what matters is shown, what is left out is named, and help can be read."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from textual.binding import Binding
from textual.pilot import Pilot

from microscope_tui.app import (
    SCREENS,
    HelpScreen,
    Microscope,
    Rows,
    all_bindings,
    help_lines,
    key_line,
)
from microscope_tui.lines import Glyphs, glossary, plain
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until, read


async def ready(pilot: Pilot[None], until: Until) -> Microscope:
    """The app once the whole log has been read and shown."""
    app = await read(pilot, until)
    await app.screen.redraw()
    await pilot.pause()
    return app


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (40, 10), (120, 40)])
@pytest.mark.parametrize("open_first", [[], ["enter"], ["r"]])
async def test_all_of_the_help_can_be_read_in_any_window(
    until: Until, seen: Seen, collapsed: Path, size: tuple[int, int], open_first: list[str]
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=size) as pilot:
        app = await ready(pilot, until)
        await pilot.press(*open_first)
        bindings = [b for b in app.screen.BINDINGS if isinstance(b, Binding)]
        await pilot.press("question_mark")
        await pilot.pause()
        help_ = app.screen.query_one("#help")
        assert help_.outer_size.height <= size[1]
        first = seen(pilot, "#help")
        await pilot.press("down")
        assert (seen(pilot, "#help") != first) == ("more " in first)
        await pilot.press("up")
        read = ""
        while not (read := read + seen(pilot, "#help")).endswith(2 * seen(pilot, "#help")):
            app.screen.action_scroll(3)  # type: ignore[attr-defined]  # fewer lines than any window
        for binding in bindings:
            assert (binding.tooltip or binding.description) in " ".join(read.split())
        assert "Reading the screen" in read
        behind = type(app.screen_stack[-2]).__name__.removesuffix("Screen").lower()
        for words, _ in glossary(SCREENS[behind].words):
            assert all(word in read for word in words.split(" "))
        assert "…" not in read
        assert ("more " in first) == (read != 2 * first)
        await pilot.press("q")
        assert not isinstance(app.screen, HelpScreen)


@pytest.mark.parametrize("width", range(40, 121, 8))
@pytest.mark.parametrize("glyphs", [Glyphs.BRAILLE, Glyphs.ASCII])
def test_the_line_of_keys_fits_and_never_loses_help_and_quit(width: int, glyphs: Glyphs) -> None:
    screens = all_bindings()
    for name, probed in product(("main", "layer", "runs"), (False, True)):
        own = screens[name]
        line = plain(key_line(own, glyphs, width, probed=probed))
        assert line.startswith(" 7 tokens  8 slices  ") == probed
        assert len(line) <= width
        assert line.endswith("? help  q quit")
        if width >= 120 and not probed and glyphs is Glyphs.BRAILLE:
            said = [b.group.description if b.group else b.description for b in own if b.show]
            assert all(words in line for words in said)


@pytest.mark.parametrize("screen", ["slices", "tokens", "layer", "runs"])
def test_help_begins_with_the_keys_of_its_screen_and_ends_with_the_way_to_others(
    screen: str,
) -> None:
    lines = [plain(line).strip() for line in help_lines(all_bindings()[screen], Glyphs.BRAILLE, 60)]
    heads = [line for at, line in enumerate(lines) if at == 0 or not lines[at - 1]]
    assert heads[0] != "Screens"
    assert heads[-1] == "Screens"


async def test_a_small_window_says_what_it_cannot_show(
    until: Until,
    seen: Seen,
    scenario: Any,
    write_log: Any,
    make_header: Any,
    make_step: Any,
    balanced: Any,
) -> None:
    many = scenario("healthy", routers=40, steps=30)
    async with Microscope(Fleet(many)).run_test(size=(80, 24)) as pilot:
        await ready(pilot, until)
        assert "23 more layers" in seen(pilot, "#notes")
        assert "L17" in seen(pilot, "#label")
    steps = [make_step(n, [balanced()] * 3, 2048) for n in range(1, 30)]
    bad = write_log([make_header(), *steps[:9], b"torn{", *steps[9:]])
    async with Microscope(Fleet(bad)).run_test(size=(60, 20)) as pilot:
        await ready(pilot, until)
        assert "1 bad line" in seen(pilot, "#notes")


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40)])
async def test_a_long_name_gives_way_to_state_step_and_loss(
    until: Until, seen: Seen, scenario: Any, size: tuple[int, int]
) -> None:
    folder = scenario("healthy", routers=3, steps=30)
    long = folder.rename(folder.with_name("sweep-of-somebody-lr3e-4-batch512-wd0.1-seed-1234"))
    async with Microscope(Fleet(long)).run_test(size=size) as pilot:
        await ready(pilot, until)
        header = seen(pilot, "#header")
        assert header.strip().startswith("sweep")
        assert "1234 " in header
        assert "finished" in header
        assert "step 30" in header
        assert "loss 1." in header


@pytest.mark.parametrize("name", sorted(SCREENS.keys() - {"main", "runs", "help"}))
async def test_in_a_window_that_is_too_small_only_the_state_is_left_of_any_screen(
    until: Until, seen: Seen, collapsed: Path, name: str
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        app = await ready(pilot, until)
        await app.action_go(name)
        await pilot.resize_terminal(39, 9)
        await until(pilot, lambda: "needs 40x10, has 39x9" in seen(pilot, "#header"), "said")
        await pilot.pause()
        shown = [part.id for part in app.screen.query(Rows) if part.size.area]
        assert shown == ["header"]
        await pilot.resize_terminal(100, 30)
        await until(pilot, lambda: "needs" not in seen(pilot, "#header"), "all of it again")
        await pilot.pause()
        assert len([part for part in app.screen.query(Rows) if part.size.area]) > 1


async def test_the_help_leads_to_the_words_with_one_key(
    until: Until, seen: Seen, collapsed: Path
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(80, 24)) as pilot:
        await ready(pilot, until)
        await pilot.press("question_mark")
        await pilot.pause()
        assert "w words" in seen(pilot, "#help")
        assert "dropless" not in seen(pilot, "#help")
        await pilot.press("w")
        await pilot.pause()
        read = seen(pilot, "#help")
        assert "Reading the screen" in read.splitlines()[2]
        assert "nothing can be dropped" in " ".join(read.split())
