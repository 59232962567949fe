"""Every limit of the diagnosis in one table, each with its evidence.

c is the collapse index of ``measures.py`` (1 even, 0 collapsed on k experts). λ is the number of
assignments an expert can expect in a window, ``tokens × k ÷ E``.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CollapseLimits:
    """Published healthy layers stay at c ≥ 0.42; every publicly collapsed one sits at ≤ 0.04."""

    warn: float = 0.35
    critical: float = 0.15
    leave: float = 0.45
    """Recovery needs a margin, or an episode would flicker at its limit."""
    urgent: float = 0.05
    """So low for ``urgent_steps`` that no warm-up explains it."""
    urgent_steps: int = 50
    window: int = 25
    """Steps whose counts are summed: a bias that swings with period 2 looks collapsed in every
    step and is perfectly even in the sum."""
    evidence: int = 50
    """λ of the summed window below which noise alone lowers c; the window widens up to 200."""
    max_window: int = 200


@dataclass(frozen=True, slots=True)
class DeadLimits:
    """Zero assignments where at least ``evidence`` were expected, in three disjoint windows."""

    evidence: float = 56.0
    """λ of one window. Tokens of one sequence are correlated (overdispersion about 4), so that
    exp(−56 ÷ 4) < 1e-6 is the chance of an honest zero."""
    min_window: int = 8
    max_window: int = 200
    windows: int = 3
    critical_share: float = 0.2
    """Above this share of all experts the capacity that is paid for is gone."""


@dataclass(frozen=True, slots=True)
class DropLimits:
    """A healthy run at capacity factor 1.25 drops 0.5 %; its diverging twin 28 to 56 %."""

    warn: float = 0.05
    critical: float = 0.20
    persistence: int = 25


@dataclass(frozen=True, slots=True)
class MeterLimits:
    """Faults of the measurement are exact, so three steps in a row are enough."""

    persistence: int = 3
    first_steps: int = 8
    """Counts are checked on the first steps, then on three steps in every ``every``."""
    every: int = 61
    forced_balance_evidence: float = 50.0
    """λ from which all counts equal to ±1 cannot be luck."""


WARM_UP_STEPS = 100
WARM_UP_SHARE = 0.02
WARM_UP_MAX = 500
GROUP_STEPS = 100
"""The same trouble starting within so many steps in several layers is one finding."""
ENTER_SHARE = 0.9
"""An alarm needs this share of the last evaluations over its limit."""

COLLAPSE = CollapseLimits()
DEAD = DeadLimits()
DROPS = DropLimits()
METER = MeterLimits()


def warm_up(planned_steps: int | None) -> int:
    """Steps in which routers of healthy runs are still uneven: 100, or 2 % of a long run."""
    return max(WARM_UP_STEPS, int(min(WARM_UP_SHARE * (planned_steps or 0), WARM_UP_MAX)))
