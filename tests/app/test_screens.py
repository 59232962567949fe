"""Keys and screens through Textual's pilot."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from textual.binding import Binding
from textual.pilot import Pilot

from microscope_tui.app import (
    SCREENS,
    HelpScreen,
    LayerScreen,
    MainScreen,
    Microscope,
    Rows,
    Tiles,
    help_lines,
)
from microscope_tui.lines import Glyphs, plain
from microscope_tui.watch import Fleet
from tests.app.sitting import judged, latest_step, until


def text_of(app: Microscope, selector: str) -> str:
    """What the rows at ``selector`` on the present screen show."""
    widget = app.screen.query_one(selector)
    parts = widget.query(Rows) if isinstance(widget, Tiles) else [widget]
    assert all(isinstance(part, Rows) for part in parts)
    columns = [[strip.text for strip in part._strips] for part in parts]  # type: ignore[union-attr]
    return "\n".join("".join(row) for row in zip(*columns, strict=True))


async def settled(pilot: Pilot[None]) -> Microscope:
    """The app once the whole log has been read, judged and shown."""
    app = await judged(pilot, until)
    await redrawn(app)
    return app


async def redrawn(app: Microscope) -> None:
    """Redraw the main screen now instead of at its next interval."""
    assert isinstance(app.screen, MainScreen)
    await app.screen.redraw()


async def test_the_cursor_moves_between_layers_and_stops_at_the_ends(collapsed: Path) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await settled(pilot)
        seen = []
        for key in ("down", "j", "up", "k", "k", "G", "down", "home"):
            await pilot.press(key)
            seen.append(app.session.selected)
        assert seen == [1, 2, 1, 0, 0, 4, 4, 0]
        await pilot.press("down")
        row = next(line for line in text_of(app, "#label").split("\n") if "▶" in line)
        assert "L2" in row


async def test_the_next_alert_is_the_sick_layer_and_enter_opens_it(collapsed: Path) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await settled(pilot)
        await pilot.press("a")
        assert app.session.selected == 3
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, LayerScreen), "the layer screen")
        await pilot.pause()
        assert "Router collapse in L4" in text_of(app, "#evidence")
        assert "balance c" in text_of(app, "#chart-balance")
        await pilot.press("up")
        await until(pilot, lambda: "L3" in text_of(app, "#layer-title"), "the layer above")
        assert "no alerts in this layer" in text_of(app, "#evidence")
        await pilot.press("escape")
        assert isinstance(app.screen, MainScreen)
        assert app.session.selected == 2


async def test_pausing_holds_the_moment_while_the_run_goes_on(
    write_log: Any, make_header: Any, make_step: Any, balanced: Any
) -> None:
    path = write_log([make_header(), *(make_step(n, [balanced()] * 3, 2048) for n in range(1, 20))])
    async with Microscope(Fleet(path)).run_test(size=(100, 30)) as pilot:
        app = await settled(pilot)
        await pilot.press("f")
        with path.open("ab") as file:
            for n in range(20, 40):
                file.write(json.dumps(make_step(n, [balanced()] * 3, 2048)).encode() + b"\n")
        await until(pilot, lambda: latest_step(app) == 39, "the new steps")
        await redrawn(app)
        assert "19 PAUSED" in text_of(app, "#ribbon")
        assert "step 19 " in text_of(app, "#header")
        await pilot.press("f")
        await until(pilot, lambda: "step 39 " in text_of(app, "#header"), "following again")


async def test_an_empty_folder_is_waited_on_until_a_run_appears(
    tmp_path: Path, scenario: Any
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    async with Microscope(Fleet(logs)).run_test(size=(80, 24)) as pilot:
        app = pilot.app
        await until(pilot, lambda: "waiting for a run" in text_of(app, "#waiting"), "the words")  # type: ignore[arg-type]
        scenario("healthy", routers=3, steps=50).rename(logs / "run")
        await until(pilot, lambda: "L1" in text_of(app, "#label"), "the run")  # type: ignore[arg-type]


async def test_help_lists_exactly_the_bindings_of_the_screen(collapsed: Path) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 50)) as pilot:
        app = await settled(pilot)
        bindings = [b for b in app.screen.BINDINGS if isinstance(b, Binding)]
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), "help")
        await pilot.pause()
        shown = text_of(app, "#help")
        listed = [plain(line) for line in help_lines(bindings, Glyphs.BRAILLE, width=108)]
        assert all(binding.tooltip in "\n".join(listed) for binding in bindings if binding.tooltip)
        assert shown.split("\n")[2].strip() in listed[0]
        entries = help_lines(bindings, Glyphs.BRAILLE, width=60)
        assert sum(line[0].role == "accent" for line in entries if line) == len(bindings)
        named = [line[0].text for line in entries if line and line[0].role == "accent"]
        assert all(keys.endswith(" ") for keys in named)  # apart from what they do
        await pilot.press("escape")
        assert isinstance(app.screen, MainScreen)


async def test_every_binding_has_an_action_and_an_id_of_its_own(collapsed: Path) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await settled(pilot)
        for screen in SCREENS.keys() - {"help"}:
            await app.action_go("main")
            await app.action_go(screen)
            await pilot.pause()
            bindings = [b for b in app.screen.BINDINGS if isinstance(b, Binding)]
            assert len({b.id for b in bindings}) == len(bindings), screen
            used = [key for b in bindings for key in b.key.split(",")]
            assert len(set(used)) == len(used), screen
            for binding in bindings:
                name = binding.action.split("(")[0]
                owner: object = app if name.startswith("app.") else app.screen
                assert hasattr(owner, f"action_{name.removeprefix('app.')}"), (screen, binding)


async def test_more_layers_than_lines_are_scrolled_and_said(scenario: Any) -> None:
    folder = scenario("healthy", routers=40, steps=30)
    async with Microscope(Fleet(folder)).run_test(size=(100, 30)) as pilot:
        app = await settled(pilot)
        assert "more layers" in text_of(app, "#notes")
        await pilot.press("end")
        assert "L40" in text_of(app, "#label")
        await pilot.press("pageup")
        assert "L1 " not in text_of(app, "#label")
        assert "▶" in text_of(app, "#label")


@pytest.mark.parametrize("experts", [8, 256])
async def test_the_load_is_drawn_in_tiles_that_add_up(scenario: Any, experts: int) -> None:
    folder = scenario("collapse", routers=3, num_experts=experts, steps=300)
    async with Microscope(Fleet(folder)).run_test(size=(140, 40)) as pilot:
        app = await settled(pilot)
        await pilot.press("f")  # one step: in a mean few experts are dead
        lines = text_of(app, "#load").split("\n")
        assert len({len(line) for line in lines}) == 1
        assert "×" in text_of(app, "#load")
        assert sum(part.size.width for part in app.screen.query_one(Tiles).query(Rows)) == len(
            lines[0]
        )


async def test_any_resize_is_survived(collapsed: Path) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await settled(pilot)
        for size in [(300, 100), (1, 1), (40, 10), (20, 5), (60, 20), (39, 50), (120, 9), (80, 24)]:
            await pilot.resize_terminal(*size)
            await pilot.pause()
        await pilot.press("enter")
        for size in [(30, 6), (200, 60), (10, 3), (80, 24)]:
            await pilot.resize_terminal(*size)
            await pilot.pause()
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, MainScreen), "the main screen")
        await until(pilot, lambda: "L5" in text_of(app, "#label"), "the layers")


async def test_a_run_that_is_deleted_stays_on_screen(collapsed: Path) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        app = await settled(pilot)
        await asyncio.to_thread((collapsed / "metrics.jsonl").unlink)
        await until(pilot, lambda: "deleted" in text_of(app, "#header"), "deleted")
        assert "L5" in text_of(app, "#label")


async def test_a_newer_run_is_shown_once_the_old_one_has_ended(
    tmp_path: Path, scenario: Any
) -> None:
    scenario("healthy", routers=3, steps=30)
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 30)) as pilot:
        app = await settled(pilot)
        assert "healthy-0" in text_of(app, "#header")
        scenario("collapse", routers=3, steps=300)
        await until(pilot, lambda: "collapse-0" in text_of(app, "#header"), "the newer run")


async def test_a_bug_in_the_reader_is_shown_and_what_was_read_stays(
    collapsed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await settled(pilot)

        def broken(*_: object) -> bool:
            raise KeyError("\x1b[2Jsurprise")

        assert app.session.watch is not None
        monkeypatch.setattr(app.session.watch, "advance", broken)
        await until(pilot, lambda: "reading stopped" in text_of(app, "#verdict"), "the error")
        assert "reading stopped: KeyError" in text_of(app, "#verdict")
        assert "\x1b" not in text_of(app, "#verdict")
        assert "L5" in text_of(app, "#label")
