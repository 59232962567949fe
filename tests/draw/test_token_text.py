"""Colours, letters and the panel of a token, without a terminal."""

import re

import pytest
from hypothesis import given, strategies as st

from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import plain
from microscope_tui.extensions.anatomy import tokens_text as tokens
from microscope_tui.extensions.anatomy.layout import Choice
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.extensions.anatomy.tokens_text import LETTERS, Highlight, busiest, colours

OWN = colours((5, 2))


def highlight(expert: int | None = None) -> Highlight:
    return Highlight(10, [(5, 2), (2, 5), (7, 5), ()], OWN, 99, expert)


def test_a_token_has_the_colour_of_its_largest_weight() -> None:
    marks = [("token:5", "f"), ("token:2", "c"), ("dim", "."), ("dim", ".")]
    assert [highlight().paint(token) for token in (10, 11, 12, 13)] == marks
    assert Highlight(10, [(5,)], OWN, 10).paint(10)[0] == "cursor"


def test_one_expert_alone_is_lit_brightest_where_it_weighs_most() -> None:
    marks = [("lit:5", "^"), ("also:5", "'"), ("also:5", "'"), ("dim", " ")]
    assert [highlight(5).paint(token) for token in (10, 11, 12, 13)] == marks
    assert highlight(7).paint(12)[0] == "lit:0"


@given(st.lists(st.integers(0, 511), max_size=12, unique=True))
def test_experts_of_a_token_have_different_colours_that_stay_with_them(experts: list[int]) -> None:
    found = colours(experts)
    assert list(found) == experts[: len(LETTERS)]
    assert len(set(found.values())) == len(found)
    assert all(colours([expert]) == {expert: expert % len(LETTERS)} for expert in experts)


def test_the_legend_has_the_experts_of_the_token_and_the_busiest_in_order(routing: Routing) -> None:
    shares, counts = busiest(routing, 0), [rows[0] for rows in routing.tables.counts]
    for expert, share in shares.items():
        assert share == sum(row[expert] for row in counts) / sum(map(sum, counts))
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    for columns, most in ((60, 1), (80, 4), (200, 7)):
        text = plain(tokens.legend(highlight(), shares, columns, letters=False))
        assert re.match(r"  this token   5  +\d+%   2  +\d+%   others   busiest", text)
        listed = re.findall(r"(\d+) +\d+%", text.partition("busiest")[2])
        assert list(map(int, listed)) == list(shares)[:most]
    many = Highlight(0, [()], colours(range(200, 208)), 0)
    text = plain(tokens.legend(many, dict.fromkeys(range(256), 0.1), 80, letters=True))
    assert text.endswith("  . others")


def test_without_tables_the_legend_has_no_shares(routing: Routing) -> None:
    bare = Routing(routing.path)
    bare.tables = type(bare.tables)()
    text = plain(tokens.legend(highlight(), busiest(bare, 2), 80, letters=False))
    assert text.split() == ["this", "token", "5", "2", "others"]


def test_what_is_not_measured_is_unknown(routing: Routing, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = Choice((), (), float("nan"), float("nan"))
    infinite = Choice((1, 2), (float("inf"), float("nan")), -1.0, 0.0)

    def shown(choice: Choice, glyphs: Glyphs) -> str:
        monkeypatch.setattr(Routing, "choice", lambda *_: choice)
        lines = tokens.panel(routing, 0, 5, {}, glyphs, 30, 20)
        return "\n".join(plain(line) for line in lines)

    text = shown(unknown, Glyphs.ASCII)
    assert text.count("unknown") == 2
    assert "none chosen" in text
    assert "margin  -1.00" in shown(infinite, Glyphs.BRAILLE)
