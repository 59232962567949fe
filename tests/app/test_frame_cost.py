"""The printed cost of a heatmap is that of what the screens draw."""

from typing import Any

from microscope_tui.app import TILE, colour_samples, cost, glyph_samples
from microscope_tui.app.renderables import frame_cost
from microscope_tui.lines import Glyphs, fit
from microscope_tui.watch import view_of


def test_the_made_up_table_has_the_size_that_the_layout_gives_it(
    scenario: Any, open_log: Any
) -> None:
    folder = scenario("healthy", routers=58, num_experts=256, top_k=8, steps=2)
    layout = fit(view_of(open_log(folder / "metrics.jsonl")), 140, 50)
    assert (layout.heat, layout.experts_per_cell) == (frame_cost.COLUMNS, frame_cost.PER_CELL)
    assert (layout.table_rows, layout.row_height) == (frame_cost.LINES, 1)
    assert frame_cost.TILE == TILE


def test_fewer_colours_cost_less_and_an_update_is_a_fraction_of_a_frame() -> None:
    found = [cost(system) for system in ("truecolor", "256", "16", None)]
    frames = [one.frame for one in found]
    assert frames == sorted(frames, reverse=True)
    for one in found:
        assert 0 < one.update < one.frame / 3
        assert one.compressed < one.frame / 4


def test_measuring_again_gives_the_same_bytes() -> None:
    assert cost("256") == cost("256")


def test_samples_name_what_they_show_and_keep_to_the_alphabet() -> None:
    lines = colour_samples(Glyphs.BRAILLE)
    assert ["\x1b[48;2" in line for line in lines[:3]] == [True, False, False]
    assert "\x1b[38;5;233;48;5;" in lines[1]
    assert all(line.isascii() for line in colour_samples(Glyphs.ASCII))
    assert all(line.isascii() for line in glyph_samples(Glyphs.ASCII))
    assert "⣿" not in "".join(glyph_samples(Glyphs.BLOCK))
    assert "⣿" in "".join(glyph_samples(Glyphs.BRAILLE))
