"""The main screen: its cursor, what its cells show, its filter, and runs that come and go."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.css.query import NoMatches

from microscope_tui.app.picture import draw
from microscope_tui.draw.heat import Measure, Order, Palette
from microscope_tui.kit.rows import Rows, Tiles
from microscope_tui.kit.session import PictureRequest
from microscope_tui.screens.layer.screen import LayerScreen
from microscope_tui.screens.main.screen import MainScreen
from microscope_tui.screens.runs.screen import RunsScreen
from microscope_tui.watch import Fleet
from tests.app.pilot import AppPilot, open_app, running
from tests.conftest import header, step

Scenario = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("quick_reader")


def heads(app: AppPilot) -> str:
    return re.split("  +", app.text("heads").split("layer ", 1)[1])[0]


def layers(app: AppPilot) -> list[str]:
    return [word for word in app.text("label").split() if word.startswith("L")]


def cells(app: AppPilot) -> list[list[Any]]:
    return [list(part._strips) for part in app.screen.query_one(Tiles).query(Rows)]


async def test_the_cursor_moves_between_layers_alerts_and_experts(collapsed: Path) -> None:
    async with open_app(collapsed, size=(80, 24)) as app:
        chosen = []
        assert app.session.selected == 3, "the layer of the worst alert"
        await app.press("g")
        await app.redraw()
        for key in ("down", "j", "up", "k", "k", "G", "down", "home", "pagedown", "pageup"):
            await app.press(key)
            chosen.append(app.session.selected)
        assert chosen == [1, 2, 1, 0, 0, 4, 4, 0, 4, 0]
        await app.press("a", "right", "right")  # the sick layer
        assert app.session.selected == 3
        assert re.search("▶ +C? *L4", app.text("label"))
        counts = app.watch.latest.matrices().tokens_per_expert[3]  # type: ignore[union-attr]
        assert f"L4 expert 1: load {counts[1] / (sum(counts) / 8):.3g}" in app.text("notes")
        assert f"{counts[1]:,} of {sum(counts) // 2:,} tokens" in app.text("notes")
        await app.press("left", "h", "h")
        assert app.session.expert == 0
        await app.press("escape")
        assert app.session.expert is None
        await app.press("enter")
        await app.opens(LayerScreen)
        assert "Router collapse in L4" in app.text("evidence")
        await app.press("up")
        assert "no alerts in this layer" in app.text("evidence")
        await app.press("escape")
        assert isinstance(app.screen, MainScreen)
        assert app.session.selected == 2


async def test_more_layers_than_lines_are_scrolled(scenario: Scenario) -> None:
    async with open_app(scenario("healthy", routers=40, steps=30), size=(80, 24)) as app:
        assert "24 more layers" in app.text("notes")
        assert layers(app)[-1] == "L16"
        await app.press("end")
        assert layers(app)[-1] == "L40"
        await app.press("pageup")
        assert "L1" not in layers(app)
        assert "▶" in app.text("label")


async def test_v_shows_load_bias_and_ranks(scenario: Scenario) -> None:
    run = scenario("collapse", routers=5, steps=450, capacity_factor=1.25)
    async with open_app(run, size=(120, 40)) as app:
        shown = []
        for _ in range(3):
            shown.append(heads(app))
            await app.press("v")
        assert shown == [
            "load, mean of 8 steps, 0 to 7",
            "bias, mean of its layer ±0.25",
            "load per rank, mean of 8 steps, 8 ranks assumed",
        ]
        assert app.session.look.measure is Measure.LOAD


async def test_a_layer_whose_load_swings_shows_its_step_and_is_marked(scenario: Scenario) -> None:
    async with open_app(scenario("bias-limit-cycle", routers=4, steps=600), size=(80, 24)) as app:
        assert heads(app) == "load, mean of 8 steps, ' this step"
        rows = [line for line in app.text("label").split("\n") if " L" in line]
        assert [row.rstrip()[-2:] for row in rows] == ["L1", "W'", "L3", "W'"]
        height = len(app.text("label").split("\n")) // 4
        mean = cells(app)
        await app.press("f")
        tiles = list(zip(mean, cells(app), strict=True))
        same = [[a[n * height] == b[n * height] for a, b in tiles] for n in range(4)]
        assert all(same[1])
        assert all(same[3])
        assert "mean" not in heads(app)
        assert "'" not in app.text("label")
        await app.press("f", "v")
        assert heads(app).startswith("bias")
        assert "'" not in app.text("label")


async def test_s_sorts_c_paints_and_b_compares(collapsed: Path) -> None:
    async with open_app(collapsed, "f", "s", size=(120, 40)) as app:
        assert app.session.look.order is Order.LOAD
        assert "by load" in heads(app)
        row = next(line for line in app.text("load").split("\n") if "▴" in line)
        assert row.index("▴") < row.index("×")
        await app.press("c")
        assert app.session.look.palette is Palette.CIVIDIS
        assert "palette: cividis" in app.text("keys")
        await app.enter(":100")
        await app.press("b", "f")
        assert "load against step 100" in heads(app)
        assert app.session.time.following
        await app.press("b")
        assert "load, mean of 8 steps" in heads(app)


async def test_a_filter_shows_what_matches_while_it_is_typed(collapsed: Path) -> None:
    everything = ["L1", "L2", "L3", "L4", "L5"]
    async with open_app(collapsed) as app:
        for typed, found, nearest in (
            ("L4", ["L4"], 3),
            ("!L4", ["L1", "L2", "L3", "L5"], 2),
            ("collapse", ["L4"], 3),
            ("nothing", [], 3),
        ):
            await app.press("/", *typed)
            assert layers(app) == found, typed
            assert app.session.selected == nearest, typed
            await app.press("enter")
            assert layers(app) == found, typed
            assert f"{len(found)} of 5 layers" in app.text("notes")
            await app.press("/", "escape")
            assert layers(app) == everything
        await app.press("home")
        await app.enter("/!L2")
        await app.press("j")
        assert app.session.selected == 2
        await app.press("k")
        assert app.session.selected == 0


async def test_a_mark_as_seen_and_the_next_alert_that_is_not(make_run: Callable[..., Path]) -> None:
    log = make_run(steps=range(1, 200), sick={0: range(999), 2: range(999)})
    async with open_app(log, "a", size=(120, 40)) as app:
        first = app.session.selected
        await app.press("a")
        assert {first, app.session.selected} == {0, 2}
        await app.press("a")
        assert app.session.selected == first
        await app.press("A")
        assert ": seen" in app.text("keys")
        assert len(app.session.seen) == len({f.rule for f, _ in app.view().alerts})


async def test_a_paused_step_shows_the_cells_of_a_picture_of_that_step(scenario: Scenario) -> None:
    run = scenario("collapse", routers=4, steps=60)
    async with open_app(run, size=(120, 40)) as app:
        assert "mean of 8 steps" in heads(app)
        await app.press("[", "[")  # what was held before does not stay
        assert "58 PAUSED" in app.text("ribbon")
        assert "mean" not in heads(app)
        paused = cells(app)
    async with open_app(run, size=(120, 40)) as app:
        app.session.time.go_to(58)
        await app.redraw()
        assert cells(app) == paused
    picture = await draw(Fleet(run), PictureRequest(columns=120, rows=40, step=58))
    assert "mean of" not in picture.text


async def test_a_cross_means_that_no_token_came_in_the_whole_mean(write_log: Any) -> None:
    often, rarely = [0, 700, 500, 500, 500, 500, 700, 696], [3, 697, 500, 500, 500, 500, 700, 696]
    rows = [[often] * 3 if n % 8 else [often, rarely, often] for n in range(1, 41)]
    log = write_log([header(), *(step(n, row, 2048) for n, row in enumerate(rows, 1))])
    async with open_app(log.parent, size=(120, 40)) as app:
        assert "mean of 8 steps" in heads(app)
        crossed = ["×" in line for line in app.text("load").splitlines()]
    height = len(crossed) // 3
    by_layer = [any(crossed[at * height : (at + 1) * height]) for at in range(3)]
    assert by_layer == [True, False, True]


@pytest.mark.parametrize("exists", [True, False])
async def test_a_folder_is_waited_on_until_a_run_appears_and_then_a_newer_one(
    tmp_path: Path, scenario: Scenario, exists: bool
) -> None:
    logs = tmp_path / "logs"
    if exists:
        logs.mkdir()
    async with running(logs, size=(80, 24)) as app:
        await app.sees("waiting for a run", "waiting")
        logs.mkdir(exist_ok=True)
        scenario("healthy", routers=3, steps=50).rename(logs / "first")
        await app.sees("first", "header")
        await app.until(lambda: app.watch.complete, "all of it")
        scenario("collapse", routers=3, steps=300).rename(logs / "second")
        await app.sees("second", "header")


async def test_a_deleted_run_and_a_bug_in_the_reader_leave_what_was_read(
    own_collapsed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_app(own_collapsed, size=(120, 40)) as app:
        (own_collapsed / "metrics.jsonl").unlink()
        await app.sees("deleted", "header")
        assert "L5" in layers(app)

        def broken(*_: object) -> bool:
            raise KeyError("\x1b[2Jsurprise")

        monkeypatch.setattr(app.watch, "advance", broken)
        await app.sees("reading stopped: KeyError", "verdict")
        assert "\x1b" not in app.text("verdict")
        assert "L5" in layers(app)


async def test_a_screen_below_another_one_is_not_drawn(
    make_run: Callable[..., Path], append: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Textual would send the whole terminal again."""
    log = make_run(steps=range(1, 41))
    drawn: list[int] = []
    real = MainScreen.redraw

    async def counted(screen: MainScreen) -> None:
        drawn.append(1)
        await real(screen)

    monkeypatch.setattr(MainScreen, "redraw", counted)
    async with open_app(log) as app:
        for step, key in enumerate(("enter", "r", "?"), 41):
            await app.press(key)
            drawn.clear()
            append(log, [step])
            await app.reads(step)
            await app.pause(2 * app.session.preferences.interval_s)
            assert drawn == []
            await app.press("escape")
            assert drawn


async def test_the_command_palette_has_action_and_keys_in_one_line(collapsed: Path) -> None:
    async with open_app(collapsed) as app:
        commands = list(app.app.get_system_commands(app.screen))
        assert "next alert, unseen first   a" in [command.title for command in commands]
        assert {command.help for command in commands} == {""}


async def test_a_screen_that_closes_is_not_drawn(collapsed: Path) -> None:
    async with open_app(collapsed) as app:
        await app.go("placement")
        closed = app.screen
        await app.app.pop_screen()
        await closed.redraw()  # type: ignore[attr-defined]  # its parts are gone already
        await app.screen.query("#verdict").remove()
        with pytest.raises(NoMatches):
            await app.screen.redraw()
        app.app._running = False  # as in a shutdown without exit()
        await app.screen.redraw()
        app.app._running = True
        app.app.exit()
        await app.screen.redraw()
        await RunsScreen(app.session).redraw()  # has none yet
