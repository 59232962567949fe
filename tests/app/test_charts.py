"""Figures: of exactly their size, gaps left open, on the time axis of the ribbon below them."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from microscope_tui.draw.charts import GUTTER, Chart, Curve
from microscope_tui.draw.glyphs import Glyphs, spelled
from microscope_tui.draw.spans import Line, line_width, plain
from microscope_tui.draw.time_line import EVALUATION, ONSET, RESTART, TimeMark, TimeScale
from microscope_tui.kit.figure import figure
from microscope_tui.kit.rows import Rows
from microscope_tui.watch import Column, Window, column_of
from tests.app.pilot import open_app

WINDOWS = st.tuples(st.integers(1, 10**6), st.integers(0, 10**5)).map(
    lambda pair: Window(pair[0], pair[0] + pair[1])
)
SIZES = [(71, 24), (80, 24), (120, 40), (133, 35), (200, 60)]
VALUE = st.one_of(st.floats(width=32), st.just(math.nan), st.just(math.inf))


def chart(values: list[float], steps: list[int] | None = None, **more: object) -> Chart:
    columns = [Column(v, v, v) for v in values]
    return Chart("loss", [Curve(steps or range(1, len(values) + 1), columns)], **more)  # type: ignore[arg-type]


def marks_at(restart: int, evaluation: int, onset: int) -> list[TimeMark]:
    places = ((restart, RESTART, "dim"), (evaluation, EVALUATION, "dim"), (onset, ONSET, "crit"))
    return [TimeMark(*place) for place in places]


def drawn(one: Chart, time: TimeScale, glyphs: Glyphs = Glyphs.BRAILLE) -> list[Line]:
    return figure(one, time, (60, 9), glyphs, step=5)


def columns_of(lines: list[Line], role: str) -> set[int]:
    """Columns of the plot in which something of this role is drawn."""
    found = set()
    for line in lines[1:-1]:
        at = 0
        for span in line:
            found |= {at + i for i, c in enumerate(span.text) if c != " " and span.role == role}
            at += len(span.text)
    return {column - GUTTER for column in found if column >= GUTTER}


@settings(max_examples=60)
@given(
    st.lists(VALUE, max_size=20),
    st.integers(1, 90),
    st.integers(1, 24),
    st.sampled_from(Glyphs),
    st.one_of(st.none(), st.integers(1, 20)),
    st.sampled_from([0.0, 0.6]),
    st.booleans(),
)
def test_a_figure_has_exactly_its_size_for_any_numbers(
    values: list[float],
    width: int,
    height: int,
    glyphs: Glyphs,
    cursor: int | None,
    smoothing: float,
    ticks: bool,
) -> None:
    time = TimeScale(Window(1, 20), cursor, marks_at(3, 4, 9))
    one = chart(values, limits=[(0.5, "warn")], points=[(2, 0.1), (3, math.nan)])
    how: Any = {"step": cursor or 20, "smoothing": smoothing, "ticks": ticks}
    lines = figure(one, time, (width, height), glyphs, **how)
    assert len(lines) == height
    assert all(line_width(line) == width for line in lines)
    if glyphs is Glyphs.ASCII:
        assert all("?" not in spelled(plain(line), glyphs) for line in lines)


def test_a_gap_stays_open() -> None:
    values = [1.0, 1.2, 1.1, math.nan, math.inf, math.nan, 1.3, 1.2, 1.25, 1.1]
    lines = drawn(chart(values, bottom=None), TimeScale(Window(1, 10), None))
    columns = columns_of(lines, "value")
    width = 60 - GUTTER
    assert columns & set(range(2 * width // 10))
    assert columns & set(range(6 * width // 10 + 1, width))
    assert not columns & set(range(2 * width // 10 + 2, 6 * width // 10 - 1))


def test_points_outside_of_the_window_are_not_heaped_up_at_its_edges() -> None:
    one = chart([5.0, 0.0, 5.0, 1.0, 1.0, 5.0, 0.0, 5.0], top=5.0)
    lines = drawn(one, TimeScale(Window(4, 5), None))
    rows = [at for at, line in enumerate(lines[1:-1]) for span in line if span.role == "value"]
    assert len(set(rows)) == 1


@pytest.mark.parametrize("glyphs", Glyphs)
def test_the_cursor_is_a_line_and_what_is_behind_it_is_faint(glyphs: Glyphs) -> None:
    values = [1.0 + n % 3 for n in range(100)]
    time = TimeScale(Window(1, 100), 50)
    lines = drawn(chart(values), time, glyphs)
    at = time.column_of(50, 60 - GUTTER)
    assert columns_of(lines, "accent") | columns_of(lines, "title") == {at}
    assert max(columns_of(lines, "value")) < at
    assert min(columns_of(lines, "faint")) > at


def test_restarts_onsets_evaluations_and_validation_losses_are_seen() -> None:
    marks = marks_at(30, 90, 60)
    one = chart([1.0] * 100, points=[(10, 0.3)])
    text = "\n".join(map(plain, drawn(one, TimeScale(Window(1, 100), None, marks))))
    assert text.count("╎") >= 5
    assert text.count("┊") >= 5
    assert text.count("'") == 1
    assert text.count("●") == 1


def test_onsets_carry_their_rules_beside_their_lines_as_far_as_there_is_room() -> None:
    rules = {60: "GRADSPIKE", 61: "LOGITS", 99: "COLLAPSE", 100: "COLLAPSE"}
    marks = [TimeMark(at, ONSET, "crit", rule) for at, rule in rules.items()]
    time = TimeScale(Window(1, 100), None, marks)
    one = chart([0.0] * 100, top=1.0)
    lines = [*map(plain, figure(one, time, (60, 9), Glyphs.BRAILLE, step=1, focused=True))]
    assert "┊GRADSPIKE" in lines[1]
    assert "┊LOGITS" in lines[2]
    assert "COLLAPSE┊" in lines[1]
    assert "\n".join(lines).count("COLLAPSE") == 1  # the first of its rule
    small = figure(one, time, (60, 6), Glyphs.BRAILLE, step=1)
    assert "GRADSPIKE" not in "".join(map(plain, small))


def test_many_lines_have_their_names_at_their_ends_one_below_the_other() -> None:
    runs = [
        Curve(range(1, 5), [Column(v, v, v)] * 4, role=f"ink:{n}", name=f"run {n}")
        for n, v in enumerate([2.0, 2.01, 2.02, 5.0])
    ]
    lines = drawn(Chart("loss", runs, bottom=None), TimeScale(Window(1, 4), None), Glyphs.ASCII)
    ends = [line[-1].text.strip() or line[-2].text.strip() for line in lines[1:-1]]
    assert ends[0] == "run 3"
    assert sorted(end for end in ends[1:] if end.startswith("run")) == ["run 0", "run 1", "run 2"]


def test_a_line_that_ends_early_has_its_name_beside_its_end() -> None:
    runs = [
        Curve(range(1, 1 + length), [Column(v, v, v)] * length, role=f"ink:{length}", name=name)
        for name, length, v in (("short", 20, 1.0), ("long", 100, 2.0))
    ]
    lines = drawn(Chart("loss", runs, bottom=None), TimeScale(Window(1, 100), None), Glyphs.ASCII)
    low, high = plain(lines[-2]), plain(lines[1])
    assert high.endswith("long")
    assert "short" in low
    assert low.index("short") < len(high) // 2


def test_smoothing_leaves_what_was_measured_faint_behind_it() -> None:
    one, time = chart([1.0, 9.0] * 30), TimeScale(Window(1, 60), None)
    lines = figure(one, time, (60, 9), Glyphs.BRAILLE, step=60, smoothing=0.9)
    assert columns_of(lines, "faint")
    assert columns_of(lines, "value")
    assert "smoothing 0.9" in plain(lines[0])
    assert not columns_of(drawn(one, time), "faint")


def test_a_figure_without_a_measured_value_shows_the_reason() -> None:
    one = chart([math.nan], nothing="a pipe cannot be rewound")
    assert "a pipe cannot be rewound" in plain(drawn(one, TimeScale(Window(1, 1), None))[1])


@example(Window(262_144, 262_144), 89, None, Glyphs.BRAILLE)
@given(WINDOWS, st.integers(8, 200), st.data(), st.sampled_from(Glyphs))
def test_a_chart_draws_a_step_in_the_column_that_the_ribbon_has_for_it(
    window: Window, columns: int, data: Any, glyphs: Glyphs
) -> None:
    step = data.draw(st.integers(window.first, window.last)) if data else window.first
    one = chart([0.5], [step], top=1.0)
    for cursor in (None, step):
        time = TimeScale(window, cursor)
        lines = figure(one, time, (columns + GUTTER, 6), glyphs, step=step, ticks=False)
        texts = [plain(line)[GUTTER:] for line in lines[1:]]
        found = {at for text in texts for at, char in enumerate(text) if char != " "}
        assert found == {column_of(step, window, columns)}


@pytest.mark.parametrize("name", ["layer", "expert", "course"])
async def test_the_cursor_of_the_ribbon_is_below_that_of_charts(collapsed: Path, name: str) -> None:
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
