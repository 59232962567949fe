"""The ribbon and the charts of a screen have one time axis, column by column."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from microscope_tui.app import Rows, figure
from microscope_tui.lines import GUTTER, Chart, Curve, Glyphs, TimeScale, arranged, plain, plot_area
from microscope_tui.watch import Column, Window, column_of
from tests.app.pilot import open_app

WINDOWS = st.tuples(st.integers(1, 10**6), st.integers(0, 10**5)).map(
    lambda pair: Window(pair[0], pair[0] + pair[1])
)
SIZES = [(71, 24), (80, 24), (120, 40), (133, 35), (200, 60)]


@example(Window(262_144, 262_144), 89, None, Glyphs.BRAILLE)
@given(WINDOWS, st.integers(8, 200), st.data(), st.sampled_from(Glyphs))
def test_a_chart_draws_a_step_in_the_column_that_the_ribbon_has_for_it(
    window: Window, columns: int, data: Any, glyphs: Glyphs
) -> None:
    step = data.draw(st.integers(window.first, window.last)) if data else window.first
    value = Column(0.5, 0.5, 0.5)
    chart = Chart("c", [Curve([step], [value])], 0.5, top=1.0)
    for cursor in (None, step):
        time = TimeScale(window, cursor)
        lines = figure(chart, time, (columns + GUTTER, 6), glyphs, step=step, ticks=False)
        drawn = {
            at
            for line in lines[1:]
            for at, char in enumerate(plain(line).ljust(columns + GUTTER)[GUTTER:])
            if char != " "
        }
        assert drawn == {column_of(step, window, columns)}


@given(WINDOWS, st.integers(1, 200), st.data())
def test_the_dots_of_a_chart_are_in_the_columns_of_the_ribbon(
    window: Window, columns: int, data: Any
) -> None:
    step = data.draw(st.integers(window.first, window.last))
    first, last = TimeScale(window, None).middles(2 * columns)
    share = (step - window.first - first) / (last - first)
    dot = int(round(0.5 + (2 * columns - 1) * share, 8) // 1)  # as plotext does it
    assert min(dot // 2, columns - 1) == column_of(step, window, columns)


@given(st.integers(40, 400), st.booleans())
def test_the_plot_area_is_where_the_charts_over_time_stand(columns: int, enlarged: bool) -> None:
    stacks = [["load"], ["balance", "entropy"]]
    layout = arranged(stacks, "balance", (columns, 40), enlarged=enlarged)
    left, width = plot_area(columns, 1 if enlarged else 2)
    before = sum(stack[0].width + 2 for stack in layout.stacks[:-1])
    assert (left, width) == (before + GUTTER, layout.stacks[-1][0].width - GUTTER)


@pytest.mark.parametrize("name", ["layer", "expert", "course"])
async def test_the_cursor_of_the_ribbon_is_below_that_of_the_charts(
    collapsed: Path, name: str
) -> None:
    async with open_app(collapsed) as app:
        await app.go(name)
        for size, step in zip(SIZES, (1, 137, 272, 449, 137), strict=True):
            app.session.time.go_to(step)
            await app.resize(*size)
            ribbon = app.screen.query_one("#ribbon", Rows)
            column = ribbon.region.x + ribbon.texts[0].index("┃")
            over_time = 0
            for part in app.screen.query("#charts Rows").results(Rows):
                at = column - part.region.x
                bars = part.id == "chart-load" and name == "layer"
                if part.display and 0 <= at < part.size.width and not bars:
                    over_time += any(text[at : at + 1] == "│" for text in part.texts[1:-1])
            assert over_time, (size, step, column)
