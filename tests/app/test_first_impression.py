"""What people see first over SSH: healthy cells are visible, explained, and cheap to send."""

import io
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from microscope_tui.app import MainScreen, Microscope, PictureRequest, Rows, Tiles, draw
from microscope_tui.lines import Measure, SteadyLevels
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until, judged

Start = Callable[..., Any]
REMOTE = {"COLORTERM": "", "SSH_CONNECTION": "192.0.2.1 22 192.0.2.2 22"}
MOST_PER_S = 10_000


def healthy_cells(screen: Any) -> list[Any]:
    """The cells of all experts of the first layer as pyte drew them."""
    row = next(y for y, line in enumerate(screen.screen.display) if " L1 " in line[:8])
    left = screen.screen.display[row].index(" L1 ") + 8
    return [screen.screen.buffer[row][x] for x in range(left, left + 40)]


@pytest.mark.parametrize(
    "multiplexer", [{"TMUX": "/tmp/tmux-0/default,1,0"}, {"STY": "1.pts-0"}, {}]
)
def test_in_tmux_or_screen_healthy_cells_are_grey_in_256_colours(
    terminal: Start, scenario: Any, multiplexer: dict[str, str]
) -> None:
    screen = terminal(
        scenario("healthy", routers=5, steps=300), TERM="screen", **REMOTE, **multiplexer
    )
    screen.wait_for("300 finished")
    screen.settle()
    assert b"48;5;235" in screen.output or b"48;5;234" in screen.output
    grounds = {cell.bg for cell in healthy_cells(screen)}
    assert grounds <= {"1c1c1c", "262626", "303030", "3a3a3a", "005f87", "875f00"}
    assert len(grounds) > 1  # alive
    ground = screen.screen.buffer[0][0].bg
    assert ground not in grounds


def test_in_16_colours_a_fair_cell_differs_from_the_ground(terminal: Start, scenario: Any) -> None:
    screen = terminal(scenario("healthy", routers=5, steps=300), TERM="xterm", **REMOTE)
    screen.wait_for("300 finished")
    screen.settle()
    cells = healthy_cells(screen)
    assert all(cell.data != " " or cell.bg not in ("black", "default") for cell in cells)
    fair = [cell for cell in cells if cell.bg == "black"]
    assert fair
    assert {cell.fg for cell in fair} == {"white"}


async def test_a_picture_from_a_session_of_16_colours_is_in_truecolor(
    collapsed: Path,
    until: Until,
    seen: Seen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    written = {}
    for system in ("truecolor", "standard"):
        app = Microscope(Fleet(collapsed))
        app.console = Console(color_system=system, file=io.StringIO(), force_terminal=True)  # type: ignore[arg-type]
        async with app.run_test(size=(120, 40)) as pilot:
            await judged(pilot, until)
            await until(pilot, lambda: "CRITICAL" in seen(pilot, "#verdict"), "judged")
            app.session.steady = SteadyLevels()  # nothing of what was drawn on the way
            assert isinstance(app.screen, MainScreen)
            await app.screen.redraw()
            cells = app.screen.query_one(Tiles).query(Rows)
            before = [list(part._strips) for part in cells]
            await pilot.press("S")
            await until(pilot, lambda: "written: " in seen(pilot, "#keys"), "written")
            (path,) = tmp_path.glob("*.svg")
            written[system] = path.read_text()
            path.unlink()
            assert [list(part._strips) for part in cells] == before
    fills = {system: set(re.findall(r"#[0-9a-f]{6}", svg)) for system, svg in written.items()}
    assert fills["standard"] == fills["truecolor"]
    assert "#162e54" in fills["standard"]  # a starving expert, by the stop of its ramp


def test_a_live_run_whose_experts_differ_costs_little_over_ssh(
    terminal: Start, tmp_path: Path
) -> None:
    """Bytes of any ten seconds, after those in which the screen opens."""
    log = tmp_path / "live" / "metrics.jsonl"
    command = [sys.executable, "-m", "benchmarks.live_writer", str(log), "--rate", "1"]
    command += ["--cv", "0.075", "--spread", "0.35", "--history", "40"]
    command += ["--routers", "30", "--experts", "128"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            screen = terminal(log.parent, columns=140, rows=50, TERM="xterm-256color", **REMOTE)
            screen.wait_for("mean of 8 steps")
            started, samples = time.monotonic(), [(0.0, 0)]
            steps: set[str] = set()
            while (now := time.monotonic() - started) < 17:
                screen.read(0.1)
                samples.append((now, len(screen.output)))
                steps |= set(re.findall(r"step (\d+) /", screen.text))
        finally:
            writer.terminate()
    late = [(at, sent) for at, sent in samples if at >= 6]
    for at, sent in late:
        after = next((total for then, total in late if then >= at + 10), None)
        assert after is None or after - sent <= 10 * MOST_PER_S
    assert len(steps) >= 17 // 4
    assert samples[-1][1] <= 3 * 80_000  # a small multiple of a full screen


async def test_a_paused_step_shows_the_cells_of_a_picture_of_that_step(
    scenario: Any, until: Until, seen: Seen
) -> None:
    run = scenario("collapse", routers=4, steps=300)
    async with Microscope(Fleet(run)).run_test(size=(120, 40)) as pilot:
        app = await judged(pilot, until)
        assert "mean of 8 steps" in seen(pilot, "#heads")
        await pilot.press("[")  # what was held before does not stay
        await pilot.press("[")
        await until(pilot, lambda: "298 PAUSED" in seen(pilot, "#ribbon"), "two steps back")
        assert "mean" not in seen(pilot, "#heads")
        paused = [[s for s in part._strips] for part in app.screen.query_one(Tiles).query(Rows)]
    again = Microscope(Fleet(run))
    async with again.run_test(size=(120, 40)) as pilot:
        await judged(pilot, until)
        again.session.time.go_to(298)
        assert isinstance(again.screen, MainScreen)
        await again.screen.redraw()
        fresh = [[s for s in part._strips] for part in again.screen.query_one(Tiles).query(Rows)]
    assert paused == fresh
    picture = await draw(Fleet(run), PictureRequest(columns=120, rows=40, step=298))
    assert "mean of" not in picture.text


async def test_a_cross_means_that_no_token_came_in_the_whole_mean(
    write_log: Any, make_header: Any, make_step: Any, until: Until, seen: Seen
) -> None:
    often, rarely = [0, 700, 500, 500, 500, 500, 700, 696], [3, 697, 500, 500, 500, 500, 700, 696]
    rows = [[often] * 3 if n % 8 else [often, rarely, often] for n in range(1, 41)]
    log = write_log([make_header(), *(make_step(n, row, 2048) for n, row in enumerate(rows, 1))])
    async with Microscope(Fleet(log.parent)).run_test(size=(120, 40)) as pilot:
        await judged(pilot, until)
        await until(pilot, lambda: "mean of 8 steps" in seen(pilot, "#heads"), "following")
        crossed = ["×" in line for line in seen(pilot, "#load").splitlines()]
    height = len(crossed) // 3
    by_layer = [any(crossed[at * height : (at + 1) * height]) for at in range(3)]
    assert by_layer == [True, False, True]


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60), (60, 20), (40, 10)])
@pytest.mark.parametrize("keys", [[], ["e"], ["v"], ["v", "v"], ["v", "v", "v"], ["b"]])
async def test_the_legend_fits_or_gives_way(
    scenario: Any, until: Until, seen: Seen, size: tuple[int, int], keys: list[str]
) -> None:
    run = scenario("healthy", routers=4, steps=300)
    async with Microscope(Fleet(run)).run_test(size=size) as pilot:
        app = await judged(pilot, until)
        await pilot.press(*keys)
        await pilot.pause()
        where = "#legend" if app.screen.has_class("legend") else "#verdict"
        text = seen(pilot, where).splitlines()[-1]
        assert len(text) <= size[0]
        if size[0] >= 80 and app.session.look.measure is not Measure.OVERFLOW:  # has no capacity
            assert re.search(r"fair|mean|same|100 %", text), app.session.look


async def test_a_small_window_with_room_to_spare_shows_the_advice_and_the_legend(
    scenario: Any, until: Until, seen: Seen
) -> None:
    run = scenario("collapse", routers=10, steps=600)
    async with Microscope(Fleet(run)).run_test(size=(80, 24)) as pilot:
        await judged(pilot, until)
        await until(pilot, lambda: "CRITICAL" in seen(pilot, "#verdict"), "the verdict")
        advice = " ".join(seen(pilot, "#verdict").split())
        assert re.search(r"go back to before step \d+ \(.*\)\.$", advice)
        assert "fair" in seen(pilot, "#legend")
