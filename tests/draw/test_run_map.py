"""The map of a run: the worst of every column, on the axis of time, hot where it is bad."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.heat import Heat
from microscope_tui.draw.spans import Span, plain
from microscope_tui.screens.map.text import cell_columns, fit_map, levels_of, map_cursor, map_line
from microscope_tui.watch import Quantity, RunMap, RunWatch, Window, run_map, view_of
from tests.conftest import header, open_log, step

Synthetic = Callable[..., RunWatch]


@pytest.fixture
def spiked(write_log: Any, balanced: Any) -> RunWatch:
    """900 steps of two layers; in step 500 L2 sends all tokens to two experts."""
    sick = [2048, 2048, 0, 0, 0, 0, 0, 0]
    records = [header(model={"layers": [1, 2], "layer_names": ["L1", "L2"]})]
    for n in range(1, 901):
        rows = [balanced(), sick if n == 500 else balanced()]
        records.append(step(n, rows, 2048))
    return open_log(write_log(records, name="run"))


@pytest.mark.parametrize(("quantity", "worst"), [(Quantity.BALANCE, 0.0), (Quantity.LOAD, 4.0)])
def test_one_bad_step_of_900_makes_its_column_hot_in_its_layer_only(
    spiked: RunWatch, quantity: Quantity, worst: float
) -> None:
    view = view_of(spiked)
    found = run_map(spiked, quantity, 60, view.window)
    levels = levels_of(found, quantity, view.layers)
    assert set(levels[0]) == {0}
    hot = [at for at, level in enumerate(levels[1]) if level]
    assert [found.rows[1][at] for at in hot] == [worst]
    assert levels[1][hot[0]] >= 6
    assert found.axis[hot[0]] <= 500 < found.axis[hot[0] + 1]
    text = plain(map_cursor(found, quantity, view, view.layers[1], hot[0], 100))
    assert f"{quantity} {'.00' if worst == 0 else '4.00'}" in text
    assert "steps 496 to 510" in text


@pytest.mark.parametrize(
    ("quantity", "value", "calm"),
    [
        *((Quantity.BALANCE, 0.8, True), (Quantity.BALANCE, 0.3, False)),
        *((Quantity.ENTROPY, 1.0, True), (Quantity.ENTROPY, 0.3, False)),
        *((Quantity.LOAD, 2.5, True), (Quantity.LOAD, 3.5, False)),
        *((Quantity.DROPS, 0.01, True), (Quantity.DROPS, 0.2, False)),
    ],
)
def test_healthy_values_are_calm(
    synthetic: Synthetic, quantity: Quantity, value: float, calm: bool
) -> None:
    layers = view_of(synthetic("healthy", routers=1, steps=20)).layers
    worse = value / 2 if quantity.low_is_bad else 2 * value
    levels = levels_of(RunMap((1, 2), [[value, worse]]), quantity, layers)[0]
    assert (levels[0] == 0) is calm
    assert calm or levels[1] > levels[0] >= 3, "worse is hotter"


def test_what_was_not_logged_is_blank(synthetic: Synthetic) -> None:
    view = view_of(synthetic("healthy", routers=1, steps=20))
    found = RunMap((1,), [[math.nan]])
    levels = levels_of(found, Quantity.DROPS, view.layers)
    assert map_line(levels, [0], Heat(colour=False), None) == [Span(" ", "")]
    assert not found.measured
    assert "not logged" in plain(map_cursor(found, Quantity.DROPS, view, view.layers[0], 0, 80))


@given(st.integers(1, 400), st.integers(1, 10**6), st.integers(0, 10**5), st.integers(8, 200))
def test_cells_are_equal_stretches_of_time_as_those_of_the_ribbon(
    columns: int, first: int, span: int, cells: int
) -> None:
    axis = sorted({first + span * at // columns for at in range(columns)})
    shown = cell_columns(axis, Window(first, first + span), cells)
    assert len(shown) == cells
    assert shown == sorted(shown)
    assert all(0 <= column < len(axis) for column in shown)
    for at, column in enumerate(shown):
        middle = first + (span + 1) * (2 * at + 1) // (2 * cells)
        assert axis[column] <= middle
        assert column + 1 == len(axis) or middle < axis[column + 1]


def test_61_layers_take_31_lines_of_half_blocks_and_61_without(synthetic: Synthetic) -> None:
    view = view_of(synthetic("healthy", routers=2, steps=20))
    halved = fit_map(view, 120, 31, 61, halves=True)
    assert (halved.per_line, halved.visible) == (2, 31)
    assert fit_map(view, 120, 31, 61, halves=False).per_line == 1
    assert fit_map(view, 120, 31, 10, halves=True).height == 3
    assert fit_map(view, 120, 60, 4, halves=True).height == 5
    line = map_line([[0, 9], [12, 9]], [0, 1], Heat(), (1, 0))
    assert line == [Span("▀", "heat:0|cursor"), Span(" ", "heat:9")]
    ascii_line = map_line([[0, 9]], [0, 1], Heat(colour=False, glyphs=Glyphs.ASCII), None)
    assert plain(ascii_line) == ".#"
