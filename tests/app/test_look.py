"""What the cells of the heatmap show, in which order, and the cursor on one of them."""

import re
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.app import Microscope
from microscope_tui.lines import Measure, Order, Palette
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until, read_until


async def test_v_shows_load_bias_overflow_and_ranks(
    scenario: Any, until: Until, seen: Seen
) -> None:
    folder = scenario("collapse", routers=5, steps=450, capacity_factor=1.25)
    async with Microscope(Fleet(folder)).run_test(size=(120, 40)) as pilot:
        app = await read_until(pilot, until, seen, "#label", "L5")
        heads = []
        for _ in range(4):
            heads.append(re.split("  +", seen(pilot, "#heads").split("layer ", 1)[1])[0])
            await pilot.press("v")
        assert heads == [
            "load, mean of 8 steps, 0 to 7",
            "bias, mean of its layer ±0.25",
            "share of tokens over capacity, mean of 8 steps",
            "load per rank, mean of 8 steps, 8 ranks assumed",
        ]
        assert app.session.look.measure is Measure.LOAD


async def test_y_shows_shares_and_s_sorts_and_c_paints(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await read_until(pilot, until, seen, "#label", "L5")
        await pilot.press("f", "y")  # of one step: in a mean few experts are dead
        assert "share of tokens per expert" in seen(pilot, "#heads")
        await pilot.press("y", "y", "s")
        assert app.session.look.order is Order.LOAD
        assert "by load" in seen(pilot, "#heads")
        row = next(x for x in seen(pilot, "#load").split("\n") if "▴" in x)
        assert row.index("▴") < row.index("×")
        await pilot.press("c")
        assert app.session.look.palette is Palette.VIRIDIS
        assert "palette: viridis" in seen(pilot, "#keys")


async def test_the_cursor_says_the_exact_numbers_of_an_expert(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(80, 24)) as pilot:
        app = await read_until(pilot, until, seen, "#label", "L5")
        await pilot.press("a", "right", "right")
        watch = app.session.watch
        assert watch is not None
        assert watch.latest is not None
        counts = watch.latest.matrices().tokens_per_expert[3]
        assert counts is not None
        assert f"L4 expert 1: load {counts[1] / (sum(counts) / 8):.3g}" in seen(pilot, "#notes")
        assert f"{counts[1]:,} of {sum(counts) // 2:,} tokens" in seen(pilot, "#notes")
        await pilot.press("left", "h", "h")
        assert app.session.expert == 0
        await pilot.press("escape")
        assert app.session.expert is None


async def test_b_compares_with_the_step_it_was_pressed_at(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await read_until(pilot, until, seen, "#label", "L5")
        await pilot.press("colon", *"100", "enter", "b", "f")
        await until(pilot, lambda: "load against step 100" in seen(pilot, "#heads"), "compared")
        assert "▴" in seen(pilot, "#load")
        assert app.session.time.following
        await pilot.press("b")
        assert "load, mean of 8 steps" in seen(pilot, "#heads")


@pytest.mark.parametrize(
    ("typed", "layers"),
    [
        ("L4", ["L4"]),
        ("!L4", ["L1", "L2", "L3", "L5"]),
        ("?4", ["L4"]),
        ("collapse", ["L4"]),
        ("nothing", []),
    ],
)
async def test_a_filter_shows_what_matches_while_it_is_typed(
    collapsed: Path, until: Until, seen: Seen, typed: str, layers: list[str]
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(100, 30)) as pilot:
        await read_until(pilot, until, seen, "#label", "L5")
        await until(pilot, lambda: "C" in seen(pilot, "#label"), "judged")
        await pilot.press("slash", *typed)

        def shown() -> list[str]:
            return [w for w in seen(pilot, "#label").split() if w.startswith("L")]

        assert shown() == layers
        await pilot.press("enter")
        assert shown() == layers
        assert f"{len(layers)} of 5 layers" in seen(pilot, "#notes")
        if len(layers) > 1:
            before = pilot.app.session.selected  # type: ignore[attr-defined]
            await pilot.press("n")
            assert pilot.app.session.selected > before  # type: ignore[attr-defined]
        await pilot.press("slash", "escape")
        assert shown() == ["L1", "L2", "L3", "L4", "L5"]
