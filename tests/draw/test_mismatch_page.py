"""The page of a mismatch: every line fits, and nothing that differs reads as 0."""

from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import line_width, plain
from microscope_tui.extensions.anatomy.compare import LayerMismatch, MarginBin, Mismatch
from microscope_tui.extensions.anatomy.mismatch_text import (
    beside_each_other,
    layer_lines,
    mismatch_text,
    percent,
)


@st.composite
def mismatches(draw: st.DrawFn) -> Mismatch:
    tokens = draw(st.integers(1, 10**6))
    layers = []
    for number in range(draw(st.integers(1, 12))):
        differing = draw(st.integers(0, tokens))
        swaps = Counter({(draw(st.integers(0, 999)), 3): differing} if differing else {})
        name = draw(st.sampled_from([f"L{number}", "dec.12.attn", "名前層"]))
        layers.append(LayerMismatch(name, number, tokens, differing, swaps))
    margins = [
        MarginBin(n / 7, n / 7 + 0.1, tokens, draw(st.integers(0, tokens)))
        for n in range(draw(st.integers(0, 10)))
    ]
    return Mismatch(tokens, draw(st.integers(0, tokens)), layers, margins)


@settings(max_examples=60)
@given(mismatches(), st.integers(40, 200), st.integers(1, 60), st.sampled_from(Glyphs))
def test_every_line_fits(found: Mismatch, columns: int, rows: int, glyphs: Glyphs) -> None:
    for line in mismatch_text(found, columns, glyphs):
        assert line_width(line) <= columns
    selected = len(found.layers) - 1
    page = beside_each_other(found, columns, rows, glyphs, selected, 0)
    assert len(page) <= rows
    assert all(line_width(line) == columns for line in page)
    if rows > len(found.layers):
        assert any(plain(line).startswith("▶") for line in page)


def test_the_name_of_the_layer_at_the_cursor_is_bright() -> None:
    layers = [LayerMismatch(f"L{n}", n, 500, 0, Counter()) for n in range(3)]
    lines = layer_lines(Mismatch(500, 0, layers, []), 80, Glyphs.ASCII, selected=1)
    names = {span.text.strip(): span.role for line in lines for span in line}
    assert [names[layer.name] for layer in layers] == ["dim", "value", "dim"]


def test_a_swap_is_named_with_its_layer_and_its_share_of_all_choices() -> None:
    layer = LayerMismatch("L3", 3, 500, 4, Counter({(7, 1): 3, (0, 12): 1}))
    text = [plain(line) for line in mismatch_text(Mismatch(500, 4, [layer], []), 80, Glyphs.ASCII)]
    assert "L3   7 -> 1   3 times, 0.60% of L3's choices" in text
    assert "L3   0 -> 12  1 time,  0.20% of L3's choices" in text


SHARES = {0: "0.00%", 1e-9: "<.01%", 0.031: "3.10%", 0.25: "25.0%", 0.99999: ">99.9%", 1: "100.0%"}


@pytest.mark.parametrize(("share", "text"), SHARES.items())
def test_a_share_never_rounds_to_none_or_all(share: float, text: str) -> None:
    assert percent(share) == text
