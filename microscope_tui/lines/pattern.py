"""What is typed after ``/``: words that a name must hold, words it must not, regular expressions.

* ``moe 1``: both words stand somewhere in the name; case never matters
* ``!dense``: this word must not
* ``/^L1\\d$/``: a regular expression; it may hold blanks and slashes, and ends with a slash before
  a blank or the end of the text. While the closing slash is not typed yet, all the rest is meant.
* ``!/…/``: it must not be found

A regular expression must not hang the screen, whatever the names are. ``re`` tries one way to
match after the other, so the ways are counted beforehand: ``?`` is 2 ways, ``{2,5}`` is 4, ``*``
and ``+`` are 100; branches of ``|`` add up, what stands side by side multiplies. More than 30,000
are refused, so two endless repeats are allowed and three are not. So is every repeat of a group
that holds a repeat, ``?`` or ``|`` itself, however harmless.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from microscope_tui.runlog.safe_text import safe_text

MOST_CHARACTERS = 100
"""A longer text is refused."""
LOOKED_AT = 200
"""Characters of a name that a regular expression sees; words are sought in all of it."""
_ENDLESS = 100  # ways of one endless repeat: two of them share the characters
_MOST_WAYS = 30_000
_TOKEN = re.compile(
    r"(?P<special>\(\?(?!:)|\\[1-9])"
    r"|(?P<atom>\\.|\[\^?\]?(?:\\.|[^\]\\])*\])"  # an escape, a class: nothing in it repeats
    r"|(?P<repeat>(?:[*+?]|\{(?:\d+|\d*,\d*)\})[?+]?)"
    r"|(?P<open>\((?:\?:)?)|(?P<close>\))|(?P<branch>\|)|.",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _Term:
    """One condition: a word in lower case, or a regular expression."""

    wanted: str | re.Pattern[str]
    negated: bool

    def holds(self, text: str) -> bool:
        if isinstance(self.wanted, str):
            return (self.wanted in text.casefold()) is not self.negated
        return (self.wanted.search(text[:LOOKED_AT]) is not None) is not self.negated


@dataclass(frozen=True, slots=True)
class Pattern:
    """A typed filter; an empty one matches everything, and so does one with an error."""

    text: str = ""
    """As it was typed: not safe to show as it is."""
    error: str = ""
    """Why it does not filter, in few words; empty where it does."""
    terms: tuple[_Term, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The filter that ``text`` means; a mistake in it is told by ``error``, never raised."""
        if len(text) > MOST_CHARACTERS:
            return cls(text, f"longer than {MOST_CHARACTERS} characters: shorten it")
        try:
            return cls(text, terms=tuple(_terms(text)))
        except _Refused as refusal:
            return cls(text, str(refusal))

    def matches(self, text: str) -> bool:
        """All conditions hold for ``text``."""
        return all(term.holds(text) for term in self.terms)


class _Refused(ValueError):
    """A regular expression that is malformed, or might take for ever."""


def _terms(text: str) -> Iterator[_Term]:
    rest = text.lstrip()
    while rest:
        negated = rest.startswith("!")
        rest = rest[negated:]
        if rest.startswith("/"):
            body, rest = _until_slash(rest[1:])
            if body.strip():  # else it is only begun
                yield _Term(_regex(body), negated)
        else:
            word = re.match(r"\S*", rest)[0]  # type: ignore[index]
            rest = rest[len(word) :]
            if word:
                yield _Term(word.casefold(), negated)
        rest = rest.lstrip()


def _until_slash(text: str) -> tuple[str, str]:
    """The regular expression that ``text`` begins with, and what follows it."""
    found = re.match(r"((?:\\.|[^\\])*?)/(?=\s|$)", text, re.DOTALL)
    return (found[1], text[found.end() :]) if found else (text, "")


def _regex(body: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():  # a warning on standard error would ruin the screen
            warnings.simplefilter("ignore")
            compiled = re.compile(body, re.IGNORECASE)
    except re.error as error:
        raise _Refused(f"no regular expression: {safe_text(error.msg, 60)}") from None
    except (OverflowError, RecursionError):
        raise _Refused("no regular expression: too large a number, or too deep") from None
    if _ways(body) > _MOST_WAYS:
        raise _Refused("too many * + { ? | in one expression: make several, /a.*b/ /c/")
    return compiled


def _ways(body: str) -> int:
    """In how many ways a well-formed expression can match from one place, at the most."""
    groups = [_Group()]
    for token in _TOKEN.finditer(body):
        kind, group = token.lastgroup, groups[-1]
        if kind == "special":
            raise _Refused(f"{token[0]} is not understood here: groups are ( and (?: only")
        if kind == "open":
            groups.append(_Group())
        elif kind == "close":
            inner = groups.pop()
            groups[-1].add(inner.total, inner)
        elif kind == "branch":
            group.branch()
        elif kind == "repeat":
            group.repeat(token["repeat"])
        else:
            group.add(1)
    return groups[0].total


class _Group:
    """The ways through one group, counted as its parts come."""

    def __init__(self) -> None:
        self.chooses = False
        self._finished = 0  # the branches before this one
        self._before = self._last = 1  # this branch up to its last part, and that part
        self._last_group: _Group | None = None

    @property
    def total(self) -> int:
        return self._finished + self._before * self._last

    def add(self, ways: int, group: "_Group | None" = None) -> None:
        self._before *= self._last
        self._last, self._last_group = ways, group
        self.chooses |= group is not None and group.chooses

    def branch(self) -> None:
        self._finished, self._before, self._last = self.total, 1, 1
        self.chooses = True

    def repeat(self, quantifier: str) -> None:
        group = self._last_group
        if group is not None and group.chooses:
            raise _Refused("a repeated group must hold no repeat, ? or | itself")
        self._last, self.chooses = _times(quantifier, of_group=group is not None), True


def _times(quantifier: str, *, of_group: bool) -> int:
    """In how many ways a quantifier can be met; a group is work even where it is one way."""
    if quantifier[0] == "?":
        return 2
    if quantifier[0] in "*+":
        return _ENDLESS
    low, comma, high = quantifier.rstrip("?+").strip("{}").partition(",")
    least = int(low or 0)
    most = int(high or least)
    if max(least, most) > LOOKED_AT:
        raise _Refused(f"a repeat is at most {LOOKED_AT} times: only so much is looked at")
    if comma and not high:
        return _ENDLESS
    return most - (0 if of_group else least) + 1
