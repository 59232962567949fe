"""The problems of a log, and how many of them are reported.

A writer with one mistake makes it on every line. So the first twenty problems of each class are
reported in full, and the rest as one line with their number: the report stays short.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from microscope_tui.runlog.safe_text import safe_text

Severity = Literal["error", "hint"]

SAID_IN_FULL = 20
_MAX_CLASSES = 500  # far above what the checks name; a bound all the same
_OTHER = "other"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of one line; an ``error`` breaks the format, a ``hint`` does not."""

    line: int
    severity: Severity
    reason: str
    code: str = ""
    """The class of the problem: the same mistake has the same code."""
    count: int = 1
    """Number of problems that this one represents."""


class Problems:
    """Collects the problems of one line after the other."""

    def __init__(self) -> None:
        self.line = 0
        """The current line; the collector adds it to new problems."""
        self._new: list[Problem] = []
        self._seen: Counter[tuple[Severity, str]] = Counter()
        self._last: dict[tuple[Severity, str], Problem] = {}

    def error(self, code: str, reason: str) -> None:
        """The line breaks the format."""
        self._add("error", code, reason)

    def hint(self, code: str, reason: str) -> None:
        """The line is valid, but probably not intended."""
        self._add("hint", code, reason)

    def new(self) -> list[Problem]:
        """Problems added since the last call that are reported in full."""
        problems, self._new = self._new, []
        return problems

    def rest(self) -> Iterator[Problem]:
        """One summary for each class with more problems than are reported in full."""
        for (severity, code), last in self._last.items():
            more = self._seen[severity, code] - SAID_IN_FULL
            reason = f"{more:,} more like the first {SAID_IN_FULL}; the last one: {last.reason}"
            yield Problem(last.line, severity, reason, code, more)

    def _add(self, severity: Severity, code: str, reason: str) -> None:
        key = (severity, code)
        if key not in self._seen and len(self._seen) >= _MAX_CLASSES:
            key = (severity, _OTHER)
        self._seen[key] += 1
        problem = Problem(self.line, severity, reason, key[1])
        if self._seen[key] <= SAID_IN_FULL:
            self._new.append(problem)
        else:
            self._last[key] = problem


def shown(value: Any, max_cells: int = 40) -> str:
    """A value from a log for a message: small ones as JSON, others by their kind."""
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return safe_text(json.dumps(value[: 4 * max_cells], ensure_ascii=False), max_cells)
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length():,} bits"
    return json.dumps(value)
