"""What a right diagnosis says of a synthetic run."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One trouble that the run really has."""

    rule: str
    routers: tuple[int, ...] = ()
    """Router indices; none for the run as a whole."""
    onset: int = 1
    """Step at which the trouble begins."""
    until: int | None = None
    """Step at which it is over, where it ends."""
    severity: str = "warn"
    """At least this: info, warn, crit, error."""
    experts: tuple[int, ...] = ()
    """Exact ids, where they are known; the same in every router of ``routers``."""
    tolerance: int = 25
    """Steps that a dated onset may be off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """All that is wrong with a run, and what may be said beside it without a false alarm."""

    expected: tuple[Expected, ...] = ()
    allowed: Mapping[str, str] = field(default_factory=dict)
    """Rule → highest severity that is no false alarm; info is none for any rule."""
    profile: str = "pretrain"
    hard_negative: bool = False
    """Looks like trouble and is none."""
