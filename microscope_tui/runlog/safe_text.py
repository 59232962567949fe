"""Makes untrusted text safe to print; and the one way to count things in a sentence.

A run name can contain an escape sequence that clears the screen or writes the clipboard, a bidi
override that reverses the line, or a thousand combining marks, and terminal toolkits pass them on.
So every string is cleaned once, where it enters, and never interpreted as markup.
"""

import unicodedata

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Control, format (bidi, zero-width), private use, surrogate, unassigned: none may reach a terminal.
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})
_VARIATION_SELECTORS = frozenset(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
_MAX_COMBINING_MARKS = 2  # per cell; more would smear over the neighbouring lines


def safe_text(text: object, max_cells: int = 80) -> str:
    """``text`` as one printable line of at most ``max_cells`` terminal cells.

    Whitespace controls become a space, other characters that a terminal could obey U+FFFD,
    combining marks are capped, and a text that is cut ends in ``…``.
    """
    cells = marks = 0
    out: list[str] = []
    for char in unicodedata.normalize("NFC", str(text)[: max_cells * 8]):
        if char in "\t\n\r\v\f":
            char = " "
        category = unicodedata.category(char)
        selects = char in _VARIATION_SELECTORS
        if selects or category == "Me" or unicodedata.combining(char):  # others may take a cell
            marks += 1
            if out and marks <= _MAX_COMBINING_MARKS and not selects:
                out.append(char)
            continue
        if category in _FORBIDDEN_CATEGORIES:
            char = REPLACEMENT
        marks = 0
        width = cells_of(char)
        if cells + width > max_cells:
            while out and cells > max_cells - 1:
                cells -= cells_of(out.pop())
            out.append("…")
            break
        out.append(char)
        cells += width
    return "".join(out)


def plural(count: int, noun: str, several: str = "") -> str:
    """``1 layer``, ``2 layers``; ``several`` where an s is not enough."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {several or noun + 's'}"


def cells_of(char: str) -> int:
    """Terminal cells of a character; 0 for a mark on the one before."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
