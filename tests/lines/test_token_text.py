"""Colours, letters and the panel of a token, without a terminal."""

from pathlib import Path

import pytest

from microscope_tui.lines import (
    LETTERS,
    Busiest,
    Flow,
    Glyphs,
    Highlight,
    Place,
    busiest,
    line_width,
    plain,
    tokens,
)
from microscope_tui.routing import FILE_NAME, Choice, Routing
from tests.probed import CLASSES, SLICES, class_of, write_probed


@pytest.fixture(scope="module")
def routing(tmp_path_factory: pytest.TempPathFactory) -> Routing:
    return Routing(write_probed(tmp_path_factory.mktemp("probe") / "run") / FILE_NAME)


BUSY = Busiest({5: 0.3, 2: 0.2})


def light(expert: int | None = None) -> Highlight:
    return Highlight(10, [(5, 2), (2, 5), (7, 5), ()], BUSY, 99, expert)


def test_a_token_has_the_colour_of_its_largest_weight() -> None:
    roles = [light().paint(token)[0] for token in (10, 11, 12, 13)]
    assert roles == ["token:0", "token:1", "dim", "dim"]
    assert [light().paint(token)[1] for token in (10, 11, 12, 13)] == ["a", "b", ".", "."]
    assert Highlight(10, [(5,)], BUSY, 10).paint(10)[0] == "cursor"


def test_one_expert_alone_is_lit_brightest_where_it_weighs_most() -> None:
    assert [light(5).paint(t)[0] for t in (10, 11, 12, 13)] == ["lit:0", "also:0", "also:0", "dim"]
    assert [light(5).paint(t)[1] for t in (10, 11, 12, 13)] == ["^", "'", "'", " "]
    assert light(7).paint(12)[0] == "lit:7"


def test_every_slice_has_an_expert_with_a_colour(routing: Routing) -> None:
    busy = busiest(routing, 0)
    assert 0 < len(busy.shares) <= len(LETTERS)
    for at in range(len(SLICES)):
        counts = routing.tables.counts[at][0]
        assert busy.colour(counts.index(max(counts))) is not None
    total = sum(sum(rows[0]) for rows in routing.tables.counts)
    for expert, share in busy.shares.items():
        assert share == sum(rows[0][expert] for rows in routing.tables.counts) / total


def test_without_tables_the_busiest_are_counted(routing: Routing, tmp_path: Path) -> None:
    bare = Routing(routing.path)
    bare.tables = type(bare.tables)()
    firsts = bare.first_choices(2, 0, bare.tokens)
    busy = busiest(bare, 2)
    assert max(set(firsts), key=firsts.count) == next(iter(busy.shares))


def test_letters_are_below_the_words_that_they_name(routing: Routing) -> None:
    lines = Flow(routing, 60).shown(Place(0, 0), 30)
    chosen = routing.chosen(0, 0, 500)
    here = Highlight(0, chosen, busiest(routing, 0), 0)
    text = tokens.text_lines(lines, here, routing.slices, 60, letters=True)
    assert plain(text[0]).startswith("── code ──")
    assert len(text) == 1 + 2 * (len(lines) - 1)
    for line, above, below in zip(lines[1:], text[1::2], text[2::2], strict=True):
        assert plain(above).rstrip() == "".join(p.text for p in line.pieces).rstrip()
        at = 0
        for piece in line.pieces:
            marks = "".join(span.text for span in below)[at : at + piece.width]
            assert marks.strip() == here.paint(piece.token)[1]
            at += piece.width


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("letters", [True, False])
def test_the_lines_above_the_text_fit(routing: Routing, width: int, letters: bool) -> None:
    here = Highlight(0, routing.chosen(0, 0, 9), busiest(routing, 0), 3)
    legend = tokens.legend(here, 16, width, letters=letters)
    assert line_width(legend) == width
    for at, expert in enumerate(here.busiest.shares):
        assert (f" {LETTERS[at]} {expert} " if letters else f" {expert} ") in f"{plain(legend)} "
    only = plain(tokens.legend(light(7), 16, width, letters=letters))
    assert "only expert" in only
    assert "largest weight" in only
    title = tokens.title(routing, 5, 1600, width, (4, 5))
    assert line_width(title) == width
    assert plain(title).startswith("  L6 6 of 6   token 1,600 of ")
    assert "slice prose" in plain(title) or width < 80


@pytest.mark.parametrize("rows", [6, 16, 20, 50])
@pytest.mark.parametrize("width", [25, 37])
def test_the_panel_holds_the_choice_and_fits(routing: Routing, rows: int, width: int) -> None:
    busy, choice = busiest(routing, 2), routing.choice(2, 1200)
    lines = tokens.panel(routing, 2, 1200, busy, Glyphs.BRAILLE, width, rows)
    assert len(lines) <= rows
    assert {line_width(line) for line in lines} == {width}
    text = "\n".join(plain(line) for line in lines)
    for expert in choice.experts:
        assert f" {expert} " in text
    if rows >= 16:
        assert "margin" in text
        assert "entropy" in text
        here = next(plain(line) for line in lines if plain(line).startswith("▶"))
        assert "L3" in here
        assert str(choice.experts[0]) in here


def test_the_brief_panel_has_the_choice_and_the_layers(routing: Routing) -> None:
    first = routing.choice(2, 1200).experts[0]
    lines = tokens.brief(routing, 2, 1200, 60)
    assert [line_width(line) for line in lines] == [60, 60, 60]
    assert str(first) in plain(lines[0])
    assert "margin" in plain(lines[1])
    assert f"L3 {first}" in plain(lines[2])


def test_what_was_not_measured_is_said(routing: Routing, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_without_a_probe_two_lines_tell_how_to_make_one() -> None:
    said = [plain(line) for line in tokens.without_probe(80)]
    assert len([line for line in said if line]) == 2
    assert "moe-microscope probe MODEL TEXT" in said[2]
    assert "cut off" in plain(tokens.without_probe(80, "it is cut off")[1])


def test_the_planted_classes_cover_the_tokens_of_the_tests() -> None:
    for token, slice_, expected in (
        (b" return", "code", "keyword"),
        (b" Guido", "prose", "word"),
        (" ναι".encode(), "greek", "greek"),
        (b"\n", "code", "break"),
        (b"    ", "code", "indent"),
        (b"42", "code", "number"),
        (b"(", "code", "punctuation"),
    ):
        assert class_of(token, slice_) == expected
        assert expected in CLASSES
