"""Two moments side by side: where A comes from, how it follows B, and what its keys do."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from microscope_tui.app import CompareScreen, LayerScreen, MainScreen, Microscope, RunsScreen
from microscope_tui.lines import Glyphs
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until, judged, opened

Make = Callable[..., Path]
SICK = [2048, 2048, 0, 0, 0, 0, 0, 0]


@pytest.fixture
def make_run(write_log: Any, make_header: Any, make_step: Any, balanced: Any) -> Make:
    """A run of three layers whose L2 is sick from a step on, written ``age`` seconds ago."""

    def make(
        name: str = "run",
        steps: int = 200,
        sick_from: int = 100,
        age: float = 9e8,
        names: Any = ("L1", "L2", "L3"),
    ) -> Path:
        model = {"layers": list(range(len(names))), "layer_names": list(names)}
        records = [make_header(run=name, planned_steps=200, model=model)]
        for n in range(1, steps + 1):
            rows = [SICK if at == 1 and n >= sick_from else balanced() for at in range(len(names))]
            records.append(make_step(n, rows, 2048, loss=8.0 - n / 100))
        path: Path = write_log(records, name=name)
        os.utime(path, (2e9 - age,) * 2)
        return path

    return make


async def compared(pilot: Pilot[None], until: Until, seen: Seen, *keys: str) -> Microscope:
    """The comparison, once everything is judged and there is an A."""
    app = await opened(pilot, until, CompareScreen, *keys, "5")
    await until(pilot, lambda: " A  " in seen(pilot, "#moments"), "A")
    return app


def moment(seen: Seen, pilot: Pilot[None], which: str) -> list[str]:
    """Run and step of A or of B."""
    lines = [line.split() for line in seen(pilot, "#moments").split("\n")]
    found = next((line[1:3] for line in lines if line and line[0] == which), ["", ""])
    return found


async def pinned(pilot: Pilot[None], until: Until, seen: Seen, at: int) -> Microscope:
    """The comparison with the run ``at`` lines below the open one."""
    app = await judged(pilot, until)
    await pilot.press("r")
    await until(pilot, lambda: isinstance(app.screen, RunsScreen), "the runs")
    screen = app.screen
    assert isinstance(screen, RunsScreen)
    await until(pilot, lambda: screen._cards and all(c.state for c in screen._cards), "a look")
    await pilot.press(*["down"] * at, "p")
    await until(pilot, lambda: "pinned:" in seen(pilot, "#keys"), "the pin")
    await pilot.press("5")
    await until(pilot, lambda: " A  " in seen(pilot, "#moments"), "A")
    return app


async def test_without_a_reference_the_step_before_the_worst_alert_is_taken_and_that_is_said(
    make_run: Make, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(make_run())).run_test(size=(100, 30)) as pilot:
        app = await compared(pilot, until, seen)
        assert "before COLLAPSE began" in seen(pilot, "#moments")
        assert moment(seen, pilot, "A") == ["run", "99"]
        assert moment(seen, pilot, "B") == ["run", "200"]
        assert "-1.01" in seen(pilot, "#moments")
        assert "+101" in seen(pilot, "#moments")
        assert app.session.reference is None  # the keys of the main screen mean what they meant
        sick = next(line for line in seen(pilot, "#pairs").split("\n") if " L2 " in line)
        assert ".00 -1.00" in sick


async def test_in_a_healthy_run_a_tenth_of_it_is_taken(
    make_run: Make, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(make_run(sick_from=999))).run_test(size=(100, 30)) as pilot:
        await compared(pilot, until, seen)
        assert moment(seen, pilot, "A") == ["run", "20"]
        assert "10% into the run" in seen(pilot, "#moments")


async def test_b_takes_the_shown_step_as_a_and_time_moves_on_from_there(
    make_run: Make, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(make_run())).run_test(size=(100, 30)) as pilot:
        app = await compared(pilot, until, seen, "colon", *"50", "enter")
        await pilot.press("b")
        assert "A is step 50" in seen(pilot, "#keys")
        assert "the same step as B" in seen(pilot, "#moments")
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: moment(seen, pilot, "B") == ["run", "51"], "the next step")
        assert moment(seen, pilot, "A") == ["run", "50"]
        assert "set with b" in seen(pilot, "#moments")
        await pilot.press("right_curly_bracket")
        await until(pilot, lambda: moment(seen, pilot, "B") == ["run", "61"], "ten steps forward")
        await pilot.press("colon", *"150", "enter")
        await until(pilot, lambda: moment(seen, pilot, "B") == ["run", "150"], "step 150")
        await pilot.press("f")
        await until(pilot, lambda: moment(seen, pilot, "B") == ["run", "200"], "the newest")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, MainScreen), "the main screen")
        assert "against step 50" in seen(pilot, "#heads")


async def test_up_and_down_choose_a_layer_and_enter_opens_it(
    make_run: Make, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(make_run())).run_test(size=(80, 24)) as pilot:
        app = await compared(pilot, until, seen)
        layers = []
        for key in ("down", "j", "down", "up", "k", "end", "home", "G", "g", "pagedown", "pageup"):
            await pilot.press(key)
            layers.append(app.session.selected)
            assert f"▶ L{app.session.selected + 1} " in seen(pilot, "#pairs")
        assert layers == [1, 2, 2, 1, 0, 2, 0, 2, 0, 2, 0]
        await pilot.press("down")
        assert "L2: up 0 " in seen(pilot, "#moved")
        assert "without tokens now" in seen(pilot, "#moved")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, LayerScreen), "the layer")
        assert "L2" in seen(pilot, "#layer-title")


async def test_the_filter_shows_only_matching_layers_and_n_goes_on(
    make_run: Make, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(make_run())).run_test(size=(100, 30)) as pilot:
        app = await compared(pilot, until, seen)
        await pilot.press("slash", *"!l2", "enter")
        assert " L2 " not in seen(pilot, "#pairs")
        assert "/!l2" in seen(pilot, "#moved")
        await pilot.press("n")
        assert app.session.selected == 2
        await pilot.press("N")
        assert app.session.selected == 0
        await pilot.press("slash", *" nothing", "enter")
        assert "no layer matches" in seen(pilot, "#pairs")
        await pilot.press("c", "down", "up")
        assert app.is_running


async def test_a_pinned_run_follows_to_the_same_step(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    make_run("new", age=8e8)
    make_run("old", sick_from=999)
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 30)) as pilot:
        await pinned(pilot, until, seen, 1)
        assert moment(seen, pilot, "A") == ["old", "200"]
        assert moment(seen, pilot, "B") == ["new", "200"]
        assert "pinned, at the same step" in seen(pilot, "#moments")
        await pilot.press("colon", *"77", "enter")
        await until(pilot, lambda: moment(seen, pilot, "A") == ["old", "77"], "A at step 77")
        assert moment(seen, pilot, "B") == ["new", "77"]


async def test_a_shorter_pinned_run_stays_at_its_last_step_and_that_is_said(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    make_run("new", age=8e8)
    make_run("short", steps=60)
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 30)) as pilot:
        await pinned(pilot, until, seen, 1)
        assert moment(seen, pilot, "A") == ["short", "60"]
        assert "pinned, its last step before B" in seen(pilot, "#moments")


async def test_b_unpins_the_pinned_run(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    make_run("new", age=8e8)
    make_run("old")
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 30)) as pilot:
        app = await pinned(pilot, until, seen, 1)
        await pilot.press("b")
        assert moment(seen, pilot, "A") == ["new", "200"]
        await pilot.press("colon", *"77", "enter")
        await until(pilot, lambda: moment(seen, pilot, "B") == ["new", "77"], "B at step 77")
        await pilot.pause(0.3)  # longer than the pinned run waits before it follows
        assert moment(seen, pilot, "A") == ["new", "200"]
        await pilot.press("r")
        await until(pilot, lambda: "2 runs" in seen(pilot, "#runs"), "the runs")
        assert "pinned" not in seen(pilot, "#runs")
        assert app.session.fleet.pinned is None


async def test_runs_of_other_shapes_are_matched_by_the_names_of_their_layers(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    make_run("new", age=8e8, names=("L1", "L2", "L7"))
    make_run("other", names=("L0", "L2", "L1", "L9"))
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 30)) as pilot:
        await pinned(pilot, until, seen, 1)
        lines = [line for line in seen(pilot, "#pairs").split("\n") if line.strip()]
        assert "no L7 in A" in next(line for line in lines if " L7 " in line)
        assert "no L1 in A" not in seen(pilot, "#pairs")
        assert "only in A: L0, L9" in seen(pilot, "#moved")


async def test_a_pinned_run_that_is_deleted_keeps_its_last_moment_and_says_why(
    make_run: Make, tmp_path: Path, until: Until, seen: Seen
) -> None:
    make_run("new", age=8e8)
    old = make_run("old")
    async with Microscope(Fleet(tmp_path)).run_test(size=(100, 30)) as pilot:
        await pinned(pilot, until, seen, 1)
        old.unlink()
        await pilot.press("colon", *"77", "enter")
        await until(pilot, lambda: "No such file" in seen(pilot, "#moments"), "the reason")
        assert moment(seen, pilot, "A") == ["old", "200"]


async def test_a_packed_log_explains_how_to_come_by_a_reference(
    make_run: Make, until: Until, seen: Seen
) -> None:
    path = make_run()
    packed = path.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    async with Microscope(Fleet(packed)).run_test(size=(80, 24)) as pilot:
        await judged(pilot, until)
        await pilot.press("5")
        await until(pilot, lambda: "decompress it" in seen(pilot, "#moments"), "the reason")
        assert "r lists the runs, and p pins one as A" in seen(pilot, "#moments")
        await pilot.press("down", "up", "enter", "escape")
        await pilot.press("5", "b")
        await until(pilot, lambda: "the same step as B" in seen(pilot, "#moments"), "A")


@pytest.mark.parametrize("glyphs", [Glyphs.BRAILLE, Glyphs.ASCII])
async def test_hostile_names_and_a_storm_of_sizes_are_survived(
    make_run: Make, until: Until, seen: Seen, glyphs: Glyphs
) -> None:
    names = ["\x1b[31m[bold]L1", "w[gate]\u202e/" + "x" * 60, "層" * 30]
    path = make_run("a\x1b[2Jb", names=names)
    async with Microscope(Fleet(path), glyphs).run_test(size=(80, 24)) as pilot:
        app = await compared(pilot, until, seen)
        for size in [(40, 10), (10, 3), (1, 1), (300, 100), (60, 20), (72, 16), (100, 24)]:
            await pilot.resize_terminal(*size)
            await pilot.press("down", "up")
        await pilot.pause()
        text = "".join(seen(pilot, f"#{w}") for w in ("moments", "compare-heads", "pairs"))
        assert "-1.00" in text
        assert not set("\x1b\u202e") & set(text)
        assert app.is_running
        if glyphs is Glyphs.ASCII:
            assert text.isascii()


async def test_a_run_of_a_single_step_is_compared_with_itself_and_says_so(
    make_run: Make, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(make_run(steps=1))).run_test(size=(80, 24)) as pilot:
        await compared(pilot, until, seen)
        assert "the same step as B" in seen(pilot, "#moments")
        await pilot.press("left_square_bracket", "right_square_bracket", "b", "P")


async def test_a_run_that_is_replaced_gets_a_new_reference(
    make_run: Make, make_header: Any, make_step: Any, balanced: Any, until: Until, seen: Seen
) -> None:
    path = make_run()
    async with Microscope(Fleet(path)).run_test(size=(100, 30)) as pilot:
        app = await compared(pilot, until, seen)
        new = path.with_name("new")
        records = [make_header(), *(make_step(n, [balanced()] * 3, 2048) for n in range(1, 41))]
        new.write_text("".join(json.dumps(record) + "\n" for record in records))
        os.replace(new, path)
        await until(pilot, lambda: moment(seen, pilot, "B")[1] == "40", "the new run")
        await until(pilot, lambda: moment(seen, pilot, "A")[1] == "4", "its own A")
        path.unlink()
        await until(pilot, lambda: "deleted" in seen(pilot, "#header"), "that it is gone")
        await pilot.press("left_square_bracket", "down")
        assert isinstance(app.screen, CompareScreen)


async def test_a_pinned_run_that_is_read_while_the_app_ends_disturbs_nobody(
    make_run: Make, tmp_path: Path, until: Until
) -> None:
    make_run("one", age=9e8)
    make_run("other", age=9.1e8)
    for wait in (0.0, 0.05, 0.1, 0.15):
        async with Microscope(Fleet(tmp_path)).run_test(size=(100, 30)) as pilot:
            app = await judged(pilot, until)
            await pilot.press("r", "down", "p")
            await until(pilot, lambda a=app: a.session.fleet.pinned is not None, "pinned")
            await pilot.press("escape", "left_square_bracket")
            await pilot.pause(wait)  # the end comes while the other run is looked into
        assert app.return_code != 1  # Textual says 1 after a worker that failed
