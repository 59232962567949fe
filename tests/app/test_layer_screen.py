"""The layer screen: its charts, its experts, and that it survives what the log holds."""

from pathlib import Path
from typing import Any

import pytest

from microscope_tui.app import ExpertScreen, LayerScreen
from tests.app.pilot import open_app


async def test_tab_moves_the_focus_z_enlarges_it_and_e_smooths(collapsed: Path) -> None:
    async with open_app(collapsed, "a", "enter", size=(140, 40)) as app:
        names = app.charts()
        assert names == ["load", "bias", "balance", "entropy", "max-load"]
        focused = []
        for key in ["tab"] * 5 + ["shift+tab"]:
            await app.press(key)
            focused += [n for n in names if app.text(f"chart-{n}").startswith("▶")]
        assert focused == ["bias", "balance", "entropy", "max-load", "load", "max-load"]
        await app.press("shift+tab", "shift+tab", "z")
        assert app.charts() == ["balance"]
        assert app.screen.query_one("#chart-balance").size.width > 130
        await app.press("tab")
        assert app.charts() == ["entropy"]
        await app.press("z")
        assert app.charts() == names
        weights = []
        for _ in range(3):
            await app.press("e")
            weights.append(app.session.smoothing)
            title = app.text("chart-balance").split("\n")[0]
            assert (f"smoothing {weights[-1]:g}" in title) == bool(weights[-1])
        assert weights == [0.6, 0.9, 0.0]


async def test_the_charts_follow_the_shown_step_and_the_window(collapsed: Path) -> None:
    async with open_app(collapsed, "a", "enter", *":120", "enter", size=(120, 40)) as app:
        c = app.view().layers[app.session.selected].collapse_index
        assert f"balance c   {c:.2f}".replace(" 0.", " .") in app.text("chart-balance")
        assert " at 120" in app.text("chart-balance")
        await app.press("f", "+", "+")
        window = app.session.time.window
        assert window is not None
        ticks = app.text("chart-max-load").split("\n")[-1].split()
        assert ticks
        assert all(window.first <= int(tick) <= window.last for tick in ticks)
        await app.press("x")
        assert "s" in app.text("chart-max-load").split("\n")[-1]


async def test_left_and_right_choose_an_expert_and_enter_opens_its_card(collapsed: Path) -> None:
    async with open_app(collapsed, "a", "enter", "enter") as app:
        load = app.view().layers[3].load or ()
        assert app.session.expert == list(load).index(0.0)  # the one farthest from fair
        await app.press("escape", *["left"] * 8)
        chosen = []
        for key in ("right", "l", "left", "h", "left"):
            await app.press(key)
            chosen.append(app.session.expert)
        assert chosen == [1, 2, 1, 0, 0]
        assert "expert 0 at 450" in app.text("chart-load")
        await app.press(*["right"] * 8)
        assert app.session.expert == 7
        await app.press("enter")
        assert isinstance(app.screen, ExpertScreen)
        assert "expert 7" in app.text("layer-title")
        await app.press("escape")
        assert isinstance(app.screen, LayerScreen)


async def test_a_small_window_counts_and_names_what_it_hides(collapsed: Path) -> None:
    async with open_app(collapsed, "a", "enter", size=(60, 20)) as app:
        assert app.charts() == ["load", "balance"]
        assert "not shown: bias, entropy, max load" in app.text("hidden")
        await app.press("shift+tab")
        assert "max-load" in app.charts()
        assert app.text("evidence").startswith("  CRIT")
        await app.resize(60, 16)
        lines = app.text("evidence").split("\n")
        assert len(lines) == 2
        assert "more lines" in lines[-1]
        assert app.charts()


@pytest.mark.parametrize("what", ["no counts", "NaN", "one step", "no summaries"])
async def test_a_poor_log_is_shown_as_far_as_it_can(
    what: str, write_log: Any, make_header: Any, make_step: Any
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
    async with open_app(write_log([make_header(), *steps]), "2") as app:
        await app.press("right", "tab", "z", "e", "z", "enter", "right", "escape")
        await app.press("6", "tab", "z", "z", "2")
        if what in ("no counts", "no summaries"):
            assert "no counts" in app.text("chart-load")
        if what == "no summaries":
            assert "not measured" in app.text("chart-balance")
        assert app.app.is_running


@pytest.mark.usefixtures("quick_reader")
async def test_a_run_that_is_replaced_while_open_is_shown_instead(
    own_collapsed: Path, write_log: Any, make_header: Any, make_step: Any
) -> None:
    async with open_app(own_collapsed, "a", "enter", "end", *["right"] * 9) as app:
        model = {"layers": [1], "layer_names": ["only"], "num_experts": 4}
        steps = [make_step(n, [[8] * 4], 16) for n in range(1, 20)]
        other = write_log([make_header(model=model, planned_steps=None), *steps], name="other")
        other.replace(own_collapsed / "metrics.jsonl")
        await app.sees("only", "layer-title")
        await app.press("right", "left", "enter")
        assert isinstance(app.screen, ExpertScreen)
        assert "of 4 in only" in app.text("layer-title")
