"""A screen as Rich's SVG, made self-contained and small.

The same screen gives the same bytes, so that pictures can be compared and kept in git. Only markup
is changed: screen text has its quotes escaped, so no pattern here that contains a quote can match
it.
"""

import re
from html import escape, unescape

from rich.cells import cell_len

FONTS = "'JetBrains Mono', 'Cascadia Mono', Menlo, 'DejaVu Sans Mono', monospace"
_STYLE_ENDS = "</style>"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAME = re.compile(r'((?:class|id)="|="url\(#)terminal-\d+-')
_NAME_IN_STYLE = re.compile(r"\.terminal-\d+-")
_LINE_CLIP = re.compile(r'<clipPath id="moe-line-\d+">.*?</clipPath>\s*', re.S)
_CLIPPED_TO_LINE = re.compile(r' clip-path="url\(#moe-line-\d+\)"')
_LONG_NUMBER = re.compile(r'\d+\.\d{7,}(?=")')
_BACKGROUND = re.compile(
    r'<rect fill="(#\w+)" x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)"'
    r' shape-rendering="crispEdges"/>'
)
_BACKGROUNDS = re.compile(f"(?:{_BACKGROUND.pattern})+")
_TEXT = re.compile(
    r'<text class="([^"]+)" x="(\d+(?:\.\d+)?)" y="([^"]+)" textLength="(\d+(?:\.\d+)?)">'
    r"([^<]*)</text>"
)
_WORD = re.compile("[^\N{NO-BREAK SPACE}]+")
_TOUCHING = 0.05  # Rich rounds to six digits


def stand_alone(svg: str) -> str:
    """The export without web fonts, with deterministic names and without redundant markup."""
    head, ends, body = without_web_fonts(_NOT_XML.sub("\ufffd", svg)).partition(_STYLE_ENDS)
    head = re.sub(r"\n\s*(?=\n)", "", _NAME_IN_STYLE.sub(".moe-", head))
    body = _NAME.sub(r"\1moe-", body)
    # Every line has its own clip except the last: Rich refers to one that it never wrote.
    body = _CLIPPED_TO_LINE.sub("", _LINE_CLIP.sub("", body))
    body = _BACKGROUNDS.sub(lambda found: _merged(found[0]), body)
    body = _TEXT.sub(_placed, body.replace("&#160;", "\N{NO-BREAK SPACE}"))
    svg = f"{head}{ends}{body}"
    return _LONG_NUMBER.sub(lambda found: f"{float(found[0]):g}", svg)


def without_web_fonts(svg: str) -> str:
    """No web fonts, and blanks preserved."""
    head, ends, body = svg.partition(_STYLE_ENDS)
    head = re.sub(r"@font-face\s*\{.*?\}", "", head, flags=re.S)
    head = re.sub(r"font-family: ?[^;}]*Fira[^;}]*", f"font-family: {FONTS}", head)
    head = head.replace("<svg ", '<svg xml:space="preserve" ', 1)
    return f"{head}{ends}{body}"


def _merged(backgrounds: str) -> str:
    """Merge neighbours of one colour: most of a screen is background."""
    merged: list[tuple[str, float, str, float, str]] = []
    for fill, x, y, width, height in _BACKGROUND.findall(backgrounds):
        left, size = float(x), float(width)
        if merged:
            *_, (last_fill, start, last_y, last_size, _) = merged
            if (fill, y) == (last_fill, last_y) and abs(start + last_size - left) < _TOUCHING:
                merged[-1] = (fill, start, y, left + size - start, height)
                continue
        merged.append((fill, left, y, size, height))
    rects = [
        f'<rect fill="{fill}" x="{x:g}" y="{y}" width="{width:g}" height="{height}"/>'
        for fill, x, y, width, height in merged
    ]
    return f'<g shape-rendering="crispEdges">{"".join(rects)}</g>'


def _placed(found: re.Match[str]) -> str:
    """A line with drawn characters as one element per stretch, each at its own place.

    A font without braille borrows it from another one that is wider or narrower: in one long
    element a curve would drift away from its axis.
    """
    name, x, y, length = found[1], float(found[2]), found[3], float(found[4])
    text = unescape(found[5])
    if not any(char >= "\u2500" for char in text):
        return found[0]
    cell = length / max(1, cell_len(text))
    words = [(word.start(), word[0]) for word in _WORD.finditer(text)]
    return "".join(
        f'<text class="{name}" x="{x + cell * cell_len(text[:at]):.6g}" y="{y}" '
        f'textLength="{cell * cell_len(word):.6g}">{escape(word)}</text>'
        for at, word in words
    )
