"""The text of a probe as lines: every token is there, nothing harms, and places never move."""

import random
import struct
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from microscope_tui.extensions.anatomy.layout import BadRouting, Shape
from microscope_tui.extensions.anatomy.routing_file import Routing, RoutingWriter
from microscope_tui.extensions.anatomy.token_flow import (
    CHUNK,
    NOTHING,
    Flow,
    Place,
    pieces_of,
    shown_token,
    wrapped,
)


def write(path: Path, texts: list[bytes], slices: list[int] | None = None) -> Routing:
    shape = Shape((1,), ("L1",), 4, 1, max(1, len(texts)))
    writer = RoutingWriter(path, shape, slices=["a", "b", "c"])
    count = len(texts)
    writer.put_tokens(range(count), texts, slices or [0] * count, [0] * count)
    writer.put("ids", 0, 0, bytes(n % 4 for n in range(count)))
    writer.finish()
    return Routing(path)


@st.composite
def split_text(draw: st.DrawFn) -> list[bytes]:
    data = draw(st.binary(max_size=60) | st.text(max_size=40).map(lambda t: t.encode("utf-8")))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    ends = [0, *cuts, len(data)]
    return [data[a:b] for a, b in pairwise(ends)]


@given(split_text())
def test_every_token_has_a_cell_and_no_character_can_harm(texts: list[bytes]) -> None:
    pieces = pieces_of(texts, 7)
    assert [p.token for p in pieces] == sorted(p.token for p in pieces)
    assert {p.token for p in pieces} == set(range(7, 7 + len(texts)))
    for piece in pieces:
        assert piece.width >= 1
        assert piece.text
        forbidden = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
        assert not {unicodedata.category(char) for char in piece.text} & forbidden
        assert unicodedata.category(piece.text[0]) not in ("Mn", "Me")


@given(split_text(), st.integers(2, 20))
def test_lines_fit_and_hold_every_piece_in_order(texts: list[bytes], width: int) -> None:
    pieces = pieces_of(texts, 0)
    lines = wrapped(pieces, width)
    shown = "".join(piece.text for line in lines for piece in line.pieces)
    assert shown == "".join(piece.text for piece in pieces)
    for line in lines:
        assert sum(piece.width for piece in line.pieces) <= width
        assert line.first == line.pieces[0].token


@given(st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=30), st.data())
def test_letters_split_over_tokens_are_shown_whole(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=8)))
    ends = [0, *cuts, len(encoded)]
    texts = [encoded[a:b] for a, b in pairwise(ends)]
    shown = "".join(piece.text for piece in pieces_of(texts, 0)).replace(NOTHING, "")
    whole = "".join(piece.text for piece in pieces_of([encoded], 0)).replace(NOTHING, "")
    assert shown == whole


def texts_of(*tokens: bytes, before: bytes = b"", after: bytes = b"") -> list[str]:
    return [piece.text for piece in pieces_of(tokens, 0, before, after)]


def test_a_letter_belongs_to_the_token_in_which_it_begins() -> None:
    assert texts_of(b"a\xe2\x82", b"\xac", b"b") == ["a€", NOTHING, "b"]
    assert texts_of(b"\xac", b"b", before=b"a\xe2\x82") == [NOTHING, "b"]
    assert texts_of(b"a\xe2\x82", after=b"\xacb") == ["a€"]
    assert texts_of(b"\xff\xfe\xfd", b"x\xff", b"") == ["�", "x�", NOTHING]


def test_newlines_are_seen_and_end_a_line() -> None:
    pieces = pieces_of([b"a", b"\n\n  ", b"b\r\n"], 0)
    assert [(p.token, p.text, p.ends_line) for p in pieces] == [
        *((0, "a", False), (1, "↵", True), (1, "↵", True)),
        *((1, "  ", False), (2, "b␍↵", True)),
    ]
    assert len(wrapped(pieces, 40)) == 3


def test_marks_stay_on_their_letter_and_are_few() -> None:
    (piece,) = pieces_of(["e\u0301\u0302\u0303\u0304".encode()], 0)
    assert (piece.text, piece.width) == ("e\u0301\u0302", 1)
    first, second = pieces_of([b"e", "\u0301x".encode()], 0)
    assert (first.text, second.text, second.width) == ("e", "\u25cc\u0301x", 2)


def test_lines_break_between_words_and_anywhere_in_wide_letters() -> None:
    lines = wrapped(pieces_of([b"The", b" quick", b" br", b"own", b" fox"], 0), 12)
    assert ["".join(p.text for p in line.pieces) for line in lines] == ["The quick", " brown fox"]
    lines = wrapped(pieces_of(["漢字".encode(), "仮名".encode()], 0), 6)
    assert ["".join(p.text for p in line.pieces) for line in lines] == ["漢字", "仮名"]
    lines = wrapped(pieces_of([b"x" * 25], 0), 10)
    assert [line.pieces[0].width for line in lines] == [10, 10, 5]


def test_a_token_in_a_list_shows_its_blanks() -> None:
    assert shown_token(b"  x y") == "␣␣x y"
    assert shown_token(b"\n    ") == "↵␣␣␣␣"
    assert shown_token(b"\n" + b" " * 19, 16) == "↵␣×19"
    assert shown_token(b"x \n") == "x␣↵"
    assert shown_token(b"") == NOTHING


@pytest.fixture
def long(tmp_path: Path) -> Routing:
    draw = random.Random(3)
    words = [b" the", b" brown", b" fox", b"es", b"\n", b".", " ναι".encode(), b" x" * 30]
    texts = draw.choices(words, [4, 4, 4, 2, 1, 1, 1, 0.1], k=5 * CHUNK + 100)
    slices = [n * 3 // len(texts) for n in range(len(texts))]
    return write(tmp_path / "routing.bin", texts, slices)


def test_all_lines_together_are_the_text_once_with_the_slices(long: Routing) -> None:
    lines = Flow(long, 40).shown(Place(0, 0), 10_000)
    tokens = [piece.token for line in lines for piece in line.pieces]
    assert sorted(set(tokens)) == list(range(long.tokens))
    assert tokens == sorted(tokens)
    heads = [line for line in lines if line.slice_number is not None]
    assert [line.slice_number for line in heads] == [0, 1, 2]
    assert [long.slices_of(line.first, line.first + 1)[0] for line in heads] == [0, 1, 2]


def test_a_token_is_found_on_the_same_line_from_anywhere(long: Routing) -> None:
    every = Flow(long, 40).shown(Place(0, 0), 10_000)
    draw = random.Random(1)
    for token in [0, long.tokens - 1, *(draw.randrange(long.tokens) for _ in range(20))]:
        flow = Flow(long, 40)
        (line,) = flow.shown(flow.place_of(token), 1)
        first = next(one for one in every if any(p.token == token for p in one.pieces))
        assert line == first


def test_moving_line_by_line_is_the_same_forwards_and_backwards(long: Routing) -> None:
    flow = Flow(long, 40)
    last = flow.place_of(long.tokens - 1)
    down, place = [Place(0, 0)], Place(0, 0)
    while place != last:
        place = flow.moved(place, 1)
        down.append(place)
    assert len(down) == len(flow.shown(Place(0, 0), 10_000))
    up = [place]
    while place != Place(0, 0):
        place = flow.moved(place, -1)
        up.append(place)
    assert up == down[::-1]
    assert flow.moved(Place(0, 0), -5) == Place(0, 0)
    assert flow.moved(last, 99) == last


def test_the_cursor_is_always_in_view_and_the_page_is_full(long: Routing) -> None:
    flow, top, draw = Flow(long, 40), Place(0, 0), random.Random(2)
    token = 0
    for _ in range(150):
        token = draw.choice([token + 1, token - 1, token + 30, draw.randrange(long.tokens)])
        token = max(0, min(long.tokens - 1, token))
        before, top = top, flow.scrolled(top, flow.place_of(token), 12)
        lines = flow.shown(top, 12)
        assert len(lines) == 12
        assert any(piece.token == token for line in lines for piece in line.pieces)
        if any(p.token == token for line in flow.shown(before, 12) for p in line.pieces):
            assert before == top, "what is in view does not move"


def test_a_text_without_newlines_and_one_of_nothing(tmp_path: Path) -> None:
    routing = write(tmp_path / "one.bin", [b"ab"] * (3 * CHUNK))
    flow = Flow(routing, 20)
    assert len(flow.shown(Place(0, 0), 9999)) == 1 + 3 * -(-2 * CHUNK // 20)
    nothing = write(tmp_path / "nothing.bin", [])
    assert Flow(nothing, 20).shown(Place(0, 0), 5) == []


def test_a_huge_token_is_cut_and_a_damaged_table_is_refused(tmp_path: Path) -> None:
    routing = write(tmp_path / "huge.bin", [b"a" * 5_000_000, b"b"])
    shown = Flow(routing, 50).shown(Place(0, 0), 99)
    assert sum(piece.width for line in shown for piece in line.pieces) < 300
    path = tmp_path / "bad.bin"
    write(path, [b"abc", b"d"]).close()
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<2Q", 3, 4))
    data[at : at + 8] = struct.pack("<Q", 1 << 60)
    path.write_bytes(data)
    with pytest.raises(BadRouting, match="damaged"):
        Flow(Routing(path), 50).shown(Place(0, 0), 9)
