"""The course of a run on one time axis: its keys, and whether the loss noticed."""

from pathlib import Path
from typing import Any

import pytest

from microscope_tui.app import CourseScreen, Microscope
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until, charts_shown, opened

ALL = ["loss", "balance", "max-load", "gradient-norm", "learning-rate"]


async def test_all_charts_stand_on_one_axis_with_ticks_once(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(80, 24)) as pilot:
        await opened(pilot, until, CourseScreen, "6")
        assert charts_shown(pilot) == ALL
        with_ticks = [n for n in ALL if "200" in seen(pilot, f"#chart-{n}").split("\n")[-1].split()]
        assert with_ticks == ["learning-rate"]
        onsets = {
            line.index("┊")
            for n in ALL
            for line in seen(pilot, f"#chart-{n}").split("\n")
            if "┊" in line
        }
        assert len(onsets) == 1  # the same column in every chart
        answer = seen(pilot, "#answer")
        assert "COLLAPSE in L4 since 1" in answer
        assert "the loss does not show it" in answer


async def test_tab_z_and_e_work_as_on_the_layer_screen(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        app = await opened(pilot, until, CourseScreen, "6")
        focused = []
        for key in ("tab", "tab", "shift+tab", "shift+tab", "shift+tab"):
            await pilot.press(key)
            focused += [n for n in ALL if seen(pilot, f"#chart-{n}").startswith("▶")]
        assert focused == ["balance", "max-load", "balance", "loss", "learning-rate"]
        await pilot.press("z")
        await pilot.pause()
        assert charts_shown(pilot) == ["learning-rate"]
        await pilot.press("z", "e")
        await pilot.pause()
        assert charts_shown(pilot) == ALL
        assert app.session.smoothing == 0.6
        assert "smoothing 0.6" in seen(pilot, "#chart-loss")


async def test_a_small_window_names_what_it_hides_and_tab_goes_there(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(60, 20)) as pilot:
        await opened(pilot, until, CourseScreen, "6")
        assert charts_shown(pilot)[:2] == ["loss", "balance"]
        assert "learning rate" in seen(pilot, "#hidden")
        await pilot.press("shift+tab")
        await pilot.pause()
        assert "learning-rate" in charts_shown(pilot)


async def test_the_course_follows_cursor_and_window(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        app = await opened(pilot, until, CourseScreen, "6")
        await pilot.press("colon", *"120", "enter")
        await until(pilot, lambda: "at 120" in seen(pilot, "#chart-loss"), "step 120")
        assert "│" in seen(pilot, "#chart-balance")
        assert "no alert in any router" in seen(pilot, "#answer")
        await pilot.press("plus", "plus")
        assert app.session.time.window is not None
        first, last = app.session.time.window
        ticks = seen(pilot, "#chart-learning-rate").split("\n")[-1].split()
        assert all(first <= int(tick) <= last for tick in ticks)


@pytest.mark.parametrize("what", ["NaN", "one step", "nothing but steps"])
async def test_a_poor_log_is_shown_as_far_as_it_goes(
    what: str, write_log: Any, make_header: Any, until: Until, seen: Seen
) -> None:
    steps: list[dict[str, Any]] = [
        {"kind": "step", "step": n} for n in range(1, 2 if what == "one step" else 60)
    ]
    if what == "NaN":
        steps = [one | {"loss": "NaN", "grad_norm": "NaN"} for one in steps]
    path = write_log([make_header(), *steps])
    async with Microscope(Fleet(path)).run_test(size=(80, 24)) as pilot:
        app = await opened(pilot, until, CourseScreen, "6")
        assert charts_shown(pilot) == ["loss"]
        assert "not measured" in seen(pilot, "#chart-loss")
        await pilot.press("tab", "z", "e", "z", "a", "o", "left_square_bracket")
        assert app.is_running


async def test_a_run_without_router_summaries_still_has_its_loss(
    write_log: Any, make_header: Any, until: Until
) -> None:
    steps = [{"kind": "step", "step": n, "loss": 3.0 - n / 100} for n in range(1, 60)]
    async with Microscope(Fleet(write_log([make_header(), *steps]))).run_test() as pilot:
        await opened(pilot, until, CourseScreen, "6")
        assert charts_shown(pilot) == ["loss"]


async def test_a_storm_of_sizes_and_a_replaced_run_leave_a_whole_screen(
    collapsed: Path, until: Until, seen: Seen, write_log: Any, make_header: Any, make_step: Any
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        await opened(pilot, until, CourseScreen, "6")
        for size in [(30, 6), (200, 60), (60, 20), (10, 3), (45, 11), (1, 1), (80, 24)]:
            await pilot.resize_terminal(*size)
        await pilot.pause(0.1)
        assert charts_shown(pilot) == ALL
        other = write_log([make_header(), make_step(1, [[4] * 8] * 3, 16, loss=7.0)], name="other")
        other.replace(collapsed / "metrics.jsonl")
        await until(pilot, lambda: "7.00 at 1" in seen(pilot, "#chart-loss"), "the new run")
