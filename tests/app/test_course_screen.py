"""The course of a run on one time axis: its keys, and whether the loss reacted."""

from pathlib import Path
from typing import Any

import pytest

from tests.app.pilot import open_app

ALL = ["loss", "balance", "max-load", "gradient-norm", "learning-rate"]


async def test_all_charts_share_one_axis_and_one_focus(collapsed: Path) -> None:
    async with open_app(collapsed, "6", size=(80, 24)) as app:
        assert app.charts() == ALL
        with_ticks = [n for n in ALL if "200" in app.text(f"chart-{n}").split("\n")[-1].split()]
        assert with_ticks == ["learning-rate"]
        lines = app.text(*(f"chart-{name}" for name in ALL)).split("\n")
        assert len({line.index("┊") for line in lines if "┊" in line}) == 1  # the onset
        assert "COLLAPSE in L4 since 1" in app.text("answer")
        assert "the loss does not show it" in app.text("answer")
        focused = []
        for key in ("tab", "tab", "shift+tab", "shift+tab", "shift+tab"):
            await app.press(key)
            focused += [n for n in ALL if app.text(f"chart-{n}").startswith("▶")]
        assert focused == ["balance", "max-load", "balance", "loss", "learning-rate"]
        await app.press("z")
        assert app.charts() == ["learning-rate"]
        await app.press("z", "e")
        assert app.charts() == ALL
        assert app.session.smoothing == 0.6
        assert "smoothing 0.6" in app.text("chart-loss")
        await app.resize(60, 20)
        await app.press("tab")
        assert app.charts()[:2] == ["loss", "balance"]
        assert "learning rate" in app.text("hidden")
        await app.press("shift+tab")
        assert "learning-rate" in app.charts()


async def test_the_course_follows_cursor_and_window(collapsed: Path) -> None:
    async with open_app(collapsed, "6", *":120", "enter") as app:
        assert "at 120" in app.text("chart-loss")
        assert "│" in app.text("chart-balance")
        assert "no alert in any router" in app.text("answer")
        await app.press("+", "+")
        window = app.session.time.window
        assert window is not None
        ticks = app.text("chart-learning-rate").split("\n")[-1].split()
        assert all(window.first <= int(tick) <= window.last for tick in ticks)


@pytest.mark.parametrize(
    ("count", "values", "shown"),
    [
        (59, {"loss": "NaN", "grad_norm": "NaN"}, "not measured"),
        (1, {}, "not measured"),
        (59, {"loss": 3.0}, "3.00 at 59"),
    ],
)
async def test_a_log_without_router_summaries_has_only_its_loss(
    count: int, values: dict[str, Any], shown: str, write_log: Any, make_header: Any
) -> None:
    steps = [{"kind": "step", "step": n} | values for n in range(1, count + 1)]
    async with open_app(write_log([make_header(), *steps]), "6", size=(80, 24)) as app:
        assert app.charts() == ["loss"]
        assert shown in app.text("chart-loss")
        await app.press("tab", "z", "e", "z", "a", "o", "[")
        assert app.app.is_running


@pytest.mark.usefixtures("quick_reader")
async def test_the_course_follows_a_run_that_is_replaced(
    own_collapsed: Path, write_log: Any, make_header: Any, make_step: Any
) -> None:
    async with open_app(own_collapsed, "6") as app:
        before = app.text("chart-balance")
        steps = [make_step(n, [[4] * 8], 16, loss=7.0) for n in (1, 2)]
        model = {"layers": [1], "layer_names": ["only"]}
        other = write_log([make_header(model=model), *steps], name="other")
        other.replace(own_collapsed / "metrics.jsonl")
        await app.sees("7.00 at 2", "chart-loss")
        assert "1.00 at 2" in app.text("chart-balance") != before
