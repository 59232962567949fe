"""Limits of the rules about the balancing, the log and the settings; ``thresholds.py`` has all."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OscillationLimits:
    """Sign updates of a bias that are too large swing the load with a period of 2 to 32 steps.

    A slower swing cannot be told apart from data that comes in blocks of 30 to 40 steps.
    """

    window: int = 64
    every: int = 128
    most: int = 1024
    """Steps between two looks: twice as many after each that showed nothing."""
    amplitude: float = 0.2
    """Standard deviation of an expert's load (a sine of amplitude 0.3 has 0.21)."""
    experts_share: float = 0.3
    agreement: float = 0.35
    """Correlation of the swing with itself one period later, and against itself after half."""
    usual_step: float = 0.95
    """Three groups and more that take turns never disagree as much (−1/3 at most). They count where
    the median step has less than this share of the effective experts of the sum …"""
    overdispersion: float = 4.0
    """… less what counting noise of this variance takes: tokens of one sequence are correlated."""
    recurrence: float = 0.5
    """… and where the swing correlates so well with itself one period later and two, and so much
    better than in between. Irregular blocks of 5 to 15 steps reach 0.35 in 2 of 150 runs."""
    checks: int = 2


@dataclass(frozen=True, slots=True)
class BiasRunawayLimits:
    """The bias grows without end and the load does not follow: it is losing to the router."""

    every: int = 25
    points: int = 21
    """500 steps."""
    straightness: float = 0.98
    """R² of the straight line through max − min of the bias."""
    rate: float = 0.5
    """Slope against the fastest that the update rate allows (two rates a step)."""
    collapse_index: float = 0.8
    rise: float = 0.03
    """c rises less than this meanwhile."""
    persistence: int = 4


@dataclass(frozen=True, slots=True)
class MeterLimits:
    """Faults of the measurement are exact, so three steps are enough."""

    needed: int = 3
    window: int = 10
    leave: int = 3
    first_steps: int = 8
    """Counts are checked on the first steps that hold any, then on three after every ``every``."""
    every: int = 58
    luck: float = 2e-3
    """Chance, in one step, that independent choices give counts that are all equal to ±1."""
    summary_error: float = 0.02
    """The summary of a line may differ by so much from what its own counts say."""


@dataclass(frozen=True, slots=True)
class LintLimits:
    """Settings that are known to spoil a run, read from its header or seen in its steps."""

    floor: float = 0.05
    """An auxiliary loss within this share of its floor k says that all is even …"""
    uneven: float = 0.5
    """… while a layer uses less than this share of its experts …"""
    persistence: int = 25
    """… for so many steps: a loss that is summed up layer by layer only passes through k."""
    aux_weight: float = 0.5
    """gpt-oss ships with 0.9, made for its own training; public recipes fine-tune at 1e-5."""
    sign_uneven: float = 0.85
    """c below which the change of the bias is held against the load …"""
    sign_changes: int = 100
    """… for so many changes; a critically collapsed router needs a third of them …"""
    sign_agreement: float = 0.9
    """… and so much of the load agrees with the change: 1 if every busy expert gains bias, −1 if
    every one loses it, as it should."""
