"""Text that is safe to print on a terminal.

Training text, generated text, options and file names are printed on terminals. An escape sequence
in them could clear the screen or write the clipboard, a bidi override could reverse a line. Every
such character becomes U+FFFD, one by one, so that text printed in pieces looks the same.
"""

from __future__ import annotations

import unicodedata

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Control, format (bidi, zero-width), private use, surrogate, unassigned, line separators.
_STEERING_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})
_TO_SPACE = dict.fromkeys(map(ord, "\t\n\r\v\f"), " ")


def plain_text(text: str, *, multi_line: bool = False) -> str:
    """Replace the characters of ``text`` that could control a terminal; the length stays the same.

    Args:
        text: Any string, including lone surrogates.
        multi_line: Keep line breaks and tabs. Otherwise every whitespace control becomes a space:
            one line in, one line out.
    """
    if not multi_line:
        text = text.translate(_TO_SPACE)
    return "".join(REPLACEMENT if _steers(char) else char for char in text)


def _steers(char: str) -> bool:
    return char not in "\n\t" and unicodedata.category(char) in _STEERING_CATEGORIES
