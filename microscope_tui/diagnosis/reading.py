"""What a rule says about one router at one step, before anybody asks whether it lasts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

WHOLE_RUN = -1
"""Stands in for a router index where the trouble is not one router's (a gradient, a setting)."""

EXACT, PER_STEP = "exact counts", "per-step summaries only"


class Severity(IntEnum):
    """How bad it is. ERROR is a fault of the measurement: no verdict can be trusted."""

    INFO = 1
    WARN = 2
    CRITICAL = 3
    ERROR = 4

    @property
    def label(self) -> str:
        """The word in JSON and on screen."""
        return {1: "info", 2: "warn", 3: "crit", 4: "error"}[self.value]

    @property
    def letter(self) -> str:
        """One letter, so that colour is never the only carrier."""
        return {1: "I", 2: "W", 3: "C", 4: "M"}[self.value]


Fact = float | str | tuple[int, ...]
Facts = Mapping[str, Fact]


@dataclass(frozen=True, slots=True)
class Reading:
    """One evaluation of one rule on one router."""

    severity: Severity | None
    """What this evaluation alone amounts to; ``None`` inside the limits."""
    clear: bool = False
    """Inside the limits by the margin that recovery needs."""
    value: float = 0.0
    limit: float = 0.0
    held: bool = False
    """Evidence too young for an alarm: it mutes other rules, but opens no episode and keeps none
    open."""
    certain: bool = False
    """Evidence enough by itself: no persistence is asked, and no warm-up excuses it."""
    settled: bool = False
    """The router was well before: no warm-up excuses it, but persistence is still asked."""
    facts: Facts = field(default_factory=dict)
    """The numbers that the text needs."""
    confidence: str = EXACT
    since: int | None = None
    """First step of the trouble, where the rule knows better than the persistence."""
    until: int | None = None
    """Step from which on it is over: for what is told after the fact."""


Readings = Mapping[int, Reading | None]
"""By router index. A router that is missing is clear; ``None``: this step says nothing of it."""


def graded(value: float, warn: float, critical: float) -> Severity | None:
    """The severity of a value that is bad when it is high."""
    if value > critical:
        return Severity.CRITICAL
    return Severity.WARN if value > warn else None
