"""What is typed after ``/``: words that a name must hold, words it must not, and globs.

* ``moe 1``: both words stand somewhere in the name; case never matters
* ``!dense``: this word must not
* ``L1*``, ``*.moe``, ``L?``: a word with ``*`` (any characters) or ``?`` (one character) is a glob
  and must equal one of the words of the name, from its beginning to its end
* ``!L1*``: none of them may

Nothing that is typed can hang the screen: a glob is matched without trying one way after the other,
in time proportional to the length of the pattern times that of the name at the worst.
"""

from dataclasses import dataclass
from typing import Self

MOST_CHARACTERS = 100
"""Longer texts are refused."""


@dataclass(frozen=True, slots=True)
class _Term:
    """One condition: a word or a glob, in lower case."""

    wanted: str
    negated: bool

    def holds(self, text: str) -> bool:
        if "*" in self.wanted or "?" in self.wanted:
            found = any(equals_glob(word, self.wanted) for word in text.split())
        else:
            found = self.wanted in text
        return found is not self.negated


@dataclass(frozen=True, slots=True)
class Pattern:
    """A typed filter; an empty one matches everything, and so does one with an error."""

    text: str = ""
    """The typed text; pass it through ``safe_text`` before showing it."""
    error: str = ""
    """Why the filter is invalid; empty if it is valid."""
    terms: tuple[_Term, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``text``; mistakes are in ``error``, never raised."""
        if len(text) > MOST_CHARACTERS:
            return cls(text, f"longer than {MOST_CHARACTERS} characters: shorten it")
        words = ((word.removeprefix("!"), word.startswith("!")) for word in text.casefold().split())
        return cls(text, terms=tuple(_Term(word, negated) for word, negated in words if word))

    def matches(self, text: str) -> bool:
        """All conditions hold for ``text``."""
        folded = text.casefold()
        return all(term.holds(folded) for term in self.terms)


def equals_glob(word: str, glob: str) -> bool:
    """``word`` is what ``glob`` describes: ``*`` any characters, ``?`` one, all others themselves.

    Only the last ``*`` is ever tried again, one character longer each time: the part before it has
    matched as early as it can, so nothing is gained by moving it.
    """
    at = piece = 0
    star = resume = -1
    while at < len(word):
        if piece < len(glob) and glob[piece] == "*":
            star, resume, piece = piece, at, piece + 1
        elif piece < len(glob) and glob[piece] in ("?", word[at]):
            at, piece = at + 1, piece + 1
        elif star >= 0:
            resume += 1
            at, piece = resume, star + 1
        else:
            return False
    return not glob[piece:].strip("*")
