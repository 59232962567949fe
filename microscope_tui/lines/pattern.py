"""The filter typed after ``/``: words that a name must contain, words it must not, and globs.

* ``moe 1``: both words are somewhere in the name; case never matters
* ``!dense``: the name must not contain this word
* ``L1*``, ``*.moe``, ``L?``: a word with ``*`` (any characters) or ``?`` (one character) is a glob
  and must equal one of the words of the name, from its beginning to its end
* ``!L1*``: no word of the name may match

Nothing that is typed can hang the screen: since Python 3.11 ``fnmatch`` never backtracks into
what a ``*`` has matched.
"""

from fnmatch import fnmatchcase
from typing import Self

import msgspec

MOST_CHARACTERS = 100
"""Longer texts are refused."""


class Pattern(msgspec.Struct, frozen=True):
    """A typed filter; an empty or invalid one matches everything."""

    text: str = ""
    """The typed text; pass it through ``safe_text`` before showing it."""
    error: str = ""
    """Why the filter is invalid; empty if it is valid."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``text``; mistakes are in ``error``, never raised."""
        if len(text) > MOST_CHARACTERS:
            return cls(text, f"longer than {MOST_CHARACTERS} characters: shorten it")
        return cls(text)

    def matches(self, text: str) -> bool:
        """All conditions hold for ``text``."""
        folded = text.casefold()
        words = () if self.error else self.text.casefold().split()
        return all(_holds(word, folded) for word in words if word != "!")


def _holds(word: str, text: str) -> bool:
    """One condition: a word or a glob, negated or not."""
    wanted = word.removeprefix("!")
    if "*" in wanted or "?" in wanted:
        glob = wanted.replace("[", "[[]")  # no set of characters
        found = any(fnmatchcase(part, glob) for part in text.split())
    else:
        found = wanted in text
    return found is not word.startswith("!")
