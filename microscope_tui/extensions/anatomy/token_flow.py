"""The text of a probe as lines of a width: tokens as printable pieces, laid out in chunks.

Every token has at least one cell, and none can harm. A character belongs to the token in which it
begins; a token that holds only the rest of one, or nothing, shows ``·``. A control character
becomes ``�``; a newline is shown, and ends a line. A chunk begins behind the first newline after
every 512th token, or there if none follows: the same tokens are always on the same lines.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from typing import NamedTuple

from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.runlog import safe_text
from microscope_tui.runlog.safe_text import REPLACEMENT

CHUNK = 512
NEWLINE, RETURN, TAB, NOTHING = "↵", "␍", "→   ", "·"
_VISIBLE = {"\n": NEWLINE, "\r": RETURN, "\t": TAB}
_BASE = "\N{DOTTED CIRCLE}"
_MOST_MARKS = 2
_MOST_BLANKS = 4
_BLANKS = re.compile(" +")
_LONGEST_REST = 3
"""Bytes of a character after its first."""
_MOST_CHUNKS = 64
_MOST_BYTES = 256
"""Bytes of one token that are shown."""


class Piece(NamedTuple):
    """A token, or the part of it up to a newline, as it is printed."""

    token: int
    """Its number in the text."""
    text: str
    width: int
    """Terminal cells, at least one."""
    ends_line: bool = False
    """Whether it ends in a newline."""


def pieces_of(
    texts: Sequence[bytes], first: int, before: bytes = b"", after: bytes = b""
) -> list[Piece]:
    """``before`` and ``after``: bytes around them, maybe parts of their characters."""
    before, after = before[-_LONGEST_REST:], after[:_LONGEST_REST]
    starts = list(accumulate(map(len, texts), initial=len(before)))
    chars, at = [""] * len(texts), 0
    # An invalid byte is a lone surrogate.
    for char in (before + b"".join(texts) + after).decode("utf-8", "surrogateescape"):
        number = bisect_right(starts, at) - 1  # the token in which it begins
        if 0 <= number < len(texts):
            chars[number] += char
        at += len(char.encode("utf-8", "surrogateescape"))
    return [piece for number, own in enumerate(chars, first) for piece in _of_token(number, own)]


def shown_token(text: bytes, most: int = 24) -> str:
    """A token for a list: its blanks and newlines are visible."""
    pieces = pieces_of([text], 0)
    joined = "".join(piece.text for piece in pieces).replace(TAB, "→")
    word = joined.strip(f" {NEWLINE}→")
    at = joined.find(word)
    around = (_BLANKS.sub(_counted, part) for part in (joined[:at], joined[at + len(word) :]))
    return safe_text(word.join(around), most)


def _counted(blanks: re.Match[str]) -> str:
    """Visible blanks; many are a number, so that two tokens of blanks do not look alike."""
    count = len(blanks[0])
    return "␣" * count if count <= _MOST_BLANKS else f"␣×{count}"


def _of_token(token: int, chars: str) -> Iterator[Piece]:
    """The pieces of one token: one, and one more after each newline in it."""
    text, width, marks, shown = "", 0, 0, False
    for char in chars:
        cell, size = _shown(char)
        if size == 0:
            marks += 1
            if not text:
                text, width = _BASE, 1
            if marks <= _MOST_MARKS:
                text += cell
            continue
        marks = 0
        if cell == REPLACEMENT and text.endswith(REPLACEMENT):
            continue  # a run of bytes that are not text
        text, width = text + cell, width + size
        if char == "\n":
            yield Piece(token, text, width, ends_line=True)
            text, width, shown = "", 0, True
    if text or not shown:
        yield Piece(token, text or NOTHING, width or 1)


@lru_cache(maxsize=1 << 14)
def _shown(char: str) -> tuple[str, int]:
    """What is shown for a character, and its ``_cells``."""
    if char in _VISIBLE:
        shown = _VISIBLE[char]
        return shown, len(shown)
    if not _cells(char):
        return safe_text(_BASE + char, 2)[1:], 0  # a variation selector is left out
    safe = safe_text(char, 2)
    return safe, _cells(safe[:1]) or 1


def _cells(char: str) -> int:
    """Cells of a character; 0 for a mark on the one before."""
    if not char or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


@dataclass(frozen=True, slots=True)
class TextLine:
    """Pieces, or the slice that begins below it."""

    first: int
    """Number of the token of its first piece."""
    pieces: tuple[Piece, ...] = ()
    slice_number: int | None = None
    """Of a line that only announces a slice."""


@dataclass(frozen=True, order=True, slots=True)
class Place:
    """A line of the text; the order of places is that of the lines."""

    chunk: int
    line: int
    """In the chunk."""


class Flow:
    """The text of a probe in lines of ``width`` cells; only chunks that are needed are laid out."""

    def __init__(self, routing: Routing, width: int) -> None:
        self.routing, self.width = routing, max(2, width)
        self._last = max(0, routing.tokens - 1) // CHUNK
        self._lines = lru_cache(_MOST_CHUNKS)(self._laid_out)
        self._start = cache(self._start_of)

    def place_of(self, token: int) -> Place:
        """The line on which a token begins."""
        chunk = min(self._last, token // CHUNK)
        if token < self._start(chunk):
            chunk -= 1
        lines = self._lines(chunk)
        at = max(0, bisect_right(lines, token, key=lambda line: line.first) - 1)
        while at > 0 and (above := lines[at - 1].pieces) and above[-1].token == token:
            at -= 1  # the rest of a token that begins on the line above
        return Place(chunk, at)

    def moved(self, place: Place, by: int) -> Place:
        """So many lines further down, or up if negative; not beyond the ends of the text."""
        chunk, line = place.chunk, place.line + by
        while line < 0 and chunk > 0:
            chunk -= 1
            line += len(self._lines(chunk))
        while chunk < self._last and line >= (count := len(self._lines(chunk))):
            line -= count
            chunk += 1
        return Place(chunk, max(0, min(line, len(self._lines(chunk)) - 1)))

    def shown(self, top: Place, rows: int) -> list[TextLine]:
        """The lines from ``top`` on, at most ``rows``."""
        found: list[TextLine] = []
        chunk, line = top.chunk, top.line
        while len(found) < rows and chunk <= self._last:
            found += self._lines(chunk)[line : line + rows - len(found)]
            chunk, line = chunk + 1, 0
        return found

    def scrolled(self, top: Place, place: Place, rows: int) -> Place:
        """The top line with which ``place`` is in view, if near by few lines."""
        if (below := self.between(top, place, 2 * rows)) is not None:
            if below >= rows:
                top = self.moved(top, below - rows + 1)
        elif self.between(place, top, rows) is not None:
            top = place
        else:
            top = self.moved(place, -(rows // 3))
        missing = rows - len(self.shown(top, rows))
        return self.moved(top, -missing) if missing else top

    def token_below(self, token: int, by: int) -> int:
        """The token in the same column ``by`` lines below, or above."""
        place = self.place_of(token)
        column = 0
        for piece in self._lines(place.chunk)[place.line].pieces:
            if piece.token == token:
                break
            column += piece.width
        there = self.moved(place, by)
        line = self._lines(there.chunk)[there.line]
        if not line.pieces:  # the name of a slice: the line beyond it
            there = self.moved(there, 1 if by > 0 else -1)
            line = self._lines(there.chunk)[there.line]
        found = line.first
        for piece in line.pieces:
            if sum(p.width for p in line.pieces if p.token < piece.token) <= column:
                found = piece.token
        return max(found, token + 1) if by > 0 else min(found, token - 1)

    def between(self, top: Place, place: Place, most: int) -> int | None:
        """Lines down to ``place``; ``None`` above ``top``, or ``most`` and more below."""
        if place < top:
            return None
        lines = -top.line
        for chunk in range(top.chunk, place.chunk):
            lines += len(self._lines(chunk))
            if lines >= most:
                return None
        return lines + place.line if lines + place.line < most else None

    def _start_of(self, chunk: int) -> int:
        first = chunk * CHUNK
        texts = self.routing.text(first, first + CHUNK, _MOST_BYTES) if chunk else []
        ends = (first + at + 1 for at, text in enumerate(texts) if text.endswith(b"\n"))
        return next(ends, first)

    def _laid_out(self, chunk: int) -> list[TextLine]:
        routing, start = self.routing, self._start(chunk)
        end = self._start(chunk + 1) if chunk < self._last else routing.tokens
        if start >= end:
            return []
        texts = routing.text(start, end, _MOST_BYTES)
        before = b"".join(routing.text(max(0, start - 3), start, _MOST_BYTES))
        after = b"".join(routing.text(end, end + 3, _MOST_BYTES))
        offset = max(0, start - 1)
        slices = routing.slices_of(offset, end)
        known = slices[0] if start else None
        lines: list[TextLine] = []
        block: list[Piece] = []
        for piece in pieces_of(texts, start, before, after):
            here = slices[piece.token - offset]
            if here != known:
                lines += wrapped(block, self.width)
                lines.append(TextLine(piece.token, slice_number=here))
                block, known = [], here
            block.append(piece)
        return [*lines, *wrapped(block, self.width)]


def wrapped(pieces: Sequence[Piece], width: int) -> list[TextLine]:
    """Lines of at most ``width`` cells, broken between words where a word fits."""
    lines: list[TextLine] = []
    line: list[Piece] = []
    used = 0

    def end() -> None:
        nonlocal line, used
        if line:
            lines.append(TextLine(line[0].token, tuple(line)))
        line, used = [], 0

    for word in _words(pieces):
        wide = sum(piece.width for piece in word)
        if used + wide > width >= wide:
            end()
        for piece in word:
            for part in _parts(piece, width - used, width):
                if used + part.width > width:
                    end()
                line.append(part)
                used += part.width
        if word[-1].ends_line:
            end()
    end()
    return lines


def _words(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """A word begins at a blank; every wide piece is one."""
    word: list[Piece] = []
    for piece in pieces:
        breaks = piece.text[0] == " " or piece.width == 2 * len(piece.text)
        if word and (breaks or word[-1].ends_line or word[-1].text[-1] == " "):
            yield word
            word = []
        word.append(piece)
    if word:
        yield word


def _parts(piece: Piece, room: int, width: int) -> Iterator[Piece]:
    """A piece, or what of it fits into ``room`` cells and then into lines of ``width``."""
    if piece.width <= width:
        yield piece
        return
    text, used = "", 0
    for char in piece.text:
        size = _cells(char)
        if size and text and used + size > max(2, room):
            yield Piece(piece.token, text, used)
            text, used, room = "", 0, width
        text, used = text + char, used + size
    yield Piece(piece.token, text, used, piece.ends_line)
