"""The keys of the layer screen, and that it survives whatever the log holds."""

from pathlib import Path
from typing import Any

import pytest

from microscope_tui.app import ExpertScreen, LayerScreen, Microscope
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until, charts_shown, opened


async def test_tab_goes_through_the_charts_and_back_and_names_the_value(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await opened(pilot, until, LayerScreen, "a", "enter")
        names = charts_shown(pilot)
        assert names == ["load", "bias", "balance", "entropy", "max-load"]
        focused = []
        for key in ["tab"] * 5 + ["shift+tab"]:
            await pilot.press(key)
            focused.append([n for n in names if seen(pilot, f"#chart-{n}").startswith("▶")])
        assert focused == [["bias"], ["balance"], ["entropy"], ["max-load"], ["load"], ["max-load"]]
        await pilot.press("colon", *"120", "enter")
        await until(pilot, lambda: app.session.time.shown_step == 120, "step 120")
        await until(pilot, lambda: " at 120" in seen(pilot, "#chart-balance"), "its balance")
        c = app.session.view(1, 1).layers[app.session.selected].collapse_index  # type: ignore[union-attr]
        assert f"balance c   {c:.2f}".replace(" 0.", " .") in seen(pilot, "#chart-balance")


async def test_z_enlarges_the_chart_in_focus_and_brings_all_back(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        await opened(pilot, until, LayerScreen, "2")
        before = charts_shown(pilot)
        await pilot.press("tab", "tab", "z")
        await pilot.pause()
        assert charts_shown(pilot) == ["balance"]
        assert pilot.app.screen.query_one("#chart-balance").size.width > 90
        await pilot.press("tab")
        await pilot.pause()
        assert charts_shown(pilot) == ["entropy"]
        await pilot.press("z")
        await pilot.pause()
        assert charts_shown(pilot) == before


async def test_e_cycles_the_smoothing_and_says_so_in_the_titles(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(140, 40)) as pilot:
        app = await opened(pilot, until, LayerScreen, "2")
        weights = []
        for _ in range(3):
            await pilot.press("e")
            weights.append(app.session.smoothing)
            lines = seen(pilot, "#chart-balance").split("\n")[0]
            assert (f"smoothing {weights[-1]:g}" in lines) == bool(weights[-1])
        assert weights == [0.6, 0.9, 0.0]


async def test_left_and_right_move_over_the_experts_and_enter_opens_the_card(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await opened(pilot, until, LayerScreen, "2")
        chosen = []
        for key in ("right", "right", "l", "left", "h", "left", "left"):
            await pilot.press(key)
            chosen.append(app.session.expert)
        assert chosen == [0, 1, 2, 1, 0, 0, 0]
        assert "expert 0 at 450" in seen(pilot, "#chart-load")
        await pilot.press(*["right"] * 8)
        assert app.session.expert == 7
        await pilot.press("enter")
        assert isinstance(app.screen, ExpertScreen)
        assert "expert 7" in seen(pilot, "#layer-title")
        await pilot.press("escape")
        assert isinstance(app.screen, LayerScreen)


async def test_enter_without_a_chosen_expert_opens_the_one_farthest_from_fair(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        app = await opened(pilot, until, LayerScreen, "a", "enter")
        view = app.session.view(1, 1, range(0))
        assert view is not None
        load = view.layers[3].load or ()
        await pilot.press("enter")
        assert app.session.expert == list(load).index(0.0)


async def test_the_smallest_table_shows_load_and_balance_and_names_what_is_hidden(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(60, 20)) as pilot:
        await opened(pilot, until, LayerScreen, "a", "enter")
        assert charts_shown(pilot) == ["load", "balance"]
        hidden = seen(pilot, "#hidden")
        assert "not shown: bias, entropy, max load" in hidden
        await pilot.press("shift+tab")
        await pilot.pause()
        assert "max-load" in charts_shown(pilot)
        assert seen(pilot, "#evidence").startswith("  CRIT")


async def test_a_window_of_time_bounds_the_curves(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await opened(pilot, until, LayerScreen, "2")
        await pilot.press("plus", "plus")
        assert app.session.time.window is not None
        first, last = app.session.time.window
        ticks = seen(pilot, "#chart-max-load").split("\n")[-1].split()
        assert ticks
        assert all(first <= int(tick) <= last for tick in ticks)
        await pilot.press("x")
        assert "s" in seen(pilot, "#chart-max-load").split("\n")[-1]


async def test_verdicts_that_do_not_fit_are_counted(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(60, 16)) as pilot:
        await opened(pilot, until, LayerScreen, "a", "enter")
        lines = seen(pilot, "#evidence").split("\n")
        assert len(lines) == 2
        assert "more lines" in lines[-1]
        assert charts_shown(pilot)


@pytest.mark.parametrize("what", ["no counts", "NaN", "one step", "no summaries"])
async def test_a_poor_log_is_shown_as_far_as_it_goes(
    what: str, write_log: Any, make_header: Any, make_step: Any, until: Until, seen: Seen
) -> None:
    steps = [make_step(n, [[4] * 8] * 3, 16) for n in range(1, 2 if what == "one step" else 40)]
    for one in steps:
        if what == "NaN":
            one["loss"] = "NaN"
            one["router"] = {
                name: ["NaN"] * 3 for name in ("entropy", "effective_experts", "max_load")
            }
            one["expert_bias"] = [["NaN"] * 8] * 3
        if what == "no counts":
            del one["tokens_per_expert"]
        if what == "no summaries":
            del one["tokens_per_expert"]
            one["router"] = {}
    path = write_log([make_header(), *steps])
    async with Microscope(Fleet(path)).run_test(size=(100, 30)) as pilot:
        app = await opened(pilot, until, LayerScreen, "2")
        for key in (
            "right",
            "tab",
            "z",
            "e",
            "z",
            "enter",
            "right",
            "escape",
            "6",
            "tab",
            "z",
            "z",
        ):
            await pilot.press(key)
        await pilot.press("2")
        await pilot.pause()
        if what in ("no counts", "no summaries"):
            assert "no counts" in seen(pilot, "#chart-load")
        if what == "no summaries":
            assert "not measured" in seen(pilot, "#chart-balance")
        assert app.is_running


async def test_resizing_in_a_storm_leaves_a_whole_screen(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        await opened(pilot, until, LayerScreen, "2")
        for size in [(30, 6), (200, 60), (60, 20), (10, 3), (45, 11), (1, 1), (71, 24), (80, 24)]:
            await pilot.resize_terminal(*size)
        await pilot.pause(0.1)
        assert len(charts_shown(pilot)) == 5
        assert "needs" not in seen(pilot, "#header")


async def test_a_run_that_is_replaced_while_open_is_shown_instead(
    collapsed: Path, until: Until, seen: Seen, write_log: Any, make_header: Any, make_step: Any
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        app = await opened(pilot, until, LayerScreen, "a", "enter")
        await pilot.press("end", *["right"] * 9)
        model = {"layers": [1], "layer_names": ["only"], "num_experts": 4}
        steps = [make_step(n, [[8] * 4], 16) for n in range(1, 20)]
        other = write_log([make_header(model=model, planned_steps=None), *steps], name="other")
        other.replace(collapsed / "metrics.jsonl")
        await until(pilot, lambda: "only" in seen(pilot, "#layer-title"), "the new run")
        await pilot.press("right", "left", "enter")
        assert isinstance(app.screen, ExpertScreen)
        assert "of 4 in only" in seen(pilot, "#layer-title")
