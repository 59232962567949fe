"""The bytes of tokens as printable pieces: every token has at least one cell, and none can harm.

A character belongs to the token in which it begins; a token that holds only the rest of one, or
nothing, shows ``·``. What a terminal could obey becomes ``�``; a newline is shown, and ends a line.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from microscope_tui.runlog import REPLACEMENT, safe_text

NEWLINE, RETURN, TAB, NOTHING = "↵", "␍", "→   ", "·"
_BASE = "\N{DOTTED CIRCLE}"
_MOST_MARKS = 2
_MOST_BLANKS = 4
_BLANKS = re.compile(" +")
_LONGEST_REST = 3
"""Bytes of a character after its first."""


class Piece(NamedTuple):
    """Printable text of one token."""

    token: int
    text: str
    width: int
    ends_line: bool = False


def pieces_of(
    texts: Sequence[bytes], first: int, before: bytes = b"", after: bytes = b""
) -> list[Piece]:
    """The pieces of the tokens from ``first`` on.

    Args:
        before: the bytes in front of them, which may begin their first character.
        after: the bytes behind them, which may end their last character.
    """
    made: list[Piece] = []
    if all(map(bytes.isascii, (before[-1:], *texts))):  # nothing is split: most texts, much faster
        for number, text in enumerate(texts, first):
            shown = text.decode("ascii")
            plain = shown and shown.isprintable()
            made += [Piece(number, shown, len(shown))] if plain else _of_token(number, shown)
        return made
    for number, chars in _chars_of(texts, before[-_LONGEST_REST:], after[:_LONGEST_REST]):
        made += _of_token(first + number, chars)
    return made


def shown_token(text: bytes, most: int = 24) -> str:
    """A token on its own, for a list: its blanks and newlines are visible."""
    pieces = pieces_of([text], 0)
    joined = "".join(piece.text for piece in pieces).replace(TAB, "→")
    word = joined.strip(f" {NEWLINE}→")
    before, _, after = joined.partition(word) if word else (joined, "", "")
    around = (_BLANKS.sub(_counted, part) for part in (before, after))
    return safe_text(word.join(around), most)


def _counted(blanks: re.Match[str]) -> str:
    """Visible blanks; many are a number, so that two tokens of blanks do not look alike."""
    count = len(blanks[0])
    return "␣" * count if count <= _MOST_BLANKS else f"␣×{count}"


def _chars_of(
    texts: Sequence[bytes], before: bytes, after: bytes
) -> Iterator[tuple[int, list[str]]]:
    """The characters that begin in each token; an invalid byte is a lone surrogate."""
    chars: list[str] = []
    at, ends, number = -len(before), 0, -1
    left = iter(texts)
    for char in (before + b"".join(texts) + after).decode("utf-8", "surrogateescape"):
        while at >= ends:
            if number >= 0:
                yield number, chars
            if (text := next(left, None)) is None:
                return
            number, chars, ends = number + 1, [], ends + len(text)
        if number >= 0:
            chars.append(char)
        at += _size(char)
    for _ in range(number, len(texts)):
        if number >= 0:
            yield number, chars
        number, chars = number + 1, []


def _size(char: str) -> int:
    """Bytes of a character that was decoded with ``surrogateescape``."""
    code = ord(char)
    if code < 0x80 or 0xDC80 <= code <= 0xDCFF:
        return 1
    return 2 if code < 0x800 else 3 if code < 0x10000 else 4


def _of_token(token: int, chars: Sequence[str]) -> Iterator[Piece]:
    """The pieces of one token: one, and one more after each newline in it."""
    text, width, marks, shown = "", 0, 0, False
    for char in chars:
        cell, size = _cell(char)
        if size == 0:
            marks += 1
            if not text:
                text, width = _BASE, 1
            text += cell if marks <= _MOST_MARKS else ""
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
def _cell(char: str) -> tuple[str, int]:
    """What is shown for a character, and its cells; 0 for a mark on the one before."""
    match char:
        case "\n":
            return NEWLINE, 1
        case "\r":
            return RETURN, 1
        case "\t":
            return TAB, len(TAB)
    if unicodedata.category(char) in ("Mn", "Me"):
        return safe_text(_BASE + char, 2)[1:], 0  # a variation selector is left out
    safe = safe_text(char, 2)
    return safe, 2 if unicodedata.east_asian_width(safe[:1] or " ") in "WF" else 1
