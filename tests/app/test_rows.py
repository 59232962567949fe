"""Rows of a screen: what is sent again, and how a line is cut into tiles."""

from typing import Any

from hypothesis import given, strategies as st
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from microscope_tui.draw.spans import Span, plain
from microscope_tui.kit.rows import changed_width, cut

STYLES = [Style(color="red"), Style(color="blue")]
TEXTS = st.text("ab界", min_size=1, max_size=3)
SEGMENTS = st.lists(st.tuples(TEXTS, st.sampled_from(STYLES)).map(lambda pair: Segment(*pair)))
LINES = st.lists(st.builds(Span, st.text("abc", max_size=5), st.sampled_from(["", "dim"])))


@given(SEGMENTS, SEGMENTS, SEGMENTS)
def test_everything_after_the_changed_width_is_the_same(one: Any, other: Any, both: Any) -> None:
    before, after = Strip(one + both), Strip(other + both)
    width, full = changed_width(before, after), max(before.cell_length, after.cell_length)
    assert list(before.crop(width, full)) == list(after.crop(width, full)) or width == full
    assert (width == 0) == (before == after)
    if before.cell_length == after.cell_length:
        assert width <= full - Strip(both).cell_length


@given(LINES, st.integers(0, 30), st.integers(0, 30))
def test_a_cut_line_has_the_cells_and_roles_between(line: list[Span], start: int, end: int) -> None:
    cells = [(char, role) for text, role in line for char in text]
    found = [(char, role) for text, role in cut(line, start, end) for char in text]
    assert found == cells[start:end]
    assert plain(line) == "".join(char for char, _ in cells)
