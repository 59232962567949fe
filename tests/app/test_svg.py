"""An exported screen is valid XML that downloads nothing, for any text on it."""

import io
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings, strategies as st
from rich.console import Console
from rich.text import Text

from microscope_tui.app import stand_alone

HOSTILE = [
    "</text></svg><script>alert(1)</script> & \"quoted\" 'title'",
    "\x1b[2J\x00\x07 \ud800 \ufffe",
    '@font-face { terminal-12-r1 class="terminal-12-r1" url(#terminal-12-line-0)',
    "</style> <style> font-family: Fira Code; &#160; &amp;",
    '<rect fill="#000000" x="0" y="0" width="1" height="1" shape-rendering="crispEdges"/>',
    "0.123456789012 }",
]


def drawn(*lines: str, title: str = "moe-microscope logs/") -> str:
    """What Textual's ``export_screenshot`` makes of a screen."""
    options: dict[str, Any] = {"force_terminal": True, "color_system": "truecolor"}
    console = Console(width=60, file=io.StringIO(), record=True, legacy_windows=False, **options)
    for line in lines:
        console.print(Text(line, "bold #d5d9e0 on #0f1419"), Text("dim", "#7d8793 on #0f1419"))
    return console.export_svg(title=title)


def shown(svg: str) -> list[str]:
    """The texts of a picture, title first; blanks as blanks."""
    texts = (e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text"))
    return [text.replace("\N{NO-BREAK SPACE}", " ") for text in texts]


def painted(svg: str) -> set[tuple[str, str, int]]:
    """Every cell with a background: its colour, line and column."""
    rects = re.findall(r'<rect fill="(#\w+)" x="([^"]+)" y="([^"]+)" width="([^"]+)"', svg)
    return {
        (fill, y, column)
        for fill, x, y, width in rects
        for column in range(round(float(x) / 12.2), round((float(x) + float(width)) / 12.2))
        if "." in y  # not the window itself
    }


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_title_stays_a_title(text: str) -> None:
    svg = stand_alone(drawn("one", title=text))
    title, *_ = shown(svg)
    assert title == re.sub("[\x00-\x1f\ud800-\udfff\ufffe]", "\ufffd", text)
    assert not [e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("script")]


@settings(max_examples=60)
@given(st.text(), st.lists(st.text(max_size=40) | st.sampled_from(HOSTILE), max_size=4))
def test_any_screen_is_valid_and_shows_the_same_texts(title: str, lines: list[str]) -> None:
    svg = drawn(*lines, title=title)
    before = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", svg)
    after = shown(stand_alone(svg))
    if any(char >= "\u2500" for text in shown(before) for char in text):  # drawn by stretches
        assert "".join("".join(after).split()) == "".join("".join(shown(before)).split())
    else:
        assert after == shown(before)


def test_a_curve_is_where_its_cells_are_in_any_font() -> None:
    svg = stand_alone(drawn("step 1 ⣀⣀  ⠉⠉ end"))
    placed = re.findall(r'<text[^>]* x="([\d.]+)"[^>]*textLength="([\d.]+)">([^<]*)</text>', svg)
    found = {text: (float(x), float(length)) for x, length, text in placed}
    cell = found["⣀⣀"][1] / 2
    assert found["⠉⠉"] == pytest.approx((found["⣀⣀"][0] + 4 * cell, 2 * cell), abs=0.01)


def test_nothing_is_downloaded() -> None:
    svg = stand_alone(drawn("one"))
    assert "@font-face" not in svg
    assert re.findall(r"https?://[^\s\"]+", svg) == [
        "http://www.w3.org/2000/svg",
        "https://www.textualize.io",  # who made it, in a comment
    ]
    assert "'DejaVu Sans Mono', monospace" in svg


def test_web_fonts_go_from_the_style_and_from_nowhere_else() -> None:
    svg = stand_alone(drawn("@font-face { x }", title="font-family: Fira"))
    assert shown(svg)[:2] == ["font-family: Fira", "@font-face { x }"]
    assert svg.count("@font-face") == 1


def test_a_picture_has_the_same_names_and_bytes_each_time_and_all_of_them_exist() -> None:
    assert stand_alone(drawn("one")) == stand_alone(drawn("one"))
    for svg in (stand_alone(drawn("one")), stand_alone(drawn("two", "three", title="x"))):
        assert "terminal-" not in svg
        names = set(re.findall(r'id="([^"]+)"', svg))
        assert names == {"moe-clip-terminal"}
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= names
        used = set(re.findall(r'class="([^"]+)"', svg)) - {"rich-terminal"}
        assert used <= set(re.findall(r"\.([\w-]+) ?\{", svg))


def test_a_picture_is_smaller_and_paints_the_same_cells() -> None:
    svg = drawn(*["a line of text"] * 20)
    small = stand_alone(svg)
    assert len(small.encode()) < 0.7 * len(svg.encode())
    assert small.count("<rect") < svg.count("<rect")
    assert painted(small) == painted(svg)
