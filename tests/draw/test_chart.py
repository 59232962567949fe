"""Charts as data: smoothing, scales, places, ticks, and bars that hide no expert."""

import math

import pytest
from hypothesis import example, given, strategies as st

from microscope_tui.draw.bars import bars_width, bias_bars, load_bars
from microscope_tui.draw.charts import (
    Chart,
    Curve,
    arranged,
    beside,
    plot_area,
    smoothed,
    tick_text,
)
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import line_width, plain
from microscope_tui.draw.time_line import Axis, TimeScale
from microscope_tui.watch import Column, Window

FINITE = st.floats(-1e6, 1e6)
VALUES = st.lists(st.one_of(FINITE, st.just(math.nan)), max_size=60)


def curve(*values: float) -> Curve:
    return Curve(range(1, len(values) + 1), [Column(v, v, v) for v in values])


@example([5e-324], 0.6)
@given(VALUES, st.sampled_from([0.0, 0.6, 0.9]))
def test_smoothing_keeps_gaps_and_adds_no_extreme(values: list[float], weight: float) -> None:
    out = smoothed(values, weight)
    assert [v == v for v in out] == [v == v for v in values]
    known = [v for v in values if v == v]
    slack = 1e-300 + 1e-6 * max((abs(v) for v in known), default=0.0)  # subnormals are coarse
    assert all(min(known) - slack <= v <= max(known) + slack for v in out if v == v)
    if not weight:
        assert [v for v in out if v == v] == known


def test_the_first_smoothed_value_is_the_first_value() -> None:
    assert smoothed([5.0, 5.0, 5.0], 0.9) == pytest.approx([5.0, 5.0, 5.0])
    assert smoothed([4.0, 0.0], 0.6)[1] == pytest.approx(1.5)


@given(VALUES, st.sampled_from([None, 0.0]), st.sampled_from([None, 1.0]))
def test_a_scale_never_has_its_ends_in_one_place(
    values: list[float], bottom: float | None, top: float | None
) -> None:
    scale = Chart("x", [curve(*values)], bottom=bottom, top=top).scale()
    assert math.isfinite(scale.bottom)
    assert scale.top > scale.bottom
    assert scale.share(scale.bottom) == 0.0
    assert scale.share(scale.top) == 1.0


def test_one_wild_spike_does_not_press_the_curve_flat_and_is_noted() -> None:
    chart = Chart("loss", [curve(*[2.0 + n / 100 for n in range(60)], 200.0)], bottom=None)
    scale = chart.scale()
    assert scale.top < 10
    assert scale.beyond == 200.0
    assert "peak 200 beyond" in plain(chart.title(60, 0.0, 80, focused=False))


def test_a_spike_of_a_hundred_times_the_median_makes_the_axis_logarithmic() -> None:
    values = [1.0 + n % 5 for n in range(60)]
    scale = Chart("gradient norm", [curve(*values, 6e7, 0.0)]).scale()
    assert (scale.bottom, scale.top, scale.log) == (1.0, 6e7, True)
    assert scale.share(100.0) == pytest.approx(0.257, abs=1e-3)
    assert [scale.text(value) for value in scale.powers[:4]] == ["10", "100", "1.0k", "10k"]
    assert not Chart("x", [curve(*values, 290.0)]).scale().log
    assert not Chart("x", [curve(-1.0, *values, 6e7)]).scale().log  # no logarithm below zero


def test_a_second_number_has_its_own_axis_only_where_one_of_them_would_be_flat() -> None:
    loss, other = Chart("loss", [curve(2.0, 3.0)], 3.0), Chart("aux", [curve(1.0, 2.5)], 2.5)
    both = beside(loss, other)
    assert both.right is None
    assert both.scale()[:2] == (0.0, 3.0)
    assert [one.name for one in both.curves] == ["loss", "aux"]
    far = beside(loss, Chart("tokens/s", [curve(9000.0, 9500.0)], 9500.0))
    assert far.right is not None
    assert far.scale()[:2] == (0.0, 3.0)
    title = plain(far.title(2, 0.0, 90, focused=True))
    assert "and tokens/s 9500.00   right axis" in title


def test_labels_of_the_y_axis_fit_their_gutter() -> None:
    for value in (0, 1, -1, 0.35, 1e-5, 8.76e-4, 123.4, 41234.0, 1e12, -0.03):
        for span in (1e-4, 0.3, 1, 7, 1000, 1e12):
            assert 0 < len(tick_text(value, span)) <= 7
    assert [tick_text(0.5, span) for span in (0.01, 0.05, 5, 50)] == [".500", ".50", ".5", "0"]


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=2),
    st.integers(0, 5),
    st.integers(24, 220),
    st.integers(2, 70),
    st.booleans(),
    st.floats(0, 0.6),
)
def test_stacks_fill_their_room_and_always_hold_the_focus(
    sizes: list[int], focus_at: int, columns: int, rows: int, enlarged: bool, share: float
) -> None:
    first = int(share * columns)
    stacks = [[f"{s}.{n}" for n in range(size)] for s, size in enumerate(sizes)]
    names = [name for stack in stacks for name in stack]
    focus = names[focus_at % len(names)]
    layout = arranged(stacks, focus, (columns, rows), enlarged=enlarged, first=first)
    shown = [place.name for stack in layout.stacks for place in stack]
    assert focus in shown
    assert sorted([*shown, *layout.hidden]) == sorted(names)
    for stack in layout.stacks:
        assert sum(place.height for place in stack) == rows
        assert [place.last for place in stack] == [False] * (len(stack) - 1) + [True]
        assert [place.name for place in stack] == [
            n for n in names if n in shown and n in {place.name for place in stack}
        ]
    assert sum(stack[0].width for stack in layout.stacks) <= columns
    start, width = plot_area(columns, len(layout.stacks), first)
    widths = [stack[0].width for stack in layout.stacks]
    assert start + width == sum(widths) + 2 * (len(widths) - 1)


@pytest.mark.parametrize("experts", [8, 16, 60, 64, 128, 256])
@pytest.mark.parametrize("columns", [80, 120, 160, 200])
def test_the_bars_of_a_layer_leave_no_empty_space_beside_them(columns: int, experts: int) -> None:
    used = bars_width(experts, columns, Glyphs.BRAILLE)
    line = plain(load_bars([1.0] * experts, (used, 9), Glyphs.BRAILLE, step=1)[-2])
    assert used <= max(columns // 2, 7 + experts)
    assert used - len(line) <= 8 or used == 48  # the width of a title
    alone = experts <= 64 and columns >= 120
    assert used >= 7 + experts or not alone, "each expert has a column of its own"


@given(st.integers(1, 10**9), st.integers(0, 10**7), st.integers(8, 200), st.sampled_from(Axis))
def test_ticks_are_as_wide_as_the_chart_and_name_steps_in_the_window(
    first: int, span: int, width: int, axis: Axis
) -> None:
    time = TimeScale(Window(first, first + span), None, axis=axis)
    line = time.tick_line(width)
    assert line_width(line) == width
    labels = plain(line).split()
    assert len(labels) > 1 or axis is not Axis.STEP or width < 60 or not span
    for label in labels:
        assert first <= int(label.replace(",", "")) <= first + span
    # Columns are equal stretches: with fewer steps than columns each step takes several.
    assert time.column_of(first, width) == 0
    assert time.column_of(first + span, width) == span * width // (span + 1)
    assert time.column_of(first - 1, width) is None


def test_ticks_follow_the_chosen_axis() -> None:
    time = TimeScale(Window(1, 7200), None, (), Axis.RUN_TIME, [1, 3600], [60.0, 3660.0], 60.0)
    assert "1h 00m" in plain(time.tick_line(60))
    assert "0s" in plain(time.tick_line(60))
    far = TimeScale(Window(1_000_000_001, 1_000_000_008), None)  # only one round step
    assert plain(far.tick_line(40)).split() == ["1,000,000,001", "1,000,000,008"]


@given(
    st.lists(st.floats(0, 60), min_size=1, max_size=300),
    st.lists(st.one_of(FINITE, st.just(math.nan), st.just(math.inf)), min_size=1, max_size=300),
    st.integers(9, 150),
    st.integers(2, 40),
    st.sampled_from(Glyphs),
)
def test_bars_fill_exactly_their_size(
    load: list[float], bias: list[float], width: int, height: int, glyphs: Glyphs
) -> None:
    for lines in (
        load_bars(load, (width, height), glyphs, step=7, chosen=len(load) - 1),
        bias_bars(bias, (width, height), glyphs, step=7, chosen=0),
    ):
        assert [line_width(line) for line in lines] == [width] * height


@pytest.mark.parametrize("expert", [0, 100, 255])
def test_one_dead_expert_of_256_is_seen_however_narrow_the_bars(expert: int) -> None:
    load = [0.0 if e == expert else 1.0 for e in range(256)]
    text = "\n".join(map(plain, load_bars(load, (40, 10), Glyphs.BRAILLE, step=1)))
    assert text.count("×") == 1
    assert "highest of 4 experts a bar" in text


def test_two_experts_share_a_column_in_the_colour_of_the_hotter_one() -> None:
    load = [2.0, 1.0, 0.0, 4.0] + [0.5] * 16
    *_, low, crosses, _ = load_bars(load, (19, 6), Glyphs.BRAILLE, step=1)
    assert plain(low)[7:13] == "█▐▄▄▄▄"
    assert [span.role for span in low[1:3]] == ["warn", "crit"]
    assert plain(crosses)[7:].rstrip() == " ×"
    wide = load_bars(load, (19, 6), Glyphs.BLOCK, step=1)
    assert "highest of" in plain(wide[0])


def test_the_bias_of_several_experts_swings_to_both_extremes() -> None:
    lines = bias_bars([0.4, -0.4] * 20, (17, 7), Glyphs.BRAILLE, step=1)
    assert {plain(line)[7:] for line in lines[1:]} == {"█" * 10}


@pytest.mark.parametrize("width", [38, 79, 120])
def test_one_expert_that_dwarfs_the_rest_makes_the_axis_logarithmic(width: int) -> None:
    rest = [0.1 + n / 128 for n in range(255)]
    title, *bars = map(plain, load_bars([32.0, *rest], (width, 14), Glyphs.BRAILLE, step=1))
    assert "load (log), highest of" in title
    labels = [line.split()[0] for line in bars if line[:6].strip()]
    assert labels == ["32.0", "4", "1", "1/4", "1/16"]
    heights = {sum(line.ljust(38)[at] == "█" for line in bars) for at in range(8, 36)}
    assert len(heights) > 2, "the others differ by more than an eighth of a cell"
    for load in ([2.0, 2.0, 0.0, 0.0], rest, [32.0, *[0.0] * 255]):  # nothing to press flat
        assert "log" not in plain(load_bars(load, (width, 14), Glyphs.BRAILLE, step=1)[0])


@given(st.integers(4, 90), st.sampled_from([0.0, 0.6]), st.booleans())
def test_a_title_omits_notes_and_cuts_none(width: int, smoothing: float, focused: bool) -> None:
    chart = Chart("balance c", [curve(0.5)], now=0.84, note="1 is even")
    line = chart.title(12410, smoothing, width, focused=focused)
    assert line_width(line) == width
    text = plain(line)
    if width >= 29:
        assert "balance c   0.84 at 12,410" in text
        assert "…" not in text
