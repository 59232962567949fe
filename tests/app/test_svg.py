"""A picture is valid XML that downloads nothing, and every cell is at its place in any renderer."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings, strategies as st
from rich.segment import Segment
from rich.style import Style

from microscope_tui.kit.light import LIGHT
from microscope_tui.kit.palette import DARK
from microscope_tui.kit.svg import svg_of

HOSTILE = [
    "</text></svg><script>alert(1)</script> & \"quoted\" 'title'",
    "\x1b[2J\x00\x07 \ud800 \ufffe",
    "</style> <style> font-family: Fira Code; &#160; &amp;",
]
NOT_XML = "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
INK, GROUND = "#d5d9e0", "#0f1419"


def drawn(*lines: str, style: str = f"bold {INK} on {GROUND}", title: str | None = None) -> str:
    segments = [[Segment(line, Style.parse(style))] for line in lines]
    return svg_of(segments, 60, DARK, title=title)


def shown(svg: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text")]


def painted(svg: str) -> dict[str, set[tuple[float, float, float, float]]]:
    """The rectangles of every colour, without that of the whole picture."""
    found = {}
    for fill, path in re.findall(r'<path fill="(#\w+)" d="([^"]+)"/>', svg):
        boxes = re.findall(r"M([-\d.]+) ([-\d.]+)h([\d.]+)v([\d.]+)h-\3z", path)
        assert "".join("M{} {}h{}v{}h-{}z".format(*box, box[2]) for box in boxes) == path
        found.setdefault(fill, set()).update(tuple(map(float, box)) for box in boxes)
    return found


def dots(svg: str) -> list[tuple[int, int]]:
    found = []
    for path in re.findall(r'<path stroke="#\w+"[^>]* d="([^"]+)"/>', svg):
        for x, y, length in re.findall(r"M(\d+) (\d+)h(\d+)", path):
            found += [(int(x) + at, int(y)) for at in range(0, int(length), 6)]
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_title_stays_a_title(text: str) -> None:
    svg = drawn("one", title=text)
    assert shown(svg) == [re.sub(NOT_XML, "\ufffd", text), "one"]
    assert not [e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("script")]


@settings(max_examples=60)
@given(st.lists(st.text(max_size=40) | st.sampled_from(HOSTILE), max_size=4))
def test_any_screen_is_valid_and_shows_the_same_texts(lines: list[str]) -> None:
    shapes = "[\u2500-\u259f\u2800-\u28ff]"  # drawn
    text = re.sub(NOT_XML, "\ufffd", re.sub(shapes, "", "".join(lines)))
    after = "".join(shown(drawn(*lines)))
    assert "".join(re.sub(shapes, "", after).split()) == "".join(text.split())


def test_words_and_other_characters_are_where_their_cells_are_in_any_font() -> None:
    svg = drawn("", "step 1 of 2 and on    ×→界")
    placed = re.findall(r'<text x="(\d+)" y="(\d+)"(?: textLength="(\d+)")?[^>]*>([^<]*)<', svg)
    assert placed == [
        ("0", "42", "108", "step 1 of"),
        ("120", "42", "96", "2 and on"),
        ("264", "42", "", "×"),
        ("276", "42", "", "→"),
        ("288", "42", "", "界"),
    ]


def test_braille_is_dots_inside_its_cells() -> None:
    places = [(x, y) for x in (3, 9) for y in (3, 9, 15, 21)]
    assert sorted(dots(drawn("⣿"))) == places
    svg = drawn("", "step ⢀  ⠁")
    assert dots(svg) == [(99, 27), (69, 45)]
    assert 'stroke-linecap="round" stroke-dasharray="0 6"' in svg
    assert shown(svg) == ["step"]


def test_a_half_block_in_two_colours_is_two_halves_of_its_cell() -> None:
    halves = [
        Segment("▀", Style.parse("#ff0000 on #0000ff")),
        Segment("▄▄", Style.parse("#00ff00")),
    ]
    assert painted(svg_of([[], halves], 3, LIGHT)) == {
        "#0000ff": {(0, 24, 12, 24)},  # below the next, which comes later
        "#ff0000": {(0, 24, 12, 12)},
        "#00ff00": {(12, 36, 24, 12)},
    }


@pytest.mark.parametrize(
    ("char", "box"),
    [
        ("█", (12, 0, 12, 24)),
        ("▂", (12, 18, 12, 6)),
        ("▍", (12, 0, 4.5, 24)),
        ("▐", (18, 0, 6, 24)),
        ("▘", (12, 0, 6, 12)),
        ("▗", (18, 12, 6, 12)),
    ],
)
def test_a_block_covers_its_part_of_the_cell(char: str, box: tuple[float, ...]) -> None:
    assert painted(drawn(f" {char}", style="#ff0000")) == {"#ff0000": {box}}


def test_neighbours_of_one_colour_are_one_rectangle() -> None:
    line = [Segment("ab", Style.parse("on #102030")), Segment("  ", Style.parse("bold on #102030"))]
    assert painted(svg_of([line], 4, DARK)) == {"#102030": {(0, 0, 48, 24)}}


def test_nothing_is_downloaded_and_the_window_is_drawn_on_request() -> None:
    plain, framed = drawn("one"), drawn("one", title="logs/")
    for svg in (plain, framed):
        assert re.findall(r"https?://[^\s\"]+", svg) == ["http://www.w3.org/2000/svg"]
        assert "DejaVu Sans Mono, monospace" in svg
        assert svg == drawn("one", title="logs/" if svg is framed else None)
    assert "<circle" not in plain
    assert framed.count("<circle") == 3


def test_reverse_video_swaps_the_colours() -> None:
    svg = drawn("x", style="reverse underline #ff0000 on #0000ff")
    assert painted(svg) == {"#ff0000": {(0, 0, 12, 24)}}
    assert '<text x="0" y="18" fill="#0000ff" text-decoration="underline">x<' in svg
