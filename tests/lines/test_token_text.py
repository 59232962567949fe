"""Colours, letters and the panel of a token, without a terminal."""

import pytest

from microscope_tui.lines import LETTERS, Busiest, Glyphs, Highlight, busiest, plain, tokens
from microscope_tui.routing import Choice, Routing
from tests.probed import SLICES

BUSY = Busiest({5: 0.3, 2: 0.2})


def highlight(expert: int | None = None) -> Highlight:
    return Highlight(10, [(5, 2), (2, 5), (7, 5), ()], BUSY, 99, expert)


def test_a_token_has_the_colour_of_its_largest_weight() -> None:
    marks = [("token:0", "a"), ("token:1", "b"), ("dim", "."), ("dim", ".")]
    assert [highlight().paint(token) for token in (10, 11, 12, 13)] == marks
    assert Highlight(10, [(5,)], BUSY, 10).paint(10)[0] == "cursor"


def test_one_expert_alone_is_lit_brightest_where_it_weighs_most() -> None:
    marks = [("lit:0", "^"), ("also:0", "'"), ("also:0", "'"), ("dim", " ")]
    assert [highlight(5).paint(token) for token in (10, 11, 12, 13)] == marks
    assert highlight(7).paint(12)[0] == "lit:7"


def test_every_slice_has_an_expert_with_a_colour(routing: Routing) -> None:
    busy = busiest(routing, 0)
    assert 0 < len(busy.shares) <= len(LETTERS)
    for at in range(len(SLICES)):
        counts = routing.tables.counts[at][0]
        assert busy.colour(counts.index(max(counts))) is not None
    total = sum(sum(rows[0]) for rows in routing.tables.counts)
    for expert, share in busy.shares.items():
        assert share == sum(rows[0][expert] for rows in routing.tables.counts) / total


def test_without_tables_the_busiest_are_counted(routing: Routing) -> None:
    bare = Routing(routing.path)
    bare.tables = type(bare.tables)()
    firsts = bare.first_choices(2, 0, bare.tokens)
    busy = busiest(bare, 2)
    assert max(set(firsts), key=firsts.count) == next(iter(busy.shares))


def test_what_was_not_measured_is_unknown(
    routing: Routing, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = Choice((), (), float("nan"), float("nan"))
    infinite = Choice((1, 2), (float("inf"), float("nan")), -1.0, 0.0)
    busy = busiest(routing, 0)

    def shown(choice: Choice, glyphs: Glyphs) -> str:
        monkeypatch.setattr(Routing, "choice", lambda *_: choice)
        lines = tokens.panel(routing, 0, 5, busy, glyphs, 30, 20)
        return "\n".join(plain(line) for line in lines)

    text = shown(unknown, Glyphs.ASCII)
    assert text.count("unknown") == 2
    assert "none chosen" in text
    assert "margin  -1.00" in shown(infinite, Glyphs.BRAILLE)
