"""Cells of several experts: the highest and the lowest are seen, whatever the size and colours."""

import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, strategies as st

from microscope_tui.draw import table
from microscope_tui.draw.bars import load_bars
from microscope_tui.draw.glyphs import CALM_TO, HOT_LEVEL, Glyphs, calm_band
from microscope_tui.draw.heat import (
    Heat,
    Look,
    Measure,
    cells_of,
    heat_lines,
    heat_titles,
    highest_possible,
    legend,
)
from microscope_tui.draw.spans import Line, Span, plain
from microscope_tui.draw.table import fit
from microscope_tui.kit.palette import style_of
from microscope_tui.screens.compare import text as compare
from microscope_tui.watch import RunWatch, pin_at, reference_of, view_of

Synthetic = Callable[..., RunWatch]
HOT = 2.0 ** (HOT_LEVEL / 4)
SHAPES = [dict(num_experts=experts, top_k=k) for experts, k in ((8, 2), (64, 8), (256, 8))]


class Terminal(NamedTuple):
    glyphs: Glyphs
    system: str | None


TERMINALS = [
    *(Terminal(Glyphs.BRAILLE, system) for system in ("truecolor", "256", "standard", None)),
    Terminal(Glyphs.ASCII, "256"),
]


def heat_of(terminal: Terminal, **changes: Any) -> Heat:
    return Heat(colour=terminal.system is not None, glyphs=terminal.glyphs, **changes)


def cells(line: Line) -> list[Span]:
    return [Span(char, span.role) for span in line for char in span.text]


def is_hot(cell: Span, system: str | None) -> bool:
    """Whether the cell has a colour of hot experts, or their character."""
    if system is None:
        return cell.text == "#"
    hot = {style_of(f"heat:{level}", system).bgcolor for level in range(HOT_LEVEL, 17)}
    style = style_of(cell.role, system)
    upper = style.color if cell.text == "▀" else style.bgcolor
    return upper in hot


@pytest.fixture(params=SHAPES, ids=lambda shape: str(shape["num_experts"]))
def collapsed(request: pytest.FixtureRequest, synthetic: Synthetic) -> RunWatch:
    shape = dict(routers=3, tokens=8192, steps=300, **request.param)
    return synthetic("collapse", **shape)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_every_hot_expert_of_a_collapse_is_in_a_hot_cell(collapsed: RunWatch, columns: int) -> None:
    """On the main, the compare and the layer screen, in all colours."""
    view = view_of(collapsed)
    finding = next(finding for finding, _ in view.alerts if finding.rule == "COLLAPSE")
    layer = view.layers[finding.worst.router_index]
    named = finding.worst.facts["experts"]
    hot = [expert for expert in named if layer.load[expert] >= HOT]
    assert len(hot) == layer.router.top_k or layer.router.num_experts == 8
    start = pin_at(collapsed, finding.onset // 2)
    reference = reference_of("run", start, collapsed.run)
    then = reference.load_of(layer.index, layer.router.num_experts)
    for terminal in TERMINALS:
        layout = fit(view, columns, 24)
        drawn = table.load(layer, layout, heat_of(terminal))
        for expert in hot:
            at = expert // layout.experts_per_cell * layout.cell
            assert any(is_hot(cells(line)[at], terminal.system) for line in drawn), terminal
        arranged = compare.fit_compare(view, reference, columns, 20, 3)
        heat = heat_of(terminal, look=Look(Measure.DIFFERENCE), reference=reference)
        lines = compare.layer_lines(layer, reference, arranged, heat, chosen=False)
        first = columns - arranged.table.width_of("load")
        per_cell = -(-layer.router.num_experts // arranged.cells)
        for expert in [e for e in hot if layer.load[e] >= HOT * then[e]]:
            at = first + expert // per_cell * arranged.cell
            assert any(is_hot(cells(line)[at], terminal.system) for line in lines), terminal
    for glyphs in Glyphs:
        room = columns // 2
        _, *rows = load_bars(layer.load, (room, 12), glyphs, step=1)
        tall = [line for line in rows[:6] if any(span.role == "crit" for span in line)]
        assert len(tall) == 6, "the bars of hot experts are hot and rise above the middle"


@pytest.mark.parametrize("per_cell", range(2, 9))
def test_a_healthy_run_of_256_experts_is_calm_however_many_share_a_cell(per_cell: int) -> None:
    """Lognormal loads at c = 0.945, the most uneven of the healthy runs; 61 layers."""
    rng = random.Random(per_cell)
    loud = total = 0
    for _ in range(61):
        load = [math.exp(rng.gauss(0, 0.336)) for _ in range(256)]
        mean = sum(load) / 256
        (line,) = heat_lines((), [x / mean for x in load], Heat(), -(-256 // per_cell), 1)
        total += len(cells(line))
        loud += sum(cell.role != "heat:0" for cell in cells(line))
    assert loud <= 0.03 * total


@given(st.integers(1, 300))
def test_the_calm_band_widens_with_the_experts_of_a_cell_and_hides_no_hot_one(n: int) -> None:
    low, high = calm_band(n)
    wider = calm_band(n + 1)
    assert wider[0] <= low <= -0.7
    assert CALM_TO <= high <= wider[1] <= HOT_LEVEL / 4
    assert 2**low == pytest.approx(max(0.36, 2**low), rel=1e-3)


DEAD, FAIR, OVER, HOTTEST = 0.0, 1.0, 2.0, 8.0


@pytest.mark.parametrize(
    ("pair", "roles", "character"),
    [
        ((DEAD, DEAD), "heat:dead", "x"),
        ((DEAD, HOTTEST), "heat:12|heat:dead", "#"),
        ((DEAD, FAIR), "heat:0|heat:dead", "x"),
        ((0.1, 4.0), "heat:8|heat:-13", "#"),
        ((0.1, FAIR), "heat:0|heat:-13", "-"),
        ((FAIR, OVER), "heat:0", "."),
    ],
)
def test_a_cell_shows_its_highest_above_its_lowest_or_the_loudest(
    pair: tuple[float, float], roles: str, character: str
) -> None:
    for values in (pair, pair[::-1]):
        assert heat_lines((), values, Heat(), 1, 2)[0][0].role == roles
        (mono,) = heat_lines((), values, Heat(colour=False), 1, 1)
        assert mono[0].text == character
    (ascii_line,) = heat_lines((), pair, Heat(glyphs=Glyphs.ASCII), 1, 1)
    assert ascii_line[0].text == {"x": "×", "#": "▴"}.get(character, " ")


@pytest.mark.parametrize(
    ("height", "texts"),
    [(1, ["▀"]), (2, ["▴", " "]), (3, [" ", "▀", " "]), (4, [" ", "▴", " ", " "])],
)
def test_rows_of_lines_have_the_highest_above_and_both_midway(height: int, texts: Any) -> None:
    lines = heat_lines((), [HOTTEST, DEAD], Heat(), 1, 1, height=height)
    assert [line[0].text for line in lines] == texts
    upper = height // 2
    assert [line[0].role for line in lines[:upper]] == ["heat:12"] * upper
    assert [line[0].role for line in lines[height - upper :]] == ["heat:dead"] * upper
    chosen = heat_lines((), [HOTTEST, DEAD], Heat(), 1, 1, height=height, chosen=1)
    assert chosen[(height - 1) // 2] == [Span(texts[(height - 1) // 2].replace("▀", " "), "cursor")]


def test_the_legend_ends_at_the_highest_load_and_explains_halves_and_marks(synthetic: Any) -> None:
    view = view_of(synthetic("healthy", routers=2, num_experts=256, top_k=8, steps=20))
    most = highest_possible(view.layers)
    text = plain(legend(Heat(), 100, per_cell=3, most=most)).strip()
    assert text == "× all 0  ▀▀ some 0     ¼     fair  ▴  2.8 hot  ▴  8  ▴  32 x fair"
    alone = plain(legend(Heat(), 100, most=4.0)).strip()
    assert alone == "× 0     ¼     ½         fair     2  ▴  2.8 hot  ▴  4 x fair"
    mono = plain(legend(Heat(colour=False, glyphs=Glyphs.ASCII), 100, per_cell=3, most=most))
    assert mono.startswith("x some 0")
    titles = heat_titles(Heat(), 256, 3)
    assert titles[0] == "load, 3 experts a cell: highest above, lowest below"


@pytest.mark.parametrize(("most", "mark"), [(1.4, False), (1.5, True)])
def test_a_rank_is_hot_where_overload_warns(most: float, mark: bool) -> None:
    layer: Any = SimpleNamespace(load=[most, most, 1, 1], router=SimpleNamespace(num_experts=4))
    heat = Heat(Look(Measure.RANKS), given_ranks=2)
    (line,) = heat_lines((), cells_of(layer, heat), heat, 2, 3)
    assert ("▴" in line[0].text, "▴" in plain(line[1:])) == (mark, False)
    assert "▴  1.5 hot" in plain(legend(heat, 100))
