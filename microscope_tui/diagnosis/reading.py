"""The reading of a rule on one router at one step, before persistence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

WHOLE_RUN = -1
"""Router index for trouble of the whole run (a gradient, a setting)."""

EXACT, PER_STEP = "exact counts", "per-step summaries only"


class Severity(IntEnum):
    """How bad it is. ERROR is a measurement fault: no verdict can be trusted."""

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
    """Severity of this evaluation alone; ``None`` inside the limits."""
    clear: bool = False
    """Inside the limits by the margin that recovery needs."""
    value: float = 0.0
    limit: float = 0.0
    held: bool = False
    """Evidence too young for an alarm: it mutes other rules, but neither opens nor extends an
    episode.
    """
    certain: bool = False
    """Strong evidence: needs no persistence and ignores the warm-up."""
    settled: bool = False
    """The router was healthy before: ignores the warm-up, but needs persistence."""
    facts: Facts = field(default_factory=dict)
    """The numbers for the text."""
    confidence: str = EXACT
    since: int | None = None
    """First step of the trouble, if the rule can date it better than the persistence."""
    until: int | None = None
    """Step at which it is over, for trouble that is reported afterwards."""


Readings = Mapping[int, Reading | None]
"""By router index. A missing router is clear; ``None``: no evaluation at this step."""


def graded(value: float, warn: float, critical: float) -> Severity | None:
    """The severity of a value for which high is bad."""
    if value > critical:
        return Severity.CRITICAL
    return Severity.WARN if value > warn else None
