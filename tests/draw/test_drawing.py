"""Numbers as characters: nothing breaks on gaps, nothing bad is averaged away, all lines fit."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from microscope_tui.diagnosis import Severity, key_of
from microscope_tui.draw import frame, table, words
from microscope_tui.draw.frame import MIN_COLUMNS
from microscope_tui.draw.glyphs import Glyphs, bar, load_glyph, load_level, merged, spark
from microscope_tui.draw.spans import Span, crop, line_width, pad, plain, width_of, wrap
from microscope_tui.draw.table import first_visible, fit
from microscope_tui.screens.main.as_text import snapshot_text
from microscope_tui.watch import Column, RunWatch, view_of

Synthetic = Callable[..., RunWatch]
NUMBER = st.floats(-1e9, 1e9) | st.just(math.nan) | st.just(math.inf)
COLUMNS = st.lists(st.builds(lambda v: Column(v, v, v), NUMBER), max_size=80)
GAP, LOW, HIGH = (Column(value, value, value) for value in (math.nan, 0.0, 1.0))


@given(COLUMNS, st.integers(1, 30), st.sampled_from(list(Glyphs)), st.integers(1, 4))
def test_a_curve_always_fills_its_box_whatever_the_values(
    columns: list[Column], width: int, glyphs: Glyphs, height: int
) -> None:
    lines = spark(columns, width, (0.0, 1.0), glyphs, height)
    assert [len(line) for line in lines] == [width] * height


@pytest.mark.parametrize(
    ("columns", "width", "glyphs", "drawn"),
    [
        ([LOW, GAP, HIGH], 3, Glyphs.BLOCK, "▁ █"),
        ([LOW, LOW, GAP, GAP, HIGH, HIGH], 3, Glyphs.BRAILLE, "⣀ ⠉"),
        ([HIGH] * 50 + [LOW] * 50, 2, Glyphs.BLOCK, "█▁"),
        ([Column(0.0, 0.5, 1.0)], 1, Glyphs.BRAILLE, "⣿"),
        ([LOW, HIGH, HIGH, LOW], 4, Glyphs.ASCII, "_/-\\"),
        ([LOW, HIGH], 3, Glyphs.BRAILLE, "⣀⡈⠉"),
        ([LOW], 2, Glyphs.BLOCK, "▁▁"),
    ],
    ids=["gap", "braille gap", "whole history", "spike", "ascii", "short run", "one step"],
)
def test_a_curve_keeps_gaps_extremes_and_its_whole_history(
    columns: list[Column], width: int, glyphs: Glyphs, drawn: str
) -> None:
    assert spark(columns, width, (0.0, 1.0), glyphs) == [drawn]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=100), st.integers(1, 40))
def test_merging_columns_keeps_both_ends_of_the_scale(values: list[float], count: int) -> None:
    columns = merged([Column(value, value, value) for value in values], count)
    assert len(columns) <= count or len(columns) == len(values)
    assert min(column.low for column in columns) == min(values)
    assert max(column.high for column in columns) == max(values)


@pytest.mark.parametrize(
    ("load", "level", "glyph"),
    [
        *((0.0, None, "x"), (None, None, "x"), (1.0, 0, "."), (0.7, 0, "."), (1.5, 0, ".")),
        *((0.3, -7, "-"), (2.0, 4, "+"), (4.0, 8, "#"), (1e9, 16, "#"), (1e-9, -16, "-")),
    ],
)
def test_load_levels_have_a_calm_band(load: float | None, level: int | None, glyph: str) -> None:
    assert load_level(load) == level
    assert load_glyph(level) == glyph


def test_a_bar_is_as_wide_as_its_share() -> None:
    assert bar(0.5, 4, Glyphs.BLOCK) == "██  "
    assert bar(0.5, 4, Glyphs.ASCII) == "##  "
    assert bar(9.0, 2, Glyphs.BLOCK) == "██"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        *((words.index(0.934), ".93"), (words.index(1.0), "1.00")),
        *((words.index(math.nan), "NaN"), (words.index(None), "")),
        *((words.percent(0.0), "·"), (words.percent(0.381), "38%"), (words.percent(0.001), "<1%")),
        *((words.short_number(41234.0), "41k"), (words.short_number(4123.0), "4.1k")),
        (words.short_number(1000.0), "1.0k"),
        *((words.age(9.0), "9 s"), (words.age(59.0), "50 s")),
        *((words.age(60.0), "1 min"), (words.age(7300.0), "2 h")),
        *((words.duration(59.0), "59s"), (words.duration(60.0), "1m 00s")),
        *((words.duration(11_520.0), "3h 12m"), (words.duration(183_800.0), "2d 03h")),
        *((words.bytes_of(1 << 20), "1 MB"), (words.bytes_of(1600 << 20), "1.6 GB")),
        (words.listed(range(5)), "0, 1, 2 and 2 more"),
        *((words.choices(2), "top-2"), (words.choices(0), "top-k unknown")),
    ],
)
def test_numbers_are_as_short_as_their_columns(shown: str, text: str) -> None:
    assert shown == text


@given(
    st.lists(st.text(st.characters(exclude_categories=["C"]), max_size=8), max_size=6),
    st.integers(1, 30),
)
def test_padding_gives_exactly_the_width(texts: list[str], width: int) -> None:
    line = [Span(text) for text in texts]
    assert line_width(pad(line, width)) == width
    assert line_width(crop(line, width)) <= width


@given(st.text(alphabet="ab ", max_size=80), st.integers(3, 20))
def test_wrapping_loses_no_word(text: str, width: int) -> None:
    assert " ".join(wrap(text, width)).split() == text.split()
    assert all(width_of(line) <= width or " " not in line for line in wrap(text, width))


@pytest.mark.parametrize(("experts", "routers"), [(8, 6), (16, 10), (64, 5)])
def test_a_row_uses_its_width_and_curves_shrink_only_where_the_load_grows(
    synthetic: Synthetic, experts: int, routers: int
) -> None:
    view = view_of(synthetic("healthy", routers=routers, num_experts=experts, steps=20))
    before = None
    for columns in range(72, 261):
        layout = fit(view, columns, 60)
        used = layout.label + layout.heat + 2 + layout.curve + 2 + layout.entropy
        assert used <= columns
        assert used >= 0.93 * columns or columns > 240
        assert line_width(table.column_heads(view, layout)) <= columns
        assert line_width(frame.header(view, columns, Glyphs.BRAILLE)) == columns
        if before is not None:
            assert layout.cell >= before.cell
            assert layout.heat > before.heat or layout.spark >= before.spark
        before = layout


def test_the_header_of_an_evaluation_has_no_steps(synthetic: Synthetic) -> None:
    view = view_of(synthetic("healthy", routers=6, num_experts=8, steps=3))
    assert view.run is not None
    for planned, said in ((5, "evaluation, part 3 / 5  "), (1, "evaluation   loss")):
        run = replace(view.run, profile="eval", planned_steps=planned)
        assert said in plain(frame.header(replace(view, run=run), 100, Glyphs.BRAILLE))


@given(st.integers(0, 40), st.integers(0, 60), st.integers(1, 41))
def test_the_selected_layer_is_always_visible(selected: int, first: int, visible: int) -> None:
    shown = first_visible(visible, selected, first, 41)
    assert shown <= selected < shown + visible


@pytest.mark.parametrize("lines", [2, 3])
def test_advice_is_cut_between_words(synthetic: Synthetic, lines: int) -> None:
    view = view_of(synthetic("collapse", routers=10, steps=600))
    whole = view.worst[1].next.split()
    for columns in range(MIN_COLUMNS, 120):
        shown = frame.verdict(view, columns, lines, compact=True)[1:]
        advice = " ".join(plain(line) for line in shown).split()[1:]
        cut = advice.pop() == "…" if advice[-1] == "…" else False
        assert advice == whole[: len(advice)]
        assert cut or advice == whole


def test_the_lowest_balance_is_of_the_lowest_layer_not_of_a_noted_one(synthetic: Synthetic) -> None:
    view = view_of(synthetic("hot-expert"))
    balances = {layer.router.name: layer.judged_balance or 0.0 for layer in view.layers}
    lowest = min(balances, key=balances.__getitem__)
    noted = next(layer.router.name for layer in view.layers if layer.severity is not None)
    assert noted != lowest
    (line,) = frame.verdict(view, 100, 1)
    assert f"lowest balance {words.index(balances[lowest])} in {lowest}" in plain(line)


def test_text_without_a_height_lists_every_layer_also_beside_notes(synthetic: Synthetic) -> None:
    text = snapshot_text(watch := synthetic("hot-expert"))
    assert all(f"  {layer.router.name} " in text for layer in view_of(watch).layers)
    assert "more layer" not in text


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 40), (200, 60)])
@pytest.mark.parametrize("routers", [2, 6, 30])
def test_a_verdict_is_not_cut_while_rows_are_free(
    synthetic: Synthetic, routers: int, columns: int, rows: int
) -> None:
    view = view_of(synthetic("collapse", routers=routers, steps=300), columns=2)
    layout = fit(view, columns, rows)
    shown = frame.verdict(view, columns, layout.verdict_lines, compact=layout.compact)
    advice = view.worst[1]  # type: ignore[index]
    said = " ".join(map(plain, shown)).split()
    assert [word for word in f"{advice.why} {advice.next}".split() if word not in said] == []


def test_the_lines_of_a_verdict_are_those_of_the_unseen_alert(synthetic: Synthetic) -> None:
    view = view_of(synthetic("divergence", routers=3, steps=400))
    keys = [key_of(view.name, finding) for finding, _ in view.alerts]
    heights = {tuple(frame.verdict_heights(view, 60, keys[:n])) for n in range(len(keys))}
    assert len(heights) > 1
    for n in range(len(keys)):
        lines = frame.verdict_heights(view, 60, keys[:n])[-1]
        said = " ".join(map(plain, frame.verdict(view, 60, lines, keys[:n])))
        assert "…" not in said


def test_the_loss_takes_the_lines_that_no_layer_can_use(synthetic: Synthetic) -> None:
    view = view_of(synthetic("healthy", routers=4, steps=20), columns=200)
    layout = fit(view, 120, 60)
    assert layout.loss_rows >= 8
    lines = table.loss_curve(view, layout, Glyphs.BRAILLE)
    assert len(lines) == layout.loss_rows
    assert {line_width(line) for line in lines[1:]} == {119}
    assert fit(view, 120, 30).loss_rows == 0


def test_entropy_is_drawn_between_the_ends_of_a_run_and_noise_is_flat(synthetic: Synthetic) -> None:
    view = view_of(synthetic("healthy", routers=1, steps=20), columns=20)
    layer, layout = view.layers[0], fit(view, 120, 24)
    assert view.timeline.entropy_ends == pytest.approx(
        (min(c.low for c in layer.entropy_history), max(c.high for c in layer.entropy_history))
    )

    def levels(ends: tuple[float, float]) -> set[str]:
        return set(
            "".join(map(plain, table.entropy(layer, layout, Glyphs.BLOCK, ends=ends)))
        ) - set(" .0123456789")

    assert "█" in levels(view.timeline.entropy_ends)  # type: ignore[arg-type]
    middle = layer.entropy_history[-1].mean
    assert len(levels((middle, middle + 1e-3))) < 4


@pytest.mark.parametrize(
    ("severity", "quadrant", "word"),
    [
        (None, "specialised", "specialised"),
        (Severity.INFO, "specialised", "specialised"),
        (Severity.WARN, "specialised", ""),
        (Severity.WARN, "collapsed", "collapsed"),
        (None, None, ""),
    ],
)
def test_no_layer_with_an_alert_is_called_specialised(
    synthetic: Synthetic, severity: Severity | None, quadrant: str | None, word: str
) -> None:
    layer = view_of(synthetic("healthy", routers=1, steps=20)).layers[0]
    assert words.quadrant(replace(layer, severity=severity, quadrant=quadrant)) == word
