"""Text as a terminal may show it: nothing in it can steer the screen.

Training text, what a model writes, options and names of files all reach somebody's terminal. An
escape sequence in them could clear the screen or write the clipboard, a bidi override could turn
the line around. What a terminal could obey becomes U+FFFD, character by character: so a text that
comes in pieces reads as it does in one.
"""

from __future__ import annotations

import unicodedata

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Control, format (bidi, zero-width), private use, surrogate, unassigned, line separators.
_STEERING_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})
_TO_SPACE = dict.fromkeys(map(ord, "\t\n\r\v\f"), " ")


def plain_text(text: str, *, multi_line: bool = False) -> str:
    """Return ``text`` without what could steer a terminal, as many characters as before.

    Args:
        text: Any string, with lone surrogates too.
        multi_line: Keep line breaks and tabs. Otherwise every whitespace control becomes a space:
            one line in, one line out.
    """
    if not multi_line:
        text = text.translate(_TO_SPACE)
    return "".join(REPLACEMENT if _steers(char) else char for char in text)


def _steers(char: str) -> bool:
    return char not in "\n\t" and unicodedata.category(char) in _STEERING_CATEGORIES
