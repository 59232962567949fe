"""The list of runs: which there are, how each is doing, and opening one of them."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from microscope_tui.app import MainScreen, Microscope, RunsScreen
from microscope_tui.lines import Glyphs
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until

Make = Callable[..., Path]


@pytest.fixture
def seen(seen: Seen) -> Seen:
    """The list and the line of keys below it are one text here."""

    def text(pilot: Pilot[None], selector: str) -> str:
        keys = f"\n{seen(pilot, '#keys')}" if selector == "#runs" else ""
        return f"{seen(pilot, selector)}{keys}"

    return text


SICK = [2048, 2048, 0, 0, 0, 0, 0, 0]


@pytest.fixture
def make_run(write_log: Any, make_header: Any, make_step: Any, balanced: Any) -> Make:
    """Write a run of some steps whose log was last written ``age`` seconds ago."""

    def make(
        name: str, age: float = 0.0, steps: int = 12, end: str = "", sick_from: int = 10**9
    ) -> Path:
        records = [make_header(run=name)]
        for n in range(1, steps + 1):
            rows = [balanced(), SICK if n >= sick_from else balanced(), balanced()]
            records.append(make_step(n, rows, 2048, step_time_s=0.1))
        if end:
            records.append({"kind": "event", "event": "end", "reason": end, "step": steps})
        path: Path = write_log(records, name=name)
        os.utime(path, (time.time() - age,) * 2)
        return path

    return make


def lines_of(text: str) -> list[str]:
    """The lines of the runs: below the title, a blank line and the heads, above the keys."""
    return [line for line in text.split("\n")[3:-1] if line.strip()]


def names_of(text: str) -> list[str]:
    return [line[3:].split()[0] for line in lines_of(text)]


def chosen_in(text: str) -> str:
    (line,) = [line for line in lines_of(text) if line[1:3] == "▶ "]
    return line[3:].split()[0]


async def listed(pilot: Pilot[None], until: Until, seen: Seen, runs: int) -> None:
    """Open the list and wait until every run was looked at."""
    app = pilot.app
    assert isinstance(app, Microscope)
    await until(pilot, lambda: isinstance(app.screen, MainScreen) and app.session.has_run, "a step")
    await pilot.press("r")
    await until(pilot, lambda: f"{runs:,} run" in seen(pilot, "#runs"), f"{runs} runs")
    screen = app.screen
    assert isinstance(screen, RunsScreen)
    await until(pilot, lambda: all(card.state for card in screen._cards), "a look at each")


async def test_every_run_is_listed_newest_first_with_its_state(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    states = {
        "live": make_run("a-live"),
        "slow": make_run("b-slow", 30),
        "stale": make_run("c-stale", 120),
        "crashed?": make_run("d-crashed", 4_000),
        "finished": make_run("e-finished", 5_000, end="finished"),
        "stopped": make_run("f-stopped", 6_000, end="signal"),
        "failed": make_run("g-failed", 7_000, end="failed"),
        "waiting": make_run("h-waiting", 8_000, steps=0),
    }
    async with Microscope(Fleet(tmp_path)).run_test(size=(110, 24)) as pilot:
        await listed(pilot, until, seen, len(states))

        def all_seen() -> bool:
            lines = lines_of(seen(pilot, "#runs"))
            return all(f" {state} " in line for state, line in zip(states, lines, strict=True))

        await until(pilot, all_seen, "the states")
        text = seen(pilot, "#runs")
        assert names_of(text) == [path.parent.name for path in states.values()]
        assert " 12/500 " in lines_of(text)[4]
        assert "2 live" in text
        assert "2 h" in lines_of(text)[7]


async def test_a_live_run_beside_the_open_one_gets_its_verdict(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    make_run("sick", 2, steps=200, sick_from=120)
    make_run("well", 1, steps=200)
    make_run("over", 9_000, end="collapse")
    async with Microscope(Fleet(tmp_path)).run_test(size=(110, 24)) as pilot:
        await listed(pilot, until, seen, 3)
        await until(pilot, lambda: "C COLLAPSE L2 since 1" in seen(pilot, "#runs"), "the verdict")
        well, sick, over = lines_of(seen(pilot, "#runs"))
        assert "well  open" in well
        assert "healthy" in well
        assert sick.startswith("   sick ")
        assert "stopped on collapse" in over
        assert "1 with alerts" in seen(pilot, "#runs")


async def test_a_dead_run_grows_old_on_the_screen_although_nothing_happens(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("run", 1)
    async with Microscope(Fleet(tmp_path)).run_test(size=(110, 24)) as pilot:
        await listed(pilot, until, seen, 1)
        await until(pilot, lambda: " live " in seen(pilot, "#runs"), "live")
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 300)
        await until(pilot, lambda: re.search("stale +5 min", seen(pilot, "#runs")), "stale")
        assert "0 live" in seen(pilot, "#runs")


async def test_enter_opens_the_chosen_run_and_nothing_newer_takes_its_place(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    make_run("old", 9_000, end="finished")
    make_run("new", 5_000, end="finished")
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 30)) as pilot:
        app = pilot.app
        assert isinstance(app, Microscope)
        await listed(pilot, until, seen, 2)
        assert chosen_in(seen(pilot, "#runs")) == "new"  # the open one
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, MainScreen), "the main screen")
        await until(pilot, lambda: " old " in seen(pilot, "#header"), "the old run")
        make_run("newest")
        await until(pilot, lambda: len(app.session.fleet.runs) == 3, "a newer run")
        await pilot.pause(0.6)  # longer than the tempo of the reader and of the screen
        assert " old " in seen(pilot, "#header")
        await pilot.press("r")
        await until(pilot, lambda: "3 runs" in seen(pilot, "#runs"), "the list")
        assert chosen_in(seen(pilot, "#runs")) == "old"


async def test_an_empty_list_says_that_runs_appear_by_themselves(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(tmp_path)).run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: pilot.app.screen.has_class("waiting"), "waiting")
        await pilot.press("r")
        await until(pilot, lambda: "no runs yet" in seen(pilot, "#runs"), "the empty list")
        await pilot.press("7")
        await until(pilot, lambda: pilot.app.screen.has_class("waiting"), "still waiting")
        assert "waiting for a run" in seen(pilot, "#waiting")
        await pilot.press("r")
        await until(pilot, lambda: "no runs yet" in seen(pilot, "#runs"), "the list again")
        make_run("arrived", 1)
        await until(pilot, lambda: "arrived" in seen(pilot, "#runs"), "the new run")
        assert "no runs yet" not in seen(pilot, "#runs")


async def test_new_runs_appear_in_the_list_and_the_chosen_line_stays_on_its_run(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    for at in range(3):
        make_run(f"run-{at}", 5_000 + at, end="finished")
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 12)) as pilot:
        await listed(pilot, until, seen, 3)
        await pilot.press("down")
        assert chosen_in(seen(pilot, "#runs")) == "run-1"
        make_run("arrived", 1)
        await until(pilot, lambda: "arrived" in seen(pilot, "#runs"), "the new run")
        assert names_of(seen(pilot, "#runs")) == ["arrived", "run-0", "run-1", "run-2"]
        assert chosen_in(seen(pilot, "#runs")) == "run-1"


async def test_a_chosen_run_that_is_deleted_leaves_the_choice_to_its_neighbour(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    for at in range(3):
        make_run(f"run-{at}", 5_000 + at, end="finished")
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 12)) as pilot:
        await listed(pilot, until, seen, 3)
        await pilot.press("down")
        (tmp_path / "run-1" / "metrics.jsonl").unlink()
        await until(pilot, lambda: "run-1" not in seen(pilot, "#runs"), "that it is gone")
        assert chosen_in(seen(pilot, "#runs")) == "run-2"


async def test_a_thousand_runs_are_scrolled_to_both_ends(
    tmp_path: Path, until: Until, seen: Seen
) -> None:
    head = json.dumps(
        {
            "kind": "run",
            "format_version": 1,
            "model": {"layers": [1], "num_experts": 2, "top_k": 1},
        }
    )
    step = json.dumps({"kind": "step", "step": 1, "tokens": 2, "tokens_per_expert": [[1, 1]]})
    for at in range(1000):
        path = tmp_path / f"run-{at:04}" / "metrics.jsonl"
        path.parent.mkdir()
        path.write_text(f"{head}\n{step}\n")
        os.utime(path, (1e9 - at, 1e9 - at))
    async with Microscope(Fleet(tmp_path)).run_test(size=(80, 24)) as pilot:
        await listed(pilot, until, seen, 1000)
        assert "1 to 20" in seen(pilot, "#runs").split("\n")[0]
        await pilot.press("end")
        assert chosen_in(seen(pilot, "#runs")) == "run-0999"
        assert names_of(seen(pilot, "#runs"))[0] == "run-0980"
        await pilot.press("pageup", "pageup")
        assert chosen_in(seen(pilot, "#runs")) == "run-0959"
        started = time.perf_counter()
        await pilot.press(*["up"] * 30)
        assert (time.perf_counter() - started) / 30 < 0.2
        assert chosen_in(seen(pilot, "#runs")) == "run-0929"
        await pilot.press("home")
        assert names_of(seen(pilot, "#runs"))[0] == "run-0000"


@pytest.mark.parametrize("size", [(40, 10), (60, 20), (80, 24), (120, 40)])
@pytest.mark.parametrize("glyphs", [Glyphs.BRAILLE, Glyphs.ASCII])
async def test_every_width_shows_state_age_verdict_and_a_sign_where_something_is_cut(
    make_run: Make,
    tmp_path: Path,
    until: Until,
    seen: Seen,
    size: tuple[int, int],
    glyphs: Glyphs,
) -> None:
    make_run("sweep-of-somebody-lr3e-4-batch512-seed1", 9_000, end="finished")
    make_run("sweep-of-somebody-lr3e-4-batch512-seed2", 9_001, end="finished")
    make_run("a-\u202e\x1b[31m[bold]-b", 9_002, end="finished")
    async with Microscope(Fleet(tmp_path), glyphs).run_test(size=size) as pilot:
        await listed(pilot, until, seen, 3)
        await until(pilot, lambda: "to judge" not in seen(pilot, "#runs"), "all judged")
        text = seen(pilot, "#runs")
        assert {len(line) for line in text.split("\n")} == {size[0]}
        assert all("finished     2 h" in line for line in lines_of(text))
        first, second, third = lines_of(text)
        assert first[3:].split()[0] != second[3:].split()[0]
        assert third[3:].startswith("a-")
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert ("no room for step and loss" in text) == (size[0] == 60)
        assert "help" in text.split("\n")[-1]
        assert "quit" in text.split("\n")[-1]
        if glyphs is Glyphs.ASCII:
            assert not set("▶●…") & set(text)


async def test_a_run_without_a_step_offers_the_list_instead_of_hiding_it(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    make_run("trained", 9_000, end="finished")
    make_run("begun", 1, steps=0)
    async with Microscope(Fleet(tmp_path)).run_test(size=(80, 24)) as pilot:
        app = pilot.app
        await until(pilot, lambda: app.screen.has_class("waiting"), "waiting")
        await until(pilot, lambda: "r all runs" in seen(pilot, "#waiting"), "the key")
        assert "waiting for the first step of begun" in seen(pilot, "#waiting")
        await pilot.press("r", "down", "enter")
        await until(pilot, lambda: "trained" in seen(pilot, "#header"), "the other run")
        assert isinstance(app.screen, MainScreen)
        await pilot.press("r", "up", "enter")
        await until(pilot, lambda: app.screen.has_class("waiting"), "waiting again")


async def test_a_log_that_cannot_be_read_says_why_in_the_list_and_when_it_is_opened(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    make_run("good", 1)
    bad = tmp_path / "bad" / "metrics.jsonl"
    bad.parent.mkdir()
    bad.write_text('{"kind":"run","format_version":7,"model":{"layers":[]}}\n')
    os.utime(bad, (1e9, 1e9))
    async with Microscope(Fleet(tmp_path)).run_test(size=(110, 24)) as pilot:
        await listed(pilot, until, seen, 2)
        await until(pilot, lambda: "format_version is 7" in seen(pilot, "#runs"), "the reason")
        assert " error " in lines_of(seen(pilot, "#runs"))[1]
        await pilot.press("down", "enter")
        await until(
            pilot, lambda: "format_version is 7" in seen(pilot, "#waiting"), "the reason again"
        )


@pytest.mark.parametrize("key", ["escape", "r", "4"])
async def test_the_list_is_left_by_the_key_that_opened_it(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen, key: str
) -> None:
    make_run("run", 5_000, end="finished")
    async with Microscope(Fleet(tmp_path)).run_test(size=(80, 24)) as pilot:
        await listed(pilot, until, seen, 1)
        assert isinstance(pilot.app.screen, RunsScreen)
        await pilot.press(key)
        assert isinstance(pilot.app.screen, MainScreen)


async def test_space_selects_and_solo_lists_the_selected_runs_also_after_one_was_opened(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    for at in range(4):
        make_run(f"run-{at}", 5_000 + at, end="finished")
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 20)) as pilot:
        await listed(pilot, until, seen, 4)
        await pilot.press("s")
        assert "no run is selected" in seen(pilot, "#keys")
        await pilot.press("down", "space", "end", "space")
        assert "2 selected" in seen(pilot, "#runs")
        assert [line[0] for line in lines_of(seen(pilot, "#runs"))] == [" ", "✓", " ", "✓"]
        await pilot.press("s")
        assert "2 of 4 runs   solo" in seen(pilot, "#runs")
        assert names_of(seen(pilot, "#runs")) == ["run-1", "run-3"]
        assert chosen_in(seen(pilot, "#runs")) == "run-3"
        await pilot.press("enter")
        await until(pilot, lambda: " run-3 " in seen(pilot, "#header"), "the run")
        await pilot.press("r")
        await until(pilot, lambda: "solo" in seen(pilot, "#runs"), "the list")
        await pilot.press("s")
        assert len(lines_of(seen(pilot, "#runs"))) == 4
        await pilot.press("space", "home", "down", "space")
        assert "selected" not in seen(pilot, "#runs").split("\n")[0]


async def test_solo_ends_with_the_last_selected_run(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    for at in range(3):
        make_run(f"run-{at}", 5_000 + at, end="finished")
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 20)) as pilot:
        await listed(pilot, until, seen, 3)
        await pilot.press("down", "space", "s")
        assert names_of(seen(pilot, "#runs")) == ["run-1"]
        (tmp_path / "run-1" / "metrics.jsonl").unlink()
        await until(pilot, lambda: "2 runs" in seen(pilot, "#runs"), "the others")
        assert names_of(seen(pilot, "#runs")) == ["run-0", "run-2"]


async def test_p_pins_the_run_under_the_cursor_and_lets_it_go_again(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    for at in range(2):
        make_run(f"run-{at}", 5_000 + at, end="finished")
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 20)) as pilot:
        app = pilot.app
        assert isinstance(app, Microscope)
        await listed(pilot, until, seen, 2)
        await pilot.press("p")
        assert "this is the open run" in seen(pilot, "#keys")
        assert app.session.reference is None
        await pilot.press("down", "p")
        assert "pinned: run-1 is A" in seen(pilot, "#keys")
        assert "run-1  pinned" in seen(pilot, "#runs")
        assert app.session.reference is not None
        assert (app.session.reference.run, app.session.reference.step) == ("run-1", 12)
        await pilot.press("p")
        assert "pinned" not in "".join(lines_of(seen(pilot, "#runs")))
        assert app.session.reference is None
        assert app.session.fleet.pinned is None


async def test_a_run_that_cannot_be_pinned_says_why_each_time(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    make_run("trained", 5_000, end="finished")
    make_run("begun", 6_000, steps=0)
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 20)) as pilot:
        await listed(pilot, until, seen, 2)
        for _ in range(2):
            await pilot.press("down", "p")
            assert "begun has no step to compare with" in seen(pilot, "#keys")
        assert "pinned" not in "".join(lines_of(seen(pilot, "#runs")))


async def test_the_filter_finds_names_states_and_verdicts(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    make_run("sweep-a", 5_000, end="finished")
    make_run("sweep-b", 6_000, end="collapse")
    make_run("other", 7_000, end="failed")
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 20)) as pilot:
        app = pilot.app
        assert isinstance(app, Microscope)
        await listed(pilot, until, seen, 3)
        await pilot.press("n")
        assert "no filter" in seen(pilot, "#keys")
        for typed, names in (
            ("sweep", ["sweep-a", "sweep-b"]),
            ("failed", ["other"]),
            ("collapse", ["sweep-b"]),
            ("!sweep", ["other"]),
        ):
            await pilot.press("slash", *typed)
            assert names_of(seen(pilot, "#runs")) == names
            assert f"{len(names)} of 3 runs   /{typed}" in seen(pilot, "#runs")
            await pilot.press("escape")
            assert len(lines_of(seen(pilot, "#runs"))) == 3
        await pilot.press("slash", *"sweep", "enter", "home", "n")
        assert chosen_in(seen(pilot, "#runs")) == "sweep-b"
        await pilot.press("N")
        assert chosen_in(seen(pilot, "#runs")) == "sweep-a"
        await pilot.press("slash", *"-z")
        assert "no run matches" in seen(pilot, "#runs")
        assert app.session.filter.text == ""
        await pilot.press("enter", "enter", "space", "p", "down")  # there is no run to act on
        assert isinstance(app.screen, RunsScreen)


async def test_the_filter_can_be_set_while_no_run_is_open(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    make_run("begun", 1, steps=0)
    make_run("trained", 9_000, end="finished")
    async with Microscope(Fleet(tmp_path)).run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "r all runs" in seen(pilot, "#waiting"), "the key")
        await pilot.press("r", "slash", *"train", "enter")
        assert names_of(seen(pilot, "#runs")) == ["trained"]
        await pilot.press("enter")
        await until(pilot, lambda: "trained" in seen(pilot, "#header"), "the run")
