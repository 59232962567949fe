"""No text from a log can make a terminal do anything."""

import unicodedata

import pytest
from hypothesis import given, strategies as st

from microscope_tui.draw.spans import width_of
from microscope_tui.runlog import safe_text


@pytest.mark.parametrize(
    "hostile",
    [
        *("\x1b[2J", "\x1b]52;c;aGk=\x07", "\x9b31m", "a\u202eb"),
        *("a\u200bb", "\ud800", "\x00", "\ue000"),
    ],
)
def test_what_a_terminal_could_obey_is_shown_as_a_replacement_character(hostile: str) -> None:
    cleaned = safe_text(hostile)
    assert "\N{REPLACEMENT CHARACTER}" in cleaned
    assert not any(char in cleaned for char in "\x1b\x9b\x07\x00\u202e\u200b\ud800\ue000")


@given(st.text(), st.integers(1, 60))
def test_every_text_becomes_one_printable_line_within_its_width(text: str, cells: int) -> None:
    cleaned = safe_text(text, cells)
    assert width_of(cleaned) <= cells
    allowed_format = {c for c in cleaned if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co")}
    assert not allowed_format
    assert "\n" not in cleaned


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_plain_text_passes_unchanged(text: str) -> None:
    assert safe_text(text) == text


def test_a_cut_text_says_so_and_wide_characters_count_twice() -> None:
    assert safe_text("abcdef", 4) == "abc…"
    assert safe_text("日本語", 4) == "日…"


def test_combining_marks_cannot_smear_over_neighbouring_lines() -> None:
    assert len(safe_text("a" + "\u0316" * 500)) <= 3
