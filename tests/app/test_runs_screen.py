"""The list of runs: which there are, how each is doing, and opening one of them."""

import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.screens.main.screen import MainScreen
from microscope_tui.screens.runs.screen import RunsScreen
from tests.app.pilot import AppPilot, running

Make = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("quick_reader")


def lines_of(app: AppPilot) -> list[str]:
    """The lines of the runs: below the title, a blank line and the heads."""
    return [line for line in app.text("runs").split("\n")[3:] if line.strip()]


def names_of(app: AppPilot) -> list[str]:
    return [line[3:].split()[0] for line in lines_of(app)]


def chosen_in(app: AppPilot) -> str:
    (line,) = [line for line in lines_of(app) if line[1:3] == "▶ "]
    return line[3:].split()[0]


@asynccontextmanager
async def listed(
    root: Path, runs: int, size: tuple[int, int] = (110, 24), glyphs: Glyphs = Glyphs.BRAILLE
) -> AsyncIterator[AppPilot]:
    """The list, once every run was looked at."""
    async with running(root, size, glyphs) as app:
        await app.until(lambda: app.session.has_run, "a step")
        await app.press("r")
        await app.sees(f"{runs:,} run", "runs")
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        await app.until(lambda: all(card.life.state for card in screen._cards), "a look at each")
        yield app


async def test_every_run_is_listed_newest_first_with_its_state_and_grows_older(
    make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {
        "live": make_run("a-live"),
        "slow": make_run("b-slow", age=30),
        "stalled": make_run("c-stale", age=120),
        "crashed?": make_run("d-crashed", age=4_000),
        "finished": make_run("e-finished", age=5_000, end="finished"),
        "stopped": make_run("f-stopped", age=6_000, end="signal"),
        "failed": make_run("g-failed", age=7_000, end="failed"),
        "waiting": make_run("h-waiting", (), 8_000),
    }
    async with listed(tmp_path, len(states)) as app:

        def all_seen() -> bool:
            lines = zip(states, lines_of(app), strict=True)
            return all(f" {state} " in line for state, line in lines)

        await app.until(all_seen, "the states")
        assert names_of(app) == [path.parent.name for path in states.values()]
        assert " 12/500 " in lines_of(app)[4]
        assert "2 live" in app.text("runs")
        assert "2 h" in lines_of(app)[7]
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 300)  # although nothing happens
        await app.until(lambda: re.search("stalled +5 min", lines_of(app)[0]), "stalled")
        assert "0 live" in app.text("runs")


async def test_a_live_run_beside_the_open_one_is_judged(make_run: Make, tmp_path: Path) -> None:
    make_run("sick", range(1, 201), 2, sick={1: range(120, 999)})
    make_run("well", range(1, 201), 1)
    make_run("over", age=9_000, end="collapse")
    async with listed(tmp_path, 3) as app:
        await app.sees("C COLLAPSE L2 since 1", "runs")
        well, sick, over = lines_of(app)
        assert "well  open" in well
        assert "healthy" in well
        assert sick.startswith("   sick ")
        assert "stopped on collapse" in over
        assert "1 with alerts" in app.text("runs")


async def test_enter_opens_the_chosen_run_nothing_newer(make_run: Make, tmp_path: Path) -> None:
    make_run("old", age=9_000, end="finished")
    make_run("new", age=5_000, end="finished")
    async with listed(tmp_path, 2) as app:
        assert chosen_in(app) == "new"  # the open one
        await app.press("down", "enter")
        await app.opens(MainScreen)
        await app.sees(" old ", "header")
        make_run("newest")
        await app.until(lambda: len(app.session.fleet.runs) == 3, "a newer run")
        await app.pause(0.2)  # longer than the intervals of the reader and of the screen
        assert " old " in app.text("header")
        for key in ("r", "4", "escape"):
            await app.press("r")
            assert isinstance(app.screen, RunsScreen)
            await app.press(key)
            assert isinstance(app.screen, MainScreen), key
        await app.press("r")
        assert chosen_in(app) == "old"


async def test_an_empty_list_fills_by_itself(make_run: Make, tmp_path: Path) -> None:
    async with running(tmp_path, (80, 24)) as app:
        await app.until(lambda: app.screen.has_class("waiting"), "waiting")
        await app.press("r")
        assert "no runs yet: new ones appear automatically" in app.text("runs")
        await app.press("7")
        assert "waiting for a run" in app.text("waiting")
        await app.press("r")
        make_run("arrived", age=1)
        await app.sees("arrived", "runs")
        assert "no runs yet" not in app.text("runs")


async def test_the_chosen_line_keeps_its_run_whatever_comes(make_run: Make, tmp_path: Path) -> None:
    for at in range(3):
        make_run(f"run-{at}", age=5_000 + at, end="finished")
    async with listed(tmp_path, 3) as app:
        await app.press("down")
        make_run("arrived", age=1)
        await app.sees("arrived", "runs")
        assert names_of(app) == ["arrived", "run-0", "run-1", "run-2"]
        assert chosen_in(app) == "run-1"
        await app.press("space", "s")
        assert names_of(app) == ["run-1"]
        (tmp_path / "run-1" / "metrics.jsonl").unlink()
        await app.sees("3 runs", "runs")  # solo ends with the last selected run
        assert names_of(app) == ["arrived", "run-0", "run-2"]
        await app.press("end", "up")
        assert chosen_in(app) == "run-0"
        (tmp_path / "run-0" / "metrics.jsonl").unlink()
        await app.until(lambda: len(lines_of(app)) == 2, "that it is gone")
        assert chosen_in(app) == "run-2"  # the neighbour


async def test_more_runs_than_lines_are_scrolled_to_both_ends(tmp_path: Path) -> None:
    model = {"layers": [1], "num_experts": 2, "top_k": 1}
    head = json.dumps({"kind": "run", "format_version": 1, "model": model})
    step = json.dumps({"kind": "step", "step": 1, "tokens": 2, "tokens_per_expert": [[1, 1]]})
    for at in range(100):
        path = tmp_path / f"run-{at:02}" / "metrics.jsonl"
        path.parent.mkdir()
        path.write_text(f"{head}\n{step}\n")
        os.utime(path, (1e9 - at, 1e9 - at))
    async with listed(tmp_path, 100, (80, 24)) as app:
        assert "1 to 20" in app.text("runs").split("\n")[0]
        await app.press("end")
        assert chosen_in(app) == "run-99"
        assert names_of(app)[0] == "run-80"
        await app.press("pageup", "pageup", "up")
        assert chosen_in(app) == "run-58"
        await app.press("home")
        assert names_of(app)[0] == "run-00"


@pytest.mark.parametrize("glyphs", [Glyphs.BRAILLE, Glyphs.ASCII])
async def test_every_width_shows_state_age_and_verdict(
    make_run: Make, tmp_path: Path, glyphs: Glyphs
) -> None:
    make_run("sweep-of-somebody-lr3e-4-batch512-seed1", age=9_000, end="finished")
    make_run("sweep-of-somebody-lr3e-4-batch512-seed2", age=9_001, end="finished")
    make_run("a-\u202e\x1b[31m[bold]-b", age=9_002, end="finished")
    async with listed(tmp_path, 3, glyphs=glyphs) as app:
        await app.until(lambda: "to judge" not in app.text("runs"), "all judged")
        for columns, rows in ((40, 10), (60, 20), (80, 24), (120, 40)):
            await app.resize(columns, rows)
            text = app.text("runs", "keys")
            assert {len(line) for line in text.split("\n")} == {columns}
            assert all("finished     2 h" in line for line in lines_of(app))
            first, second, third = lines_of(app)
            assert first[3:].split()[0] != second[3:].split()[0]  # each cut in its middle
            assert third[3:].startswith("a-")
            assert not set("\x1b\u202e") & set(text)
            assert ("no room for step and loss" in text) == (columns == 60)
            assert text.rstrip().endswith("? help  q quit")
            if glyphs is Glyphs.ASCII:
                assert not set("▶●…") & set(text)


async def test_without_steps_the_list_and_its_filter_work(make_run: Make, tmp_path: Path) -> None:
    make_run("trained", age=9_000, end="finished")
    with make_run("begun", (), 1).open("a") as log:
        log.write("Epoch 1\n")
    async with running(tmp_path, (80, 24)) as app:
        await app.sees("r all runs", "waiting")
        await app.sees("waiting for the first step of begun", "waiting")
        await app.sees("1 bad line, line 2: not JSON", "waiting")
        assert "repair: moe-microscope check --format-only" in app.text("waiting")
        await app.press("r", "down", "enter")
        await app.sees("trained", "header")
        assert isinstance(app.screen, MainScreen)
        await app.press("r", "up", "enter")
        await app.until(lambda: app.screen.has_class("waiting"), "waiting again")
        await app.press("r")
        await app.enter("/train")
        assert names_of(app) == ["trained"]
        await app.press("enter")
        await app.sees("trained", "header")


async def test_a_log_that_cannot_be_read_shows_why_in_the_list_and_when_it_is_opened(
    make_run: Make, tmp_path: Path
) -> None:
    make_run("good", age=1)
    bad = tmp_path / "bad" / "metrics.jsonl"
    bad.parent.mkdir()
    bad.write_text('{"kind":"run","format_version":7,"model":{"layers":[]}}\n')
    os.utime(bad, (1e9, 1e9))
    async with listed(tmp_path, 2) as app:
        await app.sees("format_version is 7", "runs")
        assert " error " in lines_of(app)[1]
        await app.press("down", "enter")
        await app.sees("format_version is 7", "waiting")


async def test_space_selects_and_solo_lists_the_selected_runs_also_after_one_was_opened(
    make_run: Make, tmp_path: Path
) -> None:
    for at in range(4):
        make_run(f"run-{at}", age=5_000 + at, end="finished")
    async with listed(tmp_path, 4) as app:
        await app.press("s")
        assert "no run is selected" in app.text("keys")
        await app.press("down", "space", "end", "space")
        assert "2 selected" in app.text("runs")
        assert [line[0] for line in lines_of(app)] == [" ", "✓", " ", "✓"]
        await app.press("s")
        assert "2 of 4 runs   solo" in app.text("runs")
        assert names_of(app) == ["run-1", "run-3"]
        assert chosen_in(app) == "run-3"
        await app.press("enter")
        await app.sees(" run-3 ", "header")
        await app.press("r")
        assert "solo" in app.text("runs")
        await app.press("s")
        assert len(lines_of(app)) == 4
        await app.press("space", "home", "down", "space")
        assert "selected" not in app.text("runs").split("\n")[0]


async def test_p_pins_and_releases_the_run_under_the_cursor(make_run: Make, tmp_path: Path) -> None:
    make_run("run-0", age=5_000, end="finished")
    make_run("run-1", age=5_001, end="finished")
    make_run("begun", (), 6_000)
    async with listed(tmp_path, 3) as app:
        session = app.session
        await app.press("p")
        assert "this is the open run" in app.text("keys")
        assert session.reference is None
        await app.press("down", "p")
        assert "pinned: run-1 is A" in app.text("keys")
        assert "run-1  pinned" in app.text("runs")
        assert (session.reference.run, session.reference.step) == ("run-1", 12)
        await app.press("p")
        assert "pinned" not in app.text("runs")
        assert (session.reference, session.fleet.pinned) == (None, None)
        for _ in range(2):
            await app.press("down", "p")
            assert "begun has no step to compare with" in app.text("keys")
        assert "pinned" not in app.text("runs")


async def test_the_filter_finds_names_states_and_verdicts(make_run: Make, tmp_path: Path) -> None:
    make_run("sweep-a", age=5_000, end="finished")
    make_run("sweep-b", age=6_000, end="collapse")
    make_run("other", age=7_000, end="failed")
    async with listed(tmp_path, 3) as app:
        for typed, names in (
            ("sweep", ["sweep-a", "sweep-b"]),
            ("failed", ["other"]),
            ("collapse", ["sweep-b"]),
            ("!sweep", ["other"]),
        ):
            await app.press("/", *typed)
            assert names_of(app) == names
            assert f"{len(names)} of 3 runs   /{typed}" in app.text("runs")
            await app.press("escape")
            assert len(lines_of(app)) == 3
        await app.enter("/sweep")
        await app.press("home", "j")
        assert chosen_in(app) == "sweep-b"
        await app.press("k")
        assert chosen_in(app) == "sweep-a"
        await app.press("/", *"-z")
        assert "no run matches" in app.text("runs")
        assert app.session.filter == ""
        await app.press("enter", "enter", "space", "p", "down")  # there is no run to act on
        assert isinstance(app.screen, RunsScreen)


async def test_the_head_names_a_run_that_became_critical_until_the_list_has_shown_it(
    make_run: Make, tmp_path: Path
) -> None:
    sick = {1: range(100, 400)}
    make_run("sick", range(1, 121), 2, sick=sick)
    make_run("well", range(1, 201), 1)
    make_run("over", range(1, 301), 9_000, end="collapse", sick=sick)
    async with running(tmp_path, (100, 24)) as app:
        await app.sees(" well ", "header")
        await app.pause(0.2)
        assert "CRITICAL" not in app.text("header")
        make_run("sick", range(1, 301), 2, sick=sick)
        for key, size in (("2", (80, 24)), ("escape", (120, 40))):
            await app.sees("1 other run CRITICAL: sick", "header")
            await app.press(key)
            await app.resize(*size)
        await app.press("r")
        assert chosen_in(app) == "sick"
        await app.press("escape")
        await app.opens(MainScreen)
        assert "CRITICAL" not in app.text("header")
