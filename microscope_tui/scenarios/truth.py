"""The ground truth of a synthetic run: the expected diagnosis."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One fault of the run."""

    rule: str
    routers: tuple[int, ...] = ()
    """Router indices; empty for the whole run."""
    onset: int = 1
    """Step at which the fault begins."""
    until: int | None = None
    """Step at which it ends, if it does."""
    severity: str = "warn"
    """At least this: info, warn, crit, error."""
    experts: tuple[int, ...] = ()
    """Exact ids, where they are known; the same in every router of ``routers``."""
    tolerance: int = 25
    """Steps that a dated onset may be off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """All faults of a run, and which other findings are not false alarms."""

    expected: tuple[Expected, ...] = ()
    allowed: Mapping[str, str] = field(default_factory=dict)
    """Rule → highest severity that is not a false alarm; info never is."""
    profile: str = "pretrain"
    hard_negative: bool = False
    """Looks faulty but is healthy."""
